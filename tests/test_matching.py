"""The assignment is the best there is, and among candidates it is as good as that."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsae.matching import CANDIDATES, assign, directions


def random(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def total(similarity: torch.Tensor, exact: int) -> float:
    found = assign(similarity, exact)
    assert found.exact == (similarity.numel() <= exact)
    assert len(found.row) == len(found.column) == min(similarity.shape)
    assert len(found.row.unique()) == len(found.column.unique()) == len(found.row)
    assert torch.equal(found.row, found.row.sort().values)
    return similarity[found.row, found.column].sum().item()


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 1000))
def test_no_assignment_is_better(rows: int, columns: int, seed: int):
    similarity = random(rows, columns, seed)
    wide = similarity if rows <= columns else similarity.T
    every = itertools.permutations(range(wide.shape[1]), len(wide))
    best = max(sum(wide[i, j].item() for i, j in enumerate(order)) for order in every)
    for exact in (100, 0):  # so few have all others as candidates
        assert total(similarity, exact) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (400, 250), (250, 400), (200, 3), (3, 200)])
def test_candidates_are_as_good_as_all(rows: int, columns: int):
    similarity = random(rows, columns, 1)
    assert total(similarity, 0) == pytest.approx(total(similarity, 10**6), rel=1e-3)


def test_who_finds_no_candidate_free_is_assigned_all_the_same():
    # All rows like the same few columns and no column is liked by more than those: most rows come away empty-handed.
    similarity = torch.full((200, 200), -0.5)
    similarity[:, :CANDIDATES] = 0.9
    similarity[:CANDIDATES, CANDIDATES:] = 0.8
    assert total(similarity, 40_000) == pytest.approx(32 * 0.9 + 32 * 0.8 - 0.5 * 136, abs=1e-4)
    assert total(similarity, 30_000) == pytest.approx(32 * 0.9 + 32 * 0.8 - 0.5 * 136, abs=1e-4)


def test_equal_similarities_and_none_are_assigned():
    assert total(torch.zeros(100, 100), 0) == 0
    assert total(torch.full((100, 100), -1.0), 0) == -100
    for shape in ((0, 5), (5, 0)):
        assert len(assign(torch.zeros(shape)).row) == 0


def test_directions_have_unit_length_whatever_that_of_the_rows():
    W = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [-3e30, -4e30], [0.0, 0.0]])
    unit = torch.tensor([[0.6, 0.8], [0.6, 0.8], [-0.6, -0.8], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(directions(W), unit, atol=1e-6)
