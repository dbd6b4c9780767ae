"""The model's passes over batches, whatever memory there is, and shards filled with what it computed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError, one_line
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.exclude import keep_mask
from hsae.harvesting.feed import Batch, Feed, Layout
from hsae.harvesting.shard import Shard
from hsae.lm import LM
from hsae.memory import ran_out
from hsae.store.manifest import DTYPES

T = TypeVar("T")


class Passes:
    """The model's passes.

    Args:
        config: what is harvested.
        lm: the model. From here on it computes the fast way where that agrees with the bridge.
        widths: the width of each hook point.
        say: prints a line.
    """

    def __init__(self, config: HarvestConfig, lm: LM, widths: Mapping[str, int], say: Callable[[str], None]) -> None:
        self.config, self.lm, self.widths, self._say = config, lm, widths, say
        self._most = config.batch_sequences
        # Tokens of no text, so that every process that works at a store decides alike, wherever in the text it begins.
        tokens = torch.arange(config.batch_sequences * config.context).view(-1, config.context) % lm.vocabulary
        checks = self._within_memory(tokens, lambda tokens: lm.trust_fast(tokens, config.hooks))
        if differs := next((differs for _, differs in checks if differs), ""):
            say(differs)
        start = 0.0
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            for _, activations in self._within_memory(tokens, self._tap):
                for values in activations.values():
                    values.cpu()
        self.seconds_per_sequence = (time.perf_counter() - start) / len(tokens)

    @property
    def way(self) -> dict[str, Any]:
        """What the last digits of the activations may depend on (see `LM.way`)."""
        return self.lm.way(self.config.hooks)

    def _tap(self, tokens: Int[Tensor, "sequence position"]) -> dict[str, Float[Tensor, "sequence position width"]]:
        return self.lm.tap(tokens, self.config.hooks)

    def _within_memory(self, tokens: Tensor, work: Callable[[Tensor], T]) -> Iterator[tuple[slice, T]]:
        """Do something with all sequences, some at a time: fewer from now on where memory does not suffice."""
        done = 0
        while done < len(tokens):
            part = tokens[done : done + self._most]
            try:
                found = work(part)
            except Exception as error:
                if not ran_out(error):
                    raise
                if len(part) == 1:
                    raise UserError(
                        f"out of memory for one context of {self.config.context} tokens ({one_line(error, 120)}); "
                        "lower --context, or take a device with more"
                    ) from None
                self._most = len(part) // 2
            else:
                yield slice(done, done + len(part)), found
                done += len(part)
                continue
            # Here, since an exception that is being handled keeps the tensors of its frames.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._say(f"out of memory: going on with {self._most} of {self.config.batch_sequences} contexts in a pass")

    def shards(self, feed: Feed, layout: Layout, after: Callable[[Batch], None]) -> Iterator[Shard]:
        """The shards of a feed, whole ones and what is left where the text ends.

        Two take turns: one is filled while the other is used.

        Args:
            feed: the batches.
            layout: of the store.
            after: done after each batch.
        """
        config = self.config
        sequences, dtype = min(layout.shard, layout.sequences), getattr(torch, DTYPES[config.dtype])
        room = itertools.cycle([Shard(sequences, config.context, self.widths, dtype) for _ in range(2)])
        shard = next(room)
        for batch in feed:
            for here, activations in self._within_memory(batch.tokens, self._tap):
                part = replace(batch, tokens=batch.tokens[here], lengths=batch.lengths[here])
                keep = {
                    hook: keep_mask(config, part.tokens, part.lengths, values, self.lm.special_ids)
                    for hook, values in activations.items()
                }
                shard.add(part, activations, keep)
            after(batch)
            if shard.sequences == len(layout.sequences_of(shard.index)):
                yield shard
                shard = next(room)
                shard.clear()
        if shard.sequences:
            yield shard
