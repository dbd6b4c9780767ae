"""The reproduction of the paper: what is trained, what the report says of it, and that its words follow the numbers."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hsae import config
from hsae.canvas import canvas
from hsae.cli import run
from hsae.errors import UserError
from hsae.paper import PaperConfig, paper
from hsae.paper.claims import CLAIMS, orderings
from hsae.paper.measure import Curve, Deciles, Fall, curve, deciles, fall
from hsae.paper.moments import Moment, nearest, passing
from hsae.paper.plan import SCALES, UNDERFLOW, ablation_arms, init_arms, part_settings, table_arms
from hsae.paper.published import SETUPS, TABLE_1, VARIANCE
from hsae.paper.statistics import implied, mismatch, tail, tail_quantile
from hsae.paper.wording import (
    End,
    best_match,
    collapse,
    drive,
    explanation,
    heavy_tail,
    like_the_papers,
    nan_cause,
    tied_by_scale,
)
from hsae.rules.softhebb import SoftHebb
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.store import Store

TINY = PaperConfig(store="planted", steps=12, batch_tokens=64, latents=48, seeds=(0, 1), held_out=512)

# Table 1 as the paper's text has it.
PRINTED = """
BP	4.0e-5 (± 7.3e-6)	0.929 (± 0.012)	2.56e-3 (± 8.9e-5)	32.4 (± 2.08)	6.12e2 (± 17.5)
BP Tied	2.04e-4 (± 4.3e-5)	0.391 (± 0.271)	7.04e-3 (± 8.5e-4)	12.0 (± 2.40)	2.42e1 (± 5.7)
BP Dec	1.63e-4 (± 5.8e-6)	0.615 (± 0.025)	1.17e-2 (± 7.6e-4)	22.3 (± 1.96)	1.89e3 (± 53.8)
Hebb Tied	7.29e-3 (± 1.75e-3)	-0.520 (± 0.110)	1.17e-2 (± 7.6e-4)	22.3 (± 1.96)	1.89e3 (± 53.8)
"""


def test_the_whole_report_and_that_nothing_is_trained_twice(
    planted: Callable[..., Store], cache: Path, monkeypatch: pytest.MonkeyPatch
):
    planted()
    monkeypatch.setattr("hsae.canvas.DPI", 30)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report = paper(TINY, console)
    text = report.read_text(encoding="utf-8")
    figures = set(re.findall(r"!\[.*?\]\((.*?)\)", text))
    names = {
        "losses",
        "sparsity",
        "spread",
        "diagnostics",
        "norms",
        "ablation-losses",
        "ablation-sparsity",
        "bias",
        "init",
    }
    assert figures == {f"{name}.svg" for name in names}
    for name in names:
        assert (report.parent / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (report.parent / f"{name}.png").stat().st_size > 1000
    arms = (*ablation_arms(16, 6), *init_arms(16))
    assert all(f"| `{arm.name}` |" in text for arm in arms)
    assert all(f"| {name} | paper |" in text for name in ("BP", "BP Tied", "BP Dec", "Hebb Tied"))
    assert all(f"**({letter}) " in text for letter in "abcde")
    assert "This is not TinyStories-1M" in text
    assert "4 setups × 2 seeds (0, 1), 12 steps × 64 tokens" in text
    assert "`hebb-tied-official-literal`, seed 0: at step 1: the norm of the encoder's b is nan" in text
    # The terminal shows the main table at 80 columns.
    shown = console.export_text()
    assert max(map(len, (line for line in shown.splitlines() if "paper  " in line))) <= 80
    assert shown.count("± 95%") == 4
    assert str(report) in shown.replace("\n", "")

    numbers = json.loads((report.parent / "report.json").read_text(encoding="utf-8"))
    assert [claim["claim"] for claim in numbers["table"]["orderings"]] == [claim[0] for claim in CLAIMS]
    assert numbers["ablation"]["lines"]["hebb-tied-official-literal"]["diverged"].keys() == {"0", "1"}
    assert set(numbers["latents"]) == {"hebb-tied", "bp"}
    for lines in (numbers["table"]["lines"], numbers["ablation"]["lines"]):
        for metric in ("l1", "l0", "dictionary"):
            assert lines["bp-dec"]["held_out"][metric] == lines["hebb-tied"]["held_out"][metric]

    before = {path: path.stat().st_mtime_ns for path in (cache / "runs").glob("*/*.*")}
    drawn = {path.name: path.read_bytes() for path in report.parent.iterdir()}
    assert len(before) >= 3
    monkeypatch.setattr("hsae.paper.job._draw", lambda *_: None)  # drawing is slow; that it repeats is tested below
    assert paper(TINY) == report
    assert before == {path: path.stat().st_mtime_ns for path in (cache / "runs").glob("*/*.*")}
    assert drawn == {path.name: path.read_bytes() for path in report.parent.iterdir()}


def test_one_part_alone(planted: Callable[..., Store], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planted()
    monkeypatch.setattr("hsae.paper.job._draw", lambda *_: None)
    small = ["--steps", "4", "--batch-tokens", "64", "--latents", "32", "--held-out", "256", "--seeds", "3"]
    assert run(["paper", "--parts", "table", "--out", str(tmp_path / "here"), *small]) == 0
    text = (tmp_path / "here" / "report.md").read_text(encoding="utf-8")
    assert "Ablation" not in text
    assert "**(b) " in text
    assert "4 setups × 1 seed (3)" in text
    assert "hsae paper" in text
    assert "--parts table" in text
    assert len(list((cache / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--parts", "tables"], "--parts"),
        (["--parts", "init", "init"], "parts must be one or more different of table, ablation, init, latents"),
        (["--scale", "huge"], "--scale"),
        (["--seeds", "0", "0"], "seeds must be different"),
        (["--steps", "1"], "steps must be 2 or above, not 1"),
        (["--latents", "1"], "latents must be 2 or above, not 1"),
        (["--store", "absent"], "no store 'absent'"),
        (["--hook", "absent"], "has no hook point 'absent'"),
        (["--held-out", "99999"], "lower --held-out"),
    ],
)
def test_a_mistake_is_one_line(planted: Callable[..., Store], args: list[str], line: str):
    planted()
    with pytest.raises(UserError) as error:
        run(["paper", *args])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_without_matplotlib_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, planted: Callable[..., Store]):
    planted()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install hsae\[figures\]"):
        paper(TINY)


def test_the_published_numbers_are_the_papers():
    lines = [line.split("\t") for line in PRINTED.strip().splitlines()]
    for setup, (_, *cells) in zip(SETUPS, lines, strict=True):
        printed = [tuple(map(float, re.findall(r"-?\d[\d.]*(?:e-?\d+)?", cell))) for cell in cells]
        line = TABLE_1[setup]
        assert printed == [line.mse, line.evr, line.l1, line.l0, line.dictionary]
    assert pytest.approx(5.6e-4, rel=0.01) == VARIANCE


def test_tails():
    assert tail(1.959964) == pytest.approx(0.025, abs=1e-7)
    assert tail_quantile(0.025) == pytest.approx(1.959964, abs=1e-5)


def test_what_the_papers_line_implies():
    found = implied(l0=22.3, l1=1.17e-2, latents=3200, width=64, temperature=50.0)
    # Forward again by sampling: as many latents fire, as strongly.
    u = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0)) * found.drive - found.threshold
    active = u[u > 0]
    assert len(active) / len(u) * 3200 == pytest.approx(22.3, rel=0.03)
    assert active.mean().item() * 22.3 / 64 == pytest.approx(1.17e-2, rel=0.03)
    assert found.drive_at_prior * found.z == pytest.approx(math.log(3200) / 50)


def test_the_distance_from_the_papers_line():
    theirs = {"mse": 1e-3, "evr": 0.5, "l1": 1e-2, "l0": 10.0, "dictionary": 100.0}
    assert mismatch({**theirs}, theirs) == 0
    assert mismatch({**theirs, "l0": 100.0, "evr": 0.0}, theirs) == pytest.approx((1 + 0.5) / 5)
    assert mismatch({**theirs, "dictionary": 0.0, "evr": -1e9}, theirs) == pytest.approx((3 + 3) / 5)
    assert mismatch({**theirs, "mse": None}, theirs) is None


def values(**changes: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """The paper's own table, with changes."""
    own = {s: {m: TABLE_1[s].mean(m) for m in ("mse", "evr", "l1", "l0", "dictionary")} for s in SETUPS}
    return {s: {**own[s], **changes.get(s.replace("-", "_"), {})} for s in SETUPS}


