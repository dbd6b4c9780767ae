"""What an SAE must beat, by the same metrics on the same held-out tokens; all is fitted to the training tokens alone.

mean         every token is the training mean
pca-R        the R principal components of the training covariance, mean removed: what R numbers a token can give
             that need not be sparse or non-negative; R is to be some SAE's L0
k-means-K    every token is the nearest of K centroids: a dictionary of the SAE's size at L0 = 1. Lloyd's algorithm
             on a sample, in `ITERATIONS` rounds, so not its best: a few tenths of a percent of EVR are left
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae import config
from hsae.errors import UserError
from hsae.files import cache_root, lasting_folder, replacing
from hsae.metrics import Meter
from hsae.record import Baseline
from hsae.rules import Usage
from hsae.store import Store

SAMPLE = 200_000
"""training tokens that k-means is fitted to"""
ITERATIONS = 8
"""rounds of k-means; the first half of them on a quarter of the sample, which costs 0.0 % of EVR and saves 3/8"""
BLOCK = 1024
"""tokens at a time: their products with 3,200 centroids are 13 MB"""

Rows = Callable[[], Iterable[Tensor]]
"""gives the training activations anew, in blocks [row, width] of any size, in the same order every time"""


def training_rows(store: Store, hook: str, scale: float, held_out: int) -> Rows:
    """The activations that training sees, in the store's order and at the training scale.

    Args:
        store: the activations.
        hook: a hook point of the store.
        scale: activations are multiplied by it.
        held_out: sequences at the store's end that are left out.
    """

    def blocks() -> Iterator[Tensor]:
        sequences = max(1, 8192 // store.manifest.context)
        for chunk in store.chunks(hook, sequences, 0, store.manifest.sequences - held_out):
            yield chunk.activations[chunk.keep] * scale

    return blocks


def baselines(
    store: Store,
    hook: str,
    scale: float,
    held: Float[Tensor, "token width"],
    latents: int,
    ranks: Sequence[int],
    train_rows: Rows,
    seed: int = 0,
) -> list[Baseline]:
    """All baselines: computed in one reading of the training tokens, or read from the cache if they are there.

    Args:
        store: only names the result in the cache, `baselines/` under the cache's root, together with `hook`.
        hook: the hook point of the activations.
        scale: the training scale; names the result too. Both `held` and `train_rows` have it already.
        held: the held-out tokens, the store's last. The device that they are on does the work.
        latents: centroids of k-means; no more than there are sampled tokens.
        ranks: of PCA; no more than the width, each once.
        train_rows: see `training_rows`. Not called when the result is cached.
        seed: of the sample and of k-means.

    Raises:
        UserError: there are no training rows.
        ValueError: `latents` or a rank is below 1.
    """
    config.require(latents >= 1, "latents", "1 or above", latents)
    config.require(min(ranks, default=1) >= 1, "ranks", "1 or above", ranks)
    ranks = list(dict.fromkeys(min(rank, held.shape[1]) for rank in ranks))
    facts = {"format": f"hsae-baselines-1: k-means on {SAMPLE}, {ITERATIONS} rounds", "hook": hook, "scale": scale}
    facts |= {"store": store.manifest.fingerprint, "held_out": len(held)}
    facts |= {"latents": latents, "ranks": ranks, "seed": seed}
    path = cache_root() / "baselines" / f"{config.fingerprint(facts, 12)}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["facts"] == facts:
            return [config.build(Baseline, table, str(path)) for table in data["baselines"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        pass  # Not there, or damaged: then it is made anew.
    result = list(_fit(held, latents, ranks, train_rows, seed))
    try:
        lasting_folder(path.parent)
        with replacing(path) as aside:
            tables = [vars(baseline) for baseline in result]
            aside.write_text(json.dumps({"facts": facts, "baselines": tables}, indent=1) + "\n", encoding="utf-8")
    except OSError:
        pass  # A cache that cannot be written to only costs the time.
    return result


@torch.inference_mode()
def _fit(
    held: Float[Tensor, "token width"], latents: int, ranks: Sequence[int], train_rows: Rows, seed: int
) -> Iterator[Baseline]:
    moments, sample = _Moments(held.shape[1]), _Sample(seed)
    for rows in train_rows():
        moments.add(rows)
        sample.add(rows)
    if moments.count == 0:
        raise UserError("no training rows to fit the baselines to; harvest more, or lower --held-out")
    mean, covariance = moments.result()
    centre = mean.float().to(held.device)
    yield _measure("mean", held, 1, lambda x: (centre, x.new_zeros(len(x), 1)))
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1).float().to(held.device)
    for rank in ranks:

        def project(x: Tensor, top: Tensor = directions[:, :rank]) -> tuple[Tensor, Tensor]:
            code = (x - centre) @ top
            return torch.addmm(centre, code, top.T), code

        yield _measure(f"pca-{rank}", held, rank, project)
    # Without the mean: the distances are differences, and a large mean would drown them.
    centroids = _k_means(sample.rows().to(held.device) - centre, latents, seed)

    def replace(x: Tensor) -> tuple[Tensor, Tensor]:
        index, _ = _nearest(x - centre, centroids)
        code = x.new_zeros(len(x), latents).scatter_(1, index[:, None], 1.0)
        return centroids[index] + centre, code

    yield _measure(f"k-means-{latents}", held, latents, replace)


def _measure(
    name: str, held: Float[Tensor, "token width"], codes: int, predict: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Baseline:
    """A predictor (tokens to their reconstruction and code) by the definitions, and the x̄, of a run's table."""
    meter = Meter(held.cpu().double().mean(0).float().to(held.device), codes)
    for x in held.split(BLOCK):
        reconstruction, code = predict(x)
        meter.add(x, reconstruction - x, Usage.of(code.abs()), x.new_zeros(()))
    found = meter.result()
    values = {key: getattr(found, key) for key in ("mse", "evr", "evr_std", "evr_median", "evr_pooled", "l0")}
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return Baseline(name, **finite, dictionary=found.dictionary)


