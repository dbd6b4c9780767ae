"""What is done for dead latents: exactly to them, repeatably, and so that fewer stay dead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hsae.config import build
from hsae.learner import Learner, Moment
from hsae.revival import Revival
from hsae.revival.auxk import AuxK
from hsae.revival.homeostasis import Homeostasis
from hsae.revival.resample import Resample
from hsae.setup import Setup
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

LATENTS, WIDTH, TOKENS = 12, 12, 64
DEAD = torch.zeros(LATENTS, dtype=torch.bool).index_fill_(0, torch.tensor([1, 4, 9]), True)
UNCLIPPED = {"rule": "backprop", "clip": 0.0}
SIDES: dict[str, dict[str, Any]] = {"tied": {"tied": True}, "untied": {"decoder": UNCLIPPED, "decoder_bias": True}}
sides = pytest.mark.parametrize("side", SIDES)


def batch(seed: int = 2) -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def learner(side: str, revive: Revival | None, seed: int = 0, encoder: Any = "backprop", **setup: Any) -> Learner:
    table = {"encoder": encoder, **SIDES[side], **setup}
    made = dataclasses.replace(build(Setup, table, "test"), revive=revive)
    return Learner("x", made, seed, LATENTS, centre=torch.linspace(-0.2, 0.3, WIDTH))


def step(one: Learner, x: Tensor, moment: Moment) -> Tensor:
    """One step; each token's squared error before it."""
    one.begin(x, moment)
    forward = one.forward(x)
    one.update(one.statistics(forward), moment)
    return forward.error.square().sum(1)


def tensors(one: Learner) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in one.tensors().items()}


def test_auxk_takes_half_the_width_and_weighs_less_where_fewer_are_dead():
    assert AuxK().auxiliary(dead=100, width=20) == (10, 1 / 32)
    assert AuxK(k=8, weight=0.5).auxiliary(dead=100, width=20) == (8, 0.5)
    assert AuxK(k=8, weight=0.5).auxiliary(dead=2, width=20) == (2, 0.125)
    assert AuxK().auxiliary(dead=0, width=20) is None
    assert AuxK().auxiliary(dead=5, width=1) == (1, 1 / 32)


@sides
@pytest.mark.parametrize(
    "sae",
    [
        {"kind": "topk", "k": 2},
        {"kind": "batchtopk", "k": 2.0},
        {"kind": "matryoshka", "k": 2.0},
        {"kind": "jumprelu", "threshold": 0.4},
    ],
    ids=lambda sae: sae["kind"],
)
def test_only_auxk_moves_dead_latents_and_it_moves_no_others(side: str, sae: dict[str, Any]):
    x, found = batch(), {}
    for name, revive in (("none", None), ("auxk", AuxK(k=2)), ("resample", Resample())):
        one = learner(side, revive, encoder=UNCLIPPED, sae=sae)
        encoder = one.weights["encoder"]
        # Above 0 on some tokens, but never among the highest.
        W, b = torch.where(DEAD[:, None], encoder.W * 1e-2, encoder.W), 9.0 * ~DEAD
        one.weights["encoder"] = dataclasses.replace(encoder, W=W, b=b)
        before = dict(one.weights)
        one.begin(x, Moment(1, 9, DEAD))
        assert not bool((one.forward(x).code > 0)[:, DEAD].any())
        step(one, x, Moment(1, 9, DEAD))
        found[name] = {key: one.weights[key].W - before[key].W for key in before}
        found[name]["b"] = one.weights["encoder"].b - before["encoder"].b
    for key, change in found["none"].items():
        assert change[DEAD].abs().max() == 0
        assert change[~DEAD].abs().max() > 0
        assert torch.equal(found["resample"][key], change)
        assert bool((found["auxk"][key][DEAD] != 0).view(3, -1).any(1).all())
        assert torch.equal(found["auxk"][key][~DEAD], change[~DEAD])


def test_auxk_does_nothing_while_no_latent_is_dead():
    plain, helped = (learner("untied", revive, sae={"kind": "topk", "k": 2}) for revive in (None, AuxK()))
    for one in (plain, helped):
        step(one, batch(), Moment(1, 9, torch.zeros_like(DEAD)))
    assert all(torch.equal(plain.tensors()[key], value) for key, value in helped.tensors().items())


def resampled(side: str, seed: int = 0, revive: Resample | None = None, moment: int = 4, **setup: Any):
    """A learner before and after resampling, the batch (centred) and the learner."""
    one = learner(side, revive or Resample(every=4), seed, **setup)
    for i in range(1, 4):
        step(one, batch(i), Moment(i, 8, DEAD))
    loss = step(one, batch(4), Moment(moment, 8, DEAD))
    before = tensors(one)
    one.revive(batch(4), loss, Moment(moment, 8, DEAD))
    return before, tensors(one), batch(4) - one.centre, loss, one


