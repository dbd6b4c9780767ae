"""One shard in memory, in the store's dtype, filled batch by batch and then written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.harvesting.feed import Batch
from hsae.harvesting.packing import Cursor


class Shard:
    """Room for the sequences of a shard; used again and again, since fresh memory is slow memory.

    Args:
        sequences: how many it takes.
        context: positions in a sequence.
        widths: the width of each hook point.
        dtype: what activations are stored as.

    Attributes:
        index: which shard it is; -1 while it is empty.
        sequences: how many are in it.
        excluded: for each hook point, how many positions do not count, by reason.
        start: the place in the text before the first sequence.
        cursor: the place behind the last one.
    """

    def __init__(self, sequences: int, context: int, widths: Mapping[str, int], dtype: torch.dtype) -> None:
        self._tokens = torch.empty(sequences, context, dtype=torch.int32)
        self._activations = {
            hook: torch.empty(sequences, context, width, dtype=dtype) for hook, width in widths.items()
        }
        self._keep = {hook: torch.empty(sequences, context, dtype=torch.bool) for hook in widths}
        self.clear()

    def clear(self) -> None:
        """Empty it."""
        self.index, self.sequences, self.start, self.cursor = -1, 0, Cursor(), Cursor()
        self.excluded: dict[str, dict[str, int]] = {hook: {} for hook in self._keep}

    @property
    def tokens(self) -> Tensor:
        """[sequence, position], int32."""
        return self._tokens[: self.sequences]

    @property
    def activations(self) -> dict[str, Tensor]:
        """For each hook point [sequence, position, width]."""
        return {hook: values[: self.sequences] for hook, values in self._activations.items()}

    @property
    def keep(self) -> dict[str, Tensor]:
        """For each hook point, which positions count: [sequence, position], bool."""
        return {hook: mask[: self.sequences] for hook, mask in self._keep.items()}

    def add(
        self,
        batch: Batch,
        activations: Mapping[str, Float[Tensor, "sequence position width"]],
        keep: Mapping[str, tuple[Bool[Tensor, "sequence position"], dict[str, int]]],
    ) -> None:
        """Append a batch, with what the model computed and which positions count (see `keep_mask`)."""
        if self.index < 0:
            self.index, self.start = batch.shard, batch.start
        here = slice(self.sequences, self.sequences + len(batch.tokens))
        self._tokens[here] = batch.tokens
        for hook, values in activations.items():
            mask, excluded = keep[hook]
            self._activations[hook][here] = values
            self._keep[hook][here] = mask
            for reason, count in excluded.items():
                self.excluded[hook][reason] = self.excluded[hook].get(reason, 0) + count
        self.sequences, self.cursor = here.stop, batch.cursor
