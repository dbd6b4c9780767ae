"""Baselines on data whose errors are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hsae.baselines as module
from hsae.baselines import Rows, baselines, training_rows
from hsae.errors import UserError
from hsae.metrics import Meter
from hsae.record import Baseline
from hsae.rules import Usage
from hsae.store import Store


@pytest.fixture
def store(planted: Callable[..., Store]) -> Store:
    return planted()


def blocks(x: Tensor, size: int = 100) -> Rows:
    return lambda: iter(x.split(size))


def never() -> Iterator[Tensor]:
    raise AssertionError("the training rows were read")


def random(rows: int, width: int = 6, seed: int = 0) -> Tensor:
    """Rows of unequal spread, far from 0."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return x * torch.arange(1.0, width + 1) + 7


def compute(store: Store, held: Tensor, train: Rows, latents: int = 4, ranks: tuple[int, ...] = (), **more: Any):
    return {b.name: b for b in baselines(store, "hook", 1.0, held, latents, ranks, train, **more)}


def clusters(rows: int, count: int, spread: float) -> tuple[Tensor, Tensor]:
    """Rows about `count` centres that lie far apart, and the centres' numbers."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(count, 6, generator=generator) * 100
    number = torch.arange(rows) % count
    return centre[number] + spread * torch.randn(rows, 6, generator=generator), number


# ---- mean


def test_the_mean_of_the_same_tokens_explains_nothing(store: Store):
    x = random(500)
    got = compute(store, x, blocks(x))["mean"]
    assert got.evr == pytest.approx(0, abs=1e-5)
    assert got.evr_pooled == pytest.approx(0, abs=1e-6)
    assert got.mse == pytest.approx(x.double().var(0, correction=0).mean().item(), rel=1e-5)
    assert (got.l0, got.dictionary) == (0, 0)


def test_the_mean_is_the_training_tokens(store: Store):
    # Held out: 1 and 3 in one dimension, so the centre is 2. Training mean 5: errors 16 and 4, spreads 1 and 1.
    held, train = torch.tensor([[1.0], [3.0]]), torch.tensor([[4.0], [6.0]])
    got = compute(store, held, blocks(train))["mean"]
    assert got.mse == pytest.approx(10)
    assert got.evr == pytest.approx(((1 - 16) + (1 - 4)) / 2)
    assert got.evr_pooled == pytest.approx(1 - 20 / 2)
    assert got.evr_std == pytest.approx(6)


# ---- PCA


def test_the_error_of_pca_is_the_discarded_eigenvalues(store: Store):
    x = random(400)
    eigenvalues = torch.linalg.eigvalsh(x.double().T.cov(correction=0)).flip(0)
    got = compute(store, x, blocks(x, 7), ranks=(1, 3, 6))
    for rank in (1, 3, 6):
        pca, lost = got[f"pca-{rank}"], eigenvalues[rank:].sum().item()
        assert pca.mse == pytest.approx(lost / 6, rel=1e-4, abs=1e-10)
        assert pca.evr_pooled == pytest.approx(1 - lost / eigenvalues.sum().item(), abs=1e-5)
        assert (pca.l0, pca.dictionary) == (rank, rank)


def test_pca_is_fitted_to_the_training_tokens(store: Store):
    # All of the training tokens' spread is along the first axis, all of the held-out ones' along the second.
    train, held = torch.zeros(50, 2), torch.zeros(50, 2)
    train[:, 0], held[:, 1] = torch.linspace(-1, 1, 50), torch.linspace(-1, 1, 50)
    got = compute(store, held, blocks(train), ranks=(1,))["pca-1"]
    assert got.evr_pooled == pytest.approx(0, abs=1e-6)


def test_a_far_mean_costs_pca_nothing(store: Store):
    x = random(400).double()
    moments = module._Moments(6)
    for block in (x + 1e7).split(50):
        moments.add(block)
    mean, covariance = moments.result()
    torch.testing.assert_close(covariance, x.T.cov(correction=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean, x.mean(0) + 1e7)


def test_ranks_beyond_the_width_are_the_width_and_come_once(store: Store):
    x = random(100)
    got = baselines(store, "hook", 1.0, x, 4, (2, 6, 2, 50), blocks(x))
    assert [b.name for b in got] == ["mean", "pca-2", "pca-6", "k-means-4"]


# ---- k-means


def test_separated_clusters_are_found(store: Store):
    x = clusters(1200, 5, spread=0.01)[0]
    got = compute(store, x[:200], blocks(x[200:]), latents=60)["k-means-60"]
    assert got.evr_pooled == pytest.approx(1, abs=1e-6)
    assert got.mse == pytest.approx(0.01**2, rel=0.5)
    assert got.l0 == 1
    assert 5 <= got.dictionary <= 60


def test_as_many_centroids_as_distinct_tokens_fit_exactly(store: Store):
    # Random first centroids hold doubles; only starting the empty ones anew finds every one of the 40.
    x, number = clusters(2000, 40, spread=0.0)
    got = compute(store, x[:400], blocks(x[400:]), latents=40)["k-means-40"]
    assert got.mse == pytest.approx(0, abs=1e-4)  # of a variance of 10⁴
    assert got.dictionary == len(number.unique())


def test_k_means_beats_random_tokens_and_one_round(store: Store, monkeypatch: pytest.MonkeyPatch):
    x, mse = random(3000), []
    for rounds in (0, 2, 8):
        monkeypatch.setattr(module, "ITERATIONS", rounds)
        mse.append(compute(store, x[:500], blocks(x[500:]), latents=50)["k-means-50"].mse)
    assert mse[0] > 1.1 * mse[1] > 1.1 * mse[2]


def test_one_centroid_is_the_mean(store: Store):
    x = random(300)
    got = compute(store, x, blocks(x), latents=1)
    assert got["k-means-1"].mse == pytest.approx(got["mean"].mse, rel=1e-5)


def test_more_centroids_than_tokens(store: Store):
    x = random(30)
    got = compute(store, x, blocks(x), latents=100)["k-means-100"]
    assert got.mse == pytest.approx(0, abs=1e-9)
    assert got.dictionary == 30


def test_the_nearest_centroid_is_the_nearest():
    x, centroids = random(3000, seed=1), random(70, seed=2)
    index, squared = module._nearest(x, centroids)
    exact = torch.cdist(x.double(), centroids.double())
    assert torch.equal(index, exact.argmin(1))
    torch.testing.assert_close(squared.double(), exact.amin(1).square(), rtol=1e-3, atol=1e-3)


def test_the_sample_is_even_and_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SAMPLE", 500)
    x = torch.arange(10_000.0)[:, None]
    drawn = []
    for size in (13, 370, 10_000):
        sample = module._Sample(seed=3)
        for block in x.split(size):
            sample.add(block)
        drawn.append(sample.rows().flatten())
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique()) == 500
    # In random order, from all of the stream: the standard error of a mean of 250 is 183.
    for half in drawn[0].split(250):
        assert half.mean().item() == pytest.approx(5000, abs=700)


# ---- the numbers are a run's, and the cache


def test_the_metrics_are_those_of_a_runs_table(store: Store):
    x, train = random(64, seed=1), random(500, seed=2)
    meter = Meter(x.double().mean(0).float(), 3)
    centre = train.mean(0)
    top = torch.linalg.eigh(train.double().T.cov()).eigenvectors[:, -3:].float()
    code = (x - centre) @ top
    meter.add(x, code @ top.T + centre - x, Usage.of(code.abs()), torch.zeros(()))
    wanted, got = meter.result(), compute(store, x, blocks(train), ranks=(3,))["pca-3"]
    for name in ("mse", "evr", "evr_std", "evr_median", "evr_pooled", "l0", "dictionary"):
        assert getattr(got, name) == pytest.approx(getattr(wanted, name), rel=1e-4), name


def test_training_rows_are_scaled_and_stop_before_the_held_out(store: Store):
    x = torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks("hook", 64)])
    rows = training_rows(store, "hook", 2.5, held_out=10)
    for _ in range(2):
        assert torch.equal(torch.cat(list(rows())), x[: -10 * store.manifest.context] * 2.5)


def test_the_result_is_cached_by_all_that_changes_it(store: Store, planted: Callable[..., Store], cache: Path):
    x = random(200)
    call: dict[str, Any] = {"hook": "hook", "scale": 1.0, "held": x, "latents": 4, "ranks": (2,), "seed": 0}
    first = baselines(store, train_rows=blocks(x), **call)
    assert [type(b) for b in first] == [Baseline] * 3
    assert baselines(store, train_rows=never, **call) == first
    (path,) = (cache / "baselines").iterdir()
    assert json.loads(path.read_text())["facts"]["store"] == store.manifest.fingerprint
    others = {"hook": "other", "scale": 2.0, "held": x[:100], "latents": 5, "ranks": (3,), "seed": 1}
    for name, value in others.items():
        with pytest.raises(AssertionError, match="were read"):
            baselines(store, train_rows=never, **(call | {name: value}))
    with pytest.raises(AssertionError, match="were read"):
        baselines(planted("other", sequences=32), train_rows=never, **call)


@pytest.mark.parametrize("text", ["", "[]", '{"facts": 1}', "cut", "typed", "other"])
def test_a_damaged_cache_is_made_anew(store: Store, cache: Path, text: str):
    x = random(200)
    first = compute(store, x, blocks(x))
    (path,) = (cache / "baselines").iterdir()
    whole = path.read_text()
    typed, other = whole.replace('"mse": ', '"mse": "much", "m": '), whole.replace('"seed": 0', '"seed": 1')
    path.write_text({"cut": whole[:-30], "typed": typed, "other": other}.get(text, text))
    assert compute(store, x, blocks(x)) == first
    assert path.read_text() == whole


def test_the_same_seed_gives_the_same_numbers(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    x = random(3000)
    first = compute(store, x[:500], blocks(x[500:], 64), latents=50)
    other = compute(store, x[:500], blocks(x[500:], 64), latents=50, seed=1)
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "again"))
    again = compute(store, x[:500], blocks(x[500:], 300), latents=50)
    mse = [got["k-means-50"].mse for got in (first, again, other)]
    assert mse[1] == pytest.approx(mse[0], rel=1e-6) != mse[2]


def test_what_is_not_finite_is_none(store: Store):
    got = compute(store, torch.ones(8, 6), blocks(random(100)))["mean"]
    assert got.evr is got.evr_pooled is None is not got.mse


def test_mistakes(store: Store):
    x = random(20)
    with pytest.raises(UserError, match="no training rows"):
        compute(store, x, lambda: iter(()))
    with pytest.raises(ValueError, match=r"^latents must be"):
        compute(store, x, blocks(x), latents=0)
    with pytest.raises(ValueError, match=r"^ranks must be"):
        compute(store, x, blocks(x), ranks=(3, 0))
