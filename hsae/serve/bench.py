"""What needs PyTorch: building an index, comparing, reading a text, steering. Called by the threads of jobs alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from hsae.evidence import Index, Subject
from hsae.plain import finite
from hsae.serve.jobs import Job

if TYPE_CHECKING:
    from torch import Tensor

    from hsae.compare.pair import Comparison
    from hsae.intervene.site import Site
    from hsae.lm import LM

SITES = 3
"""SAEs that are kept in memory beside the language model"""


@dataclass(frozen=True)
class Wish:
    """How to steer; the fields are those of `hsae.intervene.steering.steered`."""

    latents: tuple[int, ...]
    prompt: str
    strength: float
    unit: Literal["max", "mean", "activation"]
    clamp: bool
    tokens: int
    temperature: float
    seed: int


class Bench:
    """One language model and a few SAEs, loaded when they are first asked for. For one thread.

    Args:
        device: where the model runs.
        trust_remote_code: let a model's repository run its own code.
    """

    def __init__(self, device: str, trust_remote_code: bool) -> None:
        self._device, self._trust = device, trust_remote_code
        self._model: tuple[Hashable, LM] | None = None
        self._sites: OrderedDict[Hashable, Site] = OrderedDict()

    def read(self, job: Job, subject: Subject, key: Hashable, text: str, top: int) -> dict[str, Any]:
        """Which latents fire on which token of a text."""
        from hsae.intervene.reading import read

        site = self._site(job, subject, key)
        job.begin("reading")
        found = finite(asdict(read(site, text, top)))
        return {**found, "notes": [*site.notes, *found["notes"]]}

    def steer(self, job: Job, subject: Subject, key: Hashable, index: Index | None, wish: Wish) -> dict[str, Any]:
        """A prompt continued, with and without a push; while it is written, `job.partial` has both texts so far."""
        from hsae.intervene.steering import steered

        site = self._site(job, subject, key)
        job.begin("writing", wish.tokens)
        before = len(site.encode_text(wish.prompt))

        def watch(ids: Tensor) -> None:
            job.advance()
            rows = ids[:, before:].tolist()
            job.partial = [site.lm.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

        found = steered(
            site,
            wish.latents,
            wish.prompt,
            (wish.strength,),
            unit=wish.unit,
            clamp=wish.clamp,
            tokens=wish.tokens,
            temperature=wish.temperature,
            sampling_seed=wish.seed,
            index=index,
            watch=watch,
        )
        return finite(asdict(found))

    def _site(self, job: Job, subject: Subject, key: Hashable) -> Site:
        from hsae.intervene.site import open_site

        if key not in self._sites:
            lm = self._lm(job, subject)
            job.begin("opening the SAE")
            of = subject.record
            site = open_site(
                str(of.folder), subject.row.setup, subject.row.seed, str(subject.folder), subject.hook, lm=lm
            )
            # The subject's own warnings: here its store was named, there it may have been the run's.
            self._sites[key] = replace(site, notes=tuple(dict.fromkeys((*subject.warnings, *site.notes))))
        self._sites.move_to_end(key)
        while len(self._sites) > SITES:
            self._sites.popitem(last=False)
        return self._sites[key]

    def _lm(self, job: Job, subject: Subject) -> LM:
        from hsae import origin
        from hsae.store import Store

        model, tokenizer = subject.manifest.model, subject.manifest.harvest.get("tokenizer")
        key = (model.get("name"), model.get("revision"), model.get("fingerprint"), tokenizer)
        if self._model is None or self._model[0] != key:
            # The old one goes before the new one comes.
            self._model = None
            self._sites.clear()
            job.begin("loading the language model")
            self._model = key, origin.load(Store(subject.folder), "", self._device, self._trust)
        return self._model[1]


def build_index(job: Job, subject: Subject) -> Index:
    """The index of a subject, made if there is none; cancelled, it is saved, and the next call goes on from there."""
    from hsae.evidence import open_index

    job.begin("reading the store", subject.manifest.tokens)
    return open_index(subject, advance=job.advance)


def compare(job: Job, saes: Mapping[str, str], on: str, hook: str, tokens: int) -> dict[str, Any]:
    """SAEs side by side: their metrics as plain data, and a piece of HTML for every two of them.

    Args:
        job: told of every step.
        saes: how `hsae compare` is told of each, and its name in addresses.
        on: the store; empty: the one trained on.
        hook: a hook point of it.
        tokens: to compare on.
    """
    from hsae.compare import CompareConfig
    from hsae.compare.fragment import fragment
    from hsae.compare.report import prepare

    job.begin("opening the SAEs")
    work = prepare(CompareConfig(runs=tuple(saes), on=on, hook=hook, tokens=tokens))
    job.begin("comparing", work.steps)
    report = work.do(job.advance)
    names = dict(zip((entry.label for entry in report.entries), saes.values(), strict=True))

    def linked(pair: Comparison) -> str:
        of = {"a": names[pair.a], "b": names[pair.b]}
        return fragment(pair, lambda side, latent: f"/sae/{quote(of[side], safe=':@')}#/latent/{latent}")

    entries = [{**asdict(entry), "name": names[entry.label]} for entry in report.entries]
    return finite({"entries": entries, "notes": report.notes, "pairs": [linked(pair) for pair in report.pairs]})
