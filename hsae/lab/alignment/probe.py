"""A probe on the linear layers of any PyTorch model: how far what they learn from points the Hebbian way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from hsae.alignment import Alignment, batch_cosine, cosine, inner, sample_cosine
from hsae.errors import UserError, choices


@dataclass
class _Sums:
    """Of one layer since the last step; `before` is its weight then."""

    before: Tensor
    signal: Any = 0.0
    hebbian: Any = 0.0
    samples: int = 0
    cosines: float = 0.0
    inners: float = 0.0


class AlignmentProbe:
    """Watches `nn.Linear` layers while a model trains; `step()` closes a step, leaving the `with` takes its hooks off.

    All leading axes of a layer's input count samples. The signal is minus the gradient of what `backward` is called on,
    before any preconditioning; `step_cos` is of the change that the optimiser then made. h_b is W h_a, the output
    without the bias. A module called several times counts all its calls, as its gradient does; where modules share a
    weight, `step_cos` is of all, the rest of its own calls. Passes without gradients are not seen.

    Args:
        model: any module, of any floating type.
        layers: names as in `model.named_modules()`.

    Attributes:
        history: of each layer, an `Alignment` for each step.

    Raises:
        UserError: a name that is not there, or is not of an `nn.Linear`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        every = dict(model.named_modules())
        linear = {name: module for name, module in every.items() if isinstance(module, nn.Linear)}
        for name in layers:
            if name not in linear:
                what = "no nn.Linear" if name in every else "no such module"
                raise UserError(f"layer {name!r}: {what}; {choices(name, linear)}")
        self.history: dict[str, list[Alignment]] = {name: [] for name in layers}
        self._layers = {name: linear[name] for name in layers}
        self._sums = {name: _Sums(layer.weight.detach().float().clone()) for name, layer in self._layers.items()}
        self._hooks = [m.register_forward_hook(self._hook(n), with_kwargs=True) for n, m in self._layers.items()]

    def __enter__(self) -> AlignmentProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the hooks off the model; the history stays."""
        while self._hooks:
            self._hooks.pop().remove()

    def step(self, decay: float = 0.0) -> dict[str, Alignment]:
        """Close a step, after the optimiser's: what all backward passes since the last one came to.

        Args:
            decay: the share of the weights that the optimiser takes away itself, lr x weight_decay for SGD and AdamW,
                which `step_cos` leaves out. (Adam's weight_decay joins the gradient, and cannot be told apart.)

        Raises:
            UserError: there was no backward pass.
        """
        for name, layer in self._layers.items():
            sums = self._sums[name]
            if not sums.samples:
                raise UserError(f"layer {name!r}: no backward pass went through it since the last step")
            now = layer.weight.detach().float().clone()
            means = sums.cosines / sums.samples, sums.inners / sums.samples
            moved = cosine(now - (1 - decay) * sums.before, sums.hebbian)
            self.history[name].append(Alignment(batch_cosine(sums.signal, sums.hebbian), *means, moved))
            self._sums[name] = _Sums(now)
        return {name: told[-1] for name, told in self.history.items()}

    def mean(self, layer: str, last: int = 0) -> Alignment:
        """The mean over the last steps; 0: over all.

        Raises:
            UserError: a layer that is not watched, or no step yet.
        """
        told = self.history.get(layer, [])[-last:]
        if not told:
            raise UserError(f"layer {layer!r}: no step of it was seen; {choices(layer, self.history)}")
        return Alignment(*(fmean(values) for values in zip(*map(astuple, told), strict=True)))

    def _hook(self, name: str) -> Any:
        def forward(layer: nn.Linear, args: tuple[Tensor, ...], given: dict[str, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                h_a = (args[0] if args else given["input"]).detach()
                output.register_hook(lambda delta: self._add(self._sums[name], layer.weight.detach(), h_a, delta))

        return forward

    @torch.no_grad()
    def _add(self, sums: _Sums, weight: Tensor, h_a: Tensor, delta: Tensor) -> None:
        h_a, signal = (t.reshape(-1, t.shape[-1]).float() for t in (h_a, -delta))
        h_b = h_a @ weight.float().T  # not from the output, which may have been changed in place
        sums.signal += signal.T @ h_a
        sums.hebbian += h_b.T @ h_a
        sums.samples += len(h_a)
        sums.cosines += sample_cosine(signal, h_b) * len(h_a)
        sums.inners += inner(signal, h_b, h_a) * len(h_a)
