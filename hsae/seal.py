"""What finds a changed byte: checksums that one file holds of others, and the seal that it holds of itself.

A seal is the sha256 of a file's own bytes with the seal's 64 digits taken as zeros. It guards against accidents, not
against people: whoever can write the file can seal it again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hsae.errors import UserError, one_line
from hsae.files import own, replacing, sha256

FIELD = "seal"
EMPTY = "0" * 64
"""what stands in the seal's place while its digits are computed"""


@dataclass(frozen=True)
class Checksum:
    """Size and sha256 of a file, in the file that vouches for it."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Checksum:
        """Those of a file as it is."""
        return cls(path.stat().st_size, sha256(path))

    @classmethod
    def of_bytes(cls, raw: bytes) -> Checksum:
        """Those of a file of these bytes."""
        return cls(len(raw), hashlib.sha256(raw).hexdigest())

    @property
    def possible(self) -> bool:
        """Whether any file could have them."""
        return self.bytes >= 0 and len(self.sha256) == 64 and not set(self.sha256) - set("0123456789abcdef")

    def check(self, path: Path, folder: Path, book: str, mend: str) -> None:
        """Read a file once and hold it against them.

        Args:
            path: the file.
            folder: the folder that it must lie in.
            book: what vouches for it, such as "the manifest", and `mend`, what to do about damage: both for the line.
            mend: see there.

        Raises:
            UserError: it is missing or damaged, or no file of that folder.
        """
        try:
            size = own(path, folder).stat().st_size
            if size != self.bytes:
                raise UserError(f"{path}: {size} bytes, {book} says {self.bytes}; {mend}")
            if sha256(path) != self.sha256:
                raise UserError(f"{path}: damaged (its checksum is not {book}'s); {mend}")
        except FileNotFoundError:
            raise UserError(f"{path}: missing; {mend}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None


def sealed(raw: bytes) -> tuple[memoryview, bytes, memoryview]:
    """Bytes whose first `EMPTY` is the place of the seal, with the seal there: what to write, in three pieces."""
    at = raw.index(EMPTY.encode())
    return memoryview(raw)[:at], hashlib.sha256(raw).hexdigest().encode(), memoryview(raw)[at + len(EMPTY) :]


def holds(head: bytes, digits: object, rest: Iterable[bytes] = ()) -> bool:
    """Whether bytes are those that were sealed.

    Args:
        head: the first of them, the seal among them.
        digits: the seal that was read there.
        rest: the others.
    """
    if not isinstance(digits, str) or len(digits) != len(EMPTY):
        return False
    digest = hashlib.sha256(head.replace(digits.encode(), EMPTY.encode(), 1))
    for part in rest:
        digest.update(part)
    return digest.hexdigest() == digits


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a table as JSON with a seal, aside and renamed.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    with replacing(path) as aside:
        aside.write_bytes(json_bytes(data))


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """What `write_json` writes."""
    # The seal first: then no text within the table can be taken for its place.
    text = json.dumps({FIELD: EMPTY, **data}, indent=1, allow_nan=False) + "\n"
    return b"".join(sealed(text.encode()))


def read_json(path: Path, mend: str) -> tuple[dict[str, Any], bool]:
    """A table that `write_json` wrote, without its seal; and whether it had one (what was written before has none).

    Args:
        path: the file.
        mend: what the user can do where it is damaged: the end of the line.

    Raises:
        FileNotFoundError: there is none.
        UserError: no plain file, not JSON, not a table, a number that is not finite or beyond 64 bits, or another seal
            than its own.
    """
    try:
        raw = own(path, path.parent).read_bytes()
        data = json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
        json.dumps(data, ensure_ascii=False).encode()  # halves of surrogate pairs can be neither printed nor saved
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: damaged or unreadable ({one_line(error, 100)}); {mend}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: damaged (not a table); {mend}")
    has_seal = FIELD in data
    if has_seal and not holds(raw, data.pop(FIELD)):
        raise UserError(f"{path}: damaged (its bytes are not those that were sealed); {mend}")
    return data, has_seal


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number[:20]} is no number that fits")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _whole(text: str) -> int:
    # By the digits first: turning millions of them into a number takes minutes.
    value = int(text) if len(text) < 21 else _refuse(text)
    return value if -(1 << 63) <= value < 1 << 63 else _refuse(text)
