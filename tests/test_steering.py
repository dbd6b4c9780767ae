"""Steering to an L0: on a simulated plant, and through trainings on planted directions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hsae.learner import Learner, Moment
from hsae.rules.backprop import Backprop
from hsae.run import Run
from hsae.sae.relu import ReLU
from hsae.setup import Setup
from hsae.steering import Steering
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]


def course(steering: Steering, start: float, lag: float = 30, steps: int = 1500, noise: float = 0.0) -> list[float]:
    """L0 step by step where it follows start · strength^-0.7, `lag` steps behind."""
    generator = torch.Generator().manual_seed(0)
    l0, seen = start, []
    for _ in range(steps):
        l0 += (start * steering.factor**-0.7 - l0) / lag
        observed = l0 * math.exp(noise * torch.randn((), generator=generator).item())
        steering.observe(observed)
        seen.append(l0)
    return seen


def off(seen: list[float], target: float) -> float:
    return max(abs(l0 / target - 1) for l0 in seen)


@pytest.mark.parametrize("lag", [10, 30, 60])
@pytest.mark.parametrize("start", [3.0, 10.0, 30.0])
def test_it_settles_within_5_percent(start: float, lag: float):
    assert off(course(Steering(10.0), start, lag)[500:], 10.0) < 0.05


@pytest.mark.parametrize("start", [0.03, 0.1, 300.0, 3000.0])
def test_it_settles_however_far_the_penalty_is_from_what_is_needed(start: float):
    assert off(course(Steering(10.0), start, steps=3000)[1500:], 10.0) < 0.05


def test_noise_of_a_tenth_keeps_it_within_a_tenth():
    seen = course(Steering(10.0), 25.0, noise=0.1, steps=3000)
    assert off(seen[1000:], 10.0) < 0.1


def test_too_many_active_latents_raise_the_penalty_and_too_few_lower_it():
    for l0, rises in ((20.0, True), (5.0, False)):
        steering = Steering(10.0)
        for _ in range(100):
            steering.observe(l0)
        assert steering.factor != 1
        assert (steering.factor > 1) == rises


def test_without_a_target_nothing_is_steered():
    steering = Steering(None)
    assert set(course(steering, 50.0)) == {50.0}
    steering.calibrate(3.0, 4.0)
    assert steering.factor == 1


def test_it_aims_at_held_out_tokens():
    steering, l0, seen = Steering(10.0), 20.0, []
    for i in range(1500):
        l0 += (20 * steering.factor**-0.7 - l0) / 30
        steering.observe(l0)
        if i % 10 == 0:
            steering.calibrate(l0, 1.25 * l0)
        seen.append(l0)
    assert off(seen[800:], 8.0) < 0.05


@pytest.mark.parametrize("l0", [0.0, 1e-9, 1e9])
def test_the_factor_stays_finite_whatever_it_sees(l0: float):
    steering = Steering(10.0)
    for _ in range(30_000):
        steering.observe(l0)
    assert 0 < torch.tensor(steering.factor) < math.inf


def test_it_goes_on_from_what_it_saved():
    whole, first, second = (Steering(10.0) for _ in range(3))
    levels = [30 / (1 + i / 40) for i in range(200)]
    for i, l0 in enumerate(levels):
        whole.observe(l0)
        if i % 10 == 0:
            whole.calibrate(l0, 1.1 * l0)
    for i, l0 in enumerate(levels):
        one = first if i < 120 else second
        if i == 120:
            second.restore(first.tensor())
        one.observe(l0)
        if i % 10 == 0:
            one.calibrate(l0, 1.1 * l0)
    assert torch.equal(second.tensor(), whole.tensor())
    assert second.factor == whole.factor != first.factor


def test_a_learners_penalty_is_weighted_by_the_steering():
    learner = Learner("x", Setup(Backprop(), tied=True, sae=ReLU(l1=0.8), target_l0=1.0), 0, 10, torch.zeros(6))
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    for _ in range(100):
        learner.steering.observe(5.0)
    learner.begin(x, Moment(1, 9))
    forward = learner.forward(x)
    assert learner.steering.factor > 2
    plain = 0.8 * forward.code.sum().item() / 6
    assert forward.beside.item() == pytest.approx(learner.steering.factor * plain)


def ran(steps: int, **setup: Any) -> Run:
    base = {"encoder": {"rule": "backprop", "lr": 3e-3}, "decoder": {"rule": "backprop", "lr": 3e-3}}
    table = {"latents": 48, "batch_tokens": 128, "held_out": 256, "log_every": 50, "steps": steps}
    setups = {name: base | table for name, table in setup.items()}
    return train(TrainConfig.from_table(table | {"setups": list(setups), "setup": setups}, "test"))


def test_a_penalty_is_steered_to_the_l0_asked_for_on_held_out_tokens(planted: Planted):
    planted()
    sides = {side: {"rule": "backprop", "lr": 1e-2} for side in ("encoder", "decoder")}
    scaled = {"kind": "jumprelu", "l0": 1e-3, "threshold": 0.05, "bandwidth": 0.05}
    jumprelu = sides | {"sae": scaled, "target_l0": 4.0, "decoder_norm": "unit"}
    smooth = {kind: {"sae": kind, "target_l0": 8.0} for kind in ("relu", "gated")}
    run = ran(400, **smooth, jumprelu=jumprelu, free={"sae": "relu"})
    rows = {row.setup: row.l0 for row in run.result.rows}
    assert rows["relu"] == pytest.approx(8, rel=0.1)
    assert rows["gated"] == pytest.approx(8, rel=0.1)
    assert rows["jumprelu"] == pytest.approx(4, rel=0.1)
    assert rows["free"] != pytest.approx(8, rel=0.1)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    factors = [record["sparsity"] for record in records if record["setup"] == "relu"]
    assert factors[0] == 1
    assert all(a != b for a, b in itertools.pairwise(factors[1:]))
    assert not any("sparsity" in record for record in records if record["setup"] == "free")


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"])
def test_an_l0_that_the_code_sets_is_there_from_the_first_step(planted: Planted, kind: str):
    planted()
    run = ran(1, x={"sae": kind, "target_l0": 3.0}, y={"sae": kind, "target_l0": 5.0})
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    three, five = (record["l0"] for record in records)
    # Tokens without a planted direction are 0, and so is their code.
    assert 0.85 * 3 < three <= 3
    assert five / three == pytest.approx(5 / 3, rel=0.02)
    assert not any("sparsity" in record for record in records)
    assert run.setups["x"].sae.aimed(3.0) == run.sae("x").variant
    assert run.sae("x").variant != run.sae("y").variant
