"""The commands that the fault suite breaks: what each starts from, and what it leaves when nothing goes wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from faults import folders
from faults.forks import COMPILER, Crew, Ended, Fault, Forks

STORE, RUN = Path("activations", "s"), Path("runs", "r")
HARVEST = (
    *("harvest", "--model", "bundled", "--data", "bundled", "--hooks", "blocks.0.mlp.hook_post", "--tokens", "4000"),
    *("--context", "64", "--shard-mib", "1", "--name", "s"),
)
TRAIN = (
    *("train", "--name", "r", "--setups", "bp", "hebb-tied", "--latents", "64", "--batch-tokens", "256", "--steps"),
    *("8", "--held-out", "512", "--log-every", "1", "--checkpoint-seconds", "0", "--normalise.mode", "variance"),
)
EXPORT = ("export", "r", "--to", "saelens", "--setup", "bp")
IMPORT = ("import", "exports/r-bp-0-saelens", "--name", "imported", "--no-baselines", "--held-out", "512")
COMMANDS = {"harvest": HARVEST, "train": TRAIN, "index": ("inspect", "--run", "r"), "export": EXPORT, "import": IMPORT}
COMMANDS |= {"repair": ("repair", "s")}
"""each starts from what the one before it leaves, the last one with a shard that is damaged"""
FINAL = ("export", "import")
"""what they have made they do not make again: a second time they say so, and exit with 2"""
SETTINGS = {"hsae.evidence.build.EVERY": 0.0, "hsae.evidence.build.ROWS": 512}
"""an index is saved after every few sequences, so that there is something to go on from"""


@dataclass(frozen=True)
class Unbroken:
    """A command that nothing happens to.

    Attributes:
        before: the cache that it starts from.
        content: of the cache that it leaves (see `folders.content`).
        operations: how many file operations it does; 0 where they cannot be counted.
    """

    before: Path
    content: dict[str, str]
    operations: int


class Bench:
    """Processes to break things in, and the commands to break.

    Args:
        folder: for everything.
        size: trials at a time.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self.crew = folder, Crew(folder / "crew", size)
        self.unbroken, self._seconds = dict[str, Unbroken](), dict[str, float]()
        before = folder / "empty"
        before.mkdir()
        for name in COMMANDS:
            after, trace = folder / f"after-{name}", folder / f"{name}.trace"
            if name == "repair":
                os.truncate(before / STORE / "00001.safetensors", 1000)
            shutil.copytree(before, after)
            fault = Fault(trace=trace) if COMPILER else None
            (ended,) = self.crew.each(partial(self.give, cache=after, fault=fault), [name])
            assert ended.code == 0, ended.said
            operations = trace.read_text(encoding="utf-8").count("\n") if COMPILER else 0
            self.unbroken[name] = Unbroken(before, folders.content(after), operations)
            self._seconds[name] = ended.seconds
            before = after

    @staticmethod
    def give(forks: Forks, name: str, cache: Path, **how: Any) -> Ended:
        """Give a command (see `Forks.__call__`)."""
        return forks(*COMMANDS[name], cache=cache, settings=SETTINGS, **how)

    @contextlib.contextmanager
    def trial(self, name: str, case: object) -> Iterator[Path]:
        """A cache as the command finds it; it is kept only if the trial fails."""
        cache = self._folder / f"{name} {case}"
        shutil.copytree(self.unbroken[name].before, cache)
        yield cache
        shutil.rmtree(cache)

    def cut_off(self, forks: Forks, name: str, cache: Path, draw: random.Random, send: int) -> Ended:
        """Give a command, and send it a signal at a random instant; anew, where it has ended before that."""
        while True:
            ended = self.give(forks, name, cache, after=draw.uniform(0, self._seconds[name]), send=send)
            if ended.code != 0:
                return ended
            # The machine is faster now than it was.
            self._seconds[name] = ended.seconds
            shutil.rmtree(cache)
            shutil.copytree(self.unbroken[name].before, cache)

    def goes_on(self, forks: Forks, name: str, cache: Path) -> Ended:
        """Nothing is damaged; the same command, given again, leaves what an unbroken one leaves, and nothing else.

        What was whole stays as it is: of the shards, all but one at most; of the steps, those up to the checkpoint.
        """
        if name != "repair":
            verified = forks("verify", cache=cache)
            assert verified.code == 0 or "no store and no run there" in verified.said, verified.said
        kept, step = folders.shards(cache / STORE), folders.checkpointed(cache / RUN)
        trains = name == "train" and not (cache / RUN / "run.json").exists()
        ended = self.give(forks, name, cache)
        assert ended.code == 0 or (ended.code == 2 and name in FINAL), ended.said
        if trains and step:
            assert f"going on from step {step}" in ended.said
        self.is_whole(name, cache)
        again = [name for name, written in folders.shards(cache / STORE).items() if kept.get(name, written) != written]
        assert len(again) <= 1, f"{cache}: shards that were whole are written again: {again}"
        return ended

    def is_whole(self, name: str, cache: Path) -> None:
        """A cache holds what an unbroken command leaves, and nothing else."""
        there, wanted = folders.content(cache), self.unbroken[name].content
        differ = sorted(path for path in there.keys() | wanted.keys() if there.get(path) != wanted.get(path))
        assert not differ, f"{cache}: other files than an unbroken {name} leaves: {', '.join(differ)}"