@sides
def test_resampling_replaces_the_dead_rows_by_tokens_and_nothing_else(side: str):
    before, after, x, _, _ = resampled(side)
    for key, value in before.items():
        rowless = value.ndim == 0 or key.startswith(("decoder.b", "decoder.state.b")) or key == "centre"
        if key == "steering" or rowless:
            assert torch.equal(after[key], value), key
        else:
            assert torch.equal(after[key][~DEAD], value[~DEAD]), key
    assert bool((before["encoder.state.W.mean"][DEAD] != 0).any())
    for key in after:
        if ".state." in key and after[key].ndim > 0 and "decoder.state.b" not in key:
            assert bool((after[key][DEAD] == 0).all()), key
    assert after["encoder.state.step"] == 4
    assert bool((after["encoder.b"][DEAD] == 0).all())
    directions = torch.nn.functional.normalize(x, dim=1)
    for name in {"encoder", "decoder"} & {key.split(".")[0] for key in after}:
        W, live = after[f"{name}.W"][DEAD], before[f"{name}.W"][~DEAD].norm(dim=1).mean()
        length = live * (Resample().gain if name == "encoder" and side == "untied" else 1)
        torch.testing.assert_close(W.norm(dim=1), length.expand(3))
        assert (torch.nn.functional.normalize(W, dim=1) @ directions.T).max(1).values.min() > 1 - 1e-5
    if side == "untied":
        cosines = torch.nn.functional.cosine_similarity(after["encoder.W"][DEAD], after["decoder.W"][DEAD])
        torch.testing.assert_close(cosines, torch.ones(3))


def test_a_decoders_bias_keeps_its_memory_even_where_latents_are_as_many_as_the_width():
    before, after, _, _, _ = resampled("untied")
    assert LATENTS == WIDTH
    for key in ("decoder.b", "decoder.state.b.mean", "decoder.state.b.square"):
        assert before[key].abs().min() > 0
        assert torch.equal(after[key], before[key])


