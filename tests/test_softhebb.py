"""SoftHebb against sums done by hand: its sign, its normalisation, its adaptive rate, its bias."""

from __future__ import annotations

import math

import pytest
import torch
from bare import bare
from torch import Tensor

from hsae.rules import Synapse, Weights
from hsae.rules.softhebb import SoftHebb, competition


def synapse(x: Tensor, weights: Weights) -> Synapse:
    u = x @ weights.W.T + (0 if weights.b is None else weights.b)
    return bare(x, u, weights)


def change(rule: SoftHebb, x: Tensor, weights: Weights) -> Weights:
    return rule.displacement(rule.statistics(synapse(x, weights)), weights, {})[0]


# x = (2, 1) drives the latents by u = (1, 1/2); at temperature 2 ln 3 the softmax is (9 : 3) = (3/4, 1/4).
# So s = (3/4, -1/4) and Σ s (x - u w) = 3/4·(3/2, 1), -1/4·(2, 3/4).
X = torch.tensor([[2.0, 1.0]])
W = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
HAND = torch.tensor([[9 / 8, 3 / 4], [-1 / 2, -3 / 16]])
HOT = 2 * math.log(3)


def test_winner_moves_towards_the_input_and_losers_away_scaled_by_one_number():
    rule = SoftHebb(lr=0.1, temperature=HOT, adaptive=False, prior=False)
    torch.testing.assert_close(change(rule, X, Weights(W)).W, 0.1 * HAND / (9 / 8))


def test_unsigned_losers_move_towards_the_input_too():
    rule = SoftHebb(lr=0.1, temperature=HOT, adaptive=False, prior=False, signed=False)
    unsigned = HAND * torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(change(rule, X, Weights(W)).W, 0.1 * unsigned / (9 / 8))


def test_row_and_mean_normalisation():
    by_row = SoftHebb(lr=0.1, temperature=HOT, adaptive=False, prior=False, normalise="row")
    torch.testing.assert_close(change(by_row, X, Weights(W)).W, 0.1 * HAND / torch.tensor([[9 / 8], [1 / 2]]))
    by_mean = SoftHebb(lr=0.1, temperature=HOT, adaptive=False, prior=False, normalise="mean")
    torch.testing.assert_close(change(by_mean, X.repeat(5, 1), Weights(W)).W, 0.1 * HAND)


def test_adaptive_rate_is_the_distance_from_unit_norm_to_the_power():
    rule = SoftHebb(lr=0.1, temperature=HOT, power=0.2, prior=False)
    torch.testing.assert_close(change(rule, X, Weights(W)).W, 0.1 * 0.5**0.2 * HAND / (9 / 8))
    # At unit norm the rate is lr·1e-10^power, not 0.
    unit = torch.eye(2)
    at_rest = change(SoftHebb(lr=0.1, temperature=1.0, power=0.2, prior=False), X, Weights(unit)).W
    assert at_rest.abs().max().item() == pytest.approx(0.1 * 1e-2, rel=1e-4)


def test_bias_in_the_drive_enters_the_decay():
    weights = Weights(W, torch.tensor([-0.5, 0.0]))  # u = (1/2, 1/2): the softmax is (1/2, 1/2), the first wins the tie
    rule = SoftHebb(lr=1.0, temperature=3.0, adaptive=False, normalise="mean")
    expected = torch.tensor([[0.5 * (2 - 0.25), 0.5], [-1.0, -0.5 * (1 - 0.25)]])
    torch.testing.assert_close(change(rule, X, weights).W, expected)


