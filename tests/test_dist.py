"""Several processes train as one: the same weights, one that writes, one that speaks; all stop, and all go on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from cut import Cut, CutAt
from safetensors.torch import load_file
from together import PLACES, SHORT, ended, torchrun

from hsae import registry
from hsae.config import build, read_file
from hsae.device import choose_device
from hsae.errors import UserError
from hsae.learner import Learner
from hsae.memory import ran_out
from hsae.progress import Training
from hsae.ranks import Ranks
from hsae.revival import Revival
from hsae.rules import Rule
from hsae.run import Run, RunWriter
from hsae.sae import Variant
from hsae.setup import Setup
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]
# Settings of variants for a dictionary of a few dozen latents.
SIZES = {"topk": {"k": 3}, "batchtopk": {"k": 2.5}, "matryoshka": {"k": 2.5}, "jumprelu": {"bandwidth": 0.5}}
EVERY = {"latents": 48, "batch_tokens": 128, "held_out": 256, "log_every": 2, "baselines": False, "store": "planted"}
MANY: dict[str, Any] = {
    "bp": {},
    "steered": {
        "encoder": "backprop",
        "decoder": "backprop",
        "sae": {"kind": "jumprelu", "bandwidth": 0.5},
        "target_l0": 4.0,
        "init_gain": True,
        "centre": "mean",
        "revive": {"kind": "auxk", "tokens": 300},
    },
    "median": {"encoder": "oja", "tied": True, "centre": "median", "decoder_norm": "unit"},
    "hebb-tied": {},
}


def setups() -> dict[str, dict[str, Any]]:
    """Tied and untied setups of every rule with every variant that it carries, as a decoder's, and of every revival."""
    tables: dict[str, dict[str, Any]] = {}
    for rule in registry.names(Rule.package):
        for kind in registry.names(Variant.package):
            sae = {"kind": kind, **SIZES.get(kind, {})}
            tables[f"{rule}-{kind}-tied"] = {"encoder": rule, "tied": True, "sae": sae}
            tables[f"{rule}-{kind}"] = {"encoder": rule, "decoder": "backprop", "decoder_bias": True, "sae": sae}
        tables[f"{rule}-decoder"] = {"encoder": "backprop", "decoder": rule}
        for kind in registry.names(Revival.package):
            revive = {"kind": kind, "tokens": 200, **({"every": 2} if kind == "resample" else {})}
            tables[f"{rule}-{kind}"] = {"encoder": rule, "decoder": "backprop", "revive": revive, "init_gain": True}
    return {name.replace("_", "-"): table for name, table in tables.items() if possible(table)}


def possible(table: dict[str, Any]) -> bool:
    try:
        build(Setup, table, "test")
    except UserError:
        return False
    return True


def written(folder: Path, table: dict[str, Any]) -> str:
    """A config file's path."""
    path = folder / "train.toml"
    path.write_text(tomli_w.dumps({"train": table}))
    return str(path)


