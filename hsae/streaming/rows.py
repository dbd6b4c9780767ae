"""The rows of a stream, as training takes them: shuffled within pools, batch by batch, from any row on."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.ranks import Ranks
from hsae.streaming.pools import Place, Pools, Producer


class StreamRows:
    """The endless rows of a text, read again and again. They are a pure function of the settings and the seed.

    Args:
        pools: of the text.
    """

    def __init__(self, pools: Pools) -> None:
        self.pools, self._places = pools, [pools.first]
        self._producer: Producer | None = None
        # More than one: a GPU's batches are asked for ahead.
        self._last: deque[tuple[int, Tensor]] = deque(maxlen=2)

    @property
    def rows_per_epoch(self) -> int:
        """Positions in one reading of the text, as the settings have it: how many count is not known before."""
        return self.pools.config.tokens

    def go_on(self, place: dict[str, Any] | None, ranks: Ranks) -> None:
        """Begin where an earlier process stood, as it was told by `place`, with ranks that share the computing."""
        self.pools.ranks = ranks
        if place is not None:
            self._places = [self.pools.first, Place.of(place)]

    def close(self) -> None:
        """End the computing of what comes next."""
        if self._producer is not None:
            self._producer.close()

    def place(self, row: int) -> dict[str, Any]:
        """The pool that a row is in, of those that were computed, as plain data."""
        return dataclasses.asdict(self._before(row))

    def _before(self, row: int) -> Place:
        return max((place for place in self._places if place.row <= row), key=lambda place: place.row)

    def batch(self, rows: int, start: int) -> Float[Tensor, "row width"]:
        """One batch: at once if it was among the last two given, else computed again."""
        there = [batch for first, batch in self._last if first == start and len(batch) == rows]
        return there[0] if there else next(iter(self.batches(rows, start)))

    def batches(self, rows: int, start: int = 0) -> Iterator[Float[Tensor, "row width"]]:
        """Batches of exactly `rows` rows (float32, CPU), for ever, from row `start` of the stream on."""
        have, batch = 0, torch.empty(0)
        with Producer(self.pools, self._before(start)) as self._producer:
            for pool in self._producer:
                self._places.append(pool.place)
                skip = max(0, start - pool.place.row)
                while skip < len(pool.order):
                    if have == 0:
                        batch = torch.empty(rows, self.pools.width)
                    part = pool.order[skip : skip + rows - have]
                    batch[have : have + len(part)] = pool.values[part]
                    skip, have = skip + len(part), have + len(part)
                    if have == rows:
                        self._last.append((start, batch))
                        old = self._before(self._last[0][0]).row
                        self._places = [p for p in self._places if p.row >= old or p == self.pools.first]
                        yield batch
                        start, have = start + rows, 0
