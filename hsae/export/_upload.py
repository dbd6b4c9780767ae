"""Neuronpedia's tables (its stage two), a JSON line a row: what SAEDashboard's own conversion makes of stage one."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsae.files import replacing

# What a feature of stage one and a row of the table call alike.
SAME = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_heights",
    "freq_hist_data_bar_values",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)


@dataclass(frozen=True)
class Source:
    """What is uploaded.

    Attributes:
        model, layer, set: name it; `layer`-`set` is the source's id.
        hook: TransformerLens' name.
        title: one line for the reader.
        made: the time, as ISO 8601.
    """

    model: str
    layer: int
    set: str
    hook: str
    title: str
    made: str

    @property
    def id(self) -> str:
        """The source's name on Neuronpedia."""
        return f"{self.layer}-{self.set}"

    @property
    def creator(self) -> str:
        """Whose upload it is: the id that Neuronpedia gave to an account, or nobody's."""
        return os.environ.get("DEFAULT_CREATOR_ID", "")


def write_tables(folder: Path, source: Source, first: Mapping[str, Any], layers: int, width: int) -> None:
    """The four tables of one row.

    Args:
        folder: the source's folder.
        source: what is uploaded.
        first: a feature of stage one, which says what the evidence is from.
        layers, width: of the language model.
    """
    own = {"creatorId": source.creator, "createdAt": source.made}
    shown = {"visibility": "PUBLIC", **own}
    release = {"name": source.set, "description": source.title, "descriptionShort": source.title, "creatorName": ""}
    model = {"id": source.model, "instruct": source.model.lower().endswith(("-it", "-instruct")), "layers": layers}
    model |= {"displayName": source.model, "displayNameShort": source.model, "dimension": width}
    of_set = {"modelId": source.model, "name": source.set, "description": source.title, "releaseName": source.set}
    row = {"id": source.id, "modelId": source.model, "setName": source.set, "hasDashboards": True}
    row |= {"dataset": first["dataset"], "num_prompts": first["n_prompts_total"]}
    row |= {"num_tokens_in_prompt": first["n_tokens_in_prompt"]}
    _lines(folder / "release.jsonl", [release | shown])
    _lines(folder / "model.jsonl", [model | {"updatedAt": source.made} | shown])
    _lines(folder / "sourceset.jsonl", [of_set | {"hasDashboards": True, "creatorName": ""} | shown])
    _lines(folder / "source.jsonl", [row | shown])


def write_batch(folder: Path, name: str, source: Source, features: Iterable[Mapping[str, Any]]) -> None:
    """A batch of features, and their contexts."""
    rows, contexts = [], []
    for feature in features:
        mine = list(_contexts(source, feature))
        most = max((row["maxValue"] for row in mine), default=0.0)
        rows.append(_feature(source, feature, most))
        contexts += mine
    _lines(folder / "features" / f"{name}.jsonl.gz", rows)
    _lines(folder / "activations" / f"{name}.jsonl.gz", contexts)


def _feature(source: Source, feature: Mapping[str, Any], most: float) -> dict[str, Any]:
    row = {"modelId": source.model, "layer": source.id, "index": str(feature["feature_index"])}
    row |= {"creatorId": source.creator, "createdAt": source.made, "maxActApprox": most, "sourceSetName": source.set}
    row |= {"hasVector": False, "vector": [], "vectorLabel": None, "hookName": source.hook}
    row |= {"topkCosSimIndices": [], "topkCosSimValues": []}
    return row | {name: feature[name] for name in SAME}


def _contexts(source: Source, feature: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for number, activation in enumerate(feature["activations"]):
        values = activation["values"]
        place = f"{source.model}/{source.id}/{feature['feature_index']}/{number}"
        yield {
            # As long as Neuronpedia's own, and the same each time.
            "id": "c" + hashlib.sha256(place.encode()).hexdigest()[:24],
            "modelId": source.model,
            "layer": source.id,
            "index": str(feature["feature_index"]),
            "tokens": activation["tokens"],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "creatorId": source.creator,
            "createdAt": source.made,
            "binMin": activation["bin_min"],
            "binMax": activation["bin_max"],
            "binContains": activation["bin_contains"],
            "qualifyingTokenIndex": activation["qualifying_token_index"],
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "lossValues": [],
            "logitContributions": None,
            "dataIndex": None,
            "dataSource": None,
        }


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    with replacing(path) as aside:
        # No time in its header: the same rows give the same bytes.
        aside.write_bytes(gzip.compress(text, 5, mtime=0) if path.suffix == ".gz" else text)