def test_orderings_follow_the_numbers():
    theirs = values()
    assert all(
        claim.holds and claim.verdict == "holds" and claim.seeds == (1, 1) for claim in orderings(theirs, [theirs])
    )
    wrong = {
        "mse": {"bp_dec": {"mse": 1e-5}},
        "evr": {"hebb_tied": {"evr": 0.1}},
        "far below": {"bp_tied": {"evr": 0.9}},
        "BP has the smallest": {"bp": {"l1": 9e-3}},
        "the largest": {"bp_tied": {"l1": 2e-2}},
        "sparsest": {"bp_tied": {"l0": 40.0}},
        "larger than BP": {"hebb_tied": {"dictionary": 600.0}},
        "BP Tied has the smallest": {"bp_tied": {"dictionary": 6000.0}},
        "share their encoder": {"bp_dec": {"l0": 22.4}},
    }
    assert len(wrong) == len(CLAIMS)
    for (key, change), claim in zip(wrong.items(), CLAIMS, strict=True):
        assert key in claim[0] or key == claim[1], key
        changed = values(**change)
        (found,) = [o for o in orderings(theirs, [theirs, changed]) if o.claim == claim[0]]
        assert (found.holds, found.seeds) == (True, (1, 2))
        (found,) = [o for o in orderings(changed, [changed]) if o.claim == claim[0]]
        assert (found.verdict, found.seeds) == ("does not hold", (0, 1))
    missing = values()
    missing["hebb-tied"] = dict.fromkeys(missing["hebb-tied"])
    verdicts = {o.claim: o.verdict for o in orderings(missing, [missing])}
    assert verdicts["MSE: BP < BP Dec < Hebb Tied"] == "not measured"
    assert verdicts["EVR: BP Tied is far below BP (by more than .25)"] == "holds"


