"""A folder behind a URL that fsspec reaches (s3://, gs://, file://, memory://, http://, …), and errors as one line.

Credentials come from where fsspec and its backends look for them, the environment and their own config files: never
from a URL, since URLs are written into configs.
"""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hsae.errors import UserError, choices, one_line
from hsae.files import replacing

T = TypeVar("T")

PATIENCE = 60.0
"""seconds after which what fails is not tried again; backends have retries of their own within"""
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""seconds between tries; the last stands for all that follow"""
# Errors of a server or of the way to it, by the names of their classes: the backends that raise them may be absent.
PASSING = {"OSError", "TimeoutError", "EOFError", "ConnectionError", "HTTPClientError", "ClientError"}
PASSING |= {"FlexibleChecksumError"}  # botocore's, where the bytes are not those that the server summed up
FINAL = (
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
    NotImplementedError,
)
FINAL_NUMBERS = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
LOGINS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}


class TooLarge(Exception):
    """A file goes on after the most that it should have."""


class Place:
    """A folder behind a URL. Nothing is asked of it before the first use.

    Args:
        url: the folder's.
        patience: seconds after which what fails is not tried again.

    Attributes:
        url: without the slash at its end.
        name: its last part, as a folder's name.

    Raises:
        UserError: the URL holds a password or a query, or names no folder.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        # Before a web server's name even a user alone is a token; elsewhere it may be a part of the address.
        if re.search(r"://[^/@]*:[^/]*@|^https?://[^/]*@", url):
            hidden = re.sub(r"://[^/]*@", "://…@", url)
            raise UserError(f"{hidden}: a URL must hold no password or token, since it is kept; use the environment")
        if "?" in url:
            hidden = url.partition("?")[0]
            raise UserError(f"{hidden}?…: a URL must hold no query, since it is kept; name the folder alone")
        if not url.partition("://")[2].strip("/"):
            raise UserError(f"{url}: names no folder; write it as in s3://bucket/folder")
        self.url, self.patience = url.rstrip("/"), patience
        self.protocol = url.partition("://")[0].split("::")[-1].lower()
        self.name = re.sub(r"[^\w.+-]", "-", self.url.rpartition("/")[2]).lstrip(".") or "store"

    @cached_property
    def _at(self) -> tuple[Any, str]:
        """(the file system, the folder's path in it)."""
        import fsspec

        try:
            # Another machine may be writing there, so no list of what was there before.
            fs, path = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            own = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(self.protocol)
            mend = f"{own} is not installed: pip install 'hsae[remote]'" if own else one_line(error)
            raise UserError(f"{self.url}: {mend}") from None
        except ValueError as error:
            if self.protocol in fsspec.available_protocols():
                raise UserError(f"{self.url}: {one_line(error)}") from None
            known = choices(self.protocol, fsspec.available_protocols())
            raise UserError(f"{self.url}: fsspec knows no protocol {self.protocol!r}; {known}") from None
        except Exception as error:
            self._explain(error, self.url)
        return fs, path.rstrip("/")

    def get(self, name: str, to: Path, most: int) -> None:
        """Download a file.

        Args:
            name: its path in the folder.
            to: where to; overwritten.
            most: bytes that it may have.

        Raises:
            FileNotFoundError: it is not there.
            TooLarge: it is larger.
            UserError: no permission, no credentials, no answer, no room on the disk.
        """

        from fsspec.callbacks import Callback

        def bounded(size: int | None, value: int, **_: Any) -> None:
            if max(size or 0, value) > most:
                raise TooLarge

        fs, path = self._at
        self._try(name, lambda: fs.get_file(f"{path}/{name}", str(to), callback=Callback(hooks={"most": bounded})))
        if to.stat().st_size > most:  # not every file system calls back
            raise TooLarge

    def put(self, file: Path, name: str) -> None:
        """Upload a file; a reader sees the whole file, or what was there before.

        Raises:
            UserError: no bucket, no permission, no credentials, no answer.
        """
        if self.protocol in ("http", "https"):  # fsspec would POST it
            raise UserError(f"{self.url}: a web server can be read but not written; name an object store")
        fs, path = self._at
        try:
            if "file" in (self.protocol, fs.protocol):
                (Path(path) / name).parent.mkdir(parents=True, exist_ok=True)
                with replacing(Path(path) / name) as aside:
                    shutil.copyfile(file, aside)
            else:
                self._try(name, lambda: fs.put_file(str(file), f"{path}/{name}"))
        except OSError as error:
            self._explain(error, f"{self.url}/{name}")

    def files(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files right in the folder, or in one within it, by name. Empty if it is not there.

        Raises:
            UserError: no bucket, no permission, no credentials, no answer.
        """
        fs, path = self._at
        within = f"{path}/{folder}".rstrip("/")
        try:
            found = self._try(folder, lambda: fs.ls(within, detail=True))
        except FileNotFoundError:
            return {}
        sizes = {str(e["name"]).rpartition("/")[2]: int(e.get("size") or 0) for e in found if e["type"] == "file"}
        return {name: size for name, size in sizes.items() if name}

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of small files, at once; those that are not there are left out."""
        fs, path = self._at
        paths = {f"{path}/{name}": name for name in names}

        def read() -> dict[str, bytes]:
            found = fs.cat(list(paths), on_error="return") if paths else {}
            bad = [e for e in found.values() if isinstance(e, Exception) and not isinstance(e, FileNotFoundError)]
            if bad:
                raise bad[0]
            return {paths[key]: data for key, data in found.items() if isinstance(data, bytes)}

        return self._try("", read)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""
        fs, path = self._at
        for name in names:
            with suppress(FileNotFoundError):
                self._try(name, lambda name=name: fs.rm_file(f"{path}/{name}"))

    def _try(self, name: str, work: Callable[[], T]) -> T:
        """Do it, again and again while the error may pass and patience lasts."""
        began = time.monotonic()
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                return work()
            except (FileNotFoundError, TooLarge):
                raise
            except Exception as error:
                if not passes(error) or time.monotonic() - began + pause > self.patience:
                    self._explain(error, f"{self.url}/{name}".rstrip("/"))
                time.sleep(pause)
        raise AssertionError  # the pauses have no end

    def _explain(self, error: Exception, where: str) -> NoReturn:
        """The error as one line.

        Raises:
            UserError: always.
        """
        kind, said = type(error).__name__, one_line(error, 160)
        if "redential" in kind or kind in ("ProfileNotFound", "RefreshError", "TokenRetrievalError"):
            login = LOGINS.get(self.protocol, "see fsspec's documentation of this protocol")
            line = f"no credentials ({said}); {login}"
        elif isinstance(error, PermissionError) or _status(error) in (401, 403):
            line = f"permission denied ({said}); check which credentials the environment holds, and what they allow"
        elif isinstance(error, FileNotFoundError):
            line = f"not there ({said})"
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            line = "no room on the disk; HSAE_CACHE sets where the cache is, HSAE_REMOTE_CACHE_MIB how large it gets"
        elif isinstance(error, NotImplementedError):
            line = f"{self.protocol}:// can be read but not written"
        elif passes(error):
            line = f"no good answer within {self.patience:.0f} s ({said}); check the address, or try again later"
        else:
            line = f"{kind}: {said}"
        raise UserError(f"{where}: {line}") from None


def passes(error: Exception) -> bool:
    """Whether an error may go away by itself."""
    if (status := _status(error)) is not None:
        return status >= 500 or status in (408, 425, 429)
    if isinstance(error, FINAL) or (isinstance(error, OSError) and error.errno in FINAL_NUMBERS):
        return False
    return any(kind.__name__ in PASSING for kind in type(error).__mro__)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error tells of."""
    found = getattr(error, "status", None) or getattr(error, "code", None)
    return found if isinstance(found, int) else None
