"""Do other tools read what `hsae export` writes, and does `hsae import` read what they write? With the real packages.

    python tools/parity.py                 # some minutes, once the environments are there
    python tools/parity.py --out FILE.md   # the tables as a document

Runs of every variant are trained on activations of the bundled model: tied and untied, scaled, scaled and folded,
centred. Each is exported to every format that takes it and read by the real package in an environment of its own; codes
and reconstructions of real activations are held against ours. Then each package saves SAEs of its own, with random
biases, and we import them. Errors are the largest difference over the largest value; above 1e-5 the tool exits with 1.
Where a drive is nearer to its cut than that, rounding may decide; such tokens are counted, and left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from parity.cases import LATENTS, NATIVE, TOKENS, TOLERANCE, Case, exported, make_runs, native
from parity.packages import PACKAGES, ask, version
from torch import Tensor

from hsae.export import ExportConfig, export
from hsae.export._plain import Plain, plain
from hsae.importing import ImportConfig, import_sae
from hsae.run import Run
from hsae.store import Store


def judge(case: Case, x: Tensor) -> None:
    """Fill in a case's errors."""
    assert case.sae is not None
    form, theirs = plain(case.sae), torch.load(case.job["out"])
    # Codes in the units of the activations, which is how every format has them.
    code = case.sae.encode(x) / case.sae.scale
    reconstruction = case.sae(x)
    clear = ~near(form, x)
    case.ties = int((~clear).sum())
    case.code = error(code[clear], theirs["code"][clear])
    case.reconstruction = error(reconstruction[clear], theirs["reconstruction"][clear])


def near(form: Plain, x: Tensor) -> Tensor:
    """Tokens with a drive so near to its cut that rounding decides whether the latent is active with a value."""
    u = x @ form.W_enc.T + form.b_enc
    margin = TOLERANCE * u.abs().max()
    if form.k is not None:
        top = u.topk(min(form.k + 1, u.shape[1]), dim=1).values
        return (top[:, -2] - top[:, -1] < margin) & (top[:, -2] > -margin)
    if form.threshold is not None:
        jumps = form.threshold > margin
        return (((u - form.threshold).abs() < margin) & jumps).any(1)
    if form.log_gain is not None and form.magnitude_bias is not None:
        return ((u.abs() < margin) & (form.magnitude_bias > margin)).any(1)
    return torch.zeros(len(x), dtype=torch.bool)


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    if ours.shape != theirs.shape or not theirs.isfinite().all():
        return float("inf")
    return float((ours - theirs).abs().max() / ours.abs().max())


def delphi(run: Run, store: Store, work: Path) -> str:
    """delphi's own reader on our latent cache, against our codes of the whole store."""
    place = export(ExportConfig(run.name, "delphi", "topk", out=str(work / "delphi")))
    jobs = work / "delphi.json"
    jobs.write_text(json.dumps([{"folder": f"{place}/latents", "latents": LATENTS, "out": str(work / "delphi.out")}]))
    ask("delphi", jobs)
    theirs, sae = torch.load(work / "delphi.out"), run.sae("topk").folded()
    form, worst, firings = plain(sae), 0.0, 0
    for chunk in store.chunks(next(iter(store.manifest.hooks)), 16):
        span = slice(chunk.first, chunk.first + len(chunk.tokens))
        if not torch.equal(chunk.tokens.long(), theirs["tokens"][span]):
            raise SystemExit("delphi: reads other tokens than the store's")
        x, read = chunk.activations.flatten(0, 1), theirs["code"][span].flatten(0, 1)
        ours, clear = sae.encode(x), ~near(form, x)
        ours = torch.where(ours > 1e-5, ours, 0).half().float()
        firings += int((read > 0).sum())
        worst = max(worst, error(ours[clear], read[clear]))
    if worst > 1e-3:  # an activation is rounded to float16; where it lies between two, either may be taken
        raise SystemExit(f"delphi: activations differ by {worst:.1e}")
    words = f"{firings:,} firings of {LATENTS} latents, error {worst:.0e} (they are in float16)"
    return f"eai-delphi {version('delphi')}: LatentDataset reads {words}"