def test_the_answer_about_collapse_follows_the_numbers():
    others = {"the mean removed": End(0.2, 4.0), "rows of norm 2": End(9.0, 2000.0), "no bias": End(900.0, 3200.0)}
    said = collapse(End(0.5, 1.0), others, 3200, 16384, 0.98, 0.99)
    assert "1 of 3,200 latents on 16,384 tokens (L0 0.50): the collapse is there" in said
    assert "one row has become the mean direction" in said
    assert "What prevents it: rows of norm 2 (2,000 latents, L0 9.00); no bias" in said
    assert "What does not: the mean removed" in said
    said = collapse(End(20.0, 1890.0), others, 3200, 16384, 0.1, 0.3)
    assert "there is no collapse here" in said
    assert "mean direction alone does not decide" in said
    assert "What prevents it" not in said
    assert "they diverged" in collapse(None, others, 3200, 16384, 0.0, 0.0)
    assert "None of the variations" in collapse(End(0.5, 1.0), {"no bias": End(0.1, 1.0)}, 3200, 16384, 0.98, 0.99)
    assert "all but silences" in drive(0.125, 0.213, 0.1, 3200)
    assert "does not silence" in drive(0.25, 0.213, 0.1, 3200)


def test_the_answer_about_norms_follows_the_numbers():
    parts = Deciles((0.1,) * 10, (0.05,) * 9 + (0.55,), (0.4,) * 9 + (-9.0,), 0.4, 0.5, 0.2)
    moment = Moment("hebb-tied", 70, {"mse": 7.0e-3, "evr": -0.5, "evr_pooled": -12.0}, 0.1)
    said = heavy_tail(-0.5, -12.0, parts, moment, 12.0)
    assert "pooled EVR of -11.9" in said
    assert "the same gap" in said
    assert "and they make the gap" in said
    assert "there the paper's pair is met" in said
    even = replace(parts, top_norm=0.02)
    said = heavy_tail(0.24, 0.25, even, replace(moment, metrics={"mse": 7e-3, "evr": -11.0, "evr_pooled": -12.0}), 1.7)
    assert "no such gap" in said
    assert "no tail that could make the paper's gap" in said
    assert "the per-token EVR is another" in said
    assert "it was never near" in heavy_tail(
        0.2, 0.2, None, replace(moment, metrics={**moment.metrics, "mse": 1e-4}), 1.7
    )


