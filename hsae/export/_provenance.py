"""Where an SAE comes from, in plain data that others may see: no names of folders of the machine it was trained on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import hsae
from hsae import config, registry
from hsae.export._plain import Plain
from hsae.record import Row
from hsae.run import Run
from hsae.store import Store


def provenance(run: Run, row: Row, form: Plain, trained_on: Store | None, hook: str) -> dict[str, Any]:
    """What is known of an SAE.

    Args:
        run, row: the run, and the SAE's line in its table.
        form: the SAE as it is exported.
        trained_on: the store that it was trained on; None where that is not at hand.
        hook: the hook point.
    """
    result, setup = run.result, run.setups[row.setup]
    rules = {"encoder": setup.encoder} | ({} if setup.decoder is None else {"decoder": setup.decoder})
    metrics = {key: value for key, value in dataclasses.asdict(row).items() if value is not None}
    found: dict[str, Any] = {
        "version": hsae.__version__,
        "origin": result.origin or "trained by hsae",
        "run": run.name,
        "setup": row.setup,
        "seed": row.seed,
        "rule": {name: registry.name_of(rule) for name, rule in rules.items()},
        "settings": config.table(setup),
        "scale": result.scale,
        "activation": form.activation,
        "notes": list(form.notes),
        "metrics": {key: value for key, value in metrics.items() if key not in ("setup", "seed")},
        "held_out_tokens": result.held_out,
        "hook": hook,
        "model": dict(result.model) | {"name": public(str(result.model.get("name") or "unknown"))},
    }
    # An imported SAE was measured on the run's store, and trained nobody knows on what.
    store = {"name": Path(result.store).name, "fingerprint": result.store_fingerprint}
    if result.origin:
        return found | {"measured_on": store}
    found |= {"steps": result.steps, "training_tokens": result.tokens, "store": store}
    if trained_on is not None:
        manifest = trained_on.manifest
        found["store"] |= {"context": manifest.context, "sequences": manifest.sequences, "dtype": manifest.dtype}
        found["dataset"] = dict(manifest.text) | {"data": data_names(trained_on)}
    return found


def is_trained_on(run: Run, store: Store) -> bool:
    """Whether a store is the one, to the last byte, that a run was trained on."""
    return not run.result.origin and store.manifest.fingerprint == run.result.store_fingerprint


def data_names(store: Store) -> list[str]:
    """The datasets and files that a store's text is from."""
    data = store.manifest.text.get("data")
    return [public(str(name)) for name in data] if isinstance(data, list) else []


def public(name: str) -> str:
    """A model's or a dataset's name as others know it: a hub id as it is, a path without its folders."""
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", name)
    file = re.search(r"\.(txt|jsonl|parquet|npy|gguf)$", name)
    return name if hub and not file else Path(name).name