def apart(one: Run, other: Run) -> dict[str, float]:
    """For each setup, the largest difference of a weight, relative to its tensor's largest entry."""
    first, second = (load_file(run.folder / "sae.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    found: dict[str, float] = {}
    for key, value in first.items():
        off = (value - second[key]).abs().max() / value.abs().max().clamp(min=1e-30)
        setup = key.split("/")[0]
        found[setup] = max(found.get(setup, 0.0), off.item())
    return found


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(each, f"{path}/{key}")
    elif not path.endswith("tokens_per_second"):
        yield path, value


def test_every_rule_variant_and_revival_comes_to_the_same_weights(planted: Planted, tmp_path: Path):
    planted()
    tables = setups()
    assert len(tables) > 120
    table = EVERY | {"setups": list(tables), "setup": tables, "steps": 3}
    table["normalise"] = {"mode": "variance", "variance": 0.5}
    processes = torchrun(3, "train", written(tmp_path, table), "--name", "three")
    one = train(TrainConfig.from_table(table | {"name": "one"}, "test"))
    out, error = ended(processes)
    assert "next: hsae inspect --run three" in out, (out, error)
    three = Run.open("three")
    assert [row.diverged for row in three.result.rows] == [row.diverged for row in one.result.rows]
    off = apart(one, three)
    assert len(off) > 120
    worse = {name: value for name, value in off.items() if value > 1e-6}
    # A drive that crosses a cut, or another winner, by rounding: in one process, by another micro-batch, too.
    assert len(worse) <= 2, worse
    assert not [name for name in worse if name.startswith(("backprop", "softhebb"))]


def test_whatever_is_switched_on_every_number_comes_out_the_same(planted: Planted, tmp_path: Path):
    planted()
    table = EVERY | {"setups": list(MANY), "setup": MANY, "seeds": [0, 5], "steps": 24, "log_every": 6}
    table |= {"baselines": True, "probe": "alignment", "normalise": {"mode": "variance", "variance": 0.5, "fold": True}}
    processes = torchrun(2, "train", written(tmp_path, table), "--name", "two", "--tensorboard")
    one = train(TrainConfig.from_table(table | {"name": "one"}, "test"))
    out, error = ended(processes)
    assert processes.returncode == 0, out + error
    two = Run.open("two")
    assert max(apart(one, two).values()) < 1e-5
    assert out.count("2 processes") == out.count("next: ") == 1
    assert len(list((two.folder / "tensorboard").rglob("events.*"))) == len(one.result.rows)
    assert {file.name for file in two.folder.iterdir()} == {file.name for file in one.folder.iterdir()} | {
        "tensorboard"
    }
    for name in ("metrics.jsonl", "run.json"):
        first, second = (
            [dict(numbers(json.loads(line))) for line in _records(run.folder / name)] for run in (one, two)
        )
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            a, b = ({k: v for k, v in each.items() if "seal" not in k and "files" not in k} for each in (a, b))
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert b[key] == (pytest.approx(value, rel=2e-3, abs=1e-5) if isinstance(value, float) else value), key


def _records(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


@pytest.mark.fault(
    "Ranks",
    "A process of several is stopped, then one is killed",
    "SIGTERM to one of 2, SIGKILL to one of 3",
    "torchrun … hsae train",
)
def test_all_processes_stop_together_go_on_in_other_numbers_and_start_again_by_themselves(
    planted: Planted, cache: Path, tmp_path: Path
):
    planted()
    table = EVERY | {"setups": ["hebb-tied", "bp-dec"], "steps": 900, "checkpoint_seconds": 0.05, "log_every": 100}
    config = written(tmp_path, table)
    checkpoint = cache / "runs" / "cut" / "checkpoint.safetensors"
    stopped = torchrun(2, "train", config, "--name", "cut", program=("--max-restarts", "0", "-m", "hsae"))
    until(checkpoint.exists, stopped)
    # A signal to one of them stops both, at one step.
    os.kill(process_of(stopped, rank=1), signal.SIGTERM)
    out, error = ended(stopped)
    assert "the same command goes on from there" in error
    assert error.count("hsae: stopped at step") == 1
    assert "exitcode  : 130" in error
    assert "Traceback (most recent call last)" not in error.split("torch/distributed/elastic")[0]
    before = checkpoint.stat().st_mtime_ns
    killed = torchrun(3, "train", config, "--name", "cut")
    until(lambda: checkpoint.stat().st_mtime_ns != before, killed)
    os.kill(process_of(killed, rank=0), signal.SIGKILL)
    out, error = ended(killed)
    assert killed.returncode == 0, (out, error)
    assert len(re.findall("3 processes, going on from step", out)) == 2
    one = train(TrainConfig.from_table(table | {"name": "one"}, "test"))
    assert apart(one, Run.open("cut"))["hebb-tied"] < 1e-5


def process_of(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process that torchrun gave a rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return next(int(c) for c in children if f"\0RANK={rank}\0" in Path(f"/proc/{c}/environ").read_text())


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_mistake_is_told_once(planted: Planted, tmp_path: Path):
    planted()
    for words, line in (
        (["--batch-tokens", "1"], "2 processes cannot share --batch-tokens 1"),
        (["--latent", "1"], "no flag --latent"),
    ):
        _, error = ended(torchrun(2, "train", *words, program=("--max-restarts", "0", "-m", "hsae")))
        assert len(re.findall("^hsae: .*", error, re.M)) == 1, error
        assert line in error
        assert "exitcode  : 2 " in error


@pytest.mark.fault("Ranks", "One process of several is out of memory", "its allocation fails", "torchrun … hsae train")
def test_processes_exchange_what_they_say_and_a_rank_without_memory_loses_nothing(planted: Planted, tmp_path: Path):
    planted()
    processes = torchrun(3, program=("--max-restarts", "0", str(Path(__file__).parent / "together.py")))
    one = train(TrainConfig.from_table(SHORT | {"name": "one"}, "test"))
    out, error = ended(processes)
    assert processes.returncode == 0, out + error
    for place in PLACES:
        assert max(apart(one, Run.open(f"short-1-{place}")).values()) < 1e-6, place


def test_shares_are_all_of_it_in_order_and_differ_by_one_at_most():
    for size in (1, 2, 3, 7):
        ranks = [Ranks() for _ in range(size)]
        for number, each in enumerate(ranks):
            each.rank, each.size = number, size
        for total in (0, 1, size, 100):
            parts = [list(range(total))[each.share(total)] for each in ranks]
            assert [number for part in parts for number in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


OUT_OF_MEMORY = """
import re, resource, sys, torch
from rich.console import Console
from together import SHORT
from hsae.progress import Training
from hsae.trainconfig import TrainConfig
from hsae.training import train
# With Adam's own eps a gradient next to 0 would show the order of its sum.
calm = {"rule": "backprop", "eps": 1e-3}
soft = SHORT["setup"]["cut"] | {"decoder": calm}
large = SHORT | {"latents": 2048, "batch_tokens": 1536, "steps": 3, "setups": ["bp", "soft"]}
large["setup"] = {"bp": {"encoder": calm, "decoder": calm}, "soft": soft}
train(TrainConfig.from_table(large | {"name": "plenty", "micro_batch": 96}, "test"))
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20),) * 2)
train(TrainConfig.from_table(large | {"name": "scarce", "micro_batch": 1536}, "test"), Training(Console(width=200)))
"""


@pytest.mark.fault("Memory", "Training takes more memory than there is", "RLIMIT_AS", "hsae train")
def test_memory_that_is_really_scarce_makes_micro_batches_small_and_no_other_weights(planted: Planted):
    planted()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    child = [sys.executable, "-c", OUT_OF_MEMORY]
    done = subprocess.run(child, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("out of memory")]
    assert said[0] == "out of memory at step 1: going on with --micro-batch 768"
    assert len(said) == len(set(said)) <= 10
    off = apart(Run.open("plenty"), Run.open("scarce"))
    assert max(off.values()) < 1e-6, off


@pytest.mark.fault("Memory", "Not even one token fits", "every allocation fails", "hsae train")
def test_memory_that_never_suffices_is_one_line(planted: Planted, monkeypatch: pytest.MonkeyPatch):
    planted()

    def none(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Learner, "statistics", none)
    with pytest.raises(UserError, match="out of memory at step 1, 1 token at a time: train fewer --latents"):
        train(TrainConfig.from_table(SHORT, "test"))
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes differ"))


class Full(Training):
    """A disk that is full from a logged step on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        super().__init__()
        self.patch, self.left = monkeypatch, step

    def update(self, records: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.patch.setattr(Path, "write_bytes", full)


def full(path: Path, data: bytes) -> int:
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.fault("Disk", "The disk is full", "a write of half, then ENOSPC", "hsae train")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, step: int
):
    planted()
    table = SHORT | {"log_every": 1, "checkpoint_seconds": 0.0}
    whole = train(TrainConfig.from_table(table | {"name": "whole"}, "test"))
    cut = TrainConfig.from_table(table | {"name": "cut"}, "test")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full; free some of it, and the"):
        train(cut, Full(patch, step))
    assert [file.name for file in (whole.folder.parent / "cut").iterdir() if ".part" in file.name] == []
    assert max(apart(whole, train(cut)).values()) == 0


@pytest.mark.fault("Processes", "Two processes on one run", "a second training during the first", "hsae train")
def test_two_trainings_of_one_run_at_once_are_one_line(planted: Planted):
    planted()

    class Second(Training):
        def update(self, records: Any) -> None:
            with pytest.raises(UserError, match="another hsae train is writing it"):
                train(settings)
            raise Cut

    settings = TrainConfig.from_table(SHORT, "test")
    with pytest.raises(Cut):
        train(settings, Second())


@pytest.mark.fault(
    "Ranks", "Processes that see different folders", "another checkpoint at one of them", "torchrun … hsae train"
)
def test_ranks_that_see_different_checkpoints_are_told(planted: Planted, monkeypatch: pytest.MonkeyPatch):
    planted()
    settings = TrainConfig.from_table(SHORT | {"log_every": 1, "checkpoint_seconds": 0.0}, "test")
    with pytest.raises(Cut):
        train(settings, CutAt(3))
    monkeypatch.setattr(Ranks, "largest", lambda self, value: value + 1)
    with pytest.raises(UserError, match="must be one shared disk"):
        train(settings)


def test_only_the_process_that_writes_cuts_the_metrics(planted: Planted, cache: Path):
    planted()
    settings = TrainConfig.from_table(SHORT | {"name": "cut", "log_every": 1, "checkpoint_seconds": 0.0}, "test")
    with pytest.raises(Cut):
        train(settings, CutAt(3))
    folder = cache / "runs" / "cut"
    lines = (folder / "metrics.jsonl").read_text()  # of three steps; the checkpoint is the second's
    saved = "".join(lines.splitlines(keepends=True)[:4])
    writer = RunWriter(folder, read_file(folder / "config.toml", "train"))
    for cut, left in ((False, lines), (True, saved)):
        writer.restore(cut)
        assert (folder / "metrics.jsonl").read_text() == left


def test_each_process_takes_the_gpu_of_its_local_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    asked: list[Any] = []

    def refuse(*_: Any, device: torch.device) -> None:
        asked.append(str(device))
        raise RuntimeError

    monkeypatch.setattr(torch, "zeros", refuse)
    for name, wanted in (("auto", "cuda:3"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        with pytest.raises(UserError):
            choose_device(name)
        assert asked.pop() == wanted
