"""Documents of a dataset on the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hsae import hub
from hsae.errors import UserError, choices, one_line
from hsae.text import Document, Source, as_document, pick_column

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
