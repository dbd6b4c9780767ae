"""Edits on disk: a matrix's file with what an edit replaced, so that undoing gives the old bytes; a model's edit as
factors, to be applied and taken back.

Layout of an edited file: the safetensors file as it was, with the new matrix in its place; the old one appended under
`KEY@before`; the metadata `hsae.surgery` holds the certificate and the old header.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae.errors import UserError, choices
from hsae.files import replacing
from hsae.lab.surgery.certificate import Certificate
from hsae.lab.surgery.transformer import Kind, Transformer
from hsae.lm import LM
from hsae.plain import finite

NOTE = "hsae.surgery"


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
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
            there = [k for k, shape in shapes.items() if len(shape) == dims and not k.endswith("@before")]
            if key and key not in shapes:
                raise UserError(f"{path}: no tensor {key!r}; {choices(key, there)}")
            if not key and len(there) != 1:
                raise UserError(f"{path}: say which of its tensors, as {path}:KEY; {choices(key, there)}")
            key = key or there[0]
            if len(shapes[key]) != dims:
                raise UserError(f"{path}: {key} has the shape {shapes[key]}; {dims} axes are wanted")
            return path, key, file.get_tensor(key)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None


def with_edit(raw: bytes, key: str, new: Tensor, certificate: Certificate) -> bytes:
    """A safetensors file's bytes after an edit of one of its tensors."""
    head, data = _split(raw)
    header = json.loads(head)
    begin, end = header[key]["data_offsets"]
    bits = new.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert len(bits) == end - begin, "another type or shape"
    note = {"key": key, "certificate": finite(asdict(certificate)), "header": base64.b64encode(head).decode()}
    # An edit of an edited file: what that one kept has a name of its own.
    while (name := f"{key}@before") in header:
        key = name
    header[name] = header[note["key"]] | {"data_offsets": [len(data), len(data) + len(bits)]}
    header["__metadata__"] = {**header.get("__metadata__", {}), NOTE: json.dumps(note)}
    return _joined(json.dumps(header).encode(), data[:begin] + bits + data[end:] + data[begin:end])


def without_edit(raw: bytes) -> tuple[bytes, dict[str, Any]] | None:
    """The bytes before the last edit, and what was noted of it; None where there is none."""
    head, data = _split(raw)
    kept = json.loads(head).get("__metadata__", {}).get(NOTE)
    if kept is None:
        return None
    note = json.loads(kept)
    old = base64.b64decode(note["header"])
    begin, end = json.loads(old)[note["key"]]["data_offsets"]
    whole = len(data) - (end - begin)
    return len(old).to_bytes(8, "little") + old + data[:begin] + data[whole:] + data[end:whole], note


def write_bytes(path: Path, raw: bytes) -> None:
    """Write a file aside and rename it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            aside.write_bytes(raw)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def save_edit(path: Path, memory: Transformer, before: Float[Tensor, "out in"], certificate: Certificate) -> None:
    """Write what an edit did to a language model: the factors of ΔW, where they belong, the certificate.

    Args:
        path: a .safetensors file.
        memory: after the edit.
        before: its matrix before.
        certificate: of the edit.

    Raises:
        UserError: it cannot be written.
    """
    left, size, right = torch.linalg.svd(memory.W.double() - before.double(), full_matrices=False)
    rank = certificate.rank
    factors = {"left": (left[:, :rank] * size[:rank]).contiguous(), "right": right[:rank].contiguous()}
    where = {"kind": memory.kind, "layer": memory.layer, "head": memory.head, "model": memory.lm.name}
    note = json.dumps({"where": where, "certificate": finite(asdict(certificate))})
    write_bytes(path, save(factors, {NOTE: note}))


def apply_edit(lm: LM, path: str | Path) -> Callable[[], None]:
    """Edit a language model as `save_edit` wrote it. Call what is returned to take the edit back, bit for bit.

    Raises:
        UserError: not such a file, or not for a model of this shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            where = json.loads((file.metadata() or {})[NOTE])["where"]
            change = file.get_tensor("left") @ file.get_tensor("right")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: not an edit of a language model ({error})") from None
    kind: Kind = where["kind"]
    W = Transformer(lm, kind, where["layer"], where["head"]).W
    if W.shape != change.shape:
        raise UserError(f"{path}: an edit of {where['model']}, {list(change.shape)}; {lm.name} has {list(W.shape)}")
    before = W.clone()
    W.copy_((W.double() + change.to(W.device)).to(W.dtype))

    def undo() -> None:
        W.copy_(before)

    return undo


def _split(raw: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + length], raw[8 + length :]


def _joined(head: bytes, data: bytes) -> bytes:
    """Header and tensors; the tensors begin at a multiple of 8 bytes, as in the files that safetensors writes."""
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data
