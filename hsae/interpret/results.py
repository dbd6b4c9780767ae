"""Explanations and their scores on disk, beside the index that they are of. Read without PyTorch.

One JSON file for each index and explainer: `evidence/SETUP-SEED-….NAME.interpret.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsae.config import fingerprint
from hsae.evidence.subject import Subject
from hsae.files import replacing

FORM = "hsae-interpret-1"


@dataclass(frozen=True)
class Score:
    """How well one task was done on held-out contexts.

    Attributes:
        value: balanced accuracy, the mean of the two shares of right answers; chance is .5.
        low, high: its 95% interval (Newcombe's, from the Wilson intervals of the two shares).
        found, active: activating contexts (fuzzing: rightly marked) called so, of how many.
        rejected, silent: the others (fuzzing: wrongly marked) called so, of how many.
    """

    value: float
    low: float
    high: float
    found: int
    active: int
    rejected: int
    silent: int


@dataclass(frozen=True)
class Explanation:
    """What is said of one latent, and how well that holds.

    Attributes:
        text: the explanation, one line; empty where there is none.
        why: why it has no score ("never fires", …); empty where it has one.
        rate: the share of positions at which the latent fires.
        detection: telling held-out contexts that the latent fires in from random ones that it is silent in.
        fuzzing: telling its own tokens, marked, from other tokens marked in contexts that it is silent in.
        within: as fuzzing, but the wrong marks are on tokens of its own contexts at which it is silent.
        top: detection of its strongest contexts; those of the other tasks are drawn evenly from all its firings.
        quantiles: detection's (found, active) by fifths of activation, the strongest first.
        token, token_fuzzing: detection and fuzzing by the most frequent token alone, the baseline.
        shuffled, shuffled_fuzzing: detection and fuzzing by another latent's explanation, the control: chance.
    """

    latent: int
    text: str
    why: str = ""
    rate: float = 0.0
    detection: Score | None = None
    fuzzing: Score | None = None
    within: Score | None = None
    top: Score | None = None
    quantiles: tuple[tuple[int, int], ...] = ()
    token: Score | None = None
    token_fuzzing: Score | None = None
    shuffled: Score | None = None
    shuffled_fuzzing: Score | None = None

    @property
    def score(self) -> float | None:
        """Detection's balanced accuracy; None where the latent could not be scored."""
        return self.detection.value if self.detection else None

    @property
    def low(self) -> float | None:
        """The lower end of its 95% interval."""
        return self.detection.low if self.detection else None

    @property
    def high(self) -> float | None:
        """The upper end."""
        return self.detection.high if self.detection else None


SCORES = ("detection", "fuzzing", "within", "top", "token", "token_fuzzing", "shuffled", "shuffled_fuzzing")


@dataclass(frozen=True)
class Book:
    """All explanations of one SAE by one explainer.

    Attributes:
        settings: what made them; a book with other settings is another.
        explanations: by latent.
    """

    settings: Mapping[str, Any]
    explanations: Mapping[int, Explanation]


def path_of(subject: Subject, settings: Mapping[str, Any]) -> Path:
    """Where the explanations made with these settings are kept."""
    name = settings["explainer"] if settings["explainer"] == "local" else fingerprint(dict(settings))
    return subject.index_path.with_suffix(f".{name}.interpret.json")


def write_book(path: Path, subject: Subject, book: Book) -> None:
    """Keep a book, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"format": FORM, "index": subject.facts, "settings": dict(book.settings)}
    rows = [to_row(book.explanations[latent]) for latent in sorted(book.explanations)]
    with replacing(path) as aside:
        aside.write_text(json.dumps({**data, "explanations": rows}, ensure_ascii=False) + "\n", encoding="utf-8")


def read_book(path: Path, subject: Subject) -> Book | None:
    """A book; None where there is none, where it is damaged, or where it is of another index or format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORM or data["index"] != subject.facts:
            return None
        return Book(data["settings"], {row["latent"]: from_row(row) for row in data["explanations"]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_explanations(subject: Subject) -> dict[int, Explanation]:
    """The explanations of an SAE, by latent; those written last where there are several. Empty where there are none."""
    pattern = f"{subject.index_path.stem}.*.interpret.json"
    for path in sorted(subject.index_path.parent.glob(pattern), key=_time, reverse=True):
        if book := read_book(path, subject):
            return dict(book.explanations)
    return {}


def to_row(explanation: Explanation) -> dict[str, Any]:
    """Plain data of an explanation; what is not there is left out."""
    row = {key: value for key, value in asdict(explanation).items() if value not in (None, "", ())}
    for name in SCORES:
        if name in row:
            row[name] = [round(value, 4) for value in row[name].values()]
    return {"latent": explanation.latent, **row}


def from_row(row: Mapping[str, Any]) -> Explanation:
    """The explanation that `to_row` made plain."""
    scores: dict[str, Any] = {name: Score(*row[name]) for name in SCORES if name in row}
    quantiles = tuple((int(found), int(active)) for found, active in row.get("quantiles", ()))
    plain = (row["latent"], row.get("text", ""), row.get("why", ""), row.get("rate", 0.0))
    return Explanation(*plain, quantiles=quantiles, **scores)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # Gone since it was listed.
        return 0.0
