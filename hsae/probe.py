"""`hsae train --probe alignment`: how Hebbian a step's learning signals are, for every rule and both sides of an SAE.

The encoder is the linear layer from the centred activations x to the drive without its bias, the decoder the one from
the code y to the reconstruction without its bias; so the Hebbian directions are Σ (W_enc x) xᵀ and Σ y (W_decᵀ y)ᵀ. A
tied matrix is both layers: its one signal is held against each direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from hsae.alignment import Alignment, Outer, batch_cosine, cosine, cosines, dots
from hsae.forward import Forward
from hsae.rules import Rule, State, Weights
from hsae.rules.backprop import Backprop

SIDES = ("encoder", "decoder")


class Seen(Forward):
    """A micro-batch whose gradients are kept apart by token, as outer products of a latent's part and a width's."""

    def descent(self, side: str) -> list[Outer]:
        """What gradient descent adds to a side's matrix for each token: minus the loss's gradient, [latent, width]."""
        if self.tied:
            return [*self._encoder_descent(), *self._decoder_descent()]
        return self._encoder_descent() if side == "encoder" else self._decoder_descent()

    def hebbian(self, side: str) -> list[Outer]:
        """Hebb's direction for each token."""
        if side == "encoder":
            assert self.encoder.b is not None
            return [(self.u - self.encoder.b, self.x)]
        made = self.error + self.x
        return [(self.code, made if self.b_dec is None else made - self.b_dec)]

    def _encoder_descent(self) -> list[Outer]:
        found = [(-self._through_code[0], self.x)]
        if self._revived is not None and self.auxiliary is not None:
            back = self._revived.signal(self.width) @ self.decoder.W[self.auxiliary.dead].T
            found.append((self._all(-torch.ops.aten.threshold_backward(back, self._revived.code, 0)), self.x))
        return found

    def _decoder_descent(self) -> list[Outer]:
        latents = self.code.shape[1]
        found: list[Outer] = [
            (pad(self.code[:, part], (part.start, latents - part.stop)), -signal)
            for signal, part in zip(self._through_decoder, self._parts, strict=True)
        ]
        if self._revived is not None:
            found.append((self._all(self._revived.code), -self._revived.signal(self.width)))
        return found

    def _all(self, values: Float[Tensor, "token some"]) -> Float[Tensor, "token latent"]:
        """Values of the dead latents, beside 0 for the others."""
        assert self.auxiliary is not None
        return torch.zeros_like(self.u).index_copy_(1, self.auxiliary.dead, values)


class AlignmentProbe:
    """Adds up one step's alignment over micro-batches.

    Backpropagation's signal is minus the loss's gradient, before clipping, weight decay and Adam. A local rule's is its
    displacement, and for each token what its `signal` stands for, where it has one (without what decays).

    Args:
        rules: of `encoder` and, unless tied, `decoder`.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = {side: rules.get(side, rules["encoder"]) for side in SIDES}
        self._tied = "decoder" not in rules
        self._sums: dict[str, Tensor] = {}
        self._tokens = 0

    def add(self, seen: Seen, state: Mapping[str, State]) -> None:
        """Count a micro-batch, which the rules see with those states."""
        self._tokens += len(seen.x)
        for side, rule in self._rules.items():
            hebbian, by_gradient = seen.hebbian(side), isinstance(rule, Backprop)
            self._add(f"{side}.hebbian", _sum(hebbian))
            signal = seen.descent(side) if by_gradient else self._local(seen, side, state)
            if by_gradient:
                self._add(f"{side}.signal", _sum(signal))
            if signal:
                peers = seen.encoder.peers
                self._add(f"{side}.cosines", cosines(signal, hebbian, peers).sum())
                self._add(f"{side}.dots", dots(signal, hebbian, peers).sum())

    def _local(self, seen: Seen, side: str, state: Mapping[str, State]) -> list[Outer]:
        """What a local rule's signal adds for each token; nothing where it has none."""
        signal = self._rules[side].signal(seen.synapse(side, state.get(side, state["encoder"])))
        return [] if signal is None else [(signal, seen.x)]

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def result(self, before: Mapping[str, Weights], after: Mapping[str, Weights]) -> dict[str, Alignment]:
        """Each side's alignment in the step that led from `before` to `after`."""
        found = {}
        for side in SIDES:
            name, hebbian = "encoder" if self._tied else side, self._sums[f"{side}.hebbian"]
            step, peers = after[name].W - before[name].W, after[name].peers
            signal = self._sums.get(f"{side}.signal", step)
            means = (self._sums.get(f"{side}.{key}") for key in ("cosines", "dots"))
            each = (None if total is None else (total / self._tokens).item() for total in means)
            found[side] = Alignment(batch_cosine(signal, hebbian, peers), *each, step_cos=cosine(step, hebbian, peers))
        return found


def _sum(outers: Sequence[Outer]) -> Float[Tensor, "latent width"]:
    return torch.stack([left.T @ right for left, right in outers]).sum(0)
