"""What there is, as JSON: the runs and stores of the cache, and the table of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hsae.errors import UserError
from hsae.files import cache_root
from hsae.record import Baseline, Row
from hsae.serve import asked
from hsae.serve.api import Api
from hsae.serve.catalogue import Listed, runs, stores
from hsae.serve.shelf import Name
from hsae.store.manifest import NAME, Manifest


class Lists:
    """The lists.

    Args:
        api: knows which indexes stand.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """Where they are."""
        return [Route("/api/runs", self.every_run), Route("/api/runs/{run}", self.one_run)]

    def every_run(self, request: Request) -> Response:
        """Every run of the cache, whole or not, and every store."""
        there = stores()
        views = [self._run(run, there) for run in runs()]
        return asked.answer(
            {
                "cache": str(cache_root()),
                "runs": views,
                "stores": [_store(name, store) for name, store in there.items()],
            }
        )

    def _run(self, run: Listed, there: Mapping[str, Manifest | str]) -> dict[str, Any]:
        view: dict[str, Any] = {"name": run.name, "standing": run.standing, "note": run.note, "changed": run.changed}
        if run.record is None:
            return view
        result = run.record.result
        whole = [row for row in result.rows if not row.diverged]
        best = max(whole, key=lambda row: -1e300 if row.evr_pooled is None else row.evr_pooled, default=None)
        names = [Name(run.name, row.setup, row.seed) for row in whole]
        known = there.get(result.store)
        return view | {
            "model": str(result.model.get("name", "")),
            "store": result.store,
            "store_there": isinstance(known, Manifest) if known else (Path(result.store) / NAME).exists(),
            "hook": result.hook,
            "width": result.width,
            "latents": result.latents,
            "setups": list(dict.fromkeys(row.setup for row in result.rows)),
            "seeds": len({row.seed for row in result.rows}),
            "saes": [str(name) for name in names],
            "diverged": len(result.rows) - len(whole),
            "indexed": sum(self._index(name)[0] == "stands" for name in names if self._api.shelf.maybe(name)),
            "best": None if best is None else {"setup": best.setup, "evr_pooled": best.evr_pooled, "l0": best.l0},
        }

    def one_run(self, request: Request) -> Response:
        """A run's table, how its indexes stand on a store, and the stores that fit it."""
        run, query = request.path_params["run"], request.query_params
        on, hook = query.get("on", ""), query.get("hook", "")
        result, rows = self._api.shelf.record(run).result, []
        for row in result.rows:
            name = Name(run, row.setup, row.seed, on, hook)
            state, line = ("diverged", row.diverged) if row.diverged else self._index(name)
            rows.append({**_numbers(row), "sae": str(name), "index": state, "note": line})
        try:
            warnings = self._api.shelf.subject(Name(run, result.rows[0].setup, result.rows[0].seed, on, hook)).warnings
        except UserError as error:
            warnings = (str(error),)
        fitting = [
            {"store": name, "hook": hook, "model": str(store.model.get("name", "")), "tokens": store.tokens}
            for name, store in stores().items()
            if isinstance(store, Manifest)
            for hook, of_hook in store.hooks.items()
            if of_hook.width == result.width
        ]
        said = ("store", "hook", "width", "latents", "scale", "steps", "tokens", "held_out", "dead_window")
        view = {"name": run, "model": str(result.model.get("name", "")), "warnings": warnings, "stores": fitting}
        view |= {key: getattr(result, key) for key in said}
        return asked.answer(view | {"rows": rows, "baselines": [_numbers(line) for line in result.baselines]})

    def _index(self, name: Name) -> tuple[str, str]:
        """ "stands", "building", "missing" or "impossible", and one line in the last case."""
        try:
            subject = self._api.shelf.subject(name)
            if self._api.building(subject):
                return "building", ""
            return ("stands" if self._api.shelf.stands(subject) else "missing"), ""
        except (UserError, LookupError) as error:
            return "impossible", str(error)


def _numbers(row: Row | Baseline) -> dict[str, Any]:
    """A line of a run's table; the rule's diagnostics are left to the terminal."""
    return {key: value for key, value in asdict(row).items() if key != "rule"}


def _store(name: str, store: Manifest | str) -> dict[str, Any]:
    if isinstance(store, str):
        return {"name": name, "note": store}
    hooks = [{"hook": hook, "width": of_hook.width} for hook, of_hook in store.hooks.items()]
    model = str(store.model.get("name", ""))
    return {"name": name, "note": "", "model": model, "tokens": store.tokens, "dtype": store.dtype, "hooks": hooks}
