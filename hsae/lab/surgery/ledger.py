"""Edits on disk, each with what it replaced, so that it can be taken back.

An edited file: the tensors that were there, the new matrix in its place; what the first edit replaced as `KEY@before1`,
the second as `KEY@before2`, and so on; in the metadata `hsae.surgery` each edit's key and certificate. An edit of a
language model is such a file of one matrix, W; the metadata `hsae.surgery.model` says where in the model that is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae.errors import UserError, choices
from hsae.files import replacing
from hsae.lab.surgery.certificate import Certificate
from hsae.lab.surgery.transformer import Transformer
from hsae.lm import LM
from hsae.plain import finite

NOTE, MODEL, BEFORE = "hsae.surgery", "hsae.surgery.model", "@before"


@dataclass
class Ledger:
    """A safetensors file: its tensors, its own metadata, and the edits that led to it, the last of which `undo` takes
    back: tensors bit for bit, and the metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    edits: list[dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Read a file.

        Raises:
            UserError: there is none, or it is no safetensors file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error})") from None
        return cls(tensors, metadata, json.loads(metadata.pop(NOTE, "[]")))

    def edit(self, key: str, new: Tensor, certificate: Certificate) -> None:
        """Put an edited tensor in the place of another, which is kept."""
        self.edits.append({"key": key, "certificate": finite(asdict(certificate))})
        self.tensors |= {f"{key}{BEFORE}{len(self.edits)}": self.tensors[key], key: new}

    def undo(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Take the last edit back: the edited tensor, what it replaced, and the certificate."""
        count, edit = len(self.edits), self.edits.pop()
        key = edit["key"]
        edited, old = self.tensors[key], self.tensors.pop(f"{key}{BEFORE}{count}")
        self.tensors[key] = old
        return edited, old, edit["certificate"]

    def save(self, path: Path) -> None:
        """Write the file aside and rename it.

        Raises:
            UserError: it cannot be written.
        """
        metadata = self.metadata | ({NOTE: json.dumps(self.edits)} if self.edits else {})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                aside.write_bytes(save(self.tensors, metadata or None))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_tensor(place: str, dims: int) -> tuple[Path, str, Tensor]:
    """A tensor of a file: the file, the key and the tensor.

    Args:
        place: FILE, or FILE:KEY where the file holds several.
        dims: how many axes are wanted.

    Raises:
        UserError: no such file or key, or other axes.
    """
    path, key = Path(place), ""
    if not path.exists() and ":" in place:
        path, key = Path(place.rpartition(":")[0]), place.rpartition(":")[2]
    tensors = Ledger.open(path).tensors
    there = [k for k, tensor in tensors.items() if tensor.ndim == dims and BEFORE not in k]
    if key and key not in tensors:
        raise UserError(f"{path}: no tensor {key!r}; {choices(key, there)}")
    if not key and len(there) != 1:
        raise UserError(f"{path}: say which of its tensors, as {path}:KEY; {choices(key, there)}")
    key = key or there[0]
    if tensors[key].ndim != dims:
        raise UserError(f"{path}: {key} has the shape {list(tensors[key].shape)}; {dims} axes are wanted")
    return path, key, tensors[key]


def apply_edit(lm: LM, path: str | Path) -> Callable[[], Tensor]:
    """Edit a language model as a file says that the command line wrote. Call what is returned to take the edit back,
    bit for bit.

    Raises:
        UserError: not such a file, or not for a model of this shape.
    """
    ledger = Ledger.open(Path(path))
    if MODEL not in ledger.metadata:
        raise UserError(f"{path}: not an edit of a language model")
    W = Transformer(lm, **json.loads(ledger.metadata[MODEL])).W
    edited, old, _ = ledger.undo()
    if W.shape != old.shape:
        raise UserError(f"{path}: an edit of a matrix of {list(old.shape)}; that of {lm.name} is {list(W.shape)}")
    before = W.clone()
    W.copy_((W.double() + (edited.double() - old.double()).to(W.device)).to(W.dtype))
    return lambda: W.copy_(before)
