"""Dictionaries that several processes share out by latent: the weights and the numbers of one process."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cut import Cut, CutAt
from safetensors.torch import load_file
from test_dist import EVERY, MANY, apart, numbers, process_of, setups, until, written
from together import SHARING, SHORT, ended, torchrun

from hsae.errors import UserError
from hsae.run import Run
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]
ONLY = ("--max-restarts", "0")
# A number of latents that neither 2 nor 4 ranks hold in equal parts.
LATENTS = 49
# How many ranks share out a dictionary, in both shapes of a grid of four.
SHARERS = {"four": 4, "square": 2}
# Adam turns a gradient near 0 into a step as large as the learning rate: so much of its rounding is seen.
SLOW = {"rule": "backprop", "lr": 1e-3}

# A few latents are dead at each step: fewer than aux-k could use, and at some ranks only.
FEW_DEAD = {"sae": {"kind": "topk", "k": 6}, "decoder": "backprop"}
REVIVED: dict[str, dict[str, Any]] = {
    "told": FEW_DEAD | {"encoder": "backprop", "revive": {"kind": "auxk", "tokens": 100}},
    "raised": FEW_DEAD | {"encoder": "oja", "revive": {"kind": "homeostasis", "tokens": 100}},
    "anew": FEW_DEAD | {"encoder": "softhebb", "revive": {"kind": "resample", "tokens": 100, "every": 5}},
    "taught": FEW_DEAD | {"encoder": "delta", "revive": {"kind": "resample", "tokens": 100, "every": 5}},
}


def trained(table: dict[str, Any], name: str, **more: Any) -> Run:
    return train(TrainConfig.from_table(table | more | {"name": name}, "test"))


def test_every_rule_variant_and_revival_comes_to_the_same_on_any_grid(planted: Planted, tmp_path: Path):
    # So many features that no token is 0: there all drives are ties, and one process's `topk` leaves open who wins.
    planted(features=120)
    common = EVERY | {"latents": LATENTS, "normalise": {"mode": "variance", "variance": 0.5}}
    tables: dict[str, list[dict[str, Any]]] = {shape: [] for shape in SHARERS}
    every = list(setups().items())
    for number, shape in enumerate(SHARERS):
        # Tied and untied setups follow one another: two on each grid in turn.
        some = slow(dict(every[i] for i in range(len(every)) if i // 2 % 2 == number))
        tables[shape].append(common | {"name": f"all-{shape}", "setups": list(some), "setup": some, "steps": 4})
        more = slow(MANY | REVIVED)
        many = {"name": f"many-{shape}", "setups": list(more), "setup": more, "probe": "alignment"}
        tables[shape].append(common | many | {"steps": 12, "log_every": 4})
    (tmp_path / "tables.json").write_text(json.dumps(tables))
    processes = torchrun(4, str(tmp_path), program=(*ONLY, str(Path(__file__).parent / "shards.py")))
    alone = {t["name"]: trained(t, f"{t['name']}-alone") for part in tables.values() for t in part}
    out, error = ended(processes, 400)
    assert processes.returncode == 0, (out, error)
    held = json.loads((tmp_path / "bytes.json").read_text())
    for name, one in alone.items():
        other, sharers = Run.open(name), SHARERS[name.split("-")[1]]
        assert [row.diverged for row in other.result.rows] == [row.diverged for row in one.result.rows]
        off = apart(one, other)
        # Where a drive lies on an edge, its last bit decides, and no order of adding is right.
        chaotic = {setup for setup, value in off.items() if value > 1e-6}
        assert len(chaotic) <= 1, off
        assert max(off.values()) < 0.05
        same_numbers(one, other, chaotic)
        whole = same_checkpoints(one, other, chaotic)
        # What has no row a latent (a decoder's bias, a covariance of the inputs) is at every rank.
        assert max(held[name]) < 1.25 * whole / sharers
        assert sum(held[name]) >= whole - 2000


def slow(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Setups in which backpropagation learns slowly."""
    return {name: {k: SLOW if v == "backprop" else v for k, v in table.items()} for name, table in tables.items()}


