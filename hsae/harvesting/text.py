"""Documents of local files, always as a stream, never a whole file in memory."""

from __future__ import annotations

import codecs
import io
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsae import files
from hsae.errors import UserError, choices, one_line

# A document is text, or token ids already made.
Document = str | NDArray[np.integer[Any]]

COLUMNS = ("text", "input_ids", "tokens")
BUNDLED = Path(__file__).parents[1] / "assets" / "stories.parquet"
# A .txt document longer than this many characters is cut at a line end.
LONGEST = 1 << 20
READ_BYTES = 1 << 20
# Bytes of one line of a .jsonl, which has to fit into memory several times over.
LONGEST_LINE = 256 << 20


class Source(ABC):
    """A stream of documents that can be entered at any of them."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the manifest says of the text; changes when the text does."""

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number `start` on, in their order."""


@dataclass(frozen=True)
class LocalFiles(Source):
    """Documents of local files, one file after the other."""

    paths: tuple[Path, ...]
    column: str = ""
    separator: str = "<|endoftext|>"

    def record(self) -> dict[str, Any]:
        """Name, size and checksum of each file. The folders they lie in do not matter and are not told."""
        return {"files": [{"name": p.name, "bytes": p.stat().st_size, "sha256": files.sha256(p)} for p in self.paths]}

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number `start` on. Empty ones count, so that a number always means the same document.

        Raises:
            UserError: a file cannot be read; the line names it and the place in it.
        """
        read = (READERS[path.suffix](path, self) for path in self.paths)
        return itertools.islice(itertools.chain.from_iterable(read), start, None)


def _read_txt(path: Path, source: LocalFiles) -> Iterator[str]:
    """Documents of a text file, without the blanks around them."""
    # A shell hands over "\n" as two characters.
    separator = source.separator.replace("\\n", "\n")
    buffer = ""
    for text in _decoded(path):
        buffer += text
        *whole, buffer = buffer.split(separator) if separator else [buffer]
        for document in whole:
            yield from (part.strip() for part in _cut(document))
        # What is left may still grow, and its end may be the first half of a separator.
        *parts, buffer = _cut(buffer)
        yield from (part.strip() for part in parts)
    yield buffer.strip()


def _cut(document: str) -> list[str]:
    """A document in parts of at most LONGEST characters, cut at line ends where there are any."""
    parts = []
    while len(document) > LONGEST:
        end = document.rfind("\n", 0, LONGEST) + 1 or LONGEST
        parts.append(document[:end])
        document = document[end:]
    return [*parts, document]


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file, in pieces, with every line end as a newline."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    with open(path, "rb") as file:
        while True:
            data = file.read(READ_BYTES)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - waiting + error.start) from None
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(data)
            yield newlines.decode(text, final=not data)
            if not data:
                return


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path}: not UTF-8 text at byte {offset}; convert it first, e.g. `iconv -t UTF-8`")


def _read_jsonl(path: Path, source: LocalFiles) -> Iterator[Document]:
    column, offset = "", 0
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}, line {number}: over {LONGEST_LINE >> 20} MiB; a line holds one document")
            try:
                row = json.loads(line.decode()) if line.strip() else None
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON ({one_line(error)})") from None
            offset += len(line)
            if row is None:
                continue
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: not an object with columns but a {type(row).__name__}")
            column = column or pick_column(f"{path}, line {number}", source.column, row)
            if column not in row:
                raise UserError(f"{path}, line {number}: no column {column!r}; {choices(column, row)}")
            yield as_document(row[column], f"{path}, line {number}")


def _read_parquet(path: Path, source: LocalFiles) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            column = pick_column(str(path), source.column, file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                values = batch.column(0)
                lists = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
                for value in values if lists else values.to_pylist():
                    if lists:
                        value = value.values.to_numpy(zero_copy_only=False) if value.is_valid else None
                    yield as_document(value, f"{path}, row {row}")
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({one_line(error)})") from None


def _read_npy(path: Path, source: LocalFiles) -> Iterator[Document]:
    """A flat array is one document; in a table each row is one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    # The header is Python's own syntax: its parser has errors of its own, from Python 3.12 on.
    except (ValueError, OSError, EOFError, SyntaxError, TokenError, RecursionError) as error:
        raise UserError(f"{path}: not a readable .npy array ({one_line(error)})") from None
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        raise UserError(f"{path}: whole numbers in one or two dimensions are wanted, not {array.dtype} {array.shape}")
    yield from array if array.ndim == 2 else [array]


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".npy": _read_npy}


def pick_column(where: str, wanted: str, there: Iterable[str]) -> str:
    """The wanted column, or when none was named the first there is of text, input_ids and tokens.

    Raises:
        UserError: it is not there; the line names those that are.
    """
    there = list(there)
    for column in [wanted] if wanted else COLUMNS:
        if column in there:
            return column
    said = f"no column {wanted!r}" if wanted else "no column named text, input_ids or tokens; name one with --column"
    raise UserError(f"{where}: {said}; {choices(wanted or 'text', there)}")


def as_document(value: Any, where: str) -> Document:
    """One cell of a column as a document. A missing value is an empty document.

    Raises:
        UserError: it is neither text nor a list of whole numbers.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (list, np.ndarray)):
        array = np.asarray(value)
        if array.ndim == 1 and (array.size == 0 or array.dtype.kind in "iu"):
            return array.astype(np.int64, copy=False)
    raise UserError(f"{where}: a document must be text or a list of token ids, not {str(value)[:40]!r}")
