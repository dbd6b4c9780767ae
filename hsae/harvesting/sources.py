"""Where documents come from: local files, or a dataset on the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hsae import hub
from hsae.errors import UserError, choices, one_line
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.text import BUNDLED, READERS, Document, LocalFiles, Source, as_document, pick_column


def open_source(
    data: tuple[str, ...],
    split: str = "train",
    column: str = "",
    revision: str = "",
    separator: str = "<|endoftext|>",
) -> Source:
    """Documents from what a user named. The hub is not asked before the first use.

    Args:
        data: one hub dataset id, or local files (.txt, .jsonl, .parquet, .npy), or `bundled`.
        split: split of a hub dataset.
        column: column of a dataset, a .jsonl or a .parquet; empty for the first there is of text, input_ids and tokens.
        revision: branch, tag or commit of a hub dataset.
        separator: cuts a .txt into documents; empty leaves a file whole.

    Raises:
        UserError: a file is missing or of an unknown kind.
    """
    paths = [BUNDLED if name == "bundled" else Path(name) for name in data]
    if len(data) == 1 and not paths[0].exists() and not _looks_local(data[0]):
        return HubDataset(data[0], split, column, revision)
    for name, path in zip(data, paths, strict=True):
        if not path.exists():
            raise UserError(f"{name}: no such file")
        if path.is_dir():
            raise UserError(f"{name}: a folder; name the files in it")
        if path.suffix not in READERS:
            raise UserError(f"{name}: unknown kind of file {path.suffix!r}; known are {', '.join(READERS)}")
    return LocalFiles(tuple(paths), column, separator)


def text_of(config: HarvestConfig) -> Source:
    """The documents that a config names (see `open_source`)."""
    return open_source(
        config.data,
        split=config.split,
        column=config.column,
        revision=config.data_revision,
        separator=config.document_separator,
    )


def _looks_local(name: str) -> bool:
    return name == "bundled" or Path(name).suffix in READERS or name.startswith(("/", ".", "~"))


_ELSEWHERE = (
    "name local files (--data FILE.txt), take --data bundled, set HF_ENDPOINT to a mirror, "
    "or HF_HUB_OFFLINE=1 if it is in your cache"
)


@dataclass(frozen=True)
class HubDataset(Source):
    """Documents of a dataset on the hub, streamed. `owner/name:config` names one of several configurations."""

    name: str
    split: str = "train"
    column: str = ""
    revision: str = ""

    def record(self) -> dict[str, Any]:
        """The dataset and the commit that it stands at; offline, only the revision that the user named is known."""
        return {"dataset": self.name, "revision": self._commit or self.revision or "unknown (offline)"}

    @cached_property
    def _commit(self) -> str:
        """Empty when the user works offline on purpose."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return ""
        try:
            return hub.commit("dataset", self.name.partition(":")[0], self.revision)
        except hub.HubUnreachable as error:
            raise UserError(f"{error}; {_ELSEWHERE}") from None

    @cached_property
    def _rows(self) -> Any:
        """The streaming dataset of the `datasets` library."""
        revision = self._commit or self.revision or None
        name, _, configuration = self.name.partition(":")
        from datasets import load_dataset

        try:
            return load_dataset(name, configuration or None, split=self.split, revision=revision, streaming=True)
        except ConnectionError:
            raise UserError(f"{self}: neither on the hub within reach nor in the cache; {_ELSEWHERE}") from None
        except Exception as error:  # an unknown split, a broken file: the library raises its own errors and others'
            raise UserError(f"{self}: cannot be loaded: {one_line(error)}") from None

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number `start` on.

        Raises:
            UserError: the hub cannot be reached, or the dataset lacks the split or the column.
        """
        features = self._rows.features
        column = pick_column(str(self), self.column, features) if features else self.column
        rows = self._rows.skip(start) if start else self._rows
        try:
            for number, row in enumerate(rows, start=start):
                column = column or pick_column(str(self), "", row)
                if column not in row:
                    raise UserError(f"{self}: no column {column!r}; {choices(column, row)}")
                yield as_document(row[column], f"{self}, row {number}")
        except OSError as error:
            raise UserError(f"{self}: the stream broke off ({one_line(error)}); give the same command again") from None

    def __str__(self) -> str:
        return f"dataset {self.name}"
