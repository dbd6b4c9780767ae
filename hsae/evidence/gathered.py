"""What is gathered of each latent while a store passes by: counts, histogram, contexts, tokens. Memory does not grow.

`Gathered.add` defines the result in plain PyTorch; `csrc/evidence.c` computes the same, latent by latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.evidence.entries import Entries
from hsae.evidence.latent import AFTER, BEFORE, BINS, SAMPLES, TOP, WINDOW
from hsae.kernels import native

SLOTS = 256
"""tokens of each latent that are counted at a time; beyond, those with the least activation are given up"""
NEVER = torch.iinfo(torch.int64).max
SILENT = -(1 << 20)
"""the exponent of a histogram without values"""


@dataclass(frozen=True)
class Passage:
    """Some whole sequences of a store, and which of their positions the entries' rows are.

    Attributes:
        first: the store's number of the first sequence.
        tokens: token ids.
        keep: the positions that count. They are the rows, in order.
    """

    first: int
    tokens: Int[Tensor, "sequence position"]
    keep: Bool[Tensor, "sequence position"]

    def where(self) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Of each row, the sequence (counted from `first`) and the position."""
        sequence, position = self.keep.nonzero(as_tuple=True)
        return sequence, position


def priority(number: Int[Tensor, "row"], salt: Int[Tensor, "row"] | int) -> Int[Tensor, "row"]:
    """Numbers from 0 up that look random and are the same every time: the lowest of them are an even draw.

    SplitMix64's finaliser (Steele, Lea and Flood, 2014), less its lowest bit.

    Args:
        number: of a position in the store.
        salt: draws under different salts are independent.
    """
    z = number * -7046029254386353131 + torch.as_tensor(salt) * -3335678366873096957

    def shifted(bits: int) -> Tensor:
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    z = (z ^ shifted(30)) * -4658895280553007687
    z = (z ^ shifted(27)) * -7723592293110705685
    z = z ^ shifted(31)
    return shifted(1)