def dashboard(run: Run, work: Path) -> str:
    """sae-dashboard's reader on our dashboards."""
    place = export(ExportConfig(run.name, "neuronpedia", "topk", out=str(work / "neuronpedia")))
    found = json.loads(ask("sae_dashboard", place / "dashboards"))
    if found["features"] + found["skipped"] != LATENTS:
        raise SystemExit(f"sae-dashboard: reads {found}, of {LATENTS} latents")
    words = f"{found['features']} features ({found['skipped']} skipped, dead)"
    return f"sae-dashboard {version('sae_dashboard')}: NeuronpediaDashboardBatch reads {words}"


def table(cases: Sequence[Case], heading: str) -> list[str]:
    """A markdown table: for each SAE and package the worst errors over the runs, of the code and the reconstruction."""
    cells: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        cells.setdefault(case.name, {}).setdefault(case.package, []).append(case)
    lines = ["| " + " | ".join((heading, *NATIVE)) + " |", "|---" * (1 + len(NATIVE)) + "|"]
    for name, of_package in cells.items():
        words = [worst(of_package.get(package, [])) for package in NATIVE]
        lines.append("| " + " | ".join((name, *words)) + " |")
    return lines


def worst(cases: Sequence[Case]) -> str:
    """The words of a cell."""
    if not cases:
        return "–"
    code, reconstruction = (max(getattr(case, name) for case in cases) for name in ("code", "reconstruction"))
    ties = sum(case.ties for case in cases)
    words = f"{code:.0e}, {reconstruction:.0e}" + (f" ({ties})" if ties else "")
    return words if all(case.ok for case in cases) else f"**{words}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", help="write the tables to this file too")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsae-parity-") as home:
        work = Path(home)
        os.environ["HSAE_CACHE"] = str(work / "cache")
        lines, failed = compare(work)
    print("\n".join(lines))
    if settings.out:
        Path(settings.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    raise SystemExit(f"{failed} of the comparisons fail" if failed else 0)


def compare(work: Path) -> tuple[list[str], int]:
    """All comparisons: the lines of the document, and how many fail."""
    store, runs = make_runs()
    hook, record = store.hook()
    x = torch.cat([chunk.activations.flatten(0, 1) for chunk in store.chunks(hook, 64)])[-TOKENS:]
    torch.save(x, work / "x.pt")
    there = list(exported(runs, work / "x.pt", work))
    own = list(native(work / "x.pt", record.width, work))
    for package in NATIVE:
        jobs = work / f"{package}.json"
        jobs.write_text(json.dumps([case.job for case in (*there, *own) if case.package == package]))
        ask(package, jobs)
    back = []
    for case in (*there, *own):
        run = import_sae(ImportConfig(case.job["save"], Path(case.job["save"]).name, measure=False))
        back.append(dataclasses.replace(case, sae=run.sae()))
    for case in (*there, *back):
        judge(case, x)
    versions = ", ".join(f"{PACKAGES[package]} {version(package)}" for package in NATIVE)
    more = [delphi(runs[1], store, work), dashboard(runs[1], work)]
    cases = (*there, *back)
    lines = [
        f"With {versions}. {TOKENS:,} activations of the bundled model, {LATENTS} latents. In a cell: the error "
        "of the code, that of the reconstruction, and in brackets the tokens at a cut, of all runs together.",
        "",
    ]
    lines += ["Our exports, as the package reads them:", "", *table(there, "SAE"), ""]
    lines += [
        "What the package then saves, and SAEs of its own, as `hsae import` reads them:",
        "",
        *table(back, "SAE"),
        "",
    ]
    lines += [f"- {line}" for line in more]
    return lines, sum(not case.ok for case in cases)


if __name__ == "__main__":
    main()
