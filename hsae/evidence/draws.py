"""Even draws from a store, whatever fires there: windows of text with the code in them, and tokens for co-activity."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.evidence.entries import Entries
from hsae.evidence.gathered import NEVER, Passage, around, priority
from hsae.evidence.latent import PARTNERS, RANDOM, WINDOW

PAIRS = 300_000_000
"""pairs of latents that are active together, over the tokens drawn: what counting them costs"""
ENTRIES = 4_000_000
"""active entries of the tokens drawn"""
BLOCK = 256
"""latents whose co-activity with all others is in memory at a time"""


class Windows:
    """`RANDOM` windows around positions that count, from distinct sequences, each with its code."""

    def __init__(self) -> None:
        self.worth = torch.full((RANDOM,), NEVER)
        self.sequence = torch.full((RANDOM,), -1)
        self.position = torch.full((RANDOM,), -1)
        self.tokens = torch.full((RANDOM, WINDOW), -1, dtype=torch.int32)
        # Entries of all windows: which window, column, latent, activation.
        self.window = torch.zeros(0, dtype=torch.int32)
        self.place = torch.zeros(0, dtype=torch.int32)
        self.latent = torch.zeros(0, dtype=torch.int32)
        self.value = torch.zeros(0)

    def add(self, entries: Entries, passage: Passage) -> None:
        """Take in some sequences."""
        sequence, position = passage.where()
        drawn = priority((passage.first + sequence) * passage.tokens.shape[1] + position, -1)
        best = torch.full((len(passage.tokens),), NEVER).scatter_reduce_(0, sequence, drawn, "amin")
        row = (drawn == best[sequence]).nonzero().flatten()
        row = row[best[sequence[row]] < self.worth[-1]]
        if not len(row):
            return
        columns = position[row, None] + torch.arange(WINDOW)
        tokens = around(passage.tokens.int(), -1)[sequence[row, None], columns]
        new = (drawn[row], passage.first + sequence[row], position[row], tokens)
        old = (self.worth, self.sequence, self.position, self.tokens)
        every = [torch.cat(pair) for pair in zip(old, new, strict=True)]
        order = every[0].argsort(stable=True)[:RANDOM]
        self.worth, self.sequence, self.position, self.tokens = (part[order] for part in every)
        self._take_code(entries, passage, sequence, position, row, order)

    def _take_code(
        self, entries: Entries, passage: Passage, sequence: Tensor, position: Tensor, row: Tensor, order: Tensor
    ) -> None:
        """The code of the new windows beside that of the old ones, which have moved, or gone."""
        place = torch.full((RANDOM + len(row),), -1)
        place[order] = torch.arange(len(order))
        stays = place[RANDOM:] >= 0
        row, number = row[stays], place[RANDOM:][stays]
        numbers = torch.full(passage.keep.shape, -1)
        numbers[passage.keep] = torch.arange(len(sequence))
        rows = around(numbers, -1)[sequence[row, None], position[row, None] + torch.arange(WINDOW)]
        inside = rows >= 0
        column = torch.arange(WINDOW).expand_as(rows)[inside]
        which, entry = entries.of_rows(rows[inside])
        window = place[self.window.long()]
        there = window >= 0
        self.window = torch.cat([window[there], number[:, None].expand_as(rows)[inside][which]]).int()
        self.place = torch.cat([self.place[there], column[which].int()])
        self.latent = torch.cat([self.latent[there], entries.latent[entry]])
        self.value = torch.cat([self.value[there], entries.code[entry]])

    def arrays(self, latents: int) -> dict[str, Tensor]:
        """The index's."""
        there = self.sequence >= 0
        order = torch.argsort(self.latent.long() * RANDOM * WINDOW + self.window * WINDOW + self.place)
        offset = torch.zeros(latents + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(self.latent, minlength=latents), 0, out=offset[1:])
        return {
            "random_sequence": self.sequence[there],
            "random_position": self.position[there],
            "random_tokens": self.tokens[there],
            "random_offset": offset,
            "random_window": self.window[order],
            "random_place": self.place[order],
            "random_value": self.value[order],
        }