class _Moments:
    """Mean and covariance of rows that come in blocks, in float64 on the CPU."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._origin = torch.zeros(width, dtype=torch.float64)
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._product = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "row width"]) -> None:
        exact = rows.cpu().double()
        if self.count == 0 and len(rows):
            self._origin = exact.mean(0)  # near the mean, so that a mean far from 0 cancels nothing
        exact = exact - self._origin
        self.count += len(rows)
        self._sum += exact.sum(0)
        self._product.addmm_(exact.T, exact)

    def result(self) -> tuple[Float[Tensor, "width"], Float[Tensor, "width width"]]:
        mean = self._sum / self.count
        return mean + self._origin, self._product / self.count - torch.outer(mean, mean)


class _Sample:
    """`SAMPLE` rows drawn without replacement from a stream of unknown length: those with the lowest random keys.

    In random order, and the same however the stream is cut into blocks.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._limit = 1.0
        self._keys: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, rows: Float[Tensor, "row width"]) -> None:
        keys = torch.from_numpy(self._random.random(len(rows)))
        below = keys < self._limit
        self._keys.append(keys[below])
        self._rows.append(rows.cpu()[below])
        if sum(map(len, self._keys)) > SAMPLE + SAMPLE // 4:
            self.rows()

    def rows(self) -> Float[Tensor, "row width"]:
        keys, order = torch.cat(self._keys).sort()
        if len(keys) > SAMPLE:
            self._limit = keys[SAMPLE - 1].item()
        self._keys, self._rows = [keys[:SAMPLE]], [torch.cat(self._rows)[order[:SAMPLE]]]
        return self._rows[0]


def _k_means(rows: Float[Tensor, "row width"], clusters: int, seed: int) -> Float[Tensor, "cluster width"]:
    """Lloyd's algorithm from random rows (given in random order) as the first centroids.

    A cluster that has lost all its rows starts anew from one of those that fit worst: drawn with a probability that
    grows with the squared distance, since the very worst may all be copies of one row.
    """
    generator, centroids = torch.Generator().manual_seed(seed), rows[:clusters]
    for iteration in range(ITERATIONS):
        part = rows[: max(len(rows) // 4, len(centroids))] if iteration < ITERATIONS // 2 else rows
        index, distance = _nearest(part, centroids)
        count = torch.bincount(index, minlength=len(centroids))
        centroids = torch.zeros_like(centroids).index_add_(0, index, part) / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero().flatten()[: int((distance > 0).sum())]
        if len(empty):
            worst = torch.multinomial(distance.cpu(), len(empty), generator=generator).to(rows.device)
            centroids[empty] = part[worst]
    return centroids


def _nearest(
    x: Float[Tensor, "row width"], centroids: Float[Tensor, "cluster width"]
) -> tuple[Int[Tensor, "row"], Float[Tensor, "row"]]:
    """Each row's nearest centroid and its squared distance: the highest x·c - ‖c‖²/2, `BLOCK` rows to a product."""
    # The norm as one more column, for a column of ones: cheaper than adding it to every product.
    table = torch.cat([centroids, centroids.square().sum(1, keepdim=True) / -2], 1).T.contiguous()
    value, index = zip(
        *((torch.cat([b, b.new_ones(len(b), 1)], 1) @ table).max(1) for b in x.split(BLOCK)), strict=True
    )
    return torch.cat(index), (x.square().sum(1) - 2 * torch.cat(value)).clamp_(min=0)
