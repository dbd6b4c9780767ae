"""Commands as real processes, to be killed, stopped or failed (see `server.py` and `shim.c`)."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
# Seconds after which a command hangs: many times what the longest here takes.
LIMIT = 120.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; the negative number of the signal that killed it.
        said: its output and its errors.
    """

    code: int
    seconds: float
    said: str


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a process (needs `Forks(shim=True)`).

    Attributes:
        at: the number of the file operation that goes wrong, from 1; 0 for none.
        what: the errno that it fails with; -SIGKILL kills the process there, half-way through where it is a write.
        clock: seconds that the system's clock jumps, ahead and back, each time it is asked.
        trace: where to write a line for each file operation.
    """

    at: int = 0
    what: int = -signal.SIGKILL
    clock: int = 0
    trace: Path | None = None


class Forks:
    """A server that forks a process for each command, one at a time.

    Args:
        folder: for its own files.
        shim: start it with the shim, which `Fault` needs and which needs a C compiler.
    """

    def __init__(self, folder: Path, shim: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out = folder / "out.txt"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        if shim:
            library = folder / "shim.so"
            subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
            environment["LD_PRELOAD"] = str(library)
        server = [sys.executable, str(HERE / "server.py")]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(server, env=environment, cwd=folder, stdin=pipe, stdout=pipe, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the server."""
        with self._server as server:
            assert server.stdin is not None
            server.stdin.close()

    def __call__(
        self,
        *words: str,
        cache: Path,
        after: float | None = None,
        send: int = signal.SIGKILL,
        fault: Fault | None = None,
        settings: Mapping[str, float] | None = None,
    ) -> Ended:
        """Run `hsae` with these words to its end.

        Args:
            words: after `hsae`.
            cache: $HSAE_CACHE, absolute, and the working folder.
            after: seconds after which the process gets the signal `send`; None: never.
            fault: what goes wrong in it, under the cache's folder.
            settings: constants of modules, by their place, that are others in this process.
        """
        order = {
            "words": words,
            "cache": str(cache),
            "out": str(self._out),
            "after": after,
            "signal": int(send),
            "limit": LIMIT,
            "settings": settings or {},
            "fault": fault
            and {
                "under": str(cache),
                "at": fault.at,
                "what": int(fault.what),
                "clock": fault.clock,
                "trace": str(fault.trace or ""),
            },
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        said = self._out.read_text(encoding="utf-8", errors="replace")
        assert not answer["hung"], f"hsae {' '.join(words)} did not end in {LIMIT} s:\n{said}"
        assert "Traceback" not in said, f"hsae {' '.join(words)}:\n{said}"
        return Ended(answer["code"], answer["seconds"], said)


class Crew:
    """Several servers, which do the trials of a test between them.

    Args:
        folder: for their files.
        size: how many.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._all = [Forks(folder / str(i), shim=COMPILER is not None) for i in range(size)]
        self._idle: queue.SimpleQueue[Forks] = queue.SimpleQueue()
        for forks in self._all:
            self._idle.put(forks)

    def close(self) -> None:
        """End them."""
        for forks in self._all:
            forks.close()

    def each(self, trial: Callable[[Forks, Any], T], cases: Iterable[Any]) -> list[T]:
        """What every trial gives; all are done, whatever becomes of one.

        Raises:
            AssertionError: some failed: how many, and the first of them.
        """
        failed: list[str] = []

        def one(case: Any) -> T | None:
            forks = self._idle.get()
            try:
                return trial(forks, case)
            except Exception as error:
                failed.append(f"case {case}: {error or type(error).__name__}")
                return None
            finally:
                self._idle.put(forks)

        with ThreadPoolExecutor(len(self._all)) as threads:
            found = list(threads.map(one, cases))
        assert not failed, f"{len(failed)} of {len(found)} failed; the first: {failed[0]}"
        return [result for result in found if result is not None]
