"""The units that an experiment is made of (a training, a sweep's cell), computed side by side and kept on disk.

A unit is a function of plain data to plain data. What is kept under its arguments is not computed again, so an
experiment that is cut off goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae import config
from hsae.errors import Interrupted, UserError
from hsae.files import replacing
from hsae.plain import finite
from hsae.progress import Bar

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Unit:
    """One call.

    Attributes:
        name: tells it from the experiment's other units.
        function: `module:function`; takes `arguments` by name and returns plain data (numbers, text, lists, dicts).
            A change of that module's source makes units be computed again.
        arguments: plain data. Threads must not change the result: a unit runs on one.
    """

    name: str
    function: str
    arguments: dict[str, Any]

    @property
    def file(self) -> str:
        """The name of the file that keeps its result."""
        module, _, function = self.function.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        source = hashlib.sha256(Path(str(spec.origin)).read_bytes()).hexdigest()
        return f"{function}-{config.fingerprint([self.function, self.arguments, source], 16)}.json"

    def compute(self) -> dict[str, Any]:
        """Call the function: its result, and the seconds that it took."""
        module, _, function = self.function.partition(":")
        began = time.perf_counter()
        result = getattr(importlib.import_module(module), function)(**self.arguments)
        return {"name": self.name, "seconds": time.perf_counter() - began, "result": finite(result)}


def computed(
    units: Sequence[Unit], folder: Path, console: Console | None = None, verb: str = "lab", workers: int = 0
) -> dict[str, Any]:
    """The results of units by name, each computed unless it is kept in `folder`. NaN and infinity come as None.

    Args:
        units: of different names.
        folder: where results are kept; made if it is not there.
        console: where to show progress.
        verb: what is being done, one word.
        workers: processes; 0: as many as there are cores. With 1 everything happens in this process, on one thread too.

    Raises:
        UserError: of a unit; or its process died.
        KeyboardInterrupt: on Ctrl-C; what is computed is kept.
    """
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names), "units of the same name"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for unit in units:
        if (kept := _kept(folder / unit.file)) is not None:
            found[unit.name] = kept["result"]
    todo = [unit for unit in units if unit.name not in found]
    with Bar(console, verb, len(units), len(found), unit="units") as bar:

        def keep(unit: Unit, done: dict[str, Any]) -> None:
            with replacing(folder / unit.file) as aside:
                aside.write_text(json.dumps(done, allow_nan=False) + "\n", encoding="utf-8")
            found[unit.name] = done["result"]
            bar.advance(1)

        try:
            workers = min(workers or os.cpu_count() or 1, len(todo))
            if workers == 1:
                with _one_thread():
                    for unit in todo:
                        keep(unit, unit.compute())
            elif todo:
                _side_by_side(todo, workers, keep)
        except KeyboardInterrupt:
            done = f"{len(found)} of {len(units)} units of {verb} are kept; the same command goes on from there"
            raise Interrupted(f"stopped: {done}") from None
    return {name: found[name] for name in names}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As workers have it: with more, sums are taken in another order, and results differ in the last bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _side_by_side(units: Sequence[Unit], workers: int, keep: Any) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_worker, initargs=(os.getpid(),))
    try:
        left = {pool.submit(unit.compute): unit for unit in units}
        while left:
            done, _ = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                keep(left.pop(future), future.result())
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); the same command goes on; --workers 1 needs least memory"
        ) from None
    finally:
        # Also after Ctrl-C, when what runs is not waited for.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.terminate()


def _worker(parent: int) -> None:
    """Make a process ready: one thread; Ctrl-C is the parent's affair; it ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kept(path: Path) -> dict[str, Any] | None:
    """What a unit's file holds; None where there is none that is whole."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return kept if isinstance(kept, dict) and "result" in kept else None
