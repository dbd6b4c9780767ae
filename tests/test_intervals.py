"""Means over seeds and their 95% intervals, against printed tables of Student's distribution."""

from __future__ import annotations

import math

import pytest

from hsae.intervals import Estimate, estimate


def test_a_mean_and_its_interval_by_hand():
    found = estimate([1, 2.0, 3.0, 4.0, 5.0, None, float("nan")])
    assert found is not None
    assert (found.count, found.mean) == (5, 3.0)
    assert found.std == pytest.approx(math.sqrt(2.5))
    # Reach: 2.7764 · √2.5 / √5.
    assert found.half == pytest.approx(1.9632, abs=1e-4)


@pytest.mark.parametrize(("count", "t"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_the_interval_is_students(count: int, t: float):
    values = [(-1.0) ** i for i in range(count)]
    found = estimate(values)
    assert found is not None
    assert found.std is not None
    assert found.half == pytest.approx(t * found.std / math.sqrt(count), rel=5e-4)


def test_one_value_has_no_uncertainty_and_none_no_mean():
    assert estimate([2]) == Estimate(1, 2.0, None, None)
    assert estimate([None, math.inf]) is None
