"""What the pages ask of one SAE, and of jobs, as JSON. Reading answers at once; what takes longer becomes a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hsae.errors import UserError
from hsae.evidence import Subject
from hsae.inspect.page.documents import BLOCK
from hsae.serve import asked
from hsae.serve.bench import Bench, Wish, build_index, compare
from hsae.serve.jobs import Job, Lane
from hsae.serve.shelf import Name, Shelf
from hsae.serve.told import NotHere, told
from hsae.serve.turns import Busy, Turns

READ_TOP = 24
"""latents that are named for a token of one's own text"""
COMPARED = 4
"""SAEs side by side"""
COMPARE_TOKENS = 16_384
"""that they are compared on"""
WAITING, LONG_WAITING = 32, 3
"""jobs that may wait behind one that runs: about a text of one's own, and those that take minutes"""


Handler = Callable[[Request, Mapping[str, Any]], Response]


class Api:
    """The answers, and what they are made from.

    Args:
        device: where the language model runs.
        trust_remote_code: let a model's repository run its own code.
    """

    def __init__(self, device: str, trust_remote_code: bool) -> None:
        self.shelf = Shelf()
        self._bench = Bench(device, trust_remote_code)
        # An answer about one's own text should not wait for an index.
        self._model, self._long = Lane("model", WAITING), Lane("long", LONG_WAITING)
        self.turns = Turns()

    def routes(self) -> list[Route]:
        """Where what is asked for."""
        sae, read, posted = "/api/sae/{sae}", self.turns.route, self._posted
        return [
            read(sae, self.one_sae),
            read(f"{sae}/summary", self.summary),
            read(f"{sae}/block/{{number:int}}", self.block),
            posted(f"{sae}/index", self.build),
            posted(f"{sae}/read", self.read),
            posted(f"{sae}/steer", self.steer),
            posted("/api/compare", self.compare),
            read("/api/jobs", self.list_jobs),
            read("/api/jobs/{number:int}", self.one_job),
            read("/api/jobs/{number:int}", self.cancel_job, "DELETE"),
        ]

    def _posted(self, path: str, handle: Handler) -> Route:
        """A route that takes a JSON object. What it does with it may touch files, so it waits for its turn."""

        async def endpoint(request: Request) -> Response:
            return await self.turns.run(handle, request, await asked.body(request))

        return Route(path, endpoint, methods=["POST"])

    def close(self, seconds: float) -> bool:
        """End all jobs; whether they ended within the time."""
        ended = [lane.close(seconds) for lane in (self._model, self._long)]
        return all(ended)

    # What is known of an SAE.

    def one_sae(self, request: Request) -> Response:
        """What an SAE is looked at on, and whether its index stands."""
        subject = self._subject(request)
        job = self.building(subject)
        view = {
            "run": subject.record.name,
            "setup": subject.row.setup,
            "seed": subject.row.seed,
            "store": subject.store,
            "hook": subject.hook,
            "tokens": subject.manifest.tokens,
            "latents": subject.record.result.latents,
            "warnings": subject.warnings,
            "stands": self.shelf.stands(subject),
            "job": None if job is None else job.number,
        }
        return asked.answer(view)

    def summary(self, request: Request) -> Response:
        """See `hsae.inspect.page.Documents.summary`."""
        return asked.json_text(self.shelf.answer(self._subject(request), "summary", lambda of: of.summary()))

    def block(self, request: Request) -> Response:
        """See `hsae.inspect.page.Documents.block`."""
        subject, number = self._subject(request), request.path_params["number"]
        last = (subject.record.result.latents - 1) // BLOCK
        if number > last:
            raise HTTPException(404, f"block {number} is not in 0…{last}")
        return asked.json_text(self.shelf.answer(subject, f"block {number}", lambda of: of.block(number)))

    def building(self, subject: Subject) -> Job | None:
        """The job that makes a subject's index, if there is one."""
        return self._long.known(("index", self.shelf.key(subject)))

    def _subject(self, request: Request) -> Subject:
        return self.shelf.subject(Name.read(request.path_params["sae"]))

    # What takes longer.

    def build(self, request: Request, table: Mapping[str, Any]) -> Response:
        """Make an index that is not there."""
        subject = self._subject(request)
        if self.shelf.stands(subject):
            raise HTTPException(409, "its index stands already")

        def work(job: Job) -> None:
            self.shelf.add(subject, build_index(job, subject))

        about = f"index of {Name.of(subject)} on {subject.store}"
        # All will want it, and what was read is saved: it goes on, though nobody watches.
        return _accepted(self._long.submit(about, work, ("index", self.shelf.key(subject)), math.inf))

    def read(self, request: Request, table: Mapping[str, Any]) -> Response:
        """Read one's own text."""
        subject, text = self._subject(request), asked.text(table, "text")
        subject.record.require_weights(subject.row)
        key = self.shelf.key(subject)
        about = f"reading a text by {Name.of(subject)}"
        return _accepted(self._model.submit(about, lambda job: self._bench.read(job, subject, key, text, READ_TOP)))

    def steer(self, request: Request, table: Mapping[str, Any]) -> Response:
        """Continue a prompt with latents pushed, beside the same without."""
        subject = self._subject(request)
        subject.record.require_weights(subject.row)
        wish = Wish(
            latents=asked.latents(table, "latents", subject.record.result.latents),
            prompt=asked.text(table, "prompt"),
            strength=asked.number(table, "strength", 1.0, -1000.0, 1000.0),
            unit=asked.choice(table, "unit", ("max", "mean", "activation")),
            clamp=asked.flag(table, "clamp"),
            tokens=asked.whole(table, "tokens", 40, 1, asked.WRITTEN),
            temperature=asked.number(table, "temperature", 0.0, 0.0, 10.0),
            seed=asked.whole(table, "seed", 0, 0, 2**31 - 1),
        )
        # Without an index, steering would make one unasked.
        index = None if wish.unit == "activation" else self.shelf.documents(subject).index
        key = self.shelf.key(subject)
        about = f"steering by {Name.of(subject)}"
        return _accepted(self._model.submit(about, lambda job: self._bench.steer(job, subject, key, index, wish)))

    def compare(self, request: Request, table: Mapping[str, Any]) -> Response:
        """Compare SAEs of the cache."""
        names = [Name.read(name) for name in asked.names(table, "saes", 2, COMPARED)]
        subjects = [self.shelf.subject(name) for name in names]
        for subject in subjects:
            subject.record.require_weights(subject.row)
        folders = [self.shelf.catalogue.run_folder(name.run) for name in names]
        saes = {f"{folder}:{name.setup}:{name.seed}": str(name) for folder, name in zip(folders, names, strict=True)}
        on, hook = (str(subjects[0].folder), subjects[0].hook) if names[0].on else ("", "")
        about, key = f"comparing {len(names)} SAEs", ("compare", *map(self.shelf.key, subjects))
        return _accepted(self._long.submit(about, lambda job: compare(job, saes, on, hook, COMPARE_TOKENS), key))

    # Jobs.

    def list_jobs(self, request: Request) -> Response:
        """What is being done, or waits."""
        jobs = [job.document() for lane in (self._model, self._long) for job in lane.jobs if not job.ended]
        return asked.json_text(f'{{"jobs": [{", ".join(jobs)}]}}')

    def one_job(self, request: Request) -> Response:
        """How far a job is."""
        return asked.json_text(self._job(request).document())

    def cancel_job(self, request: Request) -> Response:
        """End a job."""
        job = self._job(request)
        job.cancel()
        return asked.json_text(job.document())

    def _job(self, request: Request) -> Job:
        number = request.path_params["number"]
        job = self._model.find(number) or self._long.find(number)
        if job is None:
            raise HTTPException(404, f"no job {number}; it ended long ago, or the server was started anew")
        return job


def _accepted(job: Job) -> Response:
    return asked.json_text(job.document(), 202)


def refused(error: Exception) -> tuple[int, str]:
    """The status and the line of what a request cannot have."""
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, NotHere):
        return 404, told(error)
    if isinstance(error, Busy):
        return 503, "enough is being done already; wait for it, or cancel some of it"
    if isinstance(error, UserError):
        return 409, told(error)
    return 500, "an error of hsae; its terminal says more"
