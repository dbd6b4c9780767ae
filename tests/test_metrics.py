"""The metrics' definitions, on numbers small enough to do by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsae.metrics import Meter
from hsae.rules import Usage

# Centre (1, 0). Token one: ‖x - x̄‖² = 4, error² = 1. Token two: ‖x - x̄‖² = 100, error² = 400.
X = torch.tensor([[3.0, 0.0], [1.0, 10.0]])
ERROR = torch.tensor([[0.0, 1.0], [0.0, 20.0]])
CODE = torch.tensor([[0.0, 2.0, 0.0], [4.0, 0.0, 0.0]])


def test_closed_forms():
    meter = Meter(torch.tensor([1.0, 0.0]), latents=3)
    meter.add(X, ERROR, Usage.of(CODE), torch.tensor(6.0))
    got = meter.result()
    assert got.tokens == 2
    assert got.mse == pytest.approx(401 / 4)
    assert got.loss == pytest.approx(401 / 4 + 6 / 2)
    assert got.evr == pytest.approx(((1 - 1 / 4) + (1 - 400 / 100)) / 2)
    assert got.evr_pooled == pytest.approx(1 - 401 / 104)
    assert got.evr_std == pytest.approx((0.75 + 3) / 2)
    assert got.evr_median == pytest.approx(-3)
    assert got.l1 == pytest.approx(6 / 2 / 2)
    assert got.l0 == pytest.approx(1)
    assert got.dictionary == 2
    assert meter.fired.tolist() == [1, 1, 0]


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 99), seed=st.integers(0, 1000))
def test_the_result_does_not_depend_on_the_batch_size(cut: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x, error = torch.randn(100, 7, generator=generator), torch.randn(100, 7, generator=generator)
    code = torch.relu(torch.randn(100, 13, generator=generator))
    whole, parts = Meter(x.mean(0), 13), Meter(x.mean(0), 13)
    whole.add(x, error, Usage.of(code), code.sum())
    for rows in (slice(0, cut), slice(cut, None)):
        parts.add(x[rows], error[rows], Usage.of(code[rows]), code[rows].sum())
    for name, value in vars(whole.result()).items():
        assert getattr(parts.result(), name) == pytest.approx(value, rel=1e-6), name
