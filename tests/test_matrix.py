"""Every rule with every variant that it can carry: it learns, by micro-batches alike, and repeats itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hsae import registry
from hsae.config import build
from hsae.errors import UserError
from hsae.learner import Learner, Moment, accumulate
from hsae.revival import Revival
from hsae.rules import Rule
from hsae.sae import Variant
from hsae.setup import Setup
from hsae.trainconfig import TrainConfig

RULES, KINDS, REVIVALS = (registry.names(package) for package in (Rule.package, Variant.package, Revival.package))
LOCAL = [rule for rule in RULES if rule != "backprop"]
ENCODER_ONLY = [name for name in LOCAL if registry.find(Rule.package, name, Rule).encoder_only]
TRAINED = [kind for kind in KINDS if registry.find(Variant.package, kind, Variant).trained]
CARRIED = [kind for kind in KINDS if kind not in TRAINED]
PENALISED = [kind for kind in CARRIED if registry.find(Variant.package, kind, Variant).penalised]
OUTRIGHT = [kind for kind in CARRIED if kind not in PENALISED]
# Settings at the size of the numbers here, where the defaults are not; others stand as they are.
SIZES = {"topk": {"k": 3}, "batchtopk": {"k": 2.5}, "matryoshka": {"k": 2.5}, "jumprelu": {"bandwidth": 0.5}}
PAIRS = [(rule, kind) for rule in RULES for kind in KINDS if rule == "backprop" or kind in CARRIED]
BATCH, STEPS, WIDTH = 40, 3, 6


def trained(rule: str, kind: str, tied: bool, seed: int = 0, micro: int = BATCH) -> Learner:
    decoder = {"tied": True} if tied else {"decoder": "backprop", "decoder_bias": True}
    table: dict[str, Any] = {"encoder": rule, "sae": {"kind": kind, **SIZES.get(kind, {})}, **decoder}
    learner = Learner("x", build(Setup, table, "test"), seed, latents=14, centre=torch.full((WIDTH,), 0.1))
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        x, statistics = torch.randn(BATCH, WIDTH, generator=generator), {}
        moment = Moment(step, STEPS)
        learner.begin(x, moment, micro)
        for block in x.split(micro):
            accumulate(statistics, learner.statistics(learner.forward(block)))
        learner.update(statistics, moment)
    return learner


def parameters(learner: Learner) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, w in learner.weights.items() for key, value in w.items().items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("rule", "kind"), PAIRS)
def test_a_rule_trains_what_it_carries_by_micro_batches_alike(rule: str, kind: str, tied: bool):
    whole = trained(rule, kind, tied)
    start = Learner("x", whole.setup, 0, latents=14, centre=whole.centre)
    before, after = parameters(start), parameters(whole)
    assert all(bool(torch.isfinite(value).all()) for value in whole.tensors().values())
    moves = {key for key in after if not torch.equal(before[key], after[key])}
    assert moves >= {f"{name}.W" for name in whole.weights}
    if kind in TRAINED:
        assert moves == set(after)
    split = parameters(trained(rule, kind, tied, micro=7))
    for key, value in after.items():
        torch.testing.assert_close(split[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("rule", "kind"), PAIRS)
def test_one_seed_gives_the_same_to_the_bit_and_another_does_not(rule: str, kind: str):
    first, again, other = (trained(rule, kind, tied=False, seed=seed).tensors() for seed in (4, 4, 5))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.W"], other["encoder.W"])


@pytest.mark.parametrize(("rule", "kind"), PAIRS)
def test_what_was_trained_goes_on_from_what_it_saved(rule: str, kind: str):
    learner = trained(rule, kind, tied=False)
    fresh = Learner("x", learner.setup, 9, latents=14, centre=torch.zeros(WIDTH))
    fresh.restore(learner.tensors())
    saved, restored = learner.tensors(), fresh.tensors()
    assert saved.keys() == restored.keys()
    assert all(torch.equal(saved[key], restored[key]) for key in saved)


def refused(**setup: Any) -> str:
    with pytest.raises(UserError) as error:
        TrainConfig.from_table({"setups": ["x"], "setup": {"x": setup}}, "some.toml")
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("some.toml: setup.x.")
    return line


def test_the_lists_here_hold_what_they_are_meant_to():
    assert {"gated", "jumprelu"} <= set(TRAINED)
    assert {"relu", "topk", "batchtopk", "matryoshka"} <= set(CARRIED)
    assert len(LOCAL) >= 9


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("rule", LOCAL)
def test_a_local_rule_with_a_trained_variant_is_refused_and_the_line_names_those_that_it_can(rule: str, kind: str):
    line = refused(encoder=rule, tied=True, sae=kind)
    assert f"{kind} has parameters that only backprop trains" in line
    assert line.endswith(f"{rule} can train {', '.join(CARRIED)}")


@pytest.mark.parametrize("kind", PENALISED)
@pytest.mark.parametrize("rule", LOCAL)
def test_a_penalty_that_a_local_rule_does_not_follow_cannot_be_steered(rule: str, kind: str):
    line = refused(encoder=rule, decoder="backprop", sae=kind, target_l0=5.0)
    assert f"{rule} does not follow the penalty of {kind}" in line
    assert line.endswith(f"with {', '.join(OUTRIGHT)}")


@pytest.mark.parametrize("rule", LOCAL)
def test_a_local_rule_is_given_an_l0_where_the_code_sets_it_outright(rule: str):
    for kind in OUTRIGHT:
        table = {"encoder": rule, "tied": True, "sae": kind, "target_l0": 5.0}
        config = TrainConfig.from_table({"setups": ["x"], "setup": {"x": table}}, "test")
        assert config.setup["x"].variant == config.setup["x"].sae.aimed(5.0)
        assert config.setup["x"].variant != config.setup["x"].sae


@pytest.mark.parametrize("rule", ENCODER_ONLY)
def test_a_rule_for_encoders_is_refused_as_a_decoders(rule: str):
    line = refused(encoder="backprop", decoder=rule)
    assert "decoder must be a rule for decoders" in line
    assert rule in line


@pytest.mark.parametrize("rule", LOCAL)
def test_a_revival_through_the_loss_is_refused_unless_backprop_trains_both_sides(rule: str):
    by_loss = [name for name in REVIVALS if registry.find(Revival.package, name, Revival).gradient]
    assert "auxk" in by_loss
    others = ", ".join(name for name in REVIVALS if name not in by_loss)
    for name in by_loss:
        for sides in (
            {"encoder": rule, "tied": True},
            {"encoder": rule, "decoder": "backprop"},
            {"encoder": "backprop", "decoder": rule},
        ):
            if rule in ENCODER_ONLY and sides.get("decoder") == rule:
                continue
            line = refused(**sides, revive=name)
            assert "revive" in line
            assert name in line
            assert others in line


@pytest.mark.parametrize(
    ("setup", "line"),
    [
        ({"encoder": "backprop"}, "decoder must be a rule, unless tied"),
        ({"tied": True, "decoder": "backprop"}, "decoder must be unset"),
        ({"tied": True, "decoder_bias": True}, "decoder_bias must be false unless backprop trains the decoder"),
        ({"tied": True, "target_l0": 0.0}, "target_l0 must be above 0"),
        ({"tied": True, "schedule": {"final": 2.0}}, "schedule.final must be in [0, 1]"),
        ({"tied": True, "revive": {"kind": "resample", "every": 0}}, "revive.every must be 1 or above"),
        ({"tied": True, "revive": "prayer"}, "no revival entry named 'prayer'"),
        ({"tied": True, "sae": "sparse"}, "no sae entry named 'sparse'"),
    ],
)
def test_a_setup_that_makes_no_sense_is_one_line(setup: dict[str, Any], line: str):
    assert line in refused(**setup)