def test_the_answer_about_nan_follows_the_numbers():
    slow, quick = Fall(-0.1, -0.15, 3000, -1.7e-5, 115_605.0), Fall(-0.1, -0.6, 3000, -1.7e-4, 11_559.0)
    falls = {"hebb-tied-official": slow, "hebb-tied-official-rate-1": quick}
    reasons = {0: "at step 18: the norm of the encoder's b is nan; likely a rate", 1: "at step 17: so too"}
    diverged = {"hebb-tied-official-fast": reasons, "hebb-tied-fast": {}, "hebb-tied-official-literal": {}}
    said = nan_cause(diverged, falls, {"hebb-tied-official-fast": 46.0}, 2)
    assert "passes -2.066 at step 115,605, beyond the paper's 62,500 steps" in said
    assert "at step 11,559, within" in said
    assert "only if its bias learnt at the official code's rate" in said
    assert "became NaN on 2 of 2 seeds (at step 18: the norm of the encoder's b is nan)" in said
    assert "the cause is e^(τb) underflowing" in said
    assert "likely" not in said
    rising = {name: replace(fall, slope=1e-6, underflow=None) for name, fall in falls.items()}
    said = nan_cause({**diverged, "hebb-tied-official-fast": {}}, rising, {}, 2)
    assert "Nothing diverged" in said
    assert "nothing underflows" in said
    assert "the mechanism is not shown here" in said
    assert "something besides" in nan_cause({**diverged, "hebb-tied-fast": {0: "at step 3: x"}}, {}, {}, 2)


def test_the_explanation_follows_the_numbers():
    said = explanation({"hebbian_cos_mse": -0.5, "anti_cos_l1": 0.8, "anti_cos_l2": 0.01, "cos_mse": 0.1})
    assert "that the Hebbian part descends the MSE does not hold (cosine -0.50)" in said
    assert "that the anti-Hebbian part descends L1 holds (cosine 0.80)" in said
    assert "descends L2 is undecided (cosine 0.01)" in said
    assert "cosine 0.10 with the descent of the MSE" in said
    assert "the MSE holds" in explanation({"hebbian_cos_mse": 0.5})
    assert explanation({"hebbian_cos_mse": None}) == ""


def test_the_answers_about_scale_follow_the_numbers():
    assert "falls as the scale grows" in tied_by_scale({0.125: 0.9, 0.25: 0.4, 1.0: -3.0}, 0.95)
    assert "above .9, as the paper says" in tied_by_scale({0.125: 0.9, 0.25: 0.4}, 0.95)
    assert "met most nearly by init_std 0.25 (.400)" in tied_by_scale({0.125: 0.9, 0.25: 0.4}, None)
    assert "does not depend on the scale" in tied_by_scale({0.125: 0.9, 0.25: 0.88}, 0.5)
    assert "not yet" in tied_by_scale({0.125: 0.9, 0.25: 0.88}, 0.5)
    assert "too small" in tied_by_scale({0.125: 0.1, 0.25: 0.88}, None)
    said = best_match({"bp-tied": {0.125: 0.9, 0.25: 0.2}, "hebb-tied": {0.125: 0.8, 0.25: 0.3}})
    assert "BP Tied: init_std 0.25 (distance 0.20), then 0.125 (0.90)" in said
    assert "one scale fits best for both" in said
    assert "no one scale" in best_match({"bp-tied": {0.125: 0.1, 0.25: 0.2}, "hebb-tied": {0.125: 0.8, 0.25: 0.3}})
    moment = Moment("hebb-tied-03500", 70, {"mse": 7e-3, "evr": -0.5, "l1": 1e-2, "l0": 22.0}, 0.05)
    assert "step 70 of `hebb-tied-03500`" in like_the_papers(moment)
    assert "is met" in like_the_papers(moment)
    assert "still far" in like_the_papers(replace(moment, distance=2.0))


