"""Activations from a model's parts: a share of the sequences for each thread, the layers below the last hook point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.tapping.forward import Forward
from hsae.tapping.parts import Parts

# Tokens that go through the layers together, on a CPU: what lies between two layers stays in the cache.
PIECE = 1024


class FastTap:
    """Computes activations from a model's parts.

    Args:
        parts: the model's (see `read_parts`).
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._forwards: list[Forward] = []
        self._pool: ThreadPoolExecutor | None = None

    def knows(self, hooks: Iterable[str]) -> bool:
        """Whether it can give all of these hook points."""
        return set(hooks) <= self._names

    @property
    def _names(self) -> set[str]:
        middle = () if self.parts.parallel else ("hook_resid_mid",)
        each = ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_attn_out", *middle)
        each = (*each, "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post")
        layers = range(len(self.parts.blocks))
        return {"hook_embed", *(f"blocks.{layer}.{name}" for layer in layers for name in each)}

    def tap(
        self, tokens: Int[Tensor, "sequence position"], hooks: Sequence[str]
    ) -> dict[str, Float[Tensor, "sequence position width"]]:
        """Activations at hook points that it knows, as `LM.tap` gives them. One call at a time."""
        threads = torch.get_num_threads()
        shares = tokens.chunk(threads if tokens.device.type == "cpu" else 1)
        while len(self._forwards) < len(shares):
            self._forwards.append(Forward(self.parts))
        if len(shares) == 1:
            return _share(self._forwards[0], tokens, hooks)
        # Threads that go through the layers each on its own never wait for each other, as they would in every operation
        # if they shared its rows.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tap")

        def work(forward: Forward, share: Tensor) -> dict[str, Tensor]:
            torch.set_num_threads(threads // len(shares))
            return _share(forward, share, hooks)

        try:
            # Only as many forwards as there are shares.
            found = list(self._pool.map(work, self._forwards, shares))
        finally:
            # The setting is each thread's own, but those that start later take over the last one.
            torch.set_num_threads(threads)
        return {hook: torch.cat([part[hook] for part in found]) for hook in hooks}


def _share(forward: Forward, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    """One thread's sequences, a few at a time."""
    pieces = tokens.split(max(1, PIECE // tokens.shape[1]) if tokens.device.type == "cpu" else len(tokens))
    found = [_seen(forward, piece, hooks) for piece in pieces]
    return {hook: torch.cat([part[hook] for part in found]) for hook in hooks} if len(found) > 1 else found[0]


def _seen(forward: Forward, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, values in forward.points(tokens):
            if name in hooks:
                seen[name] = values.reshape(*tokens.shape, -1).clone()
                if len(seen) == len(hooks):
                    break
    return {hook: seen[hook] for hook in hooks}
