"""The store that an imported SAE is measured on: the one named, or the newest that fits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsae.errors import UserError
from hsae.export._hooks import canonical
from hsae.files import cache_root
from hsae.importing import ImportConfig
from hsae.importing._base import Foreign
from hsae.store import Store
from hsae.store.manifest import NAME


@dataclass(frozen=True)
class Fit:
    """A store that an SAE fits, and its hook point there.

    Attributes:
        store: None where there is none; then nothing is measured.
        hook: as the store calls it; without one as the SAE's files do.
        notes: what a reader should know, a line each.
        model: the language model's table for the run.
    """

    store: Store | None
    hook: str
    notes: tuple[str, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)


def fitting_store(settings: ImportConfig, foreign: Foreign) -> Fit:
    """The store that the settings name, or else the newest of the SAE's hook point and width, if it is to be measured.

    Raises:
        UserError: the store that was named does not fit.
    """
    if not settings.measure:
        return Fit(None, foreign.hook, (), _model(foreign))
    if settings.store:
        store = Store.open(settings.store)
        hook = _hook_in(store, foreign.hook) or store.hook(foreign.hook)[0]
        there, width = store.manifest.hooks[hook].width, foreign.plain.width
        if there != width:
            raise UserError(f"store {store.name}: {hook} is {there} wide, the SAE is for {width}")
        return _fit(store, hook, foreign)
    for store in _stores():
        hook = _hook_in(store, foreign.hook)
        if hook and store.manifest.hooks[hook].width == foreign.plain.width:
            return _fit(store, hook, foreign)
    what = f"{foreign.hook}, {foreign.plain.width} wide" if foreign.hook else "its files name no hook point; see --hook"
    note = f"no store fits it ({what}), so its table is blank; harvest one, and import again with --store"
    return Fit(None, foreign.hook, (note,), _model(foreign))


def _stores() -> list[Store]:
    """All stores of the cache that can be read, newest first."""
    files = sorted((cache_root() / "activations").glob(f"*/{NAME}"), key=_age, reverse=True)
    found = []
    for file in files:
        try:
            found.append(Store(file.parent))
        except UserError:
            continue
    return found


def _age(file: Path) -> int:
    return file.stat().st_mtime_ns


def _hook_in(store: Store, hook: str) -> str:
    """The store's name of a hook point, which may have two; empty if it is not there."""
    return next((name for name in store.manifest.hooks if hook and canonical(name) == canonical(hook)), "")


def _fit(store: Store, hook: str, foreign: Foreign) -> Fit:
    there, theirs = store.manifest.model, _model(foreign)
    if not foreign.model or _same(str(there.get("name")), foreign.model):
        return Fit(store, hook, (), dict(there))
    note = f"store {store.name} is of model {there.get('name')}, the SAE is for {foreign.model}"
    return Fit(store, hook, (f"{note}: if these are not one model, the numbers mean nothing",), theirs)


def _model(foreign: Foreign) -> dict[str, Any]:
    """What is known of the SAE's model without a store."""
    own = foreign.provenance.get("model")
    return dict(own) if isinstance(own, dict) else {"name": foreign.model}


def _same(one: str, other: str) -> bool:
    """Whether two names are of one model: without owner and folders, in letters and digits alone."""
    bare = [re.sub(r"[^a-z0-9]", "", Path(name).name.lower()) for name in (one, other)]
    return bare[0] == bare[1]
