"""What there is, as JSON: the runs and stores of the cache, and the table of one run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hsae.errors import UserError
from hsae.files import cache_root
from hsae.record import Baseline, Record, Row
from hsae.serve import asked
from hsae.serve.api import Api
from hsae.serve.catalogue import Listed
from hsae.serve.shelf import Name
from hsae.serve.told import NotHere, told
from hsae.store.manifest import Manifest


class Lists:
    """The lists.

    Args:
        api: knows which indexes stand.
    """

    def __init__(self, api: Api) -> None:
        self._api, self._catalogue = api, api.shelf.catalogue

    def routes(self) -> list[Route]:
        """Where they are."""
        route = self._api.turns.route
        return [route("/api/runs", self.every_run), route("/api/runs/{run}", self.one_run)]

    def every_run(self, request: Request) -> Response:
        """Every run of the cache, whole or not, and every store."""
        there = self._catalogue.stores()
        views = [self._run(run) for run in self._catalogue.runs()]
        return asked.answer(
            {
                "cache": str(cache_root()),
                "runs": views,
                "stores": [_store(name, store) for name, store in there.items()],
            }
        )

    def _run(self, run: Listed) -> dict[str, Any]:
        view: dict[str, Any] = {"name": run.name, "standing": run.standing, "changed": run.changed}
        view["note"] = told(run.note)
        if run.record is None:
            return view
        result = run.record.result
        whole = [row for row in result.rows if not row.diverged]
        best = max(whole, key=lambda row: -1e300 if row.evr_pooled is None else row.evr_pooled, default=None)
        names = [Name(run.name, row.setup, row.seed) for row in whole]
        return view | {
            "model": str(result.model.get("name", "")),
            "store": result.store,
            "store_there": self._there(run.record),
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
        result, rows = self._catalogue.record(run).result, []
        for row in result.rows:
            name = Name(run, row.setup, row.seed, on, hook)
            state, line = ("diverged", row.diverged) if row.diverged else self._index(name)
            rows.append({**_numbers(row), "sae": str(name), "index": state, "note": line})
        try:
            warnings = self._api.shelf.subject(Name(run, result.rows[0].setup, result.rows[0].seed, on, hook)).warnings
        except UserError as error:
            warnings = (told(error),)
        fitting = [
            {"store": name, "hook": hook, "model": str(store.model.get("name", "")), "tokens": store.tokens}
            for name, store in self._catalogue.stores().items()
            if isinstance(store, Manifest)
            for hook, of_hook in store.hooks.items()
            if of_hook.width == result.width
        ]
        said = ("store", "hook", "width", "latents", "scale", "steps", "tokens", "held_out", "dead_window")
        view = {"name": run, "model": str(result.model.get("name", "")), "warnings": warnings, "stores": fitting}
        view |= {key: getattr(result, key) for key in said}
        return asked.answer(view | {"rows": rows, "baselines": [_numbers(line) for line in result.baselines]})

    def _there(self, record: Record) -> bool:
        try:
            self._catalogue.trained_on(record)
        except (UserError, NotHere):
            return False
        return True

    def _index(self, name: Name) -> tuple[str, str]:
        """ "stands", "building", "missing" or "impossible", and one line in the last case."""
        try:
            subject = self._api.shelf.subject(name)
            if self._api.building(subject):
                return "building", ""
            return ("stands" if self._api.shelf.stands(subject) else "missing"), ""
        except (UserError, NotHere) as error:
            return "impossible", told(error)


def _numbers(row: Row | Baseline) -> dict[str, Any]:
    """A line of a run's table; the rule's diagnostics are left to the terminal."""
    return {key: value for key, value in asdict(row).items() if key != "rule"}


def _store(name: str, store: Manifest | str) -> dict[str, Any]:
    if isinstance(store, str):
        return {"name": name, "note": told(store)}
    hooks = [{"hook": hook, "width": of_hook.width} for hook, of_hook in store.hooks.items()]
    model = str(store.model.get("name", ""))
    return {"name": name, "note": "", "model": model, "tokens": store.tokens, "dtype": store.dtype, "hooks": hooks}
