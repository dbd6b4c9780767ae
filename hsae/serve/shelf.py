"""What is open: a few SAEs with their indexes, the least recently used put away first. Nothing here needs PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from glob import escape

from hsae.errors import UserError
from hsae.evidence import Index, Subject, open_subject
from hsae.inspect.page import Documents
from hsae.record import RESULT, WEIGHTS, Row
from hsae.serve.catalogue import Catalogue, stamp
from hsae.serve.kept import Kept
from hsae.serve.told import NotHere
from hsae.store.manifest import NAME as MANIFEST

OPEN = 4
"""SAEs whose documents are kept"""
ANSWERS = 128 * 1024 * 1024
"""bytes of answers that are kept: a summary, or a block of latents of some 200 kB"""
SUBJECTS = 256
"""SAEs whose facts are kept"""


@dataclass(frozen=True)
class Name:
    """An SAE as an address names it: `RUN:SETUP:SEED`, then `@STORE` and `@HOOK` where it is looked at elsewhere."""

    run: str
    setup: str
    seed: int
    on: str = ""
    hook: str = ""

    @classmethod
    def read(cls, text: str) -> Name:
        """Take one apart.

        Raises:
            NotHere: it is not of that form.
        """
        sae, *place = text.split("@")
        run, _, rest = sae.partition(":")
        setup, _, seed = rest.rpartition(":")
        if not (run and setup and seed.isascii() and seed.isdecimal() and len(seed) < 10 and len(place) < 3):
            raise NotHere(f"{text!r} names no SAE; one is written RUN:SETUP:SEED")
        return cls(run, setup, int(seed), *place)

    @classmethod
    def of(cls, subject: Subject) -> Name:
        """The SAE of a subject, wherever it is looked at."""
        return cls(subject.record.name, subject.row.setup, subject.row.seed)

    def __str__(self) -> str:
        place = f"@{self.on}@{self.hook}".rstrip("@")
        return f"{self.run}:{self.setup}:{self.seed}{place}"


class Shelf:
    """Opens what addresses name, and keeps a few of them open. A file that is written anew is read anew."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self._subjects: Kept[Subject] = Kept(SUBJECTS)
        self._sound: Kept[bool] = Kept(SUBJECTS)
        self._documents: Kept[Documents] = Kept(OPEN)
        self._answers: Kept[bytes] = Kept(ANSWERS, len)
        self._elsewhere: dict[Hashable, Index] = {}

    def row(self, name: Name) -> Row:
        """The line of an SAE in its run's table.

        Raises:
            NotHere: there is no such run, or no such SAE in it.
            UserError: the run is not whole.
        """
        record = self.catalogue.record(name.run)
        try:
            return record.row(name.setup, name.seed)
        except UserError as error:
            raise NotHere(str(error)) from None

    def subject(self, name: Name) -> Subject:
        """An SAE and the store to look at it on.

        Raises:
            NotHere: there is no such run, SAE or store in the cache.
            UserError: it is not whole, its store is gone, or the store's activations are not as wide as the SAE.
        """
        catalogue, row = self.catalogue, self.row(name)
        folder = catalogue.run_folder(name.run)
        store = catalogue.store_folder(name.on) if name.on else catalogue.trained_on(catalogue.record(name.run))
        catalogue.manifest(store.name)

        def make() -> Subject:
            return open_subject(str(folder), row.setup, row.seed, str(store) if name.on else "", name.hook)

        files = stamp(folder / RESULT, folder / WEIGHTS)
        subject = self._subjects.get((name, files), make)
        key = (name, files, stamp(subject.folder / MANIFEST))
        # Once more with the manifest's stamp: a store that is gone, or made anew, is not the one that was opened.
        return self._subjects.get(key, make)

    def key(self, subject: Subject) -> Hashable:
        """What changes when an index of the subject would."""
        folder = subject.record.folder
        files = (folder / RESULT, folder / WEIGHTS, subject.folder / MANIFEST)
        return (str(folder), subject.row.setup, subject.row.seed, str(subject.folder), subject.hook, stamp(*files))

    def maybe(self, name: Name) -> bool:
        """Whether there is any index of an SAE, on whatever store; costs nothing."""
        pattern = f"{escape(name.setup)}-{name.seed}-*.safetensors"
        return bool(self._elsewhere) or any((self.catalogue.run_folder(name.run) / "evidence").glob(pattern))

    def stands(self, subject: Subject) -> bool:
        """Whether there is an index of the subject, and it can be read.

        Raises:
            UserError: the SAE diverged, or its weights are damaged.
        """
        if self.key(subject) in self._elsewhere:
            return True

        def sound() -> bool:
            try:
                facts = Index(subject.index_path).facts
            except UserError:
                return False
            return all(facts.get(key) == value for key, value in subject.facts.items())

        path = subject.index_path
        return self._sound.get((str(path), stamp(path)), sound)

    def add(self, subject: Subject, index: Index) -> None:
        """Keep an index that was made where it cannot be found again: the run's folder is closed to us."""
        if index.path != subject.index_path:
            self._elsewhere[self.key(subject)] = index

    def documents(self, subject: Subject) -> Documents:
        """What the page shows of a subject.

        Raises:
            UserError: its index is not there, or damaged.
        """
        key, path = self.key(subject), subject.index_path

        def make() -> Documents:
            if not self.stands(subject):
                raise UserError(f"there is no index of {Name.of(subject)} on {subject.store} yet; build it first")
            return Documents(subject, self._elsewhere.get(key) or Index(path))

        return self._documents.get((key, stamp(path)), make)

    def answer(self, subject: Subject, part: str, make: Callable[[Documents], object]) -> bytes:
        """A part of a subject's documents as JSON, kept for the next who asks.

        Raises:
            UserError: as `documents`.
        """
        documents = self.documents(subject)

        def encode() -> bytes:
            # A lone surrogate, which a tokeniser may hold, is no UTF-8: as an escape it passes.
            return json.dumps(make(documents), allow_nan=False, separators=(",", ":")).encode("ascii")

        # Explanations join the folder whenever `hsae interpret` writes them.
        explained = stamp(subject.index_path.parent)
        return self._answers.get((self.key(subject), stamp(subject.index_path), explained, part), encode)
