"""Files and folders of an export."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from hsae.errors import Interrupted, UserError
from hsae.files import flush, lasting_folder, naming, replacing


def write_json(path: Path, data: Any) -> None:
    """A JSON document."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file."""
    # Tied matrices are one tensor in two shapes, and the file may hold no memory twice.
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as aside:
        aside.write_bytes(save(own, metadata=metadata))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when all went well, and else leaves nothing behind.

    Raises:
        UserError: `target` holds something, or cannot be made.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; give another name, or delete it")
    aside = target.with_name(f".{target.name}.part")
    try:
        lasting_folder(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    except OSError as error:
        raise UserError(f"{target}: cannot be made ({error.strerror})") from None
    try:
        yield aside
        with naming(target):
            for path in (*aside.rglob("*"), aside):
                flush(path)
            os.replace(aside, target)
            flush(target.parent)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {target} was {'not ' if aside.exists() else ''}written") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
