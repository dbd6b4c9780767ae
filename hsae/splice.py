"""What a language model predicts with the activation at a hook point replaced: cross-entropy and KL, in nats.

A row of T tokens makes T - 1 predictions: position t predicts token t + 1, across document boundaries too. Those whose
target is padding are left out. Streaming sums in float64: the result does not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.lm import LM
from hsae.store import Chunk

K = TypeVar("K", bound=Hashable)
# Takes activations, [token, width], and returns as many in their place.
Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """Means over the predictions. `kl` is KL(clean ‖ replaced): 0 for the clean model."""

    cross_entropy: float
    kl: float


@dataclass(frozen=True)
class Losses(Generic[K]):
    """What was measured: over how many predictions, with how many positions replaced, and each replacement's loss."""

    tokens: int
    spliced: int
    clean: Loss
    replaced: dict[K, Loss]


def measure(
    lm: LM,
    hook: str,
    chunks: Iterable[Chunk],
    replacements: Mapping[K, Replace],
    pad: int | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Losses[K]:
    """The losses of a model, clean and with each replacement of the activation at a hook point.

    Memory: the logits of one chunk, twice.

    Args:
        lm: the model.
        hook: where its activation is replaced.
        chunks: token ids, and where to replace (`keep`): other positions keep the activation that they have.
        replacements: by name, what takes activations and returns what stands in their place.
        pad: the id of the padding, if there is any (see `padding`).
        advance: told the tokens of every pass.

    Raises:
        UserError: the hook point cannot be replaced.
    """
    tokens = spliced = 0
    clean, sums = torch.zeros(2, dtype=torch.float64), {}
    for chunk in chunks:
        ids = chunk.tokens.long().to(lm.device)
        keep, wanted = chunk.keep.to(lm.device), ~padding(chunk, pad)[:, 1:].to(lm.device)
        with torch.inference_mode():
            base = lm.logits(ids)
            for row in base:
                row.copy_(row.log_softmax(-1))
            clean += _sums(base, base, ids, wanted)
            advance(ids.numel())
            for name, replace in replacements.items():
                logits = lm.logits(ids, hook, _at(keep, replace))
                sums[name] = sums.get(name, 0) + _sums(base, logits, ids, wanted)
                advance(ids.numel())
        tokens += int(wanted.sum())
        spliced += int(keep.sum())
    return Losses(tokens, spliced, _loss(clean, tokens), {name: _loss(sum, tokens) for name, sum in sums.items()})


def padding(chunk: Chunk, pad: int | None) -> Bool[Tensor, "sequence position"]:
    """Where the padding is: the run of `pad` tokens at a row's end that do not count; nowhere without a `pad`."""
    if pad is None:
        return torch.zeros_like(chunk.keep)
    filler = (chunk.tokens == pad) & ~chunk.keep
    return filler.flip(1).long().cumprod(1).bool().flip(1)


def _at(keep: Bool[Tensor, "sequence position"], replace: Replace) -> Replace:
    """Replace where `keep` says so."""

    def edit(x: Tensor) -> Tensor:
        new = x.clone()
        new[keep] = replace(x[keep]).to(x.dtype)
        return new

    return edit


def _sums(
    base: Float[Tensor, "sequence position entry"],
    logits: Float[Tensor, "sequence position entry"],
    ids: Int[Tensor, "sequence position"],
    wanted: Bool[Tensor, "sequence prediction"],
) -> Float[Tensor, "2"]:
    """Cross-entropy and KL, summed over predictions; `base` holds the clean model's log-probabilities."""
    total = torch.zeros(2, dtype=torch.float64)
    # Row by row: what is made on the way is as large as a row's logits.
    for p, row, target, count in zip(base, logits, ids[:, 1:], wanted, strict=True):
        log_p = p[:-1]
        log_q = log_p if base is logits else row[:-1].log_softmax(-1)
        entropy = -log_q.gather(1, target[:, None]).squeeze(1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        # Summed on the CPU: MPS has no float64.
        total += torch.stack([entropy[count], kl[count]]).cpu().double().sum(1)
    return total


def _loss(sums: Float[Tensor, "2"], tokens: int) -> Loss:
    entropy, kl = (sums / tokens).tolist()
    return Loss(entropy, kl)
