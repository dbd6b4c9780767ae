"""Recovery scores on dictionaries whose scores are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hsae.errors import UserError
from hsae.store import Store
from hsae.truth import FILE, FORMAT, Truth, recovery


def truth_of(directions: torch.Tensor) -> Truth:
    return Truth(torch.nn.functional.normalize(directions, dim=1), torch.full((len(directions),), 0.1))


@pytest.fixture
def random() -> Truth:
    return truth_of(torch.randn(40, 12, generator=torch.Generator().manual_seed(3)))


def test_the_truth_itself_is_perfect_in_any_order_and_at_any_length(random: Truth):
    generator = torch.Generator().manual_seed(4)
    order = torch.randperm(40, generator=generator)
    length = torch.logspace(-30, 10, 40)[:, None]
    for rows in (random.directions, random.directions[order] * length):
        found = recovery(rows, random)
        assert (found.mmcs, found.mcc, found.found) == pytest.approx((1, 1, 1), abs=1e-6)
        assert found.live == 40


def test_a_row_that_points_away_is_no_match():
    truth = truth_of(torch.eye(4))
    flipped = torch.eye(4) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = recovery(flipped, truth)
    assert (found.mmcs, found.mcc, found.found) == pytest.approx((0.5, 0.5, 0.5))
    found = recovery(-torch.eye(4), truth)
    assert (found.mmcs, found.mcc, found.found) == (0, 0, 0)


def test_one_row_for_two_features_counts_once_in_mcc():
    # Two features at 20° from a row between them, one row: mmcs is cos 20° for both, the assignment has it once.
    angle = torch.tensor([20.0, -20.0]).deg2rad()
    truth = truth_of(torch.stack([angle.cos(), angle.sin()], 1))
    found = recovery(torch.tensor([[5.0, 0.0]]), truth)
    cosine = math.cos(math.radians(20))
    assert found.mmcs == pytest.approx(cosine)
    assert found.mcc == pytest.approx(cosine / 2)
    assert found.found == 1


def test_duplicates_of_one_feature_do_not_stand_for_the_others():
    # Features 0 and 1 at 60°; the dictionary has feature 0 three times.
    truth = truth_of(torch.tensor([[1.0, 0.0, 0.0], [0.5, math.sqrt(3) / 2, 0.0], [0.0, 0.0, 1.0]]))
    found = recovery(truth.directions[:1].repeat(3, 1), truth)
    assert found.mmcs == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.mcc == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.found == pytest.approx(1 / 3)
    # Once only: one of the two pairs is left.
    found = recovery(truth.directions[:1], truth)
    assert found.mcc == pytest.approx(1 / 3)
    assert found.mmcs == pytest.approx(0.5)


def test_the_assignment_is_the_best_and_not_the_greedy_one():
    # Cosines: feature 0 with the rows 0.7 and 0.6, feature 1 0.6 and 0. Greedy takes 0.7 + 0, the best is 0.6 + 0.6.
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    features = torch.tensor([[0.7, 0.6, math.sqrt(1 - 0.85), 0.0], [0.6, 0.0, 0.0, 0.8]])
    found = recovery(rows, Truth(features, torch.full((2,), 0.1)))
    assert found.mcc == pytest.approx(0.6)
    assert found.mmcs == pytest.approx((0.7 + 0.6) / 2)


@pytest.mark.parametrize(("degrees", "share"), [(25.0, 1.0), (26.0, 0.0)])  # arccos 0.9 is 25.84°
def test_found_is_above_a_cosine_of_0_9(degrees: float, share: float):
    angle = math.radians(degrees)
    truth = truth_of(torch.tensor([[1.0, 0.0]]))
    assert recovery(torch.tensor([[math.cos(angle), math.sin(angle)]]), truth).found == share


def test_zero_rows_are_not_in_the_dictionary(random: Truth):
    rows = torch.zeros(100, 12)
    rows[7:17] = random.directions[:10]
    found = recovery(rows, random)
    assert found == recovery(random.directions[:10], random)
    assert found.live == 10
    assert found.found >= 10 / 40
    assert found.mcc >= 10 / 40 - 1e-6
    nothing = recovery(torch.zeros(3, 12), random)
    assert (nothing.mmcs, nothing.mcc, nothing.found, nothing.live) == (0, 0, 0, 0)


@settings(max_examples=25, deadline=None)
@given(features=st.integers(1, 20), rows=st.integers(1, 30), seed=st.integers(0, 1000))
def test_scores_are_shares_and_a_row_of_ones_own_is_worth_no_more(features: int, rows: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    truth = truth_of(torch.randn(features, 5, generator=generator))
    found = recovery(torch.randn(rows, 5, generator=generator), truth)
    assert 0 <= found.mcc <= found.mmcs + 1e-12
    assert found.mmcs <= 1
    assert 0 <= found.found <= 1


# ---- the file in the store's folder


def test_it_comes_back_from_the_store(planted: Callable[..., Store], random: Truth):
    store = planted(width=12)
    assert Truth.of(store) is None
    random.write(store.folder)
    back = Truth.of(store)
    assert back is not None
    assert torch.equal(back.directions, random.directions)
    assert torch.equal(back.rate, random.rate)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _other(path: Path) -> None:
    save_file({"directions": torch.eye(12), "rate": torch.full((12,), 0.1)}, path, metadata={"format": "other"})


def _no_rate(path: Path) -> None:
    save_file({"directions": torch.eye(12)}, path, metadata=FORMAT)


def _width(path: Path) -> None:
    Truth(torch.eye(11), torch.full((11,), 0.1)).write(path.parent)


def _rate(path: Path) -> None:
    save_file({"directions": torch.eye(12), "rate": torch.full((11,), 0.1)}, path, metadata=FORMAT)


def _nan(path: Path) -> None:
    Truth(torch.eye(12) * float("nan"), torch.full((12,), 0.1)).write(path.parent)


def _length(path: Path) -> None:
    Truth(torch.eye(12) * 2, torch.full((12,), 0.1)).write(path.parent)


@pytest.mark.parametrize("accident", [_cut, _other, _no_rate, _width, _rate, _nan, _length])
def test_a_damaged_file_is_one_line(planted: Callable[..., Store], random: Truth, accident: Callable[[Path], None]):
    store = planted(width=12)
    random.write(store.folder)
    accident(store.folder / FILE)
    with pytest.raises(UserError, match=r"truth\.safetensors.*make it again$") as caught:
        Truth.of(store)
    assert "\n" not in str(caught.value)
