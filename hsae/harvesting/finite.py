"""Activations that are not finite, or do not fit the store's dtype: said and refused, left out, or clipped."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hsae.errors import UserError
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.shard import Shard

REASON = "non-finite"


def make_finite(shard: Shard, config: HarvestConfig, first: int, tokenizer: Any) -> dict[str, int]:
    """Make a shard's activations finite, by the config's policy.

    Args:
        shard: changed in place.
        config: its `non_finite`.
        first: the shard's first sequence, in the whole store.
        tokenizer: for the words of the line.

    Returns:
        how many positions were clipped, by hook point.

    Raises:
        UserError: the policy is to stop. The line names the first such position, its token, and how many there are.
    """
    clipped: dict[str, int] = {}
    for hook, values in shard.activations.items():
        bad = ~values.isfinite().all(-1)
        count = int(bad.sum())
        if not count:
            continue
        if config.non_finite == "stop":
            raise UserError(_line(shard, hook, bad, config.dtype, first, tokenizer))
        if config.non_finite == "clip":
            most = torch.finfo(values.dtype).max
            values.nan_to_num_(nan=0.0, posinf=most, neginf=-most)
            clipped[hook] = count
            continue
        values.masked_fill_(bad[..., None], 0.0)
        if dropped := int((shard.keep[hook] & bad).sum()):
            shard.excluded[hook][REASON] = dropped
        shard.keep[hook].logical_and_(~bad)
    return clipped


def _line(
    shard: Shard, hook: str, bad: Bool[Tensor, "sequence position"], dtype: str, first: int, tokenizer: Any
) -> str:
    sequence, position = bad.nonzero()[0].tolist()
    token, count = int(shard.tokens[sequence, position]), int(bad.sum())
    values = shard.activations[hook][sequence, position]
    value = values[~values.isfinite()][0].item()
    where = f"sequence {first + sequence}, position {position}, token {token} {tokenizer.decode([token])!r}"
    cause = f"the model gave {value}"
    if dtype == "fp16" and not math.isnan(value):
        cause += ", or more than fp16 holds (then --dtype bf16 or fp32 helps)"
    return f"{hook}, {where}: {cause}; {count:,} such in shard {shard.index}; --non-finite drop or clip goes on"
