"""The five questions that the paper leaves open, each answered from what was measured, where it was."""

from __future__ import annotations

from hsae.paper.findings import AblationPart, Findings, InitPart
from hsae.paper.measure import Line
from hsae.paper.published import TITLES
from hsae.paper.wording import End, best_match, collapse, drive, heavy_tail, like_the_papers, nan_cause, tied_by_scale
from hsae.rules.softhebb import SoftHebb

A = "(a) Why do unit-norm SoftHebb rows end with next to no active latents, where the paper has 1,890?"
B = "(b) What makes EVR -0.52 sit beside MSE 7e-3?"
C = "(c) What becomes NaN?"
D = "(d) Is BP Tied's failure the initial scale?"
E = "(e) Which init_std matches the paper best?"


def answers(found: Findings) -> list[tuple[str, str]]:
    """(question, answer) of every question for which there are measurements."""
    said: list[tuple[str, str]] = []
    if found.init is not None:
        said.append((A, _collapse(found, found.init)))
    if (words := _tail(found)) is not None:
        said.append((B, words))
    if found.ablation is not None:
        said.append((C, _nan(found.ablation)))
    if found.init is not None:
        kaiming = found.ablation and found.ablation.trained.lines["bp-tied"].mean("evr")
        said.append((D, tied_by_scale(_by_std(found.init, "bp-tied", "evr"), kaiming)))
        distances = {base: _distances(found.init, base) for base in ("bp-tied", "hebb-tied")}
        moments = [f"{TITLES[base]}: {like_the_papers(m)}" for base, m in found.init.nearest.items()]
        said.append((E, " ".join([best_match(distances), *moments])))
    return said


def _collapse(found: Findings, part: InitPart) -> str:
    lines, settings = part.trained.lines, part.trained.settings
    names = {arm.name: arm for arm in part.trained.arms}
    unit, double = "hebb-tied-01250", "hebb-tied-02500"
    others = {
        "rows of norm 2": _end(lines[double]),
        "the mean removed": _end(lines["hebb-tied-mean-01250"]),
        "no bias": _end(lines["hebb-tied-no-bias-01250"]),
        "rows of norm 2 and the mean removed": _end(lines["hebb-tied-mean-02500"]),
    }
    won, std = part.winners.get(unit), names[unit].std
    assert std is not None
    first = collapse(
        _end(lines[unit]),
        others,
        settings.latents,
        part.trained.run.result.held_out,
        0.0 if won is None else won.share,
        0.0 if won is None else won.cosine,
    )
    rows = found.rows
    literal = _end(lines["hebb-tied-literal-02500"])
    last = "" if literal is None else _literal(literal)
    return f"{first} {drive(std, rows.median_norm, rows.norm_of_mean, settings.latents)}{last}"


def _literal(end: End) -> str:
    dead = end.dictionary == 0
    return f" From the bias that the appendix prints, τ/ln(τ/K), {end.dictionary:,.0f} latents fire in the end: " + (
        "it silences all of them, so the paper cannot have used it." if dead else "it does not silence them."
    )


def _end(line: Line) -> End | None:
    l0, dictionary = line.mean("l0"), line.mean("dictionary")
    return None if l0 is None or dictionary is None else End(l0, dictionary)


def _tail(found: Findings) -> str | None:
    if found.table is not None:
        line, name, parts = found.table.trained.lines["hebb-tied"], "hebb-tied", found.table.deciles
        passing = found.table.passing
    elif found.init is not None:
        name, parts, passing = "hebb-tied-02500", found.init.deciles, None
        line = found.init.trained.lines[name]
    else:
        return None
    evr, pooled = line.mean("evr"), line.mean("evr_pooled")
    if evr is None or pooled is None:
        return None
    return heavy_tail(evr, pooled, parts.get(name), passing, found.rows.heaviest)


def _nan(part: AblationPart) -> str:
    setups = part.trained.settings.setup
    rates = {n: s.encoder.bias_lr if isinstance(s.encoder, SoftHebb) else None for n, s in setups.items()}
    diverged = {name: line.diverged for name, line in part.trained.lines.items()}
    return nan_cause(diverged, part.falls, rates, len(part.trained.settings.seeds))


def _by_std(part: InitPart, base: str, metric: str) -> dict[float, float]:
    """A metric of the plain sweep by init_std."""
    plain = [arm for arm in part.trained.arms if arm.base == base and "," not in arm.label]
    found = {arm.std: part.trained.lines[arm.name].mean(metric) for arm in plain}
    return {std: value for std, value in found.items() if std is not None and value is not None}


def _distances(part: InitPart, base: str) -> dict[float, float]:
    plain = [arm for arm in part.trained.arms if arm.base == base and "," not in arm.label]
    return {arm.std: part.distances[arm.name] for arm in plain if arm.std is not None and arm.name in part.distances}
