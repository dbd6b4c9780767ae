"""What is compared: runs of every variant that we export, and SAEs that the packages make themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsae.errors import UserError
from hsae.export import ExportConfig, export
from hsae.harvesting import HarvestConfig, harvest
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

TOLERANCE = 1e-5
LATENTS, TOKENS = 512, 4096
BACKPROP = {"encoder": "backprop", "decoder": "backprop"}
SETUPS: dict[str, dict[str, Any]] = {
    "relu": BACKPROP | {"decoder_bias": True},
    "relu-tied": {"encoder": "backprop", "tied": True},
    "relu-unit": BACKPROP | {"centre": "mean", "decoder_norm": "unit", "decoder_bias": True},
    "hebb-tied": {"encoder": "softhebb", "tied": True, "init_std": 0.25},
    "topk": BACKPROP | {"sae": {"kind": "topk", "k": 16}, "centre": "mean", "decoder_norm": "unit"},
    "topk-tied": {"encoder": "backprop", "tied": True, "sae": {"kind": "topk", "k": 16}, "centre": "median"},
    "batchtopk": BACKPROP | {"sae": {"kind": "batchtopk", "k": 16}, "centre": "mean"},
    "matryoshka": BACKPROP | {"sae": {"kind": "matryoshka", "k": 16}, "decoder_bias": True},
    "jumprelu": BACKPROP | {"sae": {"kind": "jumprelu", "l0": 2e-5}, "centre": "mean"},
    "gated": BACKPROP | {"sae": {"kind": "gated", "l1": 1e-3}, "centre": "mean", "decoder_bias": True},
}
RUNS: dict[str, dict[str, Any]] = {
    "raw": {"normalise": {"mode": "none"}},
    "scaled": {"normalise": {"mode": "variance"}},
    "folded": {"normalise": {"mode": "variance", "fold": True}},
}
FORMATS = {"saelens": "saelens", "sparsify": "sparsify", "dictionary-learning": "dictionary_learning"}
# What the packages make themselves: (architecture or class, its options).
NATIVE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "saelens": [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("topk", {"k": 16, "rescale_acts_by_decoder_norm": True}),
        ("topk", {"k": 16}),
        ("jumprelu", {}),
        ("gated", {}),
    ],
    "sparsify": [("topk", {"k": 16})],
    "dictionary_learning": [
        ("AutoEncoder", {}),
        ("AutoEncoderNew", {}),
        ("AutoEncoderTopK", {"k": 16}),
        ("BatchTopKSAE", {"k": 16}),
        ("MatryoshkaBatchTopKSAE", {"k": 16, "group_sizes": [64, 64, 128, 256]}),
        ("JumpReluAutoEncoder", {}),
        ("GatedAutoEncoder", {}),
    ],
}


@dataclass
class Case:
    """One SAE in one format: what is asked of the reader, and what came of it."""

    package: str
    name: str
    job: dict[str, Any]
    sae: SAE | None = None
    """ours; None until it is imported"""
    code: float = 0.0
    reconstruction: float = 0.0
    ties: int = 0

    @property
    def ok(self) -> bool:
        return self.code <= TOLERANCE and self.reconstruction <= TOLERANCE


def make_runs() -> tuple[Store, list[Run]]:
    """Runs of every variant on activations of the bundled model, in the cache of this process."""
    harvest(HarvestConfig(model="bundled", data=("bundled",), tokens=60_000, context=128, name="parity"))
    common = {"store": "parity", "latents": LATENTS, "batch_tokens": 1024, "steps": 60, "held_out": TOKENS}
    runs = []
    for name, changes in RUNS.items():
        table = common | {"name": name, "baselines": False, "setups": list(SETUPS), "setup": SETUPS} | changes
        runs.append(train(TrainConfig.from_table(table, "parity")))
    return Store.open("parity"), runs


def exported(runs: Sequence[Run], x: Path, work: Path) -> Iterator[Case]:
    """Every run's SAEs in every format that takes them."""
    for run in runs:
        for row in run.result.rows:
            if row.diverged:
                raise SystemExit(f"{run.name}/{row.setup} diverged: {row.diverged}")
            for to, package in FORMATS.items():
                place = work / f"{run.name}-{row.setup}-{to}"
                try:
                    export(ExportConfig(run.name, to, row.setup, out=str(place)))
                except UserError:
                    continue
                folder = next(path.parent for path in place.rglob("*") if path.name in ("cfg.json", "config.json"))
                job = {"folder": str(folder), "x": str(x), "out": f"{place}.out", "save": f"{place}-saved"}
                yield Case(package, row.setup, job, run.sae(row.setup))


def native(x: Path, width: int, work: Path) -> Iterator[Case]:
    """SAEs that the packages make and save."""
    for package, every in NATIVE.items():
        for number, (made, options) in enumerate(every):
            place = work / f"{package}-{number}"
            job = {"make": made, "options": options, "width": width, "latents": LATENTS, "x": str(x)}
            job |= {"out": f"{place}.out", "save": str(place)}
            words = ", ".join(f"{key} {value}" for key, value in options.items() if key != "group_sizes")
            yield Case(package, f"its own {made}{f' ({words})' if words else ''}", job)