def test_bias_follows_the_signed_prior():
    # e^(temperature·b) = (1/2, 1/4) and Σ s = (3/4, -1/4) over one token: (3/4)/(1/2) - 1 = 1/2, (-1/4)/(1/4) - 1 = -2.
    rule = SoftHebb(lr=0.01, temperature=50.0, bias_lr=0.1, adaptive=False)
    weights = Weights(torch.zeros(2, 2), torch.tensor([0.5, 0.25]).log() / 50)
    sums = {"sx": torch.zeros(2, 2), "s": torch.tensor([0.75, -0.25]), "tokens": torch.tensor(1.0)}
    moved, _ = rule.displacement(sums, weights, {})
    assert moved.b is not None
    torch.testing.assert_close(moved.b, 0.01 * 0.1 / 50 * torch.tensor([0.25, -1.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("depth", [-200.0, -2000.0, 0.0])
def test_bias_survives_where_its_exponential_does_not(depth: float):
    weights = Weights(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.full((8,), depth / 50))
    moved = change(SoftHebb(), torch.randn(32, 4, generator=torch.Generator().manual_seed(1)), weights)
    assert moved.b is not None
    assert bool(torch.isfinite(moved.b).all())
    assert bool(torch.isfinite(moved.W).all())
    assert moved.b.abs().max() > 0


def test_bias_stops_at_the_end_of_its_range():
    b = torch.tensor([-60.0, -1.0, 0.0]) / 50
    sums = {"sx": torch.zeros(3, 2), "s": torch.tensor([-9.0, 0.0, 9.0]), "tokens": torch.tensor(1.0)}
    rule = SoftHebb(lr=10.0, bias_lr=100.0, adaptive=False)
    moved, _ = rule.displacement(sums, Weights(torch.zeros(3, 2), b), {})
    assert moved.b is not None
    assert ((b + moved.b) * 50).min().item() == pytest.approx(-60, abs=1e-3)
    assert ((b + moved.b) * 50).max().item() <= 1e-6


def test_initial_bias_is_the_uniform_prior_in_the_softmax():
    assert SoftHebb(temperature=50.0).bias(3200)[0].item() == pytest.approx(-0.16142, abs=1e-5)
    assert SoftHebb(temperature=50.0, bias_init="paper_literal").bias(3200)[0].item() == pytest.approx(-12.02, abs=0.01)
    assert SoftHebb(prior=False).bias(3).tolist() == [0, 0, 0]


def test_competition_sums_to_one_and_has_one_winner():
    u = torch.randn(50, 30, generator=torch.Generator().manual_seed(3))
    s = competition(u, 2.0, signed=True)
    assert torch.equal(s.argmax(1), u.argmax(1))
    assert torch.equal((s > 0).sum(1), torch.ones(50, dtype=torch.int64))
    torch.testing.assert_close(s.abs().sum(1), torch.ones(50))
    tied = competition(torch.zeros(1, 4), 1.0, signed=True)
    torch.testing.assert_close(tied, torch.tensor([[0.25, -0.25, -0.25, -0.25]]))


def test_latents_can_be_renamed():
    generator = torch.Generator().manual_seed(5)
    x, weights = torch.randn(40, 6, generator=generator), torch.randn(9, 6, generator=generator)
    order = torch.randperm(9, generator=generator)
    rule = SoftHebb(temperature=3.0)
    plain = change(rule, x, Weights(weights, torch.full((9,), -0.1)))
    renamed = change(rule, x, Weights(weights[order], torch.full((9,), -0.1)))
    torch.testing.assert_close(plain.W[order], renamed.W)


def test_winners_find_the_means_of_clusters_with_unit_rows():
    generator = torch.Generator().manual_seed(11)
    centres = torch.nn.functional.normalize(torch.randn(4, 12, generator=generator), dim=1)
    rule = SoftHebb(lr=0.02, temperature=30.0, prior=False, power=0.5)
    weights = Weights(0.05 * torch.randn(4, 12, generator=generator) + centres * 0.5)
    for _ in range(400):
        x = centres[torch.randint(4, (64,), generator=generator)] + 0.03 * torch.randn(64, 12, generator=generator)
        weights = weights.plus(change(rule, x, weights))
    cosine = torch.nn.functional.normalize(weights.W, dim=1) @ centres.T
    assert cosine.diagonal().min() > 0.99
    assert (weights.W.norm(dim=1) - 1).abs().max() < 0.05


def test_the_three_arithmetics_of_the_bias():
    s, b, tokens = torch.tensor([3.0, -1.0]), torch.tensor([-0.02, -0.01]), 4.0
    found = {}
    for name, prior in (("log", (50 * b).exp()), ("official", (50 * b).exp()), ("paper_literal", (b / 50).exp())):
        rule = SoftHebb(bias_arithmetic=name, adaptive=False, lr=1.0, bias_lr=50.0)  # pyright: ignore[reportArgumentType]
        sums = {"sx": torch.zeros(2, 2), "s": s, "tokens": torch.tensor(tokens)}
        moved, _ = rule.displacement(sums, Weights(torch.zeros(2, 2), b), {})
        by_hand = (s - tokens * prior) / prior
        expected = by_hand / by_hand.abs().max()
        if name == "log":
            expected = torch.minimum(expected, -b)  # a log prior never rises above 0
            expected = torch.maximum(expected, -60 / 50 - b)
        torch.testing.assert_close(moved.b, expected)
        found[name] = expected
    assert not torch.allclose(found["official"], found["paper_literal"], atol=1e-2)


def test_the_official_arithmetic_underflows_to_nan_and_the_logarithmic_one_does_not():
    b = torch.tensor([-2.2, 0.0])
    sums = {"sx": torch.zeros(2, 2), "s": torch.tensor([1.0, -1.0]), "tokens": torch.tensor(2.0)}
    for name, finite in (("official", False), ("log", True)):
        rule = SoftHebb(bias_arithmetic=name)  # pyright: ignore[reportArgumentType]
        moved, _ = rule.displacement(sums, Weights(torch.zeros(2, 2), b), {})
        assert moved.b is not None
        assert bool(torch.isfinite(moved.b).all()) == finite
