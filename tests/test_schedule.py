"""How learning rates and the sparsity penalty change: in closed form, in a learner, and through a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from cut import Cut, CutAt
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from hsae import registry
from hsae.learner import Learner, Moment
from hsae.rules import Rule
from hsae.rules.backprop import Backprop
from hsae.sae.relu import ReLU
from hsae.schedule import Schedule
from hsae.setup import Setup
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]
RULES = [registry.find("hsae.rules", name, Rule)() for name in registry.names("hsae.rules")]


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.rate(step, steps) for step in range(1, steps + 1)]


def test_by_default_nothing_changes():
    assert rates(Schedule(), 5) == [1, 1, 1, 1, 1]
    assert [Schedule().sparsity(step) for step in (1, 2, 1000)] == [1, 1, 1]


def test_a_warm_up_rises_by_equal_steps_from_above_0():
    assert rates(Schedule(warmup=3), 6) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_sparsity_penalty_rises_alike_and_apart_from_the_rate():
    schedule = Schedule(sparsity_warmup=3)
    assert [schedule.sparsity(step) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(schedule, 3) == [1, 1, 1]


def test_linear_decay_falls_by_equal_steps_to_its_end():
    assert rates(Schedule(decay="linear"), 5) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates(Schedule(decay="linear", final=0.5), 5) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])


def test_cosine_decay_is_half_a_period():
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert rates(Schedule(decay="cosine"), 4) == pytest.approx([1, quarter, 0.5, 1 - quarter])
    assert rates(Schedule(decay="cosine", final=0.5), 2) == pytest.approx([1, 0.75])


def test_decay_takes_the_last_share_of_the_steps():
    assert rates(Schedule(decay="linear", decay_share=0.5), 10) == pytest.approx([1] * 6 + [0.8, 0.6, 0.4, 0.2])


def test_decay_begins_where_the_warm_up_ends():
    assert rates(Schedule(warmup=1, decay="linear"), 6) == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2])


@given(
    warmup=st.integers(0, 30),
    decay=st.sampled_from(["none", "linear", "cosine"]),
    share=st.floats(0.01, 1),
    final=st.floats(0, 1),
    steps=st.integers(1, 60),
)
def test_rates_rise_then_fall_and_stay_within_0_and_1(warmup: int, decay: Any, share: float, final: float, steps: int):
    found = rates(Schedule(warmup, decay, share, final), steps)
    assert all(0 <= rate <= 1 + 1e-12 for rate in found)
    assert found[: warmup + 1] == [step / (warmup + 1) for step in range(1, warmup + 2)][:steps]
    falling = found[warmup:]
    assert all(b <= a + 1e-12 for a, b in pairwise(falling))
    if decay != "none" and final == 0 and steps > warmup:
        assert found[-1] > 0


@pytest.mark.parametrize("rule", RULES, ids=registry.name_of)
def test_at_half_the_rate_a_rule_moves_half_as_far_and_remembers_the_same(rule: Rule):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    learners = []
    for warmup in (0, 1):
        setup = Setup(rule, Backprop(), decoder_bias=True, sae=ReLU(), schedule=Schedule(warmup=warmup))
        learner = Learner("x", setup, seed=0, latents=10, centre=torch.zeros(6))
        # A step at the full rate first: a rule that follows averages may need one before it moves.
        learner.begin(x, Moment(9, 9))
        learner.update(learner.statistics(learner.forward(x)), Moment(9, 9))
        start = [value for weights in learner.weights.values() for value in weights.items().values()]
        learner.begin(x, Moment(1, 9))
        learner.update(learner.statistics(learner.forward(x)), Moment(1, 9))
        end = [value for weights in learner.weights.values() for value in weights.items().values()]
        learners.append((learner, [b - a for a, b in zip(start, end, strict=True)]))
    (full, far), (half, near) = learners
    assert all(change.abs().max() > 0 for change in (far[0], *far[2:]))
    for a, b in zip(far, near, strict=True):
        torch.testing.assert_close(b, a / 2, rtol=1e-3, atol=1e-6)
    for name, state in full.state.items():
        assert all(torch.equal(value, half.state[name][key]) for key, value in state.items())


def test_a_learners_penalty_follows_its_schedule():
    setup = Setup(Backprop(), tied=True, sae=ReLU(l1=0.8), schedule=Schedule(sparsity_warmup=3))
    learner = Learner("x", setup, seed=0, latents=10, centre=torch.zeros(6))
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    for step, factor in ((1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        learner.begin(x, Moment(step, 9))
        forward = learner.forward(x)
        assert forward.beside.item() == pytest.approx(factor * 0.8 * forward.code.sum().item() / 6)


SMALL = {"latents": 48, "batch_tokens": 128, "held_out": 256, "log_every": 2, "checkpoint_seconds": 0.0}
FALLING = {"warmup": 3, "decay": "cosine", "sparsity_warmup": 5}
CHANGING = {
    "steered": {"encoder": "backprop", "decoder": "backprop", "sae": "gated", "target_l0": 3.0, "schedule": FALLING},
    "revived": {
        "encoder": "backprop",
        "tied": True,
        "sae": {"kind": "topk", "k": 4},
        "revive": {"kind": "auxk", "tokens": 256},
        "schedule": FALLING,
    },
    "drawn": {
        "encoder": "backprop",
        "decoder": "backprop",
        "sae": {"kind": "batchtopk", "k": 2.0},
        "revive": {"kind": "resample", "tokens": 256, "every": 3},
    },
    "local": {
        "encoder": "softhebb",
        "tied": True,
        "schedule": FALLING,
        "revive": {"kind": "homeostasis", "tokens": 256},
    },
}


def weights(steps: int, name: str, **setup: Any) -> dict[str, Tensor]:
    table = SMALL | {"steps": steps, "setups": list(setup), "setup": setup, "name": name}
    return load_file(train(TrainConfig.from_table(table, "test")).folder / "sae.safetensors")


@pytest.mark.parametrize("step", [2, 9])
def test_a_cut_training_ends_the_same_to_the_bit_whatever_changes_over_it(planted: Planted, step: int):
    planted()
    whole = weights(12, "whole", **CHANGING)
    table = SMALL | {"steps": 12, "setups": list(CHANGING), "setup": CHANGING, "name": "cut"}
    with pytest.raises(Cut):
        train(TrainConfig.from_table(table, "test"), CutAt(step))
    cut = weights(12, "cut", **CHANGING)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_a_training_follows_its_schedule_step_by_step(planted: Planted):
    planted()
    plain = {"encoder": {"rule": "oja"}, "tied": True}
    halved = weights(1, "half", x=plain | {"schedule": {"warmup": 1}})["x/0/W_enc"]
    full = weights(1, "full", x=plain)["x/0/W_enc"]
    start = Learner("x", Setup(RULES[0], tied=True), 0, 48, torch.zeros(16)).weights["encoder"].W
    torch.testing.assert_close(halved - start, (full - start) / 2, rtol=1e-3, atol=1e-6)
    # Linear decay: rate 1 of one step; 1 and ½ of two, the second of which moves half as far as at the full rate.
    fading = plain | {"schedule": {"decay": "linear"}}
    assert torch.equal(weights(1, "fading-1", x=fading)["x/0/W_enc"], full)
    two, plainly = (weights(2, name, x=x)["x/0/W_enc"] for name, x in (("fading-2", fading), ("full-2", plain)))
    torch.testing.assert_close(two - full, (plainly - full) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"warmup": -1}, "warmup must be 0 or above"),
        ({"decay_share": 0.0}, "decay_share must be in"),
        ({"final": 1.5}, "final must be in"),
        ({"sparsity_warmup": -1}, "sparsity_warmup must be 0 or above"),
    ],
)
def test_a_schedule_out_of_range_is_refused(change: dict[str, Any], line: str):
    with pytest.raises(ValueError, match=line):
        Schedule(**change)
