"""What is summed, sought or normalised over all latents of a dictionary that several ranks hold, exactly.

Rules and variants ask `Peers`, not the tensors that they are given: those have the latents of this rank alone. Where
one rank holds them all, every method is PyTorch's own operation, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from hsae.dist import Grid
from hsae.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Peers:
    """The ranks that hold a dictionary, each its share of the latents, in the latents' order.

    Every rank must call the same methods in the same order, with shapes that differ in the latents alone.

    Attributes:
        ranks: who they are.
        latents: the size of the whole dictionary, where there are several.
    """

    ranks: Ranks = ALONE
    latents: int = 0

    @property
    def several(self) -> bool:
        """Whether latents are elsewhere."""
        return self.ranks.size > 1

    def whole(self, here: int) -> int:
        """The size of the whole dictionary, of which so many latents are here."""
        return self.latents if self.several else here

    def most(self, here: int) -> int:
        """The most latents that any rank has, of which so many are here."""
        return -(-self.latents // self.ranks.size) if self.several else here

    @property
    def first(self) -> int:
        """How many latents are at ranks before this one."""
        return self.ranks.share(self.latents).start

    def sum(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The sum over ranks of what each has summed over its latents."""
        return self.ranks.sum([value])[0]

    def count(self, which: Bool[Tensor, "latent"]) -> int:
        """How many latents are marked."""
        return int(self.sum(which.sum()))

    def mean(self, values: Float[Tensor, "some"]) -> Float[Tensor, ""]:
        """The mean over all latents, or over those that each rank gives."""
        if not self.several:
            return values.mean()
        total = self.sum(torch.stack([values.sum(), values.new_full((), len(values))]))
        return total[0] / total[1]

    def largest(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The largest over ranks of what is the largest over each one's latents."""
        return self.ranks.largest(value)

    def length(self, norm: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Euclidean norms over all ranks, from those of each one's part."""
        return self.sum(norm.square()).sqrt() if self.several else norm

    def join(self, values: Shaped[Tensor, "here ..."]) -> Shaped[Tensor, "latent ..."]:
        """All latents' values, in order."""
        return torch.cat(self.ranks.gather(values)) if self.several else values

    def collect(self, values: Shaped[Tensor, "here ..."]) -> Shaped[Tensor, "..."]:
        """All latents' values in order, at the first rank and on the processor; the others keep their own."""
        parts = self.ranks.collect(values) if self.several else None
        return values if parts is None else torch.cat(parts)

    def mine(self, values: Shaped[Tensor, "latent ..."]) -> Shaped[Tensor, "here ..."]:
        """This rank's of all latents' values."""
        return values[self.ranks.share(len(values))].clone() if self.several else values

    def once(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """What every rank has alike, at the first; 0 at the others. So it counts once in a `sum`."""
        return torch.zeros_like(value) if self.ranks.rank else value

    def addmm(
        self,
        given: Float[Tensor, "token width"],
        code: Float[Tensor, "token latent"],
        rows: Float[Tensor, "latent width"],
        beta: int = 1,
        alpha: int = 1,
    ) -> Float[Tensor, "token width"]:
        """beta · given + alpha · code @ rows, over all latents."""
        return self.sum(torch.addmm(self.once(given), code, rows, beta=beta, alpha=alpha))

    def left(
        self,
        x: Float[Tensor, "token width"],
        code: Float[Tensor, "token latent"],
        rows: Float[Tensor, "latent width"],
    ) -> Float[Tensor, "token width"]:
        """x less code @ rows over the latents before this rank's."""
        return x - sum(self.ranks.gather(code @ rows)[: self.ranks.rank]) if self.several else x

    def softmax(self, u: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """The softmax over all latents, at this rank's."""
        if not self.several:
            return torch.softmax(u, dim=-1)
        powers = (u - self.largest(u.amax(1))[:, None]).exp_()
        return powers.div_(self.sum(powers.sum(1))[:, None])

    def winner(self, u: Float[Tensor, "token latent"]) -> tuple[Float[Tensor, "token 1"], Int[Tensor, "token 1"]]:
        """The highest of each token and its latent, of equal ones the first. Won elsewhere: -inf, and any latent."""
        value, latent = u.max(dim=1, keepdim=True)
        return self.among(value, 1), latent

    def top(self, u: Float[Tensor, "token latent"], k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """The k highest of each token (all, where there are fewer), in any order, and their latents.

        Over several ranks, as many of a rank's highest; those that are not among the k highest of all are -inf. Of
        equal ones the first latents count. One rank leaves it open which, unless k is 1.
        """
        if not self.several:
            return u.max(dim=1, keepdim=True) if k == 1 else u.topk(min(k, u.shape[1]), dim=1, sorted=False)
        # Of some latents, such as the dead ones, there may be none here.
        values, latents = _highest(u, k)
        return self.among(values, k), latents

    def ranked(
        self, u: Float[Tensor, "token latent"], k: int
    ) -> tuple[slice | Int[Tensor, "some"], Int[Tensor, "some"]]:
        """The tokens whose k-th highest is here, and its latent; k is at most the size of the dictionary."""
        if not self.several:
            return slice(None), u.argmax(dim=1) if k == 1 else u.topk(k, dim=1).indices[:, -1]
        values, latents = _highest(u, k)
        ours = self.among(values, k) > -torch.inf
        if k > 1:
            better = values[:, : k - 1]
            ours[:, : k - 1] &= self.among(better, k - 1) == -torch.inf
        token, place = ours.nonzero(as_tuple=True)
        return token, latents[token, place]

    def among(self, values: Float[Tensor, "token few"], k: int) -> Float[Tensor, "token few"]:
        """Each token's values of which only the k highest over all ranks stay; the others become -inf.

        Args:
            values: this rank's highest, highest first, of equal ones the first latents': k, or all if there are fewer.
            k: how many stay.
        """
        if not self.several:
            return values
        # [rank, token, k]
        every = torch.stack(self.ranks.gather(pad(values, (0, k - values.shape[1]), value=-torch.inf)))
        least = every.transpose(0, 1).flatten(1).topk(k, dim=1).values[:, -1:]
        # Of those that equal the k-th, the first ranks' stay.
        room = k - (every > least).sum((0, 2)) - (every == least)[: self.ranks.rank].sum((0, 2))
        equal = values == least
        stays = (values > least) | (equal & (equal.cumsum(1) <= room[:, None]))
        return values.masked_fill(~stays, -torch.inf)


HERE = Peers()
"""all latents are at this rank"""


def kth_highest(values: Float[Tensor, "some"], k: int, grid: Grid) -> Float[Tensor, ""]:
    """The k-th highest of the numbers that all ranks have, none of them below 0: exactly, and without moving them.

    Digit by digit of its bits, which are in order where no number is below 0: 256 counts a digit are added up.
    """
    if grid.everyone.size == 1:
        at = len(values) - k
        if values.is_cuda:
            return values.kthvalue(at + 1).values
        # Vectorised; PyTorch's takes ten times as long.
        return torch.from_numpy(np.partition(values.numpy(), at))[at]
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    found = 0
    for shift in range(8 * values.element_size() - 8, -1, -8):
        alike = bits[bits >> (shift + 8) == found] if shift + 8 < 8 * values.element_size() else bits
        counts = grid.total(torch.bincount((alike >> shift) & 255, minlength=256))
        # How many have this digit or a higher one.
        least = counts.flip(0).cumsum(0).flip(0)
        digit = int((least >= k).sum()) - 1
        k -= int(least[digit + 1]) if digit < 255 else 0
        found = found << 8 | digit
    return values.new_tensor([found], dtype=bits.dtype).view(values.dtype)[0]


def _highest(u: Float[Tensor, "token latent"], k: int) -> tuple[Float[Tensor, "token few"], Int[Tensor, "token few"]]:
    """Each token's k highest, highest first, and their latents, of equal ones the first; all, if there are fewer."""
    # `topk` leaves open which of equal ones it takes; one more shows whether the last has an equal.
    values, latents = u.topk(min(k + 1, u.shape[1]), dim=1)
    tied: Bool[Tensor, "token"] = (values[:, 1:] == values[:, :-1]).any(1)
    if bool(tied.any()):
        ordered = u[tied].sort(dim=1, descending=True, stable=True)
        values[tied], latents[tied] = (part[:, : values.shape[1]] for part in ordered)
    return values[:, :k], latents[:, :k]
