"""Neuronpedia: dashboards as SAEDashboard writes them, and the tables that an upload takes.

`dashboards/`: `run_settings.json`, `skipped_indexes.json` and `batch-{i}.json` (stage one). `upload/MODEL/SOURCE/`:
what Neuronpedia imports (stage two). All from the evidence index, which is built where there is none; the logit lens
where the model's unembedding is at hand. `$DEFAULT_CREATOR_ID` is the account that Neuronpedia knows the uploader by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.errors import UserError
from hsae.evidence import Index, open_index, open_subject
from hsae.evidence.subject import Subject as Evidence
from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._dashboard import Facts, features
from hsae.export._files import write_json
from hsae.export._hooks import block_of
from hsae.export._provenance import data_names
from hsae.export._upload import Source, write_batch, write_tables
from hsae.inspect.tokens import Pieces
from hsae.progress import Bar
from hsae.unembedding import Unembedding, read_unembedding

if TYPE_CHECKING:
    from rich.console import Console

BATCH = 128
"""latents in a file"""
KINDS = {"resid_pre": "res", "resid_post": "res", "resid_mid": "res", "mlp_out": "mlp", "attn_out": "att", "z": "att"}


class Neuronpedia(Exporter):
    """Folders `dashboards` and `upload`."""

    needs_store = True
    load = "upload what is in {module}, as docs/exports.md says"

    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        run, row = subject.run, subject.row
        evidence = open_subject(str(run.folder), row.setup, row.seed, settings.on, subject.hook)
        index = open_index(evidence, errors)
        facts = _facts(subject, evidence, index)
        live = [latent for latent in range(index.latents) if index.firings[latent]]
        if not live:
            raise UserError(f"run {run.name}: no latent of {row.setup} fires on store {evidence.store}")
        source = _source(subject)
        dashboards, upload = folder / "dashboards", folder / "upload" / _clean(source.model) / source.id
        dashboards.mkdir()
        upload.mkdir(parents=True)
        with Bar(errors, "write", len(live), unit="latents") as bar:
            for number, start in enumerate(range(0, len(live), BATCH)):
                latents = live[start : start + BATCH]
                found = features(facts, latents)
                head = {"model_id": source.model, "layer": source.layer, "sae_set": source.set, "sae_id_suffix": None}
                write_json(dashboards / f"batch-{number}.json", head | {"features": found})
                write_batch(upload, f"batch-{number}", source, found)
                if number == 0:
                    model = run.result.model
                    write_tables(upload, source, found[0], int(model.get("layers", 0)), subject.plain.width)
                bar.advance(len(latents))
        _settings(dashboards, subject, facts, source, sorted({*range(index.latents)} - {*live}))
        return str(upload.relative_to(folder))


def _facts(subject: Subject, evidence: Evidence, index: Index) -> Facts:
    result, manifest, store = subject.run.result, evidence.manifest, subject.store
    assert store is not None
    return Facts(
        sae=subject.sae,
        index=index,
        pieces=Pieces(evidence.tokenizer),
        unit=1.0 if result.folded else 1 / result.scale,
        unembedding=_unembedding(evidence, index),
        prompts=manifest.sequences,
        length=manifest.context,
        dataset=", ".join(data_names(store)),
    )


def _unembedding(evidence: Evidence, index: Index) -> Unembedding | None:
    """What the index took its logit lens from; None where it has none."""
    model = evidence.manifest.model
    return read_unembedding(str(model["name"]), str(model.get("revision") or "")) if index.has_logits else None


def _source(subject: Subject) -> Source:
    run, row, hook = subject.run, subject.row, subject.hook
    kind = KINDS.get(hook.rpartition("hook_")[2], _clean(hook))
    name = _clean(f"{kind}-{run.name}-{row.setup}-{row.seed}").lower()
    title = (
        f"{subject.plain.latents} latents at {hook}, {row.setup} (seed {row.seed}) of run {run.name}, trained by hsae"
    )
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return Source(Path(subject.model).name, block_of(hook) or 0, name, hook, title, made)


def _clean(name: str) -> str:
    return re.sub(r"[^\w.]+|_+", "-", name).strip("-.") or "x"


def _settings(folder: Path, subject: Subject, facts: Facts, source: Source, dead: Sequence[int]) -> None:
    """The two small files beside the batches."""
    settings: dict[str, Any] = {
        "sae_set": source.set,
        "sae_path": "",
        "outputs_dir": "",
        "model_id": source.model,
        "layer": source.layer,
        "huggingface_dataset_path": facts.dataset,
        "n_prompts_total": facts.prompts,
        "n_tokens_in_prompt": facts.length,
        "n_features_at_a_time": BATCH,
        "hsae": subject.provenance,
    }
    skipped = {"model_id": source.model, "layer": str(source.layer), "sae_set": source.set, "log_sparsity": None}
    write_json(folder / "run_settings.json", settings)
    write_json(folder / "skipped_indexes.json", skipped | {"skipped_indexes": list(dead)})
