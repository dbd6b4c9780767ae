"""Activations from a model's parts: the layers below the last hook point, some sequences for each thread."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels import attention
from hsae.tapping.forward import Forward
from hsae.tapping.parts import Parts

# Tokens that go through the layers together, on a CPU: what lies between two layers stays in the cache.
PIECE = 512


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
    def lanes(self) -> int:
        """Floats in a vector of the C kernels, if they compute every product; 0 where PyTorch computes some.

        With the kernels results depend neither on the number of threads nor on the sequences that are given together.
        """
        parts = [part for block in self.parts.blocks for part in (block.q, block.k, block.v, block.o, block.up)]
        parts += [part for block in self.parts.blocks for part in (block.gate, block.down) if part is not None]
        own = self.parts.embed.device.type == "cpu" and all(part.own for part in parts)
        return attention.lanes(self.parts.d_head) if own else 0

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
        if tokens.device.type != "cpu":
            return _seen(self._forward(0), tokens, hooks)
        # Cut in one way whatever the number of threads, so that results never depend on it.
        pieces, threads = tokens.split(max(1, PIECE // tokens.shape[1])), torch.get_num_threads()
        workers = min(threads, len(pieces))
        if workers == 1:
            found = [_seen(self._forward(0), piece, hooks) for piece in pieces]
        else:
            found = self._shared_out(pieces, hooks, workers)
        return {hook: torch.cat([part[hook] for part in found]) for hook in hooks} if len(found) > 1 else found[0]

    def _shared_out(self, pieces: Sequence[Tensor], hooks: Sequence[str], workers: int) -> list[dict[str, Tensor]]:
        """The pieces by several threads. Each goes through the layers on its own: they never wait for each other, as
        they would in every operation if they shared its rows.
        """
        threads = torch.get_num_threads()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tap")

        def work(forward: Forward, share: Sequence[Tensor]) -> list[dict[str, Tensor]]:
            torch.set_num_threads(threads // workers)
            return [_seen(forward, piece, hooks) for piece in share]

        ends = [len(pieces) * worker // workers for worker in range(workers + 1)]
        shares = [pieces[a:b] for a, b in itertools.pairwise(ends)]
        try:
            works = [self._pool.submit(work, self._forward(i), share) for i, share in enumerate(shares)]
            wait(works)  # all of them, so that none goes on behind an error of another
            found = [each.result() for each in works]
        finally:
            # The setting is each thread's own, but those that start later take over the last one.
            torch.set_num_threads(threads)
        return [part for share in found for part in share]

    def _forward(self, worker: int) -> Forward:
        while len(self._forwards) <= worker:
            self._forwards.append(Forward(self.parts))
        return self._forwards[worker]


def _seen(forward: Forward, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, values in forward.points(tokens):
            if name in hooks:
                seen[name] = values.reshape(*tokens.shape, -1).clone()
                if len(seen) == len(hooks):
                    break
    return {hook: seen[hook] for hook in hooks}