class Together:
    """Which latents are active on an even draw of the tokens; as many as `PAIRS` and `ENTRIES` allow."""

    def __init__(self) -> None:
        self.limit = torch.tensor(NEVER)
        self.worth = torch.zeros(0, dtype=torch.int64)
        self.count = torch.zeros(0, dtype=torch.int64)
        self.latent = torch.zeros(0, dtype=torch.int32)

    def add(self, entries: Entries, passage: Passage) -> None:
        """Take in some sequences."""
        sequence, position = passage.where()
        worth = priority((passage.first + sequence) * passage.tokens.shape[1] + position, -2)
        row = (worth <= self.limit).nonzero().flatten()
        self.worth = torch.cat([self.worth, worth[row]])
        self.count = torch.cat([self.count, entries.count[row].long()])
        self.latent = torch.cat([self.latent, entries.latent[entries.of_rows(row)[1]]])
        while int(self.count.square().sum()) > PAIRS or len(self.latent) > ENTRIES:
            self.limit = self.limit // 2
            stays = self.worth <= self.limit
            self.latent = self.latent[torch.repeat_interleave(stays, self.count)]
            self.worth, self.count = self.worth[stays], self.count[stays]

    def arrays(self, latents: int) -> dict[str, Tensor]:
        """The index's: for each latent those whose firing correlates most with its own."""
        from scipy import sparse

        tokens = len(self.count)
        start = np.concatenate([[0], self.count.numpy().cumsum()])
        ones = np.ones(len(self.latent), np.float32)
        active = sparse.csr_matrix((ones, self.latent.numpy(), start), shape=(tokens, latents))
        alone = torch.from_numpy(np.asarray(active.sum(0), np.float64)).flatten()
        spread = (alone * (tokens - alone)).sqrt()
        count = min(PARTNERS, latents - 1)
        partner = torch.full((latents, PARTNERS), -1, dtype=torch.int32)
        phi, share = torch.zeros(latents, PARTNERS), torch.zeros(latents, PARTNERS)
        by_latent = active.T.tocsr()
        for first in range(0, latents, BLOCK):
            both = torch.from_numpy((by_latent[first : first + BLOCK] @ active).toarray()).double()
            own = torch.arange(len(both))
            denominator = spread[first : first + BLOCK, None] * spread
            correlation = (tokens * both - alone[first : first + BLOCK, None] * alone) / denominator.clamp(min=1e-300)
            correlation[(both == 0) | (denominator == 0)] = -1
            correlation[own, first + own] = -1
            value, index = correlation.topk(count, dim=1)
            there = value > 0
            where = slice(first, first + BLOCK)
            partner[where, :count] = torch.where(there, index, -1).int()
            phi[where, :count] = torch.where(there, value, 0).float()
            ratio = both.gather(1, index) / alone[where, None].clamp(min=1)
            share[where, :count] = torch.where(there, ratio, 0).float()
        return {
            "coactive": partner,
            "coactive_phi": phi,
            "coactive_share": share,
            "coactive_tokens": torch.tensor([tokens]),
        }


def nearest(W: Float[Tensor, "latent width"]) -> tuple[Int[Tensor, "latent partner"], Float[Tensor, "latent partner"]]:
    """For each row those with the highest cosine, and it; -1 and 0 where there are fewer, or the row is 0."""
    unit = torch.nn.functional.normalize(W.float(), dim=1)
    count = min(PARTNERS, len(W) - 1)
    near = torch.full((len(W), PARTNERS), -1, dtype=torch.int32)
    cosine = torch.zeros(len(W), PARTNERS)
    zero = unit.square().sum(1) == 0
    for first in range(0, len(W), BLOCK):
        product = unit[first : first + BLOCK] @ unit.T
        own = torch.arange(len(product))
        product[own, first + own] = -2
        product[:, zero] = -2
        value, index = product.topk(count, dim=1)
        there = (value > -2) & ~zero[first : first + BLOCK, None]
        near[first : first + BLOCK, :count] = torch.where(there, index, -1).int()
        cosine[first : first + BLOCK, :count] = torch.where(there, value, 0)
    return near, cosine
