"""On sparse autoencoders: does weight decay turn backpropagation's signals Hebbian, and what does it cost?

SAEs on the bundled language model's activations, by `hsae train --probe alignment`. Activations and runs are kept in
the lab's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae import config
from hsae.lab.alignment import AlignmentConfig
from hsae.lab.alignment.saes_report import KINDS, SIDES, SWEPT, TOPK, draw, text, values
from hsae.lab.units import Unit, computed

if TYPE_CHECKING:
    from rich.console import Console

# Tokens harvested, latents, tokens in a batch, steps, seeds. The learning rate is for so few steps.
SCALES = {
    "tiny": (20_000, 64, 256, 8, 2),
    "small": (300_000, 256, 1024, 800, 3),
    "full": (300_000, 1024, 4096, 8000, 5),
}
LR = 2e-3
# From unit norm one latent wins every token here, as configs/bundled.toml says. And bp without an L1 penalty.
OTHERS = {"bp-dec": {"init_std": 0.25}, "hebb-tied": {"init_std": 0.25}, "residual-hebb": {}}
OTHERS[TOPK] = {side: {"rule": "backprop", "lr": LR} for side in SIDES} | {"sae": {"kind": "topk", "k": 32}}
# Alignment is logged so often in a training.
POINTS = 40


def trained(runs: str, name: str, settings: dict[str, Any], setups: dict[str, Any]) -> dict[str, Any]:
    """A run of `hsae train`, probed: of each setup and seed what it is worth, and its alignment step by step."""
    from hsae.trainconfig import TrainConfig
    from hsae.training import train

    # A path for a name: the run is the lab's, not one of the user's.
    folder = Path(runs).resolve() / f"{name}-{config.fingerprint([settings, setups])}"
    fixed = {"normalise": {"mode": "variance"}, "baselines": False, "probe": "alignment", "held_out": 4096}
    made = settings | fixed | {"name": str(folder), "setups": list(setups), "setup": setups}
    run = train(TrainConfig.from_table(made, "hsae lab alignment"))
    found: dict[str, Any] = {}
    for row in run.result.rows:
        sae = None if row.diverged else run.sae(row.setup, row.seed)
        worth = {"EVR": row.evr_pooled, "L0": row.l0, "‖W_enc‖": sae and sae.W_enc.norm().item()}
        found.setdefault(row.setup, []).append(worth | {"dictionary": row.dictionary, "steps": [], "alignment": []})
    for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        one = found[record["setup"]][settings["seeds"].index(record["seed"])]
        one["steps"].append(record["step"])
        one["alignment"].append(record["alignment"])
    return found


def section(settings: AlignmentConfig, out: Path, console: Console | None = None) -> tuple[str, dict[str, Any]]:
    """The report's section, whose figure is drawn into `out`, and its numbers."""
    from hsae.device import choose_device

    tokens, latents, batch, steps, seeds = SCALES[settings.scale]
    store = _harvested(out / "stores" / f"stories-{tokens}", tokens, settings.device)
    common = {"store": str(store), "latents": latents, "batch_tokens": batch, "steps": steps}
    common |= {"seeds": list(range(seeds)), "log_every": max(1, steps // POINTS), "device": settings.device}
    groups: dict[str, tuple[str, float, Any]] = {"others": ("none", 0.0, OTHERS)}
    for kind, gamma in [("none", 0.0), *((kind, gamma) for kind, gammas in KINDS.items() for gamma in gammas)]:
        rule = {"lr": LR, "weight_decay": gamma, "decoupled": kind == "decoupled"}
        setups = {setup: dict.fromkeys(sides, rule) for setup, sides in SWEPT.items()}
        groups[f"{kind}-{gamma:g}"] = kind, gamma, setups
    given = {"runs": str(out / "runs"), "settings": common}
    units = [Unit(n, f"{__name__}:trained", given | {"name": n, "setups": g[2]}) for n, g in groups.items()]
    workers = 1 if choose_device(settings.device).type == "cuda" else settings.workers
    done = computed(units, out / "units", console, "saes", workers)
    saes = {(setup, *groups[n][:2]): same for n, setups in done.items() for setup, same in setups.items()}
    cells = {where: values(same) for where, same in saes.items()}
    draw(out, saes, cells)
    sizes = f"{latents} latents, {steps:,} steps of {batch:,} tokens, {seeds} seeds"
    return text(cells, sizes), {" ".join(map(str, where)): found for where, found in cells.items()}


def _harvested(folder: Path, tokens: int, device: str) -> Path:
    """A store of the bundled model's activations on its stories."""
    from rich.console import Console

    from hsae.harvesting.config import HarvestConfig
    from hsae.harvesting.job import Job
    from hsae.harvesting.sources import open_source
    from hsae.loading import load_lm
    from hsae.store.manifest import NAME

    if not (folder / NAME).exists():
        wanted = HarvestConfig(model="bundled", data=("bundled",), tokens=tokens, name=folder.name, device=device)
        Job(wanted, load_lm("bundled", device), open_source(wanted.data), folder, Console(quiet=True)).run()
    return folder.resolve()
