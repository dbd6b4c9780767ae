"""What `hsae train --stream` can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hsae.config import require
from hsae.harvesting.config import HarvestConfig
from hsae.store.manifest import BYTES

# Bytes of a position beside its activations: whether it counts, and its place in the shuffled order.
BESIDE = 1 + 8


@dataclass(frozen=True)
class StreamConfig(HarvestConfig):
    """A text that is trained on while the model reads it: what `hsae harvest` is told, the sample, and the memory."""

    tokens: int = 10_000_000
    """Positions of the text, after the sample, in one epoch, padding included; a shorter text is an epoch as it is."""
    sample: int = 262_144
    """Positions at the text's beginning that are kept as a small store and not trained on: for the moments that
    activations are scaled by, the held-out tokens, and what inspect shows."""
    ring_mib: int = 256
    """Memory for activations on their way: a half is trained on, shuffled, while the other is computed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.hooks) == 1, "hooks", "one hook point", self.hooks)
        require(not self.to, "to", "unset: a stream is stored nowhere", self.to)
        require(not self.name, "name", "unset: a stream is stored nowhere", self.name)
        require(self.sample >= 1, "sample", "at least 1", self.sample)
        require(self.ring_mib >= 1, "ring_mib", "at least 1", self.ring_mib)

    @property
    def hook(self) -> str:
        """The hook point."""
        return self.hooks[0]

    @property
    def of_sample(self) -> HarvestConfig:
        """How the sample is harvested."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(HarvestConfig)}
        return HarvestConfig(**{**fields, "tokens": self.sample})

    def pool_sequences(self, width: int) -> int:
        """Contexts in a half of the ring: whole batches, one at least."""
        fit = (self.ring_mib << 19) // (self.context * (width * BYTES[self.dtype] + BESIDE))
        return max(self.batch_sequences, fit - fit % self.batch_sequences)
