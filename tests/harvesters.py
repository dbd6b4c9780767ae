"""`hsae harvest` in real processes, forked from one that has imported everything: there in no time, real to kill."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from hsae.files import sha256

PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["transformer_lens.model_bridge", "transformers.models.gpt_neo.modeling_gpt_neo", "hsae.cli"]
PROCESSES.set_forkserver_preload([*PRELOADED, "hsae.harvesting", "tyro", "rich._emoji_codes", "harvesters", "tiny_lm"])
# Seconds after which a process hangs.
LIMIT = 100.0
NOBODY = 65534


@dataclass(frozen=True)
class Command:
    """What a process does: `hsae` with these words.

    Attributes:
        words: after `hsae`.
        environment: added to its own.
        threads: of PyTorch.
        memory: bytes of address space that it may take beyond what it begins with; 0: any.
        file: the largest file that it may write, in bytes; 0: any.
        user: whom it becomes; 0: nobody else.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    threads: int = 1
    memory: int = 0
    file: int = 0
    user: int = 0


class Running:
    """A process that was started."""

    def __init__(self, command: Command, out: Path) -> None:
        self._out = out
        self.process: BaseProcess = PROCESSES.Process(target=become, args=(command, str(out)))
        self.process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def end(self, limit: float = LIMIT) -> tuple[int, str]:
        """Wait for its end: its exit code, and what it printed. It does not outlive the test."""
        self.process.join(limit)
        if hung := self.process.is_alive():
            self.process.kill()
            self.process.join()
        said = self._out.read_text(encoding="utf-8") if self._out.exists() else ""
        assert not hung, f"still running after {limit} s:\n{said}"
        assert "Traceback" not in said, said
        assert self.process.exitcode is not None
        return self.process.exitcode, said


def become(command: Command, out: str) -> None:
    """The process."""
    import torch

    from hsae import cli

    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= {"HSAE_CACHE": "", "COLUMNS": "200", **command.environment}
    cli.RANK = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(command.threads)
    if command.user:
        os.setgid(command.user)
        os.setuid(command.user)
    if command.memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + command.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if command.file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command.file, command.file))
    sys.argv = ["hsae", *command.words]
    cli.main()


def start(cache: Path, *words: str, out: Path | None = None, **how: object) -> Running:
    """`hsae harvest` with these words and with a cache, which is made."""
    with suppress(PermissionError):
        cache.mkdir(parents=True, exist_ok=True)
    environment = {"HSAE_CACHE": str(cache)} | dict(how.pop("environment", {}))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return Running(Command(("harvest", *words), environment, **how), out or cache.with_suffix(".out"))  # pyright: ignore[reportArgumentType]


def start_ranks(cache: Path, size: int, *words: str, environments: Mapping[int, dict[str, str]] = {}) -> list[Running]:
    """As torchrun starts so many."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            cache,
            *words,
            out=cache.with_suffix(f".out{rank}"),
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environments.get(rank, {}),
        )
        for rank in range(size)
    ]


def until(ready: Callable[[], bool], process: Running) -> None:
    """Wait for something that a process does."""
    start = time.monotonic()
    while not ready():
        assert process.process.is_alive(), process.end()
        assert time.monotonic() - start < LIMIT
        time.sleep(0.002)


def whole_shards(store: Path) -> int:
    """How many the journal tells of."""
    return len(list(store.glob("journal/0*.json")))


def content(store: Path) -> dict[str, str]:
    """The sha256 of each of its files."""
    return {str(path.relative_to(store)): sha256(path) for path in sorted(store.rglob("*")) if path.is_file()}
