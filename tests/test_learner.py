"""What a setup does around its rules: centre, gain, norms, initial weights; and what a run's table holds beside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hsae.errors import UserError
from hsae.learner import Learner, Moment
from hsae.progress import Training
from hsae.run import Run
from hsae.setup import resolve
from hsae.start import centre_of, geometric_median
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]


def learner(centre: torch.Tensor, **changes: Any) -> Learner:
    return Learner("bp", resolve(["bp"], {"bp": changes}, "test")["bp"], seed=0, latents=12, centre=centre)


def rows(tokens: int = 200) -> torch.Tensor:
    return torch.randn(tokens, 5, generator=torch.Generator().manual_seed(2)) + torch.arange(5.0)


def test_the_geometric_median_has_the_least_sum_of_distances():
    x = torch.cat([rows(60), 100 * torch.ones(3, 5)])
    found = geometric_median(x).double()

    def cost(at: torch.Tensor) -> float:
        return (x.double() - at).norm(dim=1).sum().item()

    for i in range(5):
        for step in (-0.01, 0.01):
            assert cost(found) < cost(found + step * torch.eye(5, dtype=torch.float64)[i])
    assert (found - rows(60).double().mean(0)).norm() < 1  # where the mean is pulled away by the outliers
    assert (x.double().mean(0) - rows(60).double().mean(0)).norm() > 5


def test_the_centre_is_what_the_setup_says():
    mean, x = torch.arange(5.0), rows()
    made = {}
    for name in ("none", "mean", "median"):
        made[name] = centre_of(resolve(["bp"], {"bp": {"centre": name}}, "test")["bp"], mean, x)
    assert torch.equal(made["none"], torch.zeros(5))
    assert torch.equal(made["mean"], mean)
    assert torch.equal(made["median"], geometric_median(x))


def test_a_centre_is_folded_into_the_saved_biases():
    x, centre = rows(), torch.arange(5.0)
    one = learner(centre, decoder_bias=True)
    one.update(one.statistics(one.forward(x)))
    forward, sae = one.forward(x), one.sae(1.0)
    torch.testing.assert_close(sae.encode(x), forward.code, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x) - x, forward.error, rtol=1e-4, atol=1e-5)


def test_the_initial_gain_is_the_one_factor_that_reconstructs_best():
    x = rows()
    one, plain = learner(x.mean(0), init_gain=True), learner(x.mean(0))
    one.begin(x, Moment(1, 9), 64)
    gain = one.weights["encoder"].W[0, 0] / plain.weights["encoder"].W[0, 0]
    torch.testing.assert_close(one.weights["encoder"].W, gain * plain.weights["encoder"].W)

    def loss(factor: float) -> float:
        forward = plain.forward(x)
        return (factor * (forward.x + forward.error) - forward.x).square().sum().item()

    assert loss(float(gain)) < min(loss(float(gain) * 0.99), loss(float(gain) * 1.01), loss(1.0))
    one.begin(x, Moment(2, 9), 64)
    torch.testing.assert_close(one.weights["encoder"].W, gain * plain.weights["encoder"].W)


@pytest.mark.parametrize("tied", [True, False])
def test_unit_norm_holds_for_the_matrix_that_decodes(tied: bool):
    changes = {"tied": True, "decoder": ""} if tied else {}
    one = learner(torch.zeros(5), decoder_norm="unit", **changes)
    for _ in range(3):
        one.update(one.statistics(one.forward(rows())))
    decoder = one.weights["encoder" if tied else "decoder"].W
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(12))
    if not tied:
        assert (one.weights["encoder"].W.norm(dim=1) - 1).abs().max() > 0.01


def test_a_decoder_can_start_as_the_encoder_and_tied_safe_rows_are_short():
    one = learner(torch.zeros(5), decoder_init="encoder")
    assert torch.equal(one.weights["encoder"].W, one.weights["decoder"].W)
    assert not torch.equal(learner(torch.zeros(5)).weights["encoder"].W, learner(torch.zeros(5)).weights["decoder"].W)
    setup = dataclasses.replace(resolve(["bp-tied"], {}, "test")["bp-tied"], init="tied-safe")
    W = Learner("t", setup, 0, 2000, torch.zeros(8)).weights["encoder"].W
    assert W.std().item() == pytest.approx((2 / 2000) ** 0.5, rel=0.05)


def test_with_tied_safe_weights_the_first_reconstruction_is_as_long_as_the_input():
    setup = dataclasses.replace(resolve(["bp-tied"], {}, "test")["bp-tied"], init="tied-safe")
    x = rows() - rows().mean(0)
    forward = Learner("t", setup, 0, 4000, torch.zeros(5)).forward(x)
    made = forward.x + forward.error
    assert ((made * x).sum() / x.square().sum()).item() == pytest.approx(1, abs=0.1)


def settings(**changes: Any) -> TrainConfig:
    table = {"latents": 48, "batch_tokens": 128, "held_out": 128, "steps": 8, "log_every": 4, "device": "cpu"}
    return TrainConfig.from_table(table | changes, "test")


@pytest.mark.usefixtures("cache")
def test_synthetic_data_is_made_found_again_and_scored_against_its_truth():
    small = {"width": 12, "features": 20, "tokens": 4000, "context": 40, "active": 2.0}
    run = train(settings(data="synthetic", synthetic=small, setups=["bp", "hebb-tied"], name="truth"))
    for row in run.result.rows:
        assert row.mmcs is not None
        assert row.mcc is not None
        assert 0 < row.mcc <= row.mmcs <= 1
        assert row.mmcs_random is not None
        assert 0.3 < row.mmcs_random < 0.9
    assert run.result.store.startswith("synthetic-")
    again = train(settings(data="synthetic", synthetic=small, setups=["bp", "hebb-tied"], name="truth"))
    assert again.result == run.result
    # The run's own config repeats it.
    from hsae import config

    assert config.read_file(run.folder / "config.toml", "train")["synthetic"]["features"] == 20


def test_a_table_holds_the_baselines_and_the_local_rules_diagnostics(planted: Planted):
    planted()
    run = train(settings(setups=["bp", "hebb-tied"]))
    names = [one.name for one in run.result.baselines]
    assert names[0] == "mean"
    assert names[-1] == "k-means-48"
    assert any(name.startswith("pca-") for name in names)
    bp, local = run.result.rows
    assert bp.rule is None
    assert local.rule is not None
    assert 0 <= local.rule["winner_entropy"] <= 1
    assert bp.mcc is None
    assert bp.train_evr_pooled is not None
    assert Run(run.folder).result == run.result
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"rule" in line for line in lines if line["setup"] == "bp"} == {False}
    assert {"rule" in line for line in lines if line["setup"] == "hebb-tied" and line["step"] == 1} == {True}
    assert train(settings(setups=["bp"], baselines=False)).result.baselines == ()


def test_a_setup_is_scored_as_it_will_be_used(planted: Planted):
    store = planted()
    run = train(settings(setups=["bp"], setup={"bp": {"sae": {"kind": "batchtopk", "k": 3.0}, "centre": "median"}}))
    row, sae = run.row("bp"), run.sae("bp")
    hook, _ = store.hook()
    first = store.manifest.sequences - 4
    x = torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks(hook, 4, first)])[:128]
    code = sae.encode(x)
    assert row.l0 == pytest.approx(code.count_nonzero().item() / 128)
    pooled = 1 - (sae.decode(code) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert row.evr_pooled == pytest.approx(pooled.item(), abs=1e-5)


def test_a_missed_target_is_said(planted: Planted):
    planted()
    said: list[str] = []

    class Listening(Training):
        def say(self, line: str) -> None:
            said.append(line)

    train(settings(setups=["bp"], setup={"bp": {"target_l0": 40.0}}), Listening())
    assert any("bp (seed 0): L0 is" in line and "not 40" in line for line in said)
    said.clear()
    train(settings(setups=["bp"]), Listening())
    assert not any("L0 is" in line for line in said)


@pytest.mark.parametrize(
    "sae", [{"kind": "batchtopk", "k": 2.0}, {"kind": "jumprelu", "threshold": 1.0}, "gated", "topk"]
)
def test_after_the_initial_gain_no_other_gain_is_better(sae: Any):
    x = rows()
    one = learner(x.mean(0), init_gain=True, sae=sae)
    one.begin(x, Moment(1, 9))
    forward = one.forward(x)
    made = forward.x + forward.error
    assert made.abs().max() > 0
    assert ((made * forward.x).sum() / made.square().sum()).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"tied": True, "decoder": "", "init_gain": True}, "init_gain must be false when tied"),
        ({"decoder": "oja", "decoder_bias": True}, "decoder_bias must be false unless backprop trains the decoder"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(table: dict[str, Any], line: str):
    with pytest.raises(UserError, match=line):
        resolve(["bp"], {"bp": table}, "test")


def test_settings_of_data_that_is_not_used_are_refused():
    with pytest.raises(UserError, match="synthetic must be set only with data = synthetic"):
        settings(synthetic={"features": 32, "active": 2.0})
    with pytest.raises(UserError, match="store must be unset with data = synthetic"):
        settings(data="synthetic", store="x")
