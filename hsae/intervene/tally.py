"""How predictions change, summed up sequence by sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.inspect.tokens import Pieces
from hsae.intervals import estimate

WORST = 8
"""predictions and tokens that are named"""
CONTEXT = 16
"""tokens of context given with a prediction"""


@dataclass(frozen=True)
class Change:
    """How so many predictions change, in nats per prediction.

    Attributes:
        loss: the mean change of the loss; above 0: worse. None where there is no prediction.
        half: half the width of its 95% interval, sequences taken as independent; None where only one has predictions.
        kl: mean KL(clean ‖ changed).
    """

    predictions: int
    loss: float | None
    half: float | None
    kl: float | None


@dataclass(frozen=True)
class Hurt:
    """A prediction of `target` after `context`, made at `position` of a sequence: log-probability before and after.

    `fires`: whether one of the latents fires at that position; otherwise it is felt through attention.
    """

    sequence: int
    position: int
    context: tuple[str, ...]
    target: str
    before: float
    after: float
    fires: bool


@dataclass(frozen=True)
class Shift:
    """A token's mean probability before and after."""

    token: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class _Prediction:
    gain: float
    sequence: int
    position: int
    ids: tuple[int, ...]
    before: float
    fires: bool


class Tally:
    """What one edit changes.

    Args:
        whole: keep the worst predictions and the tokens' probabilities too.
    """

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        # For each sequence: predictions, change of their summed loss, summed KL; then the same where a latent fires.
        self._sums: list[Float[Tensor, "6"]] = []
        self._worst: list[_Prediction] = []
        self._before = self._after = torch.zeros(0, dtype=torch.float64)

    def add_unchanged(self, predictions: int) -> None:
        """A sequence in which nothing fires, so that nothing changes."""
        self._sums.append(torch.tensor([predictions, 0, 0, 0, 0, 0], dtype=torch.float64))

    def add(
        self,
        sequence: int,
        ids: Int[Tensor, "position"],
        log_p: Float[Tensor, "prediction entry"],
        log_q: Float[Tensor, "prediction entry"],
        wanted: Bool[Tensor, "prediction"],
        fires: Bool[Tensor, "prediction"],
    ) -> None:
        """A sequence's predictions.

        Args:
            sequence: its number in the store.
            ids: its tokens; prediction t is made at position t, of token t + 1.
            log_p, log_q: log-probabilities before and after.
            wanted: the predictions that count.
            fires: those made where a latent fires.
        """
        fires = fires & wanted
        before, after = (log.gather(1, ids[1:, None])[:, 0] for log in (log_p, log_q))
        p = log_p.exp()
        kl = (p * (log_p - log_q)).sum(1)
        gain = after - before
        # Summed on the CPU: MPS has no float64.
        columns = torch.stack([torch.ones_like(gain), -gain, kl]).cpu().double()
        self._sums.append(torch.cat([columns[:, mask.cpu()].sum(1) for mask in (wanted, fires)]))
        if not self._whole:
            return
        for name, probability in (("_before", p), ("_after", log_q.exp())):
            total = getattr(self, name)
            more = probability[fires].sum(0).cpu().double()
            setattr(self, name, total + more if len(total) else more)
        self._keep_worst(sequence, ids.tolist(), gain.masked_fill(~wanted, 0), before, fires)

    def _keep_worst(self, sequence: int, ids: list[int], gain: Tensor, before: Tensor, fires: Tensor) -> None:
        found = gain.topk(min(WORST, len(gain)), largest=False)
        for value, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            if value < 0:
                around = tuple(ids[max(0, place + 1 - CONTEXT) : place + 2])
                self._worst.append(
                    _Prediction(value, sequence, place, around, float(before[place]), bool(fires[place]))
                )
        self._worst = sorted(self._worst, key=lambda one: one.gain)[:WORST]

    @property
    def overall(self) -> Change:
        """Over all predictions."""
        return _change(torch.stack(self._sums)[:, :3])

    @property
    def firing(self) -> Change:
        """Over those made where a latent fires."""
        return _change(torch.stack(self._sums)[:, 3:])

    def hurt(self, pieces: Pieces) -> tuple[Hurt, ...]:
        """The predictions whose target loses most log-probability, the worst first."""
        found = []
        for one in self._worst:
            *context, target = pieces(one.ids)
            after = one.before + one.gain
            found.append(Hurt(one.sequence, one.position, tuple(context), target, one.before, after, one.fires))
        return tuple(found)

    def shifts(self, pieces: Pieces) -> tuple[tuple[Shift, ...], tuple[Shift, ...]]:
        """Tokens whose mean probability rises and falls most where a latent fires, the largest change first."""
        count = max(1.0, float(torch.stack(self._sums)[:, 3].sum()))
        before, after = self._before / count, self._after / count
        order = (after - before).argsort(descending=True, stable=True)

        def shift(token: int) -> Shift:
            return Shift(token, pieces.one(token), float(before[token]), float(after[token]))

        rises = tuple(shift(i) for i in order[:WORST].tolist() if after[i] > before[i])
        falls = tuple(shift(i) for i in order.flip(0)[:WORST].tolist() if after[i] < before[i])
        return rises, falls


def _change(sums: Float[Tensor, "sequence 3"]) -> Change:
    """The ratio of sums over sequences, and its interval by linearisation (Cochran, Sampling Techniques, ch. 6)."""
    sums = sums[sums[:, 0] > 0]
    if not len(sums):
        return Change(0, None, None, None)
    count, loss, kl = sums.T
    total = float(count.sum())
    mean = float(loss.sum()) / total
    # Values whose mean is the ratio, and whose spread is that of the ratio.
    values = mean + (loss - mean * count) * (len(sums) / total)
    found = estimate(values.tolist())
    return Change(int(total), mean, found.half if found else None, float(kl.sum()) / total)
