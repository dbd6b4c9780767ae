"""What there is to show, as plain data with the tokens decoded: the JSON document, and what the terminal draws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hsae.evidence import Index, LatentEvidence, Subject
from hsae.evidence.latent import Context, Logit
from hsae.inspect.tokens import Pieces
from hsae.interpret.results import Explanation
from hsae.record import Baseline, Row

GLANCES, SNIPPETS, DEAD = 8, 4, 20
"""latents in each list of an overview, contexts for each of them, dead latents named"""


@dataclass(frozen=True)
class Head:
    """What is looked at: which SAE of which run, on which store.

    `scale` multiplies activations before the encoder; `positions` counts all of the store, those left out included;
    `origin` says where an imported SAE is from.
    """

    run: str
    setup: str
    seed: int
    setups: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: int
    width: int
    store: str
    hook: str
    positions: int
    rows: int
    scale: float
    folded: bool
    origin: str
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, subject: Subject) -> Head:
        """The head of a subject."""
        result, row = subject.record.result, subject.row
        return cls(
            run=subject.record.name,
            setup=row.setup,
            seed=row.seed,
            setups=tuple(dict.fromkeys(other.setup for other in result.rows)),
            seeds=tuple(other.seed for other in result.rows if other.setup == row.setup),
            latents=result.latents,
            width=result.width,
            store=subject.store,
            hook=subject.hook,
            positions=subject.manifest.tokens,
            rows=subject.hook_record.kept,
            scale=result.scale,
            folded=result.folded,
            origin=result.origin,
            warnings=subject.warnings,
        )


@dataclass(frozen=True)
class Snippet:
    """A stretch of text by tokens; `peak` is the index of the one where the latent's activation peaks."""

    activation: float
    sequence: int
    position: int
    text: tuple[str, ...]
    peak: int


@dataclass(frozen=True)
class Glance:
    """One latent in a line. `rate`, `mean`, `maximum` and `selectivity` as in `Index`, `contexts` its strongest."""

    latent: int
    rate: float
    mean: float
    maximum: float
    selectivity: float
    contexts: tuple[Snippet, ...]


@dataclass(frozen=True)
class Overview:
    """A run's table, and the latents of one SAE that are worth a look. `dead` names the first of the `dead_latents`."""

    head: Head
    table: tuple[Row, ...]
    baselines: tuple[Baseline, ...]
    held_out: int
    dead_window: int
    most_active: tuple[Glance, ...]
    most_selective: tuple[Glance, ...]
    dead_latents: int
    dead: tuple[int, ...]


@dataclass(frozen=True)
class LatentView:
    """One latent, and the text of every token in its evidence.

    Attributes:
        top, samples: a tuple of pieces for each context.
        tokens, promoted, suppressed: a piece for each token.
        logits: why there is no logit lens; empty where there is one.
        explanation: of `hsae interpret`, where it has been run.
    """

    head: Head
    evidence: LatentEvidence
    top: tuple[tuple[str, ...], ...]
    samples: tuple[tuple[str, ...], ...]
    tokens: tuple[str, ...]
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    logits: str
    explanation: Explanation | None

    def document(self) -> dict[str, Any]:
        """The JSON document: the evidence, each of its tokens with its text. Samples are parted by quantile."""
        found = self.evidence
        samples = iter(self.samples)
        return {
            "head": asdict(self.head),
            **asdict(found),
            "rate": found.rate,
            "explanation": None if self.explanation is None else asdict(self.explanation),
            "top": [_context(*pair) for pair in zip(found.top, self.top, strict=True)],
            "samples": [[_context(one, next(samples)) for one in part] for part in found.quantiles()],
            "tokens": _with_text(found.tokens, self.tokens),
            "promoted": _with_text(found.promoted, self.promoted),
            "suppressed": _with_text(found.suppressed, self.suppressed),
            "logits": self.logits,
        }


def _context(context: Context, text: tuple[str, ...]) -> dict[str, Any]:
    return {**asdict(context), "activation": context.activation, "peak": context.peak, "text": text}


def _with_text(items: Iterable[Any], text: Iterable[str]) -> list[dict[str, Any]]:
    return [{**asdict(item), "text": piece} for item, piece in zip(items, text, strict=True)]


def overview(subject: Subject, index: Index | None) -> Overview:
    """The run's table, and the latents of one SAE that are worth a look; without them where there is no index."""
    result = subject.record.result
    pieces = Pieces(subject.tokenizer)
    dead = (index.firings == 0).nonzero()[0].tolist() if index else []
    return Overview(
        head=Head.of(subject),
        table=result.rows,
        baselines=result.baselines,
        held_out=result.held_out,
        dead_window=result.dead_window,
        most_active=_glances(index, index.most_active(GLANCES), pieces) if index else (),
        most_selective=_glances(index, index.most_selective(GLANCES), pieces) if index else (),
        dead_latents=len(dead),
        dead=tuple(dead[:DEAD]),
    )


def _glances(index: Index, latents: list[int], pieces: Pieces) -> tuple[Glance, ...]:
    return tuple(
        Glance(
            latent=i,
            rate=float(index.rate[i]),
            mean=float(index.mean[i]),
            maximum=float(index.maximum[i]),
            selectivity=float(index.selectivity[i]),
            contexts=tuple(
                Snippet(c.activation, c.sequence, c.position, pieces(c.tokens), c.peak)
                for c in index.latent(i).top[:SNIPPETS]
            ),
        )
        for i in latents
    )


def latent_view(subject: Subject, index: Index, latent: int, explanation: Explanation | None = None) -> LatentView:
    """One latent with its text.

    Raises:
        UserError: there is no such latent.
    """
    found, pieces = index.latent(latent), Pieces(subject.tokenizer)

    def texts(contexts: Iterable[Context]) -> tuple[tuple[str, ...], ...]:
        return tuple(pieces(context.tokens) for context in contexts)

    def words(items: Iterable[Logit]) -> tuple[str, ...]:
        return tuple(pieces.one(item.token) for item in items)

    return LatentView(
        head=Head.of(subject),
        evidence=found,
        top=texts(found.top),
        samples=texts(found.samples),
        tokens=tuple(pieces.one(use.token) for use in found.tokens),
        promoted=words(found.promoted),
        suppressed=words(found.suppressed),
        logits="" if index.has_logits else index.facts.get("logits", ""),
        explanation=explanation,
    )
