"""Explained variance against L0: a local rule beside backpropagation, under several seeds, in ordinary runs.

    python benchmarks/pareto.py stories260k                  # goes on where it was cut off
    python benchmarks/pareto.py stories260k --parts leads --l0 8

All learn from the same tokens in the same order, the mean removed, unit decoder rows that start as the encoder's, and
learning rates that fall to 0 over the last 30% of the steps. Backpropagation has the best learning rate of those
tried at each L0 (LR, LR_AUXK; 1e-3 to 3.2e-2) and β₂ = 0.98, which was better than 0.999; the local rule has
one setting for all. Results go to docs/pareto/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from hsae import TrainConfig, train
from hsae.inspect.terminal import run_table
from hsae.progress import Training
from hsae.record import Result

PARTS = ("topk", "local", "relu", "auxk", "leads")
L0S = (32, 8, 4, 16)
L1S = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
LR = {4: 4e-3, 8: 8e-3, 16: 8e-3, 32: 3.2e-2}
LR_AUXK = {4: 1.6e-2, 8: 1.6e-2, 16: 1.6e-2, 32: 3.2e-2}
COMMON: dict[str, Any] = {
    "centre": "mean",
    "decoder_init": "encoder",
    "decoder_norm": "unit",
    "schedule": {"decay": "linear", "decay_share": 0.3},
}


def backprop(lr: float, beta2: float, **rest: Any) -> dict[str, Any]:
    """A setup trained by backpropagation on both sides."""
    rule = {"rule": "backprop", "lr": lr, "beta2": beta2}
    return {"encoder": rule, "decoder": rule, **COMMON, **rest}


def topk(l0: int) -> dict[str, dict[str, Any]]:
    """TopK by backpropagation."""
    return {"topk": backprop(LR[l0], 0.98, sae={"kind": "topk", "k": l0}, init_gain=True)}


def local(l0: int) -> dict[str, dict[str, Any]]:
    """The local rule, with the same competition."""
    return {"residual-hebb": {"sae": {"kind": "topk", "k": l0}}}


def penalised() -> dict[str, dict[str, Any]]:
    """ReLU at several weights of the penalty: its L0 is what comes out."""
    sweep = {f"relu-{i}": {"kind": "relu", "l1": l1} for i, l1 in enumerate(L1S)}
    made = {name: backprop(1e-2, 0.999, sae=sae, init_gain=True) for name, sae in sweep.items()}
    gently = {**COMMON["schedule"], "sparsity_warmup": 100}
    return {name: setup | {"schedule": gently} for name, setup in made.items()}


def auxiliary(l0: int) -> dict[str, dict[str, Any]]:
    """TopK with the auxiliary loss for dead latents, which is its best form."""
    sae = {"kind": "topk", "k": l0}
    return {"topk-auxk": backprop(LR_AUXK[l0], 0.98, sae=sae, init_gain=True, revive={"kind": "auxk"})}


def leads(l0: int) -> dict[str, dict[str, Any]]:
    """The local rule with one of its parts taken away or exchanged, and other rules in its place."""
    sae = {"kind": "topk", "k": l0}
    rest = {"decoder": "residual", "sae": sae, "init_gain": True, **COMMON}
    tied = {key: rest[key] for key in ("sae", "centre", "decoder_norm", "schedule")} | {"tied": True}

    def changed(**changes: Any) -> dict[str, Any]:
        return {"encoder": {"rule": "delta", **changes}, **rest}

    return {
        "exact-feedback": changed(feedback="decoder"),
        "feedback-by-encoder": changed(feedback="encoder"),
        "no-runner-up": changed(runner_up=0.0),
        "no-homeostasis": changed(homeostasis=0.0),
        "no-decorrelation": changed(ridge=1e6),
        "batch-threshold": changed() | {"sae": {"kind": "batchtopk", "k": l0}},
        "tied-residual": {"encoder": "residual", **tied},
        "instar-encoder": {"encoder": {"rule": "instar", "k": l0}, **rest},
        "softhebb-encoder": {"encoder": "softhebb", **rest},
    }


def run(store: str, name: str, table: dict[str, dict[str, Any]], seeds: list[int], steps: int) -> Result:
    """Train, or find, one run."""
    config = {
        "store": store,
        "setups": list(table),
        "setup": table,
        "seeds": seeds,
        "steps": steps,
        "batch_tokens": 4096,
        "normalise": {"mode": "variance", "variance": 1.0},
        "name": f"pareto-{store}-{steps}-{name}",
        "log_every": 20,
    }
    console = Console()
    done = train(TrainConfig.from_table(config, name), Training(console))
    console.print(run_table(done))
    return done.result


def main() -> None:
    """Read the command line, train, write one JSON file a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--l0", type=int, nargs="+", default=list(L0S))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=362)
    parser.add_argument("--out", type=Path, default=Path("docs/pareto"))
    args = parser.parse_args()
    every, one = list(range(args.seeds)), [0]
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        if part == "relu":
            runs = {"relu": (penalised(), every)}
        else:
            make, seeds = {
                "topk": (topk, every),
                "local": (local, every),
                "auxk": (auxiliary, one),
                "leads": (leads, one),
            }[part]
            runs = {f"{part}-l0-{l0}": (make(l0), seeds) for l0 in args.l0}
        for name, (table, seeds) in runs.items():
            result = run(args.store, name, table, seeds, args.steps)
            path = args.out / f"{args.store}-{args.steps}-{name}.json"
            data = {"rows": [vars(r) for r in result.rows], "baselines": [vars(b) for b in result.baselines]}
            path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
