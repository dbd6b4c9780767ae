"""A hub on the loopback: the endpoints of the Hugging Face hub that push and pull go through, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_writer"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Hub:
    """Repositories as `files[repo][branch] = {path: bytes}`; `large` are the paths that it keeps with LFS."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.read_only: set[str] = set()
        self.messages: list[str] = []
        self.cards: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: str = ""
        self.status: int = 0
        self.endpoint = ""

    def put(self, repo: str, **files: bytes) -> None:
        """Files of a repository, as if somebody had pushed them."""
        self.files.setdefault(repo, {"main": {}})["main"] |= files

    def commit(self, repo: str, branch: str) -> str:
        """The name of a branch's state."""
        digest = hashlib.sha1(repr((repo, sorted(self.files[repo][branch].items()))).encode())
        return digest.hexdigest()

    def at(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files at a branch or a commit."""
        branches = self.files.get(repo, {})
        found = [files for branch, files in branches.items() if revision in (branch, self.commit(repo, branch))]
        return found[0] if found else None


def blob(content: bytes) -> str:
    """git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(path: str, content: bytes) -> dict[str, Any]:
    """What the hub tells of a file."""
    told: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob(content)}
    if path.endswith(".safetensors"):
        told["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
    return told


class Handler(BaseHTTPRequestHandler):
    """Answers the hub's client."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        torn = bool(self.hub.cut) and self.hub.cut in self.path
        self.wfile.write(content[: len(content) // 2] if torn else content)
        self.close_connection = self.close_connection or torn

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def allowed(self, repo: str, write: bool) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token != TOKEN:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo in self.hub.private and not token:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif write and repo in self.hub.read_only:
            self.refuse(403, "", "You don't have the rights to create a model under this namespace")
        else:
            return True
        return False

    def go(self) -> None:
        path = self.path.split("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        size = int(self.headers.get("Content-Length") or 0)
        # An upload comes in pieces, without its length.
        body = self.rfile.read(size) if size else self.pieces()
        if self.hub.status:
            self.answer(self.hub.status, {"error": "busy"})
            return
        for method, pattern, do in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                do(self, body, **match.groupdict())
                return
        self.refuse(404, "RepoNotFound", f"no endpoint {path}")

    do_GET = do_POST = do_PUT = do_HEAD = go

    def pieces(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if not self.allowed(repo, write=False):
            return
        if repo not in self.hub.files:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif (files := self.hub.at(repo, revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            branch = next(b for b, there in self.hub.files[repo].items() if there is files)
            siblings = [sibling(path, content) for path, content in files.items()]
            private = repo in self.hub.private
            self.answer(
                200, {"id": repo, "sha": self.hub.commit(repo, branch), "private": private} | {"siblings": siblings}
            )

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.allowed(repo, write=True):
            return
        if repo in self.hub.files:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo}"})
            return
        self.hub.put(repo)
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repo)
        self.answer(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        if self.allowed(repo, write=True):
            there = revision in self.hub.files[repo]
            self.hub.files[repo].setdefault(revision, dict(self.hub.files[repo]["main"]))
            self.answer(409 if there else 200, {"error": "there"} if there else {})

    def validate(self, body: bytes) -> None:
        self.hub.cards.append(json.loads(body)["content"])
        self.answer(200, {"errors": [], "warnings": []})

    def modes(self, body: bytes, repo: str, revision: str) -> None:
        if self.allowed(repo, write=True):
            mode = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            o | {"actions": {"upload": {"href": f"{self.hub.endpoint}/put/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploads[oid] = body
        self.answer(200, {})

    def save(self, body: bytes, repo: str, revision: str) -> None:
        if not self.allowed(repo, write=True):
            return
        lines = [json.loads(line) for line in body.splitlines()]
        files = self.hub.files[repo][revision]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        oid = self.hub.commit(repo, revision)
        self.answer(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        if not self.allowed(repo, write=False):
            return
        files = self.hub.at(repo, revision) or {}
        if path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        told = sibling(path, files[path])
        etag = told["lfs"]["sha256"] if "lfs" in told else told["blobId"]
        self.answer(200, files[path], ETag=f'"{etag}"', X_Repo_Commit=revision)


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", rf"/api/models/{REPO}/branch/(?P<revision>[^/]+)", Handler.branch),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", Handler.modes),
    ("POST", rf"/{REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/put/(?P<oid>\w+)", Handler.put),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", Handler.save),
    ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the body runs, at `endpoint`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
