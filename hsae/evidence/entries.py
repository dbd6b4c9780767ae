"""The code of some activations as its active entries, by latent and by row; by compiled code where there is any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels import sparse
from hsae.sae import SAE


@dataclass(frozen=True)
class Entries:
    """Active entries of some rows' codes.

    Attributes:
        first: where each latent's entries begin (and the last one's end) in `row` and `value`; rows ascend in a latent.
        start, count: where each row's entries begin in `latent`, and how many they are; latents ascend in a row.
        latent, code: of each entry, by row.
    """

    first: Int[Tensor, "latent_and_one"]
    row: Int[Tensor, "entry"]
    value: Float[Tensor, "entry"]
    start: Int[Tensor, "row"]
    count: Int[Tensor, "row"]
    latent: Int[Tensor, "entry"]
    code: Float[Tensor, "entry"]

    @property
    def latents(self) -> int:
        """The size of the dictionary."""
        return len(self.first) - 1

    def of_rows(self, rows: Int[Tensor, "some"]) -> tuple[Int[Tensor, "entry"], Int[Tensor, "entry"]]:
        """The entries of some rows, in turn: which of `rows` each is of, and its place in `latent` and `code`."""
        count = self.count[rows].long()
        which = torch.repeat_interleave(count)
        within = torch.arange(len(which)) - (count.cumsum(0) - count)[which]
        return which, self.start[rows][which] + within


class Encoder:
    """Encodes activations into entries.

    Args:
        sae: on the CPU.
    """

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self._selection = sae.variant.selection(sae.parameters) if sparse.available(sae.W_enc.device) else None
        self._share = 0.05  # of all drives, the room that is made for entries

    def __call__(self, x: Float[Tensor, "row width"]) -> Entries:
        """The code of some rows."""
        if self._selection is None:
            return _from_dense(self.sae.encode(x))
        sae, everything = self.sae, len(x) * self.sae.latents
        scaled = x if sae.scale == 1 else x * sae.scale
        while True:
            room = min(everything, max(1024, int(everything * self._share)))
            code = sparse.encode(scaled, sae.W_enc, sae.b_enc, self._selection, room)
            if code is not None:
                first, row, value = code.by_latent
                return Entries(first, row, value, code.start, code.count, code.index, code.value)
            self._share = min(1.0, 2 * self._share)


def _from_dense(code: Float[Tensor, "row latent"]) -> Entries:
    row, latent = code.nonzero(as_tuple=True)
    value = code[row, latent]
    order = latent.argsort(stable=True)
    first = torch.zeros(code.shape[1] + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(latent, minlength=code.shape[1]), 0, out=first[1:])
    count = torch.bincount(row, minlength=len(code))
    start = count.cumsum(0) - count
    return Entries(first, row[order].int(), value[order], start, count.int(), latent.int(), value)
