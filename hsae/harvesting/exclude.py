"""Positions that stay in the store and do not count: left out of training, moments, metrics and evidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.harvesting.config import HarvestConfig


def keep_mask(
    config: HarvestConfig,
    tokens: Int[Tensor, "sequence position"],
    lengths: Int[Tensor, " sequence"],
    values: Float[Tensor, "sequence position width"],
    special: Sequence[int],
) -> tuple[Bool[Tensor, "sequence position"], dict[str, int]]:
    """Which positions count, and how many do not, under the first reason that applies of padding, special, first, norm.

    Args:
        config: its exclude_… fields.
        tokens: token ids.
        lengths: positions of each sequence that are no padding.
        values: activations; the norm is taken against the median over the sequence's positions that are no padding.
        special: ids of special tokens.
    """
    position = torch.arange(tokens.shape[1]).expand(tokens.shape)
    padding = position >= lengths[:, None]
    reasons = {"padding": padding}
    if config.exclude_special:
        reasons["special"] = torch.isin(tokens, torch.tensor(special))
    if config.exclude_first:
        reasons["first"] = position < config.exclude_first
    if config.exclude_norm:
        norms = values.float().norm(dim=-1).cpu()
        median = norms.masked_fill(padding, torch.nan).nanmedian(dim=1, keepdim=True).values
        reasons["norm"] = norms > config.exclude_norm * median
    keep = torch.ones_like(padding)
    excluded: dict[str, int] = {}
    for reason, mask in reasons.items():
        if count := int((keep & mask).sum()):
            excluded[reason] = count
        keep &= ~mask
    return keep, excluded
