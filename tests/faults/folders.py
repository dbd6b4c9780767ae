"""What is on disk: compared, and after a loss of power."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

TIMES = ("tokens_per_second", "seconds", "seal")
"""what tells how long something took, or is computed from that: the only things that differ between two runs"""


def content(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a cache, by its path; without measured times and what is kept for speed alone."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder / "baselines")
    return {str(path.relative_to(folder)): _sum(path) for path in files}


def _sum(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "run.json":
        data = json.dumps(_timeless(json.loads(data))).encode()
    elif path.suffix == ".safetensors" and "activations" not in path.parts:
        header, data = _header(data)
        state = _timeless(_state(header)) if path.name == "checkpoint.safetensors" else None
        data = json.dumps([header, state], sort_keys=True).encode() + data
    return hashlib.sha256(data).hexdigest()


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


def _state(header: dict[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint's header, taken out of it."""
    return json.loads(header.pop("__metadata__")["state"])


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def checkpointed(run: Path) -> int:
    """The step of a run's checkpoint; 0 where there is none."""
    path = run / "checkpoint.safetensors"
    return _state(_header(path.read_bytes())[0])["step"] if path.exists() else 0


def shards(store: Path) -> dict[str, tuple[int, int]]:
    """Of each shard under its own name, what tells whether it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.glob("[0-9]*.safetensors")}


def lose_power(trace: Path, names: bool) -> None:
    """What a computer may find after its power was cut where a traced process was killed.

    Args:
        trace: the process's operations on files that were not there before; the last one is where it was killed.
        names: new names are lost whose folder was not flushed; else what was written to a file and not flushed.
    """
    written, flushed = dict[str, int](), dict[str, int]()
    unnamed, named = set[str](), set[str]()
    *done, last = [line.split("\t") for line in trace.read_text(encoding="utf-8").splitlines()]
    for operation, path, to, number in [*done, *([last] if last[0] == "write" else [])]:
        if operation == "open":
            unnamed |= {path} - named
            if int(number) or path not in written:  # made, or emptied
                written[path] = flushed[path] = 0
        elif operation == "write":
            written[path] += int(number)
        elif operation == "fsync":
            if path in written:
                flushed[path] = written[path]
            named |= {name for name in unnamed if str(Path(name).parent) == path}
            unnamed -= named
        elif operation == "mkdir":
            unnamed |= {path}
        elif operation == "rename" and path in written:
            written[to], flushed[to] = written.pop(path), flushed.pop(path)
            unnamed = unnamed - {path} | ({to} - named)
    for path in map(Path, unnamed if names else written):
        if names and path.is_dir():
            shutil.rmtree(path)
        elif names:
            path.unlink(missing_ok=True)
        elif path.exists() and written[str(path)] > flushed[str(path)]:
            os.truncate(path, flushed[str(path)])
