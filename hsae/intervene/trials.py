"""Latents that are ablated together, what else is ablated to compare with, and what each of these changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.inspect.tokens import Pieces
from hsae.intervals import Estimate, estimate
from hsae.intervene.edits import Edit, directions, random_directions
from hsae.intervene.tally import Change, Hurt, Shift, Tally
from hsae.sae import SAE


@dataclass(frozen=True)
class Control:
    """The same ablation of something else, several times. The estimates are of `Change.loss`, over those times.

    Attributes:
        kind: "directions": random directions of the same length, at the same positions and as strongly; "latents":
            other latents of like firing rate, where they fire.
        latents: which others, for each time.
        overall, firing: as in `Ablation`; None where there was nothing to measure.
    """

    kind: Literal["directions", "latents"]
    latents: tuple[tuple[int, ...], ...]
    overall: Estimate | None
    firing: Estimate | None


@dataclass(frozen=True)
class Ablation:
    """What ablating some latents, together, changes.

    Attributes:
        latents: one, or all of them.
        fires: positions at which any of them fires, of those that count.
        activation: mean of their activations above 0; None where none fires.
        overall: over all predictions.
        firing: over those made at positions where any of the latents fires.
        controls: the same of something else, for the numbers to mean something.
        hurt: the predictions whose target loses most log-probability, the worst first.
        rises, falls: tokens whose probability changes most, over the predictions of `firing`, the largest change first.
    """

    latents: tuple[int, ...]
    fires: int
    activation: float | None
    overall: Change
    firing: Change
    controls: tuple[Control, ...]
    hurt: tuple[Hurt, ...]
    rises: tuple[Shift, ...]
    falls: tuple[Shift, ...]


@dataclass(frozen=True)
class Trial:
    """One edit, and what it changes."""

    edit: Edit
    tally: Tally


class Group:
    """Latents that are ablated together.

    Args:
        sae: on the model's device.
        latents: the latents.
        set_to: their new activation.
        controls: how many random directions stand beside them.
        others: other latents to stand beside them.
        generator: draws the directions.
    """

    def __init__(
        self,
        sae: SAE,
        latents: tuple[int, ...],
        set_to: float,
        controls: int,
        others: tuple[tuple[int, ...], ...],
        generator: torch.Generator,
    ) -> None:
        own = directions(sae, latents)
        self.latents, self._fires, self._above, self._mass = latents, 0, 0, 0.0
        self._own = Trial(Edit(latents, own, set_to), Tally(whole=True))
        self._random = [
            Trial(Edit(latents, random_directions(own, generator), set_to), Tally(whole=False)) for _ in range(controls)
        ]
        self._others = [Trial(Edit(them, directions(sae, them), set_to), Tally(whole=False)) for them in others]

    @property
    def trials(self) -> list[Trial]:
        """All that is to be measured: the latents themselves first."""
        return [self._own, *self._random, *self._others]

    def see(self, code: Float[Tensor, "token some"]) -> None:
        """Count activations of the latents, at positions that count."""
        self._fires += int((code > 0).any(1).sum())
        self._above += int((code > 0).sum())
        self._mass += float(code.cpu().double().sum())  # MPS has no float64

    def result(self, pieces: Pieces) -> Ablation:
        """What was measured."""
        rises, falls = self._own.tally.shifts(pieces)
        others = tuple(trial.edit.latents for trial in self._others)
        controls = (_control("directions", (), self._random), _control("latents", others, self._others))
        return Ablation(
            latents=self.latents,
            fires=self._fires,
            activation=self._mass / self._above if self._above else None,
            overall=self._own.tally.overall,
            firing=self._own.tally.firing,
            # Beside latents that never fire there is nothing to compare.
            controls=tuple(control for control in controls if self._fires and control.overall is not None),
            hurt=self._own.tally.hurt(pieces),
            rises=rises,
            falls=falls,
        )


def _control(
    kind: Literal["directions", "latents"], latents: tuple[tuple[int, ...], ...], trials: list[Trial]
) -> Control:
    overall = estimate(trial.tally.overall.loss for trial in trials)
    return Control(kind, latents, overall, estimate(trial.tally.firing.loss for trial in trials))
