"""Activations with a known truth: sparse non-negative combinations of more directions than there are dimensions.

    x = factor · (Σ_f strength_f · direction_f + offset + noise)

The directions are random unit vectors. How often they fire falls off by Zipf's law; they may fire together, or only
under a parent. After Sharkey, Braun and Millidge, "Taking features out of superposition with sparse autoencoders"
(2022), whose features are correlated and of falling frequency too. Strengths, noise and offset are in units of the mean
strength; the factor gives the result its variance.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae import config as configs
from hsae.config import require
from hsae.files import alone, cache_root
from hsae.store import StoreWriter
from hsae.store.manifest import NAME
from hsae.store.writer import clear_up
from hsae.truth import FILE, Truth

HOOK = "synthetic"
"""the store's hook point"""
VERSION = 1
"""to be raised when the same config gives other numbers"""
BLOCK_TOKENS = 8192
"""tokens drawn at a time: their drive at 512 features is 17 MB"""
SHARD_BYTES = 32 << 20
"""the most that a shard holds"""
PILOT = 4
"""blocks of their own that the factor is measured on; it comes out within about 1 %"""
DENSE = 0.5
"""the highest rate that a feature may have"""
CHILD = 0.5
"""the highest share of its parent's firings at which a child fires"""


@dataclass(frozen=True)
class SyntheticConfig:
    """What to make. The same settings give the same store."""

    width: int = 64
    """dimensions of the activations"""
    features: int = 512
    """true directions; more than the width is superposition"""
    tokens: int = 400_000
    """tokens, rounded up to whole sequences"""
    context: int = 128
    """tokens in a sequence; they are drawn independently of each other"""
    active: float = 8.0
    """mean number of features that fire on a token"""
    decay: float = 0.5
    """exponent of Zipf's law: feature f = 0, 1, … fires at a rate proportional to (f + 1)^-decay; 0: all alike"""
    spread: float = 0.5
    """strengths are uniform in 1 ± spread"""
    correlation: float = 0.0
    """of the normal variables behind a group's firings; 0: independent … 1: the rarer fires only with the commoner"""
    group: int = 8
    """features in a group that fires together; children are in none, they go with their parents"""
    hierarchy: float = 0.0
    """share of the features that are children: each fires only when its parent does, on at most half of those tokens"""
    noise: float = 0.05
    """standard deviation of the noise in each dimension, in units of the mean strength"""
    offset: float = 1.0
    """norm of a constant vector that is added to every token, in units of the mean strength"""
    variance: float = 5.6e-4
    """variance per dimension that all is scaled to; 5.6e-4 is what the default settings of training are made for"""
    seed: int = 0
    """seed of everything"""

    def __post_init__(self) -> None:
        for name in ("width", "features", "tokens", "context", "group"):
            require(getattr(self, name) >= 1, name, "1 or above", getattr(self, name))
        for name in ("decay", "noise", "offset"):
            require(0 <= getattr(self, name) < math.inf, name, "0 or above", getattr(self, name))
        for name in ("spread", "hierarchy"):
            require(0 <= getattr(self, name) < 1, name, "0 or above and below 1", getattr(self, name))
        require(self.active >= 0.1, "active", "0.1 or above", self.active)
        require(0 <= self.correlation <= 1, "correlation", "between 0 and 1", self.correlation)
        require(0 < self.variance < math.inf, "variance", "above 0", self.variance)
        require(self.seed >= 0, "seed", "0 or above", self.seed)
        # Rounded down, so that the number that the line names is one that is taken.
        most = math.floor(100 * self.active * DENSE / float(_family(self)[0].max())) / 100
        wanted = f"at most {most:g} (or a feature fires on over half of the tokens; a lower decay allows more)"
        require(self.active <= most, "active", wanted, self.active)

    @property
    def sequences(self) -> int:
        """Sequences in the store."""
        return -(-self.tokens // self.context)

    @property
    def block(self) -> int:
        """Sequences in a block."""
        return max(1, BLOCK_TOKENS // self.context)


def generate(
    config: SyntheticConfig, first: int = 0
) -> Iterator[tuple[Float[Tensor, "sequence position width"], Float[Tensor, "token feature"]]]:
    """Activations, and the codes that they were made of, in blocks of `config.block` sequences; the last has the rest.

    A block is a function of the config and its own number, so that the stream can be entered at any block. The codes
    are sparse (COO) in order of the tokens; `codes @ directions`, plus offset and noise, are the activations.

    Args:
        config: what to make.
        first: number of the first block.
    """
    world = _World(config)
    for number in range(first, -(-config.sequences // config.block)):
        sequences = min(config.block, config.sequences - number * config.block)
        x, codes = world.block("block", number, sequences)
        yield x.view(sequences, config.context, config.width), codes


def make_store(config: SyntheticConfig) -> Path:
    """Make the store that a config describes, or finish one that was interrupted, or find it there already.

    Tokens are the number of the strongest feature, or `config.features` where none fires. The store has no tokeniser.

    Returns:
        the store's folder, `activations/synthetic-…` under the cache.

    Raises:
        UserError: another process is writing it.
    """
    table = configs.table(config)
    digest = configs.fingerprint([VERSION, table])
    folder = cache_root() / "activations" / f"{HOOK}-{digest}"
    with alone(folder, "process"):
        if not (folder / FILE).exists():
            Truth(_directions(config), _family(config)[0].float()).write(folder)
        if (folder / NAME).exists():
            clear_up(folder)
            return folder
        writer = StoreWriter(folder, {"synthetic": table, "version": VERSION}, "fp32")
        per_shard = max(1, SHARD_BYTES // (4 * config.width * config.block * config.context))
        shard = next(index for index in itertools.count() if index not in writer.records)
        waiting, done = [], shard * per_shard * config.block
        for x, codes in generate(config, shard * per_shard):
            waiting.append((x, _strongest(codes, config.features).view(x.shape[:2])))
            done += len(x)
            if len(waiting) == per_shard or done == config.sequences:
                values, tokens = (torch.cat(parts) for parts in zip(*waiting, strict=True))
                waiting.clear()
                writer.write(shard, tokens, {HOOK: values}, {HOOK: torch.ones_like(tokens).bool()}, {HOOK: {}})
                shard += 1
        shard_sequences = min(per_shard * config.block, config.sequences)
        tables = {"model": {"fingerprint": digest}, "tokenizer": {}, "text": {}, "harvest": table}
        writer.finish(shard_sequences=shard_sequences, context=config.context, **tables)
    return folder


class _World:
    """All that the seed fixes once, and the drawing of tokens from it."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.directions = _directions(config)
        rate, parent = _family(config)
        self.children = (parent >= 0).nonzero().flatten()
        self.parents = parent[self.children]
        chance = rate.clone()
        chance[self.children] /= rate[self.parents]
        # A feature fires when a standard normal variable is above its threshold.
        self.threshold = -torch.special.ndtri(chance).float()
        roots = (parent < 0).nonzero().flatten()
        generator = _generator(config, "world")
        order = torch.randperm(len(roots), generator=generator)
        self.group = torch.zeros(config.features, dtype=torch.int64)
        self.group[roots[order]] = torch.arange(len(roots)) // config.group
        self.groups = int(self.group.max()) + 1
        self.shared = torch.zeros(config.features)
        self.shared[roots] = config.correlation
        offset = torch.randn(config.width, generator=generator)
        self.offset, self.factor = config.offset * offset / offset.norm(), 1.0
        pilot = torch.cat([self.block("pilot", number, config.block)[0] for number in range(PILOT)])
        self.factor = math.sqrt(config.variance / pilot.double().var(0, correction=0).mean().item())

    def block(
        self, kind: str, number: int, sequences: int
    ) -> tuple[Float[Tensor, "token width"], Float[Tensor, "token feature"]]:
        """Tokens of one block, and the codes that they were made of (sparse), both at the final scale."""
        config, tokens = self.config, sequences * self.config.context
        generator = _generator(config, kind, number)
        drive = torch.randn(tokens, config.features, generator=generator)
        if config.correlation > 0:
            common = torch.randn(tokens, self.groups, generator=generator)[:, self.group]
            drive = drive.mul_((1 - self.shared).sqrt()).addcmul_(common, self.shared.sqrt())
        on = drive > self.threshold
        if len(self.children):
            on[:, self.children] &= on[:, self.parents]
        where = on.nonzero(as_tuple=True)
        strength = 1 + config.spread * (2 * torch.rand(len(where[0]), generator=generator) - 1)
        dense = drive.zero_().index_put_(where, strength)
        x = (dense @ self.directions).add_(self.offset)
        if config.noise > 0:
            x += config.noise * torch.randn(tokens, config.width, generator=generator)
        codes = torch.sparse_coo_tensor(
            torch.stack(where), strength * self.factor, dense.shape, is_coalesced=True, check_invariants=False
        )
        return x * self.factor, codes


def _family(config: SyntheticConfig) -> tuple[Float[Tensor, "feature"], Int[Tensor, "feature"]]:
    """Each feature's rate (float64, summing to `active`) and its parent (-1: it has none).

    A parent is always a more frequent root. A child's rate is its own by Zipf's law or, if that is less, `CHILD` of its
    parent's.
    """
    weight = torch.arange(1, config.features + 1, dtype=torch.float64).pow(-config.decay)
    parent = torch.full((config.features,), -1)
    count = min(round(config.hierarchy * config.features), config.features - 1)
    if count:
        generator = _generator(config, "family")
        children = (1 + torch.randperm(config.features - 1, generator=generator)[:count]).sort().values
        root = torch.ones(config.features, dtype=torch.bool)
        root[children] = False
        before = root.long().cumsum(0)[children]
        chosen = (torch.rand(count, generator=generator, dtype=torch.float64) * before).long()
        parent[children] = root.nonzero().flatten()[chosen]
        weight[children] = torch.minimum(weight[children], CHILD * weight[parent[children]])
    return config.active * weight / weight.sum(), parent


def _directions(config: SyntheticConfig) -> Float[Tensor, "feature width"]:
    rows = torch.randn(config.features, config.width, generator=_generator(config, "directions"), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1).float()


def _generator(config: SyntheticConfig, *place: int | str) -> torch.Generator:
    digest = hashlib.blake2b(repr((config.seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _strongest(codes: Float[Tensor, "token feature"], none: int) -> Int[Tensor, "token"]:
    """The number of the feature with the highest code on each token; `none` where there is none."""
    value, index = codes.to_dense().max(1)
    return torch.where(value > 0, index, none)
