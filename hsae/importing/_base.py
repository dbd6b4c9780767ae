"""What a reader is: one class in one file of this folder, whose name is the format's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hsae.errors import UserError, one_line, shown
from hsae.export._plain import Plain
from hsae.sae import Variant

MOST_BYTES = 16 << 20
"""of a table that tells of an SAE"""


@dataclass(frozen=True)
class Foreign:
    """An SAE as a format tells it.

    Attributes:
        plain: the function, for raw activations.
        hook: TransformerLens' name of the hook point; empty if the files do not say.
        model: the language model's name; empty if the files do not say.
        made_by: the tool, with its version where the files say it.
        variant: the variant, where the format knows more of it than the activation function.
        provenance: what `hsae export` wrote beside it; empty for others.
    """

    plain: Plain
    hook: str
    model: str
    made_by: str
    variant: Variant | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Reader(ABC):
    """Reads one format. A reader has no state."""

    files: ClassVar[tuple[str, ...]]
    """the files by which the format is known"""

    @abstractmethod
    def read(self, folder: Path) -> Foreign:
        """The SAE in a folder that has the `files`.

        Raises:
            UserError: damaged, or a function that cannot be represented.
        """


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of somebody else's."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"over {MOST_BYTES >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged or unreadable ({one_line(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or unreadable ({one_line(error)})") from None


class Tensors:
    """Tensors of a file, taken one by one, so that what is missing, of another shape or left over is said.

    Args:
        path: the file, for error lines.
        tensors: all that it has.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Any]) -> None:
        self.path, self._left = path, dict(tensors)

    def take(self, name: str, *shape: int) -> Float[Tensor, "..."]:
        """A tensor in float32, of that shape.

        Raises:
            UserError: it is not there, has another shape, or a number in it is not finite.
        """
        if name not in self._left:
            raise UserError(f"{self.path}: has no tensor {name!r}")
        value = self._left.pop(name)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{self.path}: {name} is {shown(found)}, where {shown(list(shape))} is wanted")
        # A PyTorch file can tell of a tensor that repeats a few numbers without end, or has none at all.
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_complex()
        if not plain or value.is_quantized or value.nbytes > self.path.stat().st_size:
            raise UserError(f"{self.path}: {name} is not a plain tensor whose numbers are in the file")
        value = value.float()
        if not value.isfinite().all():
            raise UserError(f"{self.path}: {name} holds numbers that are not finite")
        return value

    def drop(self, name: str) -> Any:
        """Something that the function does not need; None if it is not there."""
        return self._left.pop(name, None)

    def require_done(self) -> None:
        """Refuse what was not taken: the SAE would not be the whole function.

        Raises:
            UserError: something is left.
        """
        if self._left:
            names = ", ".join(sorted(self._left)[:5])
            raise UserError(f"{self.path}: holds {names}, which no SAE of hsae has")


def uncentred(
    b_enc: Float[Tensor, "latent"], W_enc: Float[Tensor, "latent width"], b_dec: Float[Tensor, "width"]
) -> Float[Tensor, "latent"]:
    """The encoder's bias for activations as they are, of one for activations less `b_dec`; summed in float64."""
    return (b_enc.double() - W_enc.double() @ b_dec.double()).float()


def whole_number(table: Mapping[str, Any], key: str, path: Path) -> int:
    """A whole number of 1 or above from a file's table."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} must be a whole number of 1 or above, not {value!r}")
    return value


def text(table: Mapping[str, Any], key: str) -> str:
    """A text from a file's table; empty if there is none."""
    value = table.get(key)
    return value if isinstance(value, str) else ""


def table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table within a file's table; empty if there is none."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}
