"""Two dictionaries whose likeness is known, compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_saes import compared, random, sae_of
from torch import Tensor

from hsae.compare import activity
from hsae.compare.fragment import fragment
from hsae.compare.matched import BINS, LISTED
from hsae.compare.pair import FEW, Side, compare_saes
from hsae.errors import UserError
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK

WIDTH, TOKENS = 16, 3000


def sparse_rows(width: int = WIDTH, share: float = 0.2) -> Tensor:
    """Independent dimensions, mostly 0, never negative: an identity SAE's code is the row itself."""
    on = random(TOKENS, width, seed=5) > torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - share))
    return on * random(TOKENS, width, seed=6).abs()


# ---- two dictionaries


def test_a_permuted_copy_matches_perfectly_whatever_its_rows_lengths():
    rows, W = random(TOKENS, WIDTH), random(30, WIDTH, seed=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    length = torch.logspace(-3, 3, 30)[:, None]
    found = compared(sae_of(W, W.clone()), sae_of(W[order] * length.flip(0), W[order] * length), rows)
    back = order.argsort().tolist()
    for matching in (found.cosine, found.correlation):
        assert [pair[:2] for pair in matching.pairs] == list(enumerate(back))
        assert matching.found.mean == pytest.approx(1, abs=1e-5)
        assert matching.found.shared == matching.found.histogram[-1] == 30
        assert (matching.unique_a, matching.unique_b) == (0, 0)
        assert matching.found.nearest_a == pytest.approx(1, abs=1e-5)
        assert matching.same_number == sum(order.tolist()[i] == i for i in range(30))
        assert (matching.lone_a, matching.lone_b) == ((), ())
        assert matching.exact
        assert matching.chance.mean is not None
        assert matching.chance.mean < 0.75
        assert sum(matching.chance.histogram) == 30
    assert (found.both, found.same) == (30, 30)


def test_a_half_shared_pair_shares_exactly_half():
    rows, eye = sparse_rows(), torch.eye(WIDTH)
    a, b = eye[:8], eye[[0, 1, 2, 3, 12, 13, 14, 15]].flip(0)
    found = compared(sae_of(a), sae_of(b), rows)
    assert found.cosine.found.mean == 0.5
    assert (found.cosine.found.nearest_a, found.cosine.found.nearest_b) == (0.5, 0.5)
    assert (found.cosine.found.shared, found.correlation.found.shared) == (4, 4)
    assert (found.cosine.unique_a, found.correlation.unique_b) == (4, 4)
    assert found.correlation.found.mean == pytest.approx(0.5, abs=0.03)
    assert {(i, j) for i, j, s in found.correlation.pairs if s > 0.99} == {(i, 7 - i) for i in range(4)}
    assert [one.latent for one in found.cosine.lone_a] == [4, 5, 6, 7]
    assert [one.latent for one in found.cosine.lone_b] == [0, 1, 2, 3]
    assert {one.nearest for one in found.cosine.lone_b} <= set(range(8))
    assert found.cosine.same_number == 0
    # 8 pairs, 4 of them at 0 and 4 at 1.
    assert (found.cosine.found.histogram[BINS // 2], found.cosine.found.histogram[-1]) == (4, 4)
    assert found.cosine.found.median == 0.5
    assert found.cosine.found.quantiles == (0, 0, 1, 1)


def test_cosines_keep_their_sign():
    rows = sparse_rows(2, 0.6)
    up = torch.tensor([[1.0, 0.0]])
    assert compared(sae_of(up), sae_of(up, -up), rows).cosine.pairs == ((0, 0, -1.0),)
    # The best assignment of opposites is any without a latent and its own opposite.
    eye = torch.eye(2)
    found = compared(sae_of(eye), sae_of(eye, -eye), rows)
    assert found.cosine.pairs == ((0, 1, 0.0), (1, 0, 0.0))
    assert found.cosine.found.shared == 0
    assert found.correlation.found.mean == pytest.approx(1)
    assert (found.both, found.same) == (2, 0)


def test_dead_latents_are_in_no_matching_though_their_rows_are_the_same():
    rows, eye = sparse_rows(), torch.eye(WIDTH)
    bias = torch.zeros(WIDTH)
    bias[3:] = -1e3
    other = eye.roll(1, 0)
    other[3:] = eye[3:]
    found = compared(sae_of(eye, bias=bias), sae_of(other, bias=bias), rows)
    assert (found.dead_a, found.dead_b, found.size_a) == (13, 13, 16)
    assert (found.cosine.latents_a, found.cosine.latents_b) == (3, 3)
    assert {i for i, _, _ in found.cosine.pairs} == {0, 1, 2}
    assert found.cosine.found.shared == 2  # of latents 15, 0, 1 and 0, 1, 2


def test_a_zero_row_has_no_direction():
    rows, eye = sparse_rows(4), torch.eye(4)
    W_dec = eye.clone()
    W_dec[2] = 0
    found = compared(sae_of(eye), sae_of(eye, W_dec), rows)
    assert (found.cosine.latents_a, found.cosine.latents_b) == (4, 3)
    assert found.correlation.latents_b == 4
    assert (found.both, found.same) == (3, 3)


def test_rare_and_constant_latents_have_no_correlation():
    rows = torch.zeros(TOKENS, 4)
    rows[:FEW, 0] = rows[: FEW - 1, 1] = 1
    rows[:, 2] = 3.3
    rows[::2, 3] = 1
    found = compared(sae_of(torch.eye(4)), sae_of(torch.eye(4)), rows)
    assert [i for i, _, _ in found.correlation.pairs] == [0, 3]
    assert len(found.cosine.pairs) == 4
    assert (found.both, found.same) == (2, 2)


def test_nothing_to_match_is_no_error():
    rows, eye = sparse_rows(4), torch.eye(4)
    for a, b in ((eye, eye), (eye[:1], eye)):
        found = compared(sae_of(a, bias=-1e9), sae_of(b), rows)
        assert found.cosine.pairs == found.correlation.pairs == ()
        assert (found.cosine.found.mean, found.cosine.chance.nearest_b) == (None, None)
        assert (found.cosine.unique_a, found.cosine.unique_b) == (0, len(b))
        assert "Nothing to match" in fragment(found)


@pytest.mark.parametrize("dense", [0, 10**9])  # one always multiplies sparse matrices, the other dense ones
@pytest.mark.parametrize("variant", [ReLU(), TopK(k=5)])
def test_correlations_are_numpys_over_many_blocks(monkeypatch: pytest.MonkeyPatch, dense: int, variant: Any):
    monkeypatch.setattr(activity, "DENSE", dense)
    monkeypatch.setattr(activity, "BLOCK", 300 * 40)
    rows = random(TOKENS, WIDTH)
    a, b = (sae_of(random(n, WIDTH, seed=n), bias=-1.0, variant=variant) for n in (40, 25))
    found = compared(a, b, rows)
    codes = [sae.encode(rows).double().numpy() for sae in (a, b)]
    exact = np.corrcoef(*codes, rowvar=False)[:40, 40:]
    assert len(found.correlation.pairs) == 25
    for i, j, similarity in found.correlation.pairs:
        assert similarity == pytest.approx(exact[i, j], abs=1e-6)
    assert found.correlation.found.nearest_b == pytest.approx(exact.max(0).mean(), abs=1e-6)
    # No other assignment has a higher sum: not that of the nearest first.
    from scipy.optimize import linear_sum_assignment

    best = exact[linear_sum_assignment(exact, maximize=True)].mean()
    assert found.correlation.found.mean == pytest.approx(best, abs=1e-6)


def test_a_large_mean_does_not_drown_a_correlation():
    rows = random(TOKENS, 2)
    a, b = sae_of(torch.eye(2), bias=4096.0), sae_of(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), bias=4096.0)
    found = compared(a, b, rows)
    exact = np.corrcoef(a.encode(rows).double().numpy(), b.encode(rows).double().numpy(), rowvar=False)[:2, 2:]
    for i, j, similarity in found.correlation.pairs:
        assert similarity == pytest.approx(exact[i, j], abs=1e-6)
    assert [pair[:2] for pair in found.correlation.pairs] == [(0, 0), (1, 1)]


def test_what_two_random_dictionaries_share_is_what_chance_gives():
    rows = random(TOKENS, WIDTH)
    # Both lean towards one direction, so that even chance is well above 0.
    lean = 2 * torch.eye(WIDTH)[:1]
    a, b = (sae_of(random(n, WIDTH, seed=n) + lean) for n in (300, 200))
    found = compared(a, b, rows)
    assert (len(found.cosine.pairs), found.cosine.latents_a) == (200, 300)
    assert found.cosine.chance.mean == pytest.approx(found.cosine.found.mean, abs=0.03)
    assert found.cosine.chance.nearest_a == pytest.approx(found.cosine.found.nearest_a, abs=0.03)
    assert found.cosine.chance.mean is not None
    assert found.cosine.chance.mean > 0.6
    # By correlation they share what one direction brings, by chance next to nothing.
    assert found.correlation.found.mean is not None
    assert found.correlation.chance.mean is not None
    assert found.correlation.found.mean > 0.5 > 0.15 > found.correlation.chance.mean
    assert found == compared(a, b, rows)


def test_few_rows_do_not_pass_for_a_distribution():
    rows = sparse_rows()
    found = compared(sae_of(torch.eye(WIDTH)[:1]), sae_of(torch.eye(WIDTH)[:1]), rows)
    assert found.cosine.found.mean == 1
    assert found.cosine.chance.mean is not None
    assert abs(found.cosine.chance.mean) < 0.9


def test_the_lists_name_the_most_alike_and_the_least_alike():
    # Latent i of b is latent i of a turned by i · 4 degrees in a plane of its own.
    eye, angle = torch.eye(40), torch.arange(20.0).mul(4).deg2rad()
    a = eye[:20]
    b = angle.cos()[:, None] * eye[:20] + angle.sin()[:, None] * eye[20:]
    rows = torch.zeros(2000, 40)
    for i in range(20):
        rows[: 100 + i, i] = rows[: 100 + i, 20 + i] = 1 + torch.arange(100.0 + i) % 7
    found = compared(sae_of(a), sae_of(b), rows, threshold=0.9)
    assert [(twin.a, twin.b) for twin in found.cosine.alike] == [(i, i) for i in range(LISTED)]
    assert [twin.rate_a for twin in found.cosine.alike] == [pytest.approx((100 + i) / 2000) for i in range(LISTED)]
    assert found.cosine.alike[6].similarity == pytest.approx(np.cos(np.radians(24)))
    assert [(one.latent, one.nearest) for one in found.cosine.lone_a] == [(i, i) for i in range(19, 9, -1)]
    assert found.cosine.lone_b[9].similarity == pytest.approx(np.cos(np.radians(40)))
    assert found.cosine.lone_b[9].rate == pytest.approx(110 / 2000)
    assert found.cosine.found.shared == found.cosine.same_number == 7  # up to 24 degrees; arccos 0.9 is 25.84
    assert (found.threshold, found.cosine.unique_a) == (0.9, 13)
    # None of those above the threshold is unique, however few there are.
    found = compared(sae_of(a), sae_of(b), rows, threshold=0.3)
    assert [one.latent for one in found.cosine.lone_a] == [19]
    # All that fire alike are told apart by nothing: the most frequent of them stands first.
    assert [twin.a for twin in found.correlation.alike] == list(range(19, 9, -1))


def test_widths_must_be_the_same():
    a, b = Side.of("a", sae_of(torch.eye(3)), torch.eye(3)), Side.of("b", sae_of(torch.eye(4)), torch.eye(4))
    with pytest.raises(UserError, match=r"^a takes activations 3 wide, b 4"):
        compare_saes(a, b, torch.eye(3))