@sides
def test_resampling_is_the_same_under_one_seed_and_not_under_another(side: str):
    first, again, other = (resampled(side, seed)[1] for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    rows = [torch.nn.functional.normalize(after["encoder.W"][DEAD], dim=1) for after in (first, other)]
    assert not torch.allclose(*rows)


def test_tokens_are_drawn_by_their_loss_squared():
    one = learner("untied", Resample(every=1, gain=1.0))
    x, dead = torch.eye(WIDTH)[:4] + one.centre, torch.ones(LATENTS, dtype=torch.bool)
    counts = torch.zeros(4)
    for seed in range(100):
        one = learner("untied", Resample(every=1), seed)
        one.revive(x, torch.tensor([0.0, 1.0, 2.0, 3.0]), Moment(1, 8, dead))
        counts += torch.bincount(one.weights["encoder"].W.argmax(1), minlength=WIDTH)[:4]
    # 0 : 1 : 4 : 9 of 1200.
    assert counts[0] == 0
    assert (counts / counts.sum() - torch.tensor([0.0, 1.0, 4.0, 9.0]) / 14).abs().max() < 0.05


@pytest.mark.parametrize("loss", [0.0, float("nan"), float("inf"), 1e30])
def test_a_loss_that_gives_no_chances_draws_all_tokens_alike(loss: float):
    one = learner("untied", Resample(every=1))
    one.revive(batch(), torch.full((TOKENS,), loss), Moment(1, 8, DEAD))
    assert bool(torch.isfinite(one.weights["encoder"].W).all())
    assert len(one.weights["encoder"].W[DEAD].unique(dim=0)) > 1


def test_resampling_waits_for_its_step_and_ends_after_its_share():
    def changed(moment: int, dead: Tensor = DEAD, **fields: Any) -> bool:
        one = learner("tied", Resample(**fields))
        before = one.weights["encoder"].W
        one.revive(batch(), torch.ones(TOKENS), Moment(moment, 100, dead))
        return not torch.equal(before, one.weights["encoder"].W)

    assert [moment for moment in range(1, 101) if changed(moment, every=30)] == [30, 60]
    assert [moment for moment in range(1, 101) if changed(moment, every=30, share=0.9)] == [30, 60, 90]
    assert not changed(30, torch.zeros_like(DEAD), every=30)


def test_a_revival_keeps_unit_rows_where_the_setup_asks_for_them():
    for side in SIDES:
        one = resampled(side, decoder_norm="unit")[4]
        decodes = one.weights["encoder" if side == "tied" else "decoder"].W
        torch.testing.assert_close(decodes.norm(dim=1), torch.ones(LATENTS))


@sides
@pytest.mark.parametrize("rule", ["backprop", "softhebb", "oja"])
def test_homeostasis_raises_the_biases_of_dead_latents_alone(side: str, rule: str):
    one = learner(side, Homeostasis(rate=0.5), encoder=rule)
    loss = step(one, batch(), Moment(1, 9, DEAD))
    before, W = tensors(one), one.weights["encoder"].W
    one.revive(batch(), loss, Moment(1, 9, DEAD))
    after = tensors(one)
    assert all(torch.equal(after[key], value) for key, value in before.items() if key != "encoder.b")
    rms = (batch() - one.centre).square().mean().sqrt()
    rise = 0.5 * W.norm(dim=1) * rms * DEAD
    torch.testing.assert_close(after["encoder.b"] - before["encoder.b"], rise)
    assert rise[DEAD].min() > 0


def test_homeostasis_makes_a_dead_latent_fire_again():
    one = learner("tied", Homeostasis(rate=0.05), encoder={"rule": "oja", "lr": 1e-4})
    encoder = one.weights["encoder"]
    assert encoder.b is not None
    one.weights["encoder"] = dataclasses.replace(encoder, b=torch.where(DEAD, -6.0, encoder.b))
    fired = []
    for i in range(1, 151):
        x = batch(i)
        active = (one.forward(x).code > 0).any(0)
        moment = Moment(i, 150, ~active)
        loss = step(one, x, moment)
        one.revive(x, loss, moment)
        fired.append(active)
    assert not bool(fired[0][DEAD].any())
    assert bool(torch.stack(fired[100:]).any(0)[DEAD].all())


SMALL = {"latents": 96, "batch_tokens": 128, "held_out": 256, "dead_window": 2048, "log_every": 100}


def ran(steps: int, setup: dict[str, Any], **changes: Any):
    table = SMALL | {"steps": steps, "setups": list(setup), "setup": setup} | changes
    return train(TrainConfig.from_table(table, "test"))


def test_a_latent_is_dead_for_its_revival_after_so_many_silent_tokens_and_no_sooner(planted: Callable[..., Store]):
    planted()
    silent = {"encoder": {"rule": "softhebb", "bias_init": "paper_literal"}, "tied": True}
    lifted = silent | {"revive": {"kind": "homeostasis", "rate": 1.0, "tokens": 3 * 128}}
    for steps, rises in ((2, False), (4, True)):
        run = ran(steps, {"silent": silent, "lifted": lifted}, name=f"steps-{steps}")
        saved = load_file(run.folder / "sae.safetensors")
        rise = saved["lifted/0/b_enc"] - saved["silent/0/b_enc"]
        assert bool((rise > 0).all() if rises else (rise == 0).all()), steps


def test_a_latent_that_fires_in_every_batch_is_never_dead_for_its_revival(planted: Callable[..., Store]):
    planted()
    table = {"encoder": {"rule": "oja", "lr": 1e-6}, "tied": True}
    lifted = table | {"revive": {"kind": "homeostasis", "rate": 0.01, "tokens": 128}}
    saved = load_file(ran(4, {"plain": table, "lifted": lifted}).folder / "sae.safetensors")
    assert torch.equal(saved["lifted/0/b_enc"], saved["plain/0/b_enc"])


@pytest.mark.parametrize(
    ("base", "ways"),
    [
        (
            {"encoder": {"rule": "backprop", "lr": 3e-3}, "decoder": {"rule": "backprop", "lr": 3e-3}},
            ({"kind": "auxk", "weight": 1.0}, {"kind": "resample", "every": 40, "gain": 1.0}, {"kind": "homeostasis"}),
        ),
        (
            {"encoder": "softhebb", "tied": True},
            ({"kind": "resample", "every": 40}, {"kind": "homeostasis"}),
        ),
    ],
    ids=["backprop", "softhebb"],
)
def test_fewer_latents_stay_dead_where_something_is_done(
    planted: Callable[..., Store], base: dict[str, Any], ways: tuple[dict[str, Any], ...]
):
    planted()
    base = base | {"sae": {"kind": "topk", "k": 2}}
    setup = {way["kind"]: base | {"revive": way | {"tokens": 1024}} for way in ways}
    dead = {row.setup: row.dead or 0 for row in ran(250, {"none": base} | setup).result.rows}
    assert dead["none"] > 30
    assert {name: count for name, count in dead.items() if count >= dead["none"]} == {"none": dead["none"]}
    assert dead["homeostasis"] < dead["none"] / 3
    assert dead["resample"] < dead["none"] / 2