def test_curves_falls_and_moments():
    def record(step: int, mse: float, lowest: float) -> dict:
        metrics = {"step": step, "mse": mse, "evr": -0.5, "l1": 1e-2, "l0": 20.0, "dictionary": 5, "evr_pooled": 0.0}
        return {**metrics, "rule": {"bias_lowest": lowest}}

    logged = {
        ("hebb-tied", seed): [record(s, 1.0 / s, -0.1 - 0.001 * s + shift) for s in (1, 11, 21, 31)]
        for seed, shift in ((0, 0.0), (1, 0.002))
    }
    assert curve(logged, "hebb-tied", "mse") == Curve((1, 11, 21, 31), (1.0, 1 / 11, 1 / 21, 1 / 31), (0.0,) * 4)
    falls = fall(logged, "hebb-tied")
    assert falls is not None
    assert falls.slope == pytest.approx(-0.001)
    assert falls.underflow == pytest.approx(31 + (UNDERFLOW - falls.last) / -0.001)
    assert curve(logged, "bp", "mse") is None
    assert fall(logged, "bp") is None
    at = passing(logged, "hebb-tied", "hebb-tied")
    assert at is not None
    assert at.step == 31
    like = nearest(logged, ["hebb-tied", "bp"], "hebb-tied")
    assert like is not None
    assert (like.setup, like.step) == ("hebb-tied", 31)


def test_error_by_norm_against_one_line_of_arithmetic():
    # An SAE that gives nothing back: the error is the activation itself.
    sae = SAE(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, 4), torch.zeros(4), ReLU(), scale=0.5)
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 2, 1000)[:, None]
    found = deciles(sae, x)
    squared = x.double().square().sum(1).sort().values
    assert sum(found.share) == pytest.approx(1)
    assert found.share[-1] == pytest.approx((squared[-100:].sum() / squared.sum()).item())
    assert found.top_norm == found.top_error == pytest.approx((squared[-10:].sum() / squared.sum()).item())
    assert list(found.norm) == sorted(found.norm)


def test_the_plan_is_the_papers_at_full_scale(planted: Callable[..., Store]):
    store = planted()
    settings = PaperConfig(store="planted", scale="full")
    train = part_settings(settings, "table", table_arms(64), store)
    assert (train.steps, train.batch_tokens, train.latents, train.seeds) == (62_500, 16_384, 3200, (0, 1, 2, 3, 4))
    assert train.normalise.mode == "variance"
    assert [train.setup[name].init_std for name in SETUPS] == [0.125, 0.125, 0.25, 0.25]
    encoder = train.setup["hebb-tied"].encoder
    assert isinstance(encoder, SoftHebb)
    assert (encoder.lr, encoder.temperature, encoder.power, encoder.bias_lr) == (1e-2, 50, 0.2, 0.1)
    # Rows keep the norm that they have at the paper's width.
    assert table_arms(256)[3].std == pytest.approx(0.125)
    assert part_settings(replace(settings, latents=64), "table", table_arms(64), store).name != train.name
    assert {*SCALES} == {"small", "medium", "large", "full"}
    kaiming = part_settings(settings, "ablation", ablation_arms(64, 500), store)
    assert all(s.init == "kaiming" for name, s in kaiming.setup.items() if "literal" not in name)


def test_the_shipped_configs_read():
    scales = {}
    for path in sorted((Path(__file__).parents[1] / "configs" / "paper").glob("*.toml")):
        settings = config.build(PaperConfig, config.read_file(path, "paper"), str(path))
        scales[path.stem] = settings.scale
    assert scales == {"stories260k": "small", "tinystories-1m": "full"}


def test_figures_can_be_read_in_a_folder_of_the_users(tmp_path: Path):
    with canvas(tmp_path, "one", 1, 1, 2.0) as (_, (axis,)):
        axis.plot([1, 2], [1, 2])
    first = (tmp_path / "one.svg").read_bytes()
    with canvas(tmp_path, "one", 1, 1, 2.0) as (_, (axis,)):
        axis.plot([1, 2], [1, 2])
    assert first == (tmp_path / "one.svg").read_bytes()
    assert b"<dc:date>" not in first