def same_checkpoints(one: Run, other: Run, but: set[str]) -> int:
    """The same tensors to go on with; the bytes of those that are weights or a rule's state."""
    first, second = (load_file(run.folder / "checkpoint.safetensors") for run in (one, other))
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in second.items()}
    size = 0
    for key, value in first.items():
        learner, _, name = key.partition(".")
        if name.startswith(("encoder", "decoder")):
            size += value.numel() * value.element_size()
        # l0 is what a rank saw in its last micro-batch.
        if name != "l0" and one.result.rows[int(learner)].setup not in but:
            off = (value - second[key]).abs().max() / value.abs().max().clamp(min=1e-30)
            assert off < 1e-5, (one.result.rows[int(learner)].setup, key)
    return size


def same_numbers(one: Run, other: Run, but: set[str]) -> None:
    """The same metrics, diagnostics, alignment and table, of all setups but some."""
    for first, second in zip(_records(one), _records(other), strict=True):
        assert first.keys() == second.keys()
        if first["/setup"] not in but:
            for key, value in first.items():
                near = pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
                assert second[key] == near, (first["/setup"], key)


def _records(run: Run) -> list[dict[str, Any]]:
    """The lines of the metrics and of the table, flat."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    rows = json.loads((run.folder / "run.json").read_text())["rows"]
    return [dict(numbers(line)) for line in (*map(json.loads, lines), *rows)]


def test_a_run_goes_on_with_any_grid(planted: Planted, cache: Path, tmp_path: Path):
    planted(features=120)
    table = EVERY | {"latents": LATENTS, "setups": ["hebb-tied", "decayed"], "steps": 250, "log_every": 1}
    # State that is shared out (moments) and state that is not (a step's number), dead latents, a cut over the batch.
    revive = {"kind": "resample", "every": 20, "tokens": 500}
    table["setup"] = {"decayed": {"encoder": SLOW, "decoder": "residual", "sae": "batchtopk", "revive": revive}}
    table["checkpoint_seconds"] = 0.05
    with pytest.raises(Cut):
        train(TrainConfig.from_table(table | {"name": "cut"}, "test"), CutAt(30))
    checkpoint = cache / "runs" / "cut" / "checkpoint.safetensors"
    before = checkpoint.stat().st_mtime_ns
    killed = torchrun(
        4, "train", written(tmp_path, table), "--name=cut", "--latent-ranks=2", program=(*ONLY, "-m", "hsae")
    )
    until(lambda: checkpoint.stat().st_mtime_ns != before, killed)
    os.kill(process_of(killed, rank=3), signal.SIGKILL)
    out, error = ended(killed)
    assert re.search(r"4 processes \(2 to a dictionary\), going on from step \d+", out), (out, error)
    assert killed.returncode != 0
    again = trained(table, "cut")
    assert max(apart(trained(table, "whole"), again).values()) < 1e-5


def test_a_dictionary_that_cannot_be_shared_out_is_one_line(planted: Planted):
    planted()
    with pytest.raises(UserError, match=r"--latent-ranks must be a divisor of the number of processes, 1 .*, not 2"):
        trained(EVERY, "x", latent_ranks=2)
    with pytest.raises(UserError, match="latent_ranks must be 1 or above, not 0"):
        trained(EVERY, "x", latent_ranks=0)


@pytest.mark.fault(
    "Ranks",
    "One or two processes that share a dictionary are out of memory",
    "an allocation fails in the middle of a step",
    "torchrun … hsae train --latent-ranks",
)
def test_ranks_of_a_dictionary_begin_a_step_again_when_one_is_out_of_memory(planted: Planted):
    planted(features=120)
    processes = torchrun(4, program=(*ONLY, str(Path(__file__).parent / "together.py")))
    one = trained(SHORT, "one")
    out, error = ended(processes)
    assert processes.returncode == 0, out + error
    for sharing in (2, 4):
        for place in SHARING:
            off = apart(one, Run.open(f"short-{sharing}-{place}"))
            assert max(off.values()) < 1e-6, (sharing, place, off)
