"""Sparse codes: what follows the encoder's product is computed for the active latents only.

A code is kept as its active entries, by token and by latent. `selected` and the comments of `Code`'s methods define the
results in plain PyTorch; `csrc/sparse.c` computes them, with the encoder's product, tile by tile. Sums are made in an
order that does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.native import call, load, packed_rows
from hsae.sae import Selection

# The least number above 0: a drive that reaches it is above 0.
LEAST = 1.4e-45
# Products that take as long as several starts of a thread.
THREAD = 1 << 22


def available(device: torch.device) -> bool:
    """Whether sparse codes can be made on a device."""
    return device.type == "cpu" and load("sparse") is not None


def selected(u: Float[Tensor, "token latent"], selection: Selection) -> Float[Tensor, "token latent"]:
    """The reference of `encode`: the drive where it is selected, 0 elsewhere. Which of equal drives is left open."""
    if selection.k:
        top = u.topk(min(selection.k, u.shape[1]), dim=1, sorted=False)
        return torch.zeros_like(u).scatter_(1, top.indices, torch.relu(top.values))
    return torch.where(u >= selection.least, u, 0).relu_()


@dataclass(frozen=True)
class Code:
    """Active entries of some tokens' codes.

    Attributes:
        latents: the size of the dictionary.
        start: where each token's entries begin, [token].
        count: how many it has, [token].
        index: their latents, ascending within a token, [entry].
        value: their activations, [entry].
    """

    latents: int
    start: Int[Tensor, "token"]
    count: Int[Tensor, "token"]
    index: Int[Tensor, "entry"]
    value: Float[Tensor, "entry"]

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self.value)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each latent's entries begin (and the last one's end), their tokens (ascending), their values."""
        first = torch.empty(self.latents + 1, dtype=torch.int64)
        token, value = torch.empty_like(self.index), torch.empty_like(self.value)
        sizes, turned = (len(self.start), self.latents), (first, token, value)
        call("sparse", "by_latent", *self._by_token, *sizes, *turned, self._threads(32))
        return turned

    def _threads(self, width: int) -> int:
        """How many threads are worth their start, for so much work at each entry."""
        return min(torch.get_num_threads(), 1 + self.entries * width // THREAD)

    @property
    def _by_token(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.start, self.count, self.index, self.value

    def fired(self) -> Float[Tensor, "latent"]:
        """(code > 0).sum(0): the number of tokens that each latent fired on."""
        return self.by_latent[0].diff().float()

    def total(self) -> Float[Tensor, ""]:
        """code.sum()."""
        return self.by_latent[2].sum()

    def squares(self) -> Float[Tensor, "latent"]:
        """code.square().sum(0)."""
        out = torch.empty(self.latents)
        first, _, value = self.by_latent
        call("sparse", "squares", first, value, self.latents, out)
        return out

    def dense(self) -> Float[Tensor, "token latent"]:
        """The code as a matrix."""
        first, token, value = self.by_latent
        code = value.new_zeros(len(self.start), self.latents)
        latent = torch.repeat_interleave(torch.arange(self.latents), first.diff())
        code[token.long(), latent] = value
        return code

    def decode(
        self, rows: Float[Tensor, "latent width"], less: Float[Tensor, "token width"]
    ) -> Float[Tensor, "token width"]:
        """code @ rows - less."""
        out = torch.empty_like(less)
        call("sparse", "decode", *self._by_token, rows, less, *less.shape, out, self._threads(less.shape[1]))
        return out

    def back(
        self,
        signal: Float[Tensor, "token width"],
        rows: Float[Tensor, "latent width"],
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> Float[Tensor, "entry"]:
        """scale · signal @ rows.T + shift at the active entries, in the order of `add`: by latent, then token."""
        first, token, _ = self.by_latent
        out, (latents, width) = torch.empty_like(self.value), rows.shape
        call("sparse", "back", first, token, latents, width, signal, rows, scale, shift, out, self._threads(width))
        return out

    def add(
        self,
        out: Float[Tensor, "latent width"],
        signal: Float[Tensor, "token width"],
        values: Float[Tensor, "entry"] | None = None,
        scale: float = 1.0,
        sums: Float[Tensor, "latent"] | None = None,
    ) -> None:
        """out += scale · values.T @ signal and sums += values.sum(0), for `values` from `back`, or the code's own."""
        first, token, own = self.by_latent
        values, threads = own if values is None else values, self._threads(out.shape[1])
        call("sparse", "add", first, token, values, *out.shape, signal, scale, out, sums, threads)

    def runner_up(
        self, signal: Float[Tensor, "token width"], rows: Float[Tensor, "latent width"]
    ) -> tuple[Float[Tensor, "token"], Int[Tensor, "token"]]:
        """(signal @ rows.T).masked_fill(code > 0, -inf).max(1): the highest drive of a silent latent, and which."""
        packed, bias = packed_rows("sparse", rows, None)
        best, value = torch.empty_like(self.count), torch.empty(len(self.count))
        where, threads = self._by_token[:3], torch.get_num_threads()
        call("sparse", "runner_up", signal, packed, bias, *signal.shape, self.latents, *where, best, value, threads)
        return value, best.long()


def encode(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "latent width"],
    b: Float[Tensor, "latent"],
    selection: Selection,
    capacity: int,
) -> Code | None:
    """selected(x @ W.T + b), of equal drives those of the first latents.

    Args:
        x: activations, float32 on the CPU.
        W: the encoder's rows.
        b: its bias.
        selection: which drives the code keeps.
        capacity: of how many entries there is room for.

    Returns:
        the code; None where it has more entries than that.
    """
    tokens, width = x.shape
    packed, bias = packed_rows("sparse", W, b)
    start, count = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens, dtype=torch.int32)
    index, value = torch.empty(capacity, dtype=torch.int32), torch.empty(capacity)
    least, k = max(selection.least, LEAST), min(selection.k, len(W))
    code, threads = (start, count, index, value), torch.get_num_threads()
    entries = call(
        "sparse", "encode", x.contiguous(), packed, bias, tokens, width, len(W), k, least, *code, capacity, threads
    )
    if entries > capacity:
        return None
    return Code(len(W), start, count, index[:entries], value[:entries])
