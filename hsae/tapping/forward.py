"""The forward pass over `Parts`, one hook point after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.attention import attend
from hsae.tapping.parts import Block, Parts


class Forward:
    """Computes a model's hook points in its order. The buffers between its layers are kept from call to call.

    Args:
        parts: the model's (see `read_parts`).
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._kept: dict[str, Tensor] = {}
        self._turns: tuple[Tensor, Tensor] | None = None

    def points(self, tokens: Int[Tensor, "sequence position"]) -> Iterator[tuple[str, Tensor]]:
        """Every hook point and its rows, [sequence * position, width], which the next step may change.

        Nothing is computed before it is asked for.
        """
        parts, (sequences, length) = self.parts, tokens.shape
        x = self._buffer("x", tokens.numel(), parts.embed.shape[1])
        torch.index_select(parts.embed, 0, tokens.flatten(), out=x)
        yield "hook_embed", x
        if parts.positions is not None:
            positions = parts.positions[:length]
            x.view(sequences, length, -1).add_(positions)
        for layer, block in enumerate(parts.blocks):
            for name, values in self._block(block, x, sequences, length):
                yield f"blocks.{layer}.{name}", values

    def _block(self, block: Block, x: Tensor, sequences: int, length: int) -> Iterator[tuple[str, Tensor]]:
        """One layer; it changes the residual stream `x` in place."""
        rows, parallel = len(x), self.parts.parallel
        yield "hook_resid_pre", x
        widths = [part.weight.shape[1] for part in (block.q, block.k, block.v)]
        heads = self._buffer("heads", rows, sum(widths)).split(widths, dim=1)
        normed = block.norm1(x)
        for name, part, out in zip("qkv", (block.q, block.k, block.v), heads, strict=True):
            yield f"attn.hook_{name}", part.into(out, normed)
        q, k, v = (part.unflatten(1, (-1, self.parts.d_head)).unflatten(0, (sequences, length)) for part in heads)
        self._rotate(q, k)
        z = self._buffer("z", rows, widths[0])
        attend(q, k, v, z.view(q.shape), block.scale, block.window)
        yield "attn.hook_z", z
        attended = block.o.into(self._buffer("attended", rows, x.shape[1]), z)
        yield "hook_attn_out", attended
        if not parallel:
            x += attended
            yield "hook_resid_mid", x
        normed = block.norm2(x)
        hidden = self._buffer("hidden", rows, block.up.weight.shape[1])
        if block.gate is None:
            yield "mlp.hook_pre", block.up.into(hidden, normed)
            self.parts.activate(hidden)
        else:
            yield "mlp.hook_pre", block.gate.into(hidden, normed)
            self.parts.activate(hidden)
            hidden *= block.up.into(self._buffer("gated", *hidden.shape), normed)
        yield "mlp.hook_post", hidden
        added = block.down.into(self._buffer("added", rows, x.shape[1]), hidden)
        yield "hook_mlp_out", added
        x += added
        if parallel:
            x += attended
        yield "hook_resid_post", x

    def _rotate(self, *heads: Float[Tensor, "sequence position _ d_head"]) -> None:
        """Turn queries and keys by their positions, in place."""
        if self.parts.rotary is None:
            return
        length = heads[0].shape[1]
        if self._turns is None or len(self._turns[0]) != length:
            ids = torch.arange(length, device=heads[0].device)[None]
            cos, sin = self.parts.rotary(heads[0], ids)
            self._turns = cos[0, :, None], sin[0, :, None]
        cos, sin = self._turns
        for x in heads:
            turned = x[..., : cos.shape[-1]]
            first, second = turned.chunk(2, dim=-1)
            across = torch.cat((-second, first), dim=-1).mul_(sin)
            turned.mul_(cos).add_(across)

    def _buffer(self, name: str, rows: int, width: int) -> Float[Tensor, "row width"]:
        """Memory for a step's result, the same from layer to layer and call to call."""
        kept = self._kept.get(name)
        if kept is None or kept.numel() < rows * width:
            kept = self._kept[name] = torch.empty(rows * width, device=self.parts.embed.device)
        return kept[: rows * width].view(rows, width)
