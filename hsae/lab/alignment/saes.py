"""SAEs under weight decay, by `hsae train --probe alignment`. Activations and runs are kept in the lab's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from hsae import config
from hsae.harvesting.config import HarvestConfig
from hsae.harvesting.job import Job
from hsae.harvesting.ranks import Crew
from hsae.harvesting.sources import open_source
from hsae.lab.alignment import AlignmentConfig
from hsae.lab.units import Unit
from hsae.loading import load_lm
from hsae.store import Store
from hsae.store.manifest import NAME
from hsae.trainconfig import TrainConfig
from hsae.training import train

# Tokens harvested, latents, tokens in a batch, steps, seeds. The learning rate is for so few steps.
SCALES = {
    "tiny": (20_000, 64, 256, 8, 2),
    "small": (300_000, 256, 1024, 800, 3),
    "full": (300_000, 1024, 4096, 8000, 5),
}
LR = 2e-3
SIDES = ("encoder", "decoder")
SWEPT = {"bp": SIDES, "bp-tied": SIDES[:1]}
"""setups whose decay is varied, and what backpropagation trains in each"""
# From unit norm one latent wins every token here, as configs/bundled.toml says. And bp without an L1 penalty.
OTHERS = {
    "bp-dec": {"init_std": 0.25},
    "bp-topk": {side: {"rule": "backprop", "lr": LR} for side in SIDES} | {"sae": {"kind": "topk", "k": 32}},
    "hebb-tied": {"init_std": 0.25},
    "residual-hebb": {},
}
DECAYS = {"none": (0.0,), "L2": (1e-7, 1e-6, 1e-5, 1e-4), "decoupled": (0.3, 1.0, 3.0)}
# Alignment is logged so often in a training.
POINTS = 40


def trained(runs: str, name: str, settings: dict[str, Any], setups: dict[str, Any]) -> dict[str, Any]:
    """A run of `hsae train`, probed: of each setup and seed what it is worth, and its alignment step by step."""
    # A path for a name: the run is the lab's, not one of the user's.
    folder = Path(runs).resolve() / f"{name}-{config.fingerprint([settings, setups])}"
    fixed = {"normalise": {"mode": "variance"}, "baselines": False, "probe": "alignment", "held_out": 4096}
    made = settings | fixed | {"name": str(folder), "setups": list(setups), "setup": setups}
    run = train(TrainConfig.from_table(made, "hsae lab alignment"))
    found: dict[str, Any] = {}
    for row in run.result.rows:
        worth = {"EVR": row.evr_pooled, "L0": row.l0, "dictionary": row.dictionary}
        found.setdefault(row.setup, []).append(worth | {"steps": [], "alignment": []})
    for record in run.metrics():
        one = found[record["setup"]][settings["seeds"].index(record["seed"])]
        one["steps"].append(record["step"])
        one["alignment"].append(record["alignment"])
    return found


def units(settings: AlignmentConfig, out: Path) -> dict[str, Unit]:
    """A training for each decay, `KIND γ`, after the harvest of the bundled model on its stories if no store is given.

    Raises:
        UserError: no such store, one that is not whole, or one of several hook points.
    """
    tokens, latents, batch, steps, seeds = SCALES[settings.scale]
    harvested = out / "stores" / f"stories-{tokens}"
    if not settings.store and not (harvested / NAME).exists():
        wanted = HarvestConfig("bundled", data=("bundled",), tokens=tokens, name=harvested.name, device=settings.device)
        lm = load_lm("bundled", settings.device)
        Job(wanted, lm, open_source(wanted.data), harvested, Console(quiet=True), Crew()).run()
    store = Store.open(settings.store or harvested)
    store.hook(settings.hook)  # what is wrong with it is an error now, not after the other experiments
    common = {
        "store": str(store.folder.resolve()),
        "hook": settings.hook,
        "latents": latents,
        "batch_tokens": batch,
        "steps": steps,
    }
    common |= {"seeds": list(range(seeds)), "log_every": max(1, steps // POINTS), "device": settings.device}
    given = {"runs": str(out / "runs" / store.manifest.fingerprint), "settings": common}
    planned: dict[str, Unit] = {}
    for kind, gamma in ((kind, gamma) for kind, gammas in DECAYS.items() for gamma in gammas):
        rule = {"lr": LR, "weight_decay": gamma, "decoupled": kind == "decoupled"}
        setups: dict[str, Any] = {setup: dict.fromkeys(sides, rule) for setup, sides in SWEPT.items()}
        arguments = {"name": f"{kind}-{gamma:g}", "setups": setups | (OTHERS if kind == "none" else {})}
        planned[f"{kind} {gamma:g}"] = Unit(f"saes: {kind} {gamma:g}", f"{__name__}:trained", given | arguments)
    return planned