class Contexts:
    """The best contexts of each latent under some order, from distinct sequences.

    Attributes:
        worth: what they are ordered by, the highest first; for empty places `empty`.
        sequence, position: where they are; -1 for empty places.
        tokens: token ids around them, -1 outside of the sequence.
        code: the latent's activations there.
    """

    def __init__(self, latents: int, count: int, empty: float | int) -> None:
        self.empty = empty
        self.worth = torch.full((latents, count), empty)
        self.sequence = torch.full((latents, count), -1)
        self.position = torch.full((latents, count), -1, dtype=torch.int32)
        self.tokens = torch.full((latents, count, WINDOW), -1, dtype=torch.int32)
        self.code = torch.zeros(latents, count, WINDOW)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What there is, in the order in which compiled code takes it."""
        return self.worth, self.sequence, self.position, self.tokens, self.code

    def merge(self, latent: Int[Tensor, "new"], new: tuple[Tensor, ...]) -> None:
        """Take in new ones, ordered by latent. Among equals those that are there stay, then the first."""
        some, which = latent.unique_consecutive(return_inverse=True)
        counts = torch.bincount(which)
        place = torch.arange(len(latent)) - (counts.cumsum(0) - counts)[which]
        count = self.worth.shape[1]
        wide = count + int(counts.max())
        every = []
        for there, part in zip(self.parts, new, strict=True):
            both = there.new_full((len(some), wide, *there.shape[2:]), self.empty if there is self.worth else 0)
            both[:, :count] = there[some]
            both[which, count + place] = part.to(there.dtype)
            every.append(both)
        order = every[0].argsort(dim=1, descending=True, stable=True)[:, :count]
        for there, both in zip(self.parts, every, strict=True):
            there[some] = both[torch.arange(len(some))[:, None], order]


class Gathered:
    """All that is gathered of a dictionary.

    Args:
        latents: its size.
    """

    def __init__(self, latents: int) -> None:
        self.firings = torch.zeros(latents, dtype=torch.int64)
        self.total = torch.zeros(latents, dtype=torch.float64)
        self.maximum = torch.zeros(latents)
        # A histogram's range is a power of two and doubles when a value exceeds it: neighbouring bins are added in
        # pairs, so that every count stays exact and none depends on the order of the values.
        self.exponent = torch.full((latents,), SILENT, dtype=torch.int32)
        self.histogram = torch.zeros(latents, BINS, dtype=torch.int64)
        self.top = Contexts(latents, TOP, 0.0)
        # Ordered by the negated priority: the lowest priorities are an even draw from the firings.
        self.sample = Contexts(latents, SAMPLES, -NEVER)
        self.token_count = torch.zeros(latents, dtype=torch.int32)
        self.token_id = torch.zeros(latents, SLOTS, dtype=torch.int32)
        self.token_firings = torch.zeros(latents, SLOTS, dtype=torch.int64)
        self.token_mass = torch.zeros(latents, SLOTS, dtype=torch.float64)
        self.token_doubt = torch.zeros(latents, dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Every tensor, to be saved and filled in again."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for kind in ("top", "sample"):
            contexts = vars(getattr(self, kind))
            own |= {f"{kind}_{name}": value for name, value in contexts.items() if isinstance(value, Tensor)}
        return own

    def add(self, entries: Entries, passage: Passage) -> None:
        """Take in the code of some whole sequences."""
        if native.load("evidence") is None:
            self.add_slowly(entries, passage)
            return
        sequence, position = passage.where()
        tokens = passage.tokens.int().contiguous()
        of_code = (entries.first, entries.row, entries.value, entries.latents)
        where = (sequence.int(), position.int(), tokens, *tokens.shape, passage.first)
        counts = (self.firings, self.total, self.maximum, self.exponent, self.histogram)
        contexts = (*self.top.parts, *self.sample.parts)
        uses = (self.token_count, self.token_id, self.token_firings, self.token_mass, self.token_doubt)
        numbers = (int(max(tokens.max(), self.token_id.max())) + 1, torch.get_num_threads())
        native.call("evidence", "gather", *of_code, *where, *counts, *contexts, *uses, *numbers)

    def add_slowly(self, entries: Entries, passage: Passage) -> None:
        """The reference of `add`, where nothing is compiled."""
        if len(entries.value) == 0:
            return
        latent = torch.repeat_interleave(torch.arange(entries.latents), entries.first.diff())
        value, row = entries.value, entries.row.long()
        self.firings += entries.first.diff()
        self.total.index_add_(0, latent, value.double())
        self.maximum.scatter_reduce_(0, latent, value, "amax")
        self._bin(latent, value)
        sequence, position = (part[row] for part in passage.where())
        self._contexts(entries, passage, latent, sequence, position)
        self._tokens(latent, passage.tokens[sequence, position].long(), value.double())

    def _bin(self, latent: Tensor, value: Tensor) -> None:
        mantissa, exponent = torch.frexp(self.maximum)
        wanted = torch.where(self.maximum > 0, exponent - (mantissa == 0.5).int(), SILENT).int()
        grown = torch.where(self.exponent == SILENT, 0, wanted - self.exponent).clamp_(0, BINS.bit_length())
        for latents in (grown > i for i in range(int(grown.max()))):
            pairs = self.histogram[latents].view(-1, BINS // 2, 2).sum(2)
            self.histogram[latents] = torch.cat([pairs, torch.zeros_like(pairs)], 1)
        self.exponent.copy_(wanted)
        bins = torch.ldexp(value.double() * BINS, -self.exponent[latent]).ceil_().long() - 1
        self.histogram += torch.bincount(latent * BINS + bins, minlength=self.histogram.numel()).view_as(self.histogram)

    def _contexts(self, entries: Entries, passage: Passage, latent: Tensor, sequence: Tensor, position: Tensor) -> None:
        value = entries.value
        # One group for each latent and sequence.
        group = latent * len(passage.tokens) + sequence
        group = torch.unique_consecutive(group, return_inverse=True)[1]
        drawn = -priority((passage.first + sequence) * passage.tokens.shape[1] + position, latent)
        for contexts, worth in ((self.top, value), (self.sample, drawn)):
            best = worth.new_empty(int(group[-1]) + 1).scatter_reduce_(0, group, worth, "amax", include_self=False)
            first = torch.full((len(best),), len(worth)).scatter_reduce_(
                0, group, torch.where(worth == best[group], torch.arange(len(worth)), len(worth)), "amin"
            )
            chosen = first[best > contexts.worth[latent[first], -1]]
            if len(chosen):
                at = (latent[chosen], sequence[chosen], position[chosen])
                tokens, code = _windows(entries, passage, *at)
                contexts.merge(at[0], (worth[chosen], passage.first + at[1], at[2], tokens, code))

    def _tokens(self, latent: Tensor, token: Tensor, mass: Tensor) -> None:
        there = torch.arange(SLOTS) < self.token_count[:, None]
        vocabulary = int(max(token.max(), self.token_id.max())) + 1
        latents = torch.arange(len(there))
        old = latents[:, None].expand_as(there)[there] * vocabulary + self.token_id[there]
        key, which = torch.cat([old, latent * vocabulary + token]).unique(return_inverse=True)
        firings = torch.cat([self.token_firings[there], torch.ones_like(token)])
        firings = torch.zeros_like(key).index_add_(0, which, firings)
        mass = torch.zeros(len(key), dtype=torch.float64).index_add_(
            0, which, torch.cat([self.token_mass[there], mass])
        )
        # By latent, the largest first; among equals the lowest id, which is how the keys are sorted.
        order = mass.argsort(descending=True, stable=True)
        order = order[(key[order] // vocabulary).argsort(stable=True)]
        key, firings, mass = key[order], firings[order], mass[order]
        owner, counts = key // vocabulary, torch.bincount(key // vocabulary, minlength=len(there))
        place = torch.arange(len(key)) - (counts.cumsum(0) - counts)[owner]
        self.token_doubt.index_add_(0, owner[place == SLOTS], mass[place == SLOTS])
        kept = place < SLOTS
        owner, place = owner[kept], place[kept]
        self.token_count.copy_(counts.clamp(max=SLOTS))
        self.token_id[owner, place] = (key[kept] % vocabulary).int()
        self.token_firings[owner, place], self.token_mass[owner, place] = firings[kept], mass[kept]


def _windows(
    entries: Entries, passage: Passage, latent: Tensor, sequence: Tensor, position: Tensor
) -> tuple[Int[Tensor, "new token"], Float[Tensor, "new token"]]:
    """Token ids around some positions, and the latents' activations there."""
    columns = position[:, None] + torch.arange(BEFORE + AFTER + 1)
    tokens = around(passage.tokens.int(), -1)[sequence[:, None], columns]
    rows = torch.full(passage.keep.shape, -1)
    rows[passage.keep] = torch.arange(int(passage.keep.sum()))
    row = around(rows, -1)[sequence[:, None], columns]
    # The entries are sorted by latent, then row: a number for each pair finds its entry.
    size = len(entries.count)
    every = torch.repeat_interleave(torch.arange(entries.latents), entries.first.diff()) * size + entries.row
    wanted = latent[:, None] * size + row
    found = torch.searchsorted(every, wanted).clamp_(max=len(every) - 1)
    code = torch.where((every[found] == wanted) & (row >= 0), entries.value[found], 0)
    return tokens, code


def around(values: Tensor, outside: int) -> Tensor:
    """Sequences with `outside` before and after them, so that column p + i is i places from `BEFORE` before p on."""
    return torch.nn.functional.pad(values, (BEFORE, AFTER), value=outside)
