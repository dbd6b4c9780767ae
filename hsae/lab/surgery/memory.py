"""What can be operated on: a matrix that stores associations, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.errors import UserError

Form = Literal["symmetric", "source"]


@dataclass(frozen=True)
class Association:
    """What is stored: a cue, and what it recalls. In an auto-associative memory both are the pattern."""

    cue: Float[Tensor, " cue"]
    value: Float[Tensor, " value"]

    @classmethod
    def of(cls, target: Target) -> Association:
        """A pattern as one that recalls itself; an association as it is."""
        return target if isinstance(target, Association) else cls(target, target)


Target = Association | Tensor
"""what is operated on: an association, or the pattern of an auto-associative memory"""


@dataclass(frozen=True)
class Change:
    """What writes (or, subtracted, erases) an association: left ⊗ right, added to a memory's matrix.

    Attributes:
        left: [rows of the matrix].
        right: [columns of the matrix]; projected off what protected associations read.
        exact: its own size is the right one (overwriting, the delta rule); otherwise a strength says how much of it.
        others: what is added to other weights at the same time, by name; scaled as the outer product is.
    """

    left: Float[Tensor, " out"]
    right: Float[Tensor, " in"]
    exact: bool = False
    others: Mapping[str, Tensor] = field(default_factory=dict)


class Memory(ABC):
    """Stores associations in `weights[matrix]`.

    Attributes:
        name: for certificates.
        matrix: the weight that edits change, [out, in].
        odd: -p is stored wherever p is (its mirror), and is tested with it.
    """

    name: str
    matrix: str
    odd: bool = False

    @property
    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The present weights by name, as the memory uses them (not copies); all that an edit may change."""

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Set weights in place, bit for bit."""
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(weights[name])

    @abstractmethod
    def recall(self, cues: Float[Tensor, "start cue"]) -> Float[Tensor, "start value"]:
        """What noisy cues lead to: the dynamics until they converge, or one application of a layer."""

    def energy(self, x: Float[Tensor, "start value"]) -> Float[Tensor, " start"] | None:
        """The function that never increases along `recall`'s dynamics; None where there is none."""
        return None

    def scaled(self, target: Float[Tensor, " cue"]) -> Float[Tensor, " cue"]:
        """A target brought to the size at which the memory works."""
        return target

    def storable(self, target: Float[Tensor, " cue"]) -> Float[Tensor, " cue"]:
        """The pattern nearest to a target that the memory can hold: this is what is written and verified."""
        return target

    @abstractmethod
    def change(self, what: Association, sign: int, form: Form) -> Change:
        """What to add (sign 1) or subtract (sign -1) so that an association is stored or erased, from these weights."""

    def reads(self, what: Association) -> Float[Tensor, " in"]:
        """What the matrix is multiplied with at an association's cue: a change orthogonal to it leaves that alone."""
        return what.cue

    def support(self, what: Association) -> float:
        """How much the matrix itself holds of an association: valueᵀ W reads / ‖value‖², 1 where W gives the value."""
        W, value = self.weights[self.matrix].double(), what.value.double()
        return float(value @ (W @ self.reads(what).double()) / value.square().sum().clamp_min(1e-30))

    def starts(self, count: int, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        """Random cues for a survey.

        Raises:
            UserError: the memory has no basins to survey.
        """
        raise UserError(f"{self.name} maps a cue to a value in one step: it has no basins to survey")

    @abstractmethod
    def probes(self, generator: torch.Generator) -> Float[Tensor, "start cue"]:
        """Ordinary cues, by which one sees what else an edit moves."""

    def measures(self) -> dict[str, float]:
        """Further numbers that a certificate gives before and after, such as a language model's cross-entropy."""
        return {}


def projected(change: Change, reads: Float[Tensor, " in"], keep: Float[Tensor, "kept in"]) -> Change:
    """The change with its right factor off the span of what protected cues read, so that W' keeps their images.

    Raises:
        UserError: next to nothing of it is left.
    """
    _, values, basis = torch.linalg.svd(keep.double(), full_matrices=False)
    basis = basis[values > 1e-6 * values[0]]
    old = change.right.double()
    new = old - basis.T @ (basis @ old)
    if new.norm() < 1e-4 * old.norm():
        raise UserError(f"the target lies in the span of the {len(keep)} protected ones; protect fewer")
    if change.exact:  # at its own cue the change does as much as before
        new = new * (old @ reads.double()) / (new @ reads.double())
    return replace(change, right=new.to(change.right))
