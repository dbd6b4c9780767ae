"""`hsae compare` on runs made by hand: which SAEs, measured where, and how that is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Chromium, launched, needs_browser
from made_saes import compared, make_run, random, sae_of
from rich.cells import cell_len
from rich.console import Console

from hsae.compare import CompareConfig, compare
from hsae.compare.chosen import choose
from hsae.compare.fragment import fragment
from hsae.compare.report import Report, front, prepare
from hsae.compare.sample import measure, rows_of
from hsae.compare.scale import l0_axis, worth_axis
from hsae.compare.terminal import draw
from hsae.errors import UserError
from hsae.store import Store

WIDTH = 16
KNOWN = {"mse": 1e-3, "evr": 0.5, "evr_pooled": 0.6, "l1": 0.1, "l0": 3.0, "dictionary": 20, "dead": 4}
KNOWN |= {"tokens_per_second": 12345.0}
DECODERS = [random(24, WIDTH, seed=seed) for seed in range(4)]


@pytest.fixture
def store(planted: Callable[..., Store]) -> Store:
    """64 sequences of 32 tokens at a hook point of width 16."""
    return planted()


@pytest.fixture
def two(store: Store) -> Store:
    """Run `one` with SAEs of two setups, one of them under two seeds, and `other` with one; and one that diverged."""
    one = {("bp", 0): sae_of(DECODERS[0]), ("bp", 1): sae_of(DECODERS[1]), ("hebb", 0): sae_of(DECODERS[2])}
    make_run(store, "one", one, diverged=("gone",), rows=KNOWN)
    make_run(store, "other", {("bp", 0): sae_of(DECODERS[3])}, rows=KNOWN)
    return store


def labels(*words: str, **more: Any) -> list[str]:
    return [one.label for one in choose(CompareConfig(words, **more))[0]]


def test_sae_are_named_by_run_setup_and_seed(two: Store):
    assert labels("one") == ["bp:0", "bp:1", "hebb:0"]
    assert labels("one:bp") == ["bp:0", "bp:1"]
    assert labels("one:hebb", "other") == ["one:hebb", "other:bp"]
    assert labels("other", "one:bp:1") == ["other:bp:0", "one:bp:1"]
    assert labels("one", "other", setups=("bp",)) == ["one:bp:0", "one:bp:1", "other:bp:0"]
    assert labels("one", "other", seeds=(0,)) == ["one:bp", "one:hebb", "other:bp"]
    # By path, and each SAE once however often it is named.
    path = str(two.folder.parents[1] / "runs" / "one")
    assert labels("one:bp", "one", path, f"{path}:hebb") == ["bp:0", "bp:1", "hebb:0"]
    chosen, notes = choose(CompareConfig(("one", "other")))
    assert [one.key for one in chosen] == ["A", "B", "C", "D"]
    assert notes == ["run one: gone, seed 0, diverged at step 3"]
    assert chosen[1].flags == "--run one --setup bp --seed 1"


def test_runs_of_one_name_are_told_apart_by_their_folders(two: Store, tmp_path: Path):
    (two.folder.parents[1] / "runs" / "other").rename(tmp_path / "one")
    assert labels("one:hebb", str(tmp_path / "one")) == [
        f"{two.folder.parents[1]}/runs/one:hebb",
        f"{tmp_path}/one:bp",
    ]


def test_letters_go_on_after_the_last(store: Store):
    sae = sae_of(torch.eye(WIDTH))
    make_run(store, "many", {("bp", seed): sae for seed in range(60)})
    keys = [one.key for one in choose(CompareConfig(("many",)))[0]]
    assert (keys[25:28], keys[51:54], len(set(keys))) == (["Z", "AA", "AB"], ["AZ", "BA", "BB"], 60)


@pytest.mark.parametrize(
    ("words", "more", "line"),
    [
        (("nobody",), {}, r"^no run 'nobody' in .*; there is one, other$"),
        (("one:nothing",), {}, r"^run one has no setup 'nothing'; there is bp, gone, hebb$"),
        (("one:bp:7",), {}, r"^run one has no seed 7 of bp; there is 0, 1$"),
        (("one:bp:x",), {}, r"^one:bp:x: 'x' is no seed; name an SAE as RUN:SETUP:SEED$"),
        (
            ("one",),
            {"setups": ("nothing",)},
            r"^--setups: none of the runs has setup 'nothing'; there is bp, gone, hebb$",
        ),
        (("one",), {"seeds": (3,)}, r"^--seeds: none of the runs has seed '3'; there is 0, 1$"),
        (("one:hebb",), {}, r"^hsae compare needs two SAEs, and this names one SAE with weights; name another run$"),
        (("one:gone",), {}, r"^hsae compare needs two SAEs, and this names no SAE with weights; name another run$"),
        (("one",), {"on": "nowhere"}, r"^no store 'nowhere' in .*; there is planted$"),
        (("one",), {"hook": "nohook"}, r"^store planted has no hook point 'nohook'; there is hook$"),
        (
            ("one",),
            {"losses": ("/nowhere.json",)},
            r"^--losses /nowhere.json: not what .* printed \(.*No such file.*\)$",
        ),
    ],
)
def test_what_is_not_there_is_one_line(two: Store, words: tuple[str, ...], more: dict[str, Any], line: str):
    with pytest.raises(UserError, match=line) as caught:
        prepare(CompareConfig(words, **more))
    assert "\n" not in str(caught.value)


def test_runs_of_other_places_cannot_be_compared(two: Store, planted: Callable[..., Store]):
    model = {"fingerprint": "another", "name": "gpt"}
    make_run(two, "model", {("bp", 0): sae_of(DECODERS[0])}, model=model)
    make_run(two, "hook", {("bp", 0): sae_of(DECODERS[0])}, hook="elsewhere")
    make_run(two, "width", {("bp", 0): sae_of(torch.eye(3))})
    make_run(two, "unknown", {("bp", 0): sae_of(DECODERS[0])}, model={})
    for name, line in {
        "model": "different models test and gpt",
        "hook": "different hook points hook and elsewhere",
        "width": "different widths 16 and 3",
    }.items():
        with pytest.raises(UserError, match=f"^runs one and {name} are of {line}: their SAEs cannot be compared$"):
            prepare(CompareConfig(("one", name)))
    assert len(prepare(CompareConfig(("one", "unknown"))).chosen) == 4
    planted("narrow", width=3)
    with pytest.raises(UserError, match=r"^store narrow: hook is 3 wide, run one has SAEs for 16$"):
        prepare(CompareConfig(("one",), on="narrow"))


def made(*words: str, **more: Any) -> Report:
    steps: list[int] = []
    work = prepare(CompareConfig(words, **more))
    report = work.do(steps.append)
    assert sum(steps) == work.steps
    return report


def test_runs_that_were_measured_alike_keep_their_own_metrics(two: Store):
    report = made("one", "other")
    assert not report.measured
    assert (report.tokens, report.held_out, report.store, report.hook) == (64 * 32, 320, "planted", "hook")
    figures = report.entries[0].figures
    assert (figures.mse, figures.evr_pooled, figures.dead, figures.tokens_per_second) == (1e-3, 0.6, 4, 12345)
    assert (report.entries[0].encoder, report.entries[0].variant) == ("backprop", "relu")
    assert [(pair.a, pair.b) for pair in report.pairs][:3] == [
        ("one:bp:0", "one:bp:1"),
        ("one:bp:0", "one:hebb:0"),
        ("one:bp:0", "other:bp:0"),
    ]
    assert len(report.pairs) == 6
    assert made("one", "other", tokens=33).tokens == 64
    without = made("one", "other", match=False)
    assert (without.tokens, without.pairs) == (0, ())
    assert without.entries == report.entries


def test_the_matching_needs_no_metrics_and_the_metrics_no_store(two: Store):
    (two.folder / "manifest.json").unlink()
    assert made("one", match=False).entries[0].figures.mse == 1e-3
    with pytest.raises(
        UserError, match=r"^run one was trained on a store that cannot be opened: .*; --on names another$"
    ):
        made("one")


def test_common_tokens_are_measured_where_runs_differ_and_where_it_is_asked_for(
    two: Store, planted: Callable[..., Store]
):
    other = planted("second", sequences=32)
    make_run(other, "elsewhere", {("bp", 0): sae_of(DECODERS[3])}, rows=KNOWN)
    make_run(two, "scaled", {("bp", 0): sae_of(DECODERS[3], scale=0.25)}, rows=KNOWN)
    make_run(two, "silent", {("bp", 0): sae_of(DECODERS[3])})
    for words, more, note in (
        (("one:hebb", "elsewhere"), {}, "different stores (planted, second): all is measured on planted"),
        (("one:hebb", "scaled"), {}, "scaled the activations differently"),
        (("one:hebb", "silent"), {}, "not every run says its metrics"),
        (("one:hebb", "other"), {"on": "second"}, ""),
    ):
        report = made(*words, **more, tokens=320)
        assert report.measured
        assert note in " ".join(report.notes)
        assert report.store == more.get("on", "planted")
        assert report.tokens == 320
        assert report.entries[0].figures.mse != 1e-3
        assert report.entries[1].figures.dead is not None
        assert not any("was trained on" in note for note in report.notes)  # the last 320 tokens were held out
    said = [note for note in made("one:hebb", "scaled").notes if "was trained on" in note]
    assert said == [
        f"run {name} was trained on 54 of the 64 sequences; --tokens 320 takes only those that it held out"
        for name in ("one", "scaled")
    ]


def test_metrics_are_in_the_units_of_the_store_whatever_the_scale(store: Store):
    rows = rows_of(store, "hook", 320)
    assert torch.equal(rows, torch.cat([chunk.activations.flatten(0, 1) for chunk in store.chunks("hook", 64, 54)]))
    bias, threshold = random(24, seed=9) * 0.01, 0.25
    plain = sae_of(DECODERS[0], bias=bias)
    scaled = sae_of(DECODERS[0], bias=bias * threshold, scale=threshold)
    found = [dataclasses.asdict(measure(sae, rows)) for sae in (plain, scaled)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    code = torch.relu(rows @ DECODERS[0].T + bias)
    error = code @ DECODERS[0] - rows
    assert found[0]["mse"] == pytest.approx(error.square().mean().item(), rel=1e-4)
    spread = (rows - rows.mean(0)).square().sum()
    assert found[0]["evr_pooled"] == pytest.approx(1 - (error.square().sum() / spread).item(), rel=1e-4)
    assert found[1]["l1"] == pytest.approx(code.sum().item() / rows.numel(), rel=1e-4)
    assert found[0]["l0"] == pytest.approx((code > 0).sum().item() / len(rows))


def test_what_a_reader_should_know_of_the_store_is_said(two: Store, planted: Callable[..., Store]):
    record = two.manifest.hooks["hook"]
    changed = dataclasses.replace(two.manifest, model={"fingerprint": "x"})
    changed.write(two.folder)
    assert "store planted is of another model" in " ".join(prepare(CompareConfig(("one",))).notes)
    shards = tuple(dataclasses.replace(shard, kept={"more": shard.kept["hook"]}) for shard in changed.shards)
    dataclasses.replace(changed, hooks={"more": record}, shards=shards).write(two.folder)
    assert "more is not the hook point" in " ".join(prepare(CompareConfig(("one",), hook="more")).notes)
    changed.write(two.folder)
    make_run(two, "old", {("bp", 0): sae_of(DECODERS[0])}, store_fingerprint="old")
    notes = prepare(CompareConfig(("old", "one"))).notes
    assert "store planted has been made anew since run old was trained on it" in notes


def test_a_store_of_which_nothing_counts_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch):
    chunks = [dataclasses.replace(chunk, keep=torch.zeros_like(chunk.keep)) for chunk in store.chunks("hook", 64)]
    monkeypatch.setattr(Store, "chunks", lambda *_: iter(chunks))
    with pytest.raises(UserError, match=r"^store planted: no position of its last sequences counts; raise --tokens$"):
        rows_of(store, "hook", 10)


def test_loss_recovered_comes_from_what_evaluate_printed(two: Store, tmp_path: Path):
    saes = [{"setup": "bp", "seed": 1, "recovered_mean": 0.875, "recovered_zero": 0.9}]
    saes += [{"setup": "hebb", "seed": 0, "recovered_mean": None}, {"setup": "away", "seed": 0, "recovered_mean": 1.0}]
    (tmp_path / "loss.json").write_text(json.dumps({"run": "one", "saes": saes}))
    report = made("one", losses=(str(tmp_path / "loss.json"),), match=False)
    assert [entry.figures.recovered for entry in report.entries] == [None, 0.875, None]
    assert report.notes[-1] == "--losses: 1 of the SAEs in there are not compared here"
    assert " CE" in text_of(report)
    assert ".875" in text_of(report)
    for damaged in ("[]", '{"run": "one"}', "{", '{"run": "one", "saes": [{"setup": "bp"}]}'):
        (tmp_path / "bad.json").write_text(damaged)
        with pytest.raises(UserError, match="not what `hsae evaluate --json` printed"):
            prepare(CompareConfig(("one",), losses=(str(tmp_path / "bad.json"),)))


# ---- the front


def test_the_front_is_what_nothing_beats():
    points = [(10.0, 0.9), (10.0, 0.8), (5.0, 0.7), (7.0, 0.7), (1.0, -3.0), (1.0, -3.0), (None, 1.0), (2.0, None)]
    assert front(points) == [True, False, True, False, True, True, False, False]
    assert front([]) == []


def test_axes_hold_their_values_and_ticks():
    for values in ([1.6, 41.7], [0.003], [20.0, 21.0], [0.5, 3200.0]):
        axis = l0_axis(values)
        assert len(axis.ticks) >= 2
        assert all(0 <= axis.place(v) <= 1 and axis.low <= v <= axis.high for v in [*values, *axis.ticks])
    assert l0_axis([1.0, 100.0]).place(10.0) == pytest.approx(0.5)
    for values in ([0.2, 0.9], [0.91, 0.92], [-60.0, 0.9], [0.5], [-9.0, -8.0], [1.0]):
        axis = worth_axis(values)
        assert 2 <= len(axis.ticks) <= 7
        assert axis.ticks[0] == pytest.approx(axis.low)
        assert axis.low >= -0.5
        assert axis.place(max(values)) == pytest.approx(
            (max(max(values), axis.low) - axis.low) / (axis.high - axis.low)
        )
        assert axis.place(min(values)) < 1 or len(values) == 1


# ---- the faces


def text_of(report: Report, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in draw(report, width):
        console.print(part)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


HOSTILE = "</title><script>alert(1)</script>[bold]\x1b[31m\u202e"


@pytest.fixture
def hostile(two: Store) -> str:
    """A run whose name is an attack, as wide as names get."""
    name = HOSTILE.replace("/", "∕") + "x" * 60
    make_run(two, name, {("bp", 0): sae_of(DECODERS[0]), ("b" * 40, 0): sae_of(DECODERS[0].flip(0))}, rows=KNOWN)
    return name


def test_it_is_right_at_80_columns(two: Store, hostile: str):
    for words, more in ((("one", hostile), {}), ((hostile,), {}), (("one", "other", hostile), {"tokens": 64})):
        text = text_of(made(*words, **more))
        assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 80
        assert not {"\x1b", "\u202e"} & set(text)
        assert "[bold]" in text
        assert "1.0e-3" in text
        assert "12.3k" in text


def test_the_terminal_says_what_there_is(two: Store):
    text = text_of(made("one:bp", threshold=0.9))
    assert "From the runs: over 320 held-out tokens of store planted (hook)" in " ".join(text.split())
    assert "A*  bp:0" in text
    line = next(line for line in text.splitlines() if line.startswith("A–B "))
    found = made("one:bp", threshold=0.9).pairs[0]
    assert found.cosine.found.mean is not None
    assert f"{found.cosine.found.mean:.3f}".lstrip("0") in line.split()
    assert "A–B  bp:0 ↔ bp:1" in text
    assert f" A{found.cosine.alike[0].a} B{found.cosine.alike[0].b} ." in text
    assert f"unique to A      A{found.cosine.lone_a[0].latent} " in text
    assert f"hsae inspect --run one --setup bp --seed 0 --latent {found.cosine.lone_a[0].latent}" in text
    assert "Measured on the last 64 tokens" in text_of(made("one:bp", on="planted", tokens=64))
    assert "note:" not in text


def test_many_pairs_are_not_listed(two: Store):
    make_run(two, "more", {("bp", 0): sae_of(DECODERS[0])}, rows=KNOWN)
    text = text_of(made("one", "other", "more", tokens=320))
    assert "A–E " in text
    assert "↔" not in text
    assert "name two SAEs, or give --html or --json" in " ".join(text.split())
    # It is a copy of another run's, and that is said.
    assert "by cosine A–E 24 of 24; by correlation A–E 24 of 24. SAEs of one seed may start" in " ".join(text.split())


def test_the_plot_shows_every_sae_or_says_that_it_does_not(two: Store):
    report = made("one", "other", match=False)
    figures = [(10.0, 0.9), (100.0, -7.0), (0.0, 0.1), (10.0, 0.9)]
    entries = tuple(
        dataclasses.replace(entry, front=l0 == 10, figures=dataclasses.replace(entry.figures, l0=l0, evr_pooled=worth))
        for entry, (l0, worth) in zip(report.entries, figures, strict=True)
    )
    text = text_of(dataclasses.replace(report, entries=entries))
    plot = text[text.index("pooled EVR") :].splitlines()
    assert any("A+" in line for line in plot)
    assert plot.index(next(line for line in plot if "A" in line)) < plot.index(
        next(line for line in plot if "B" in line)
    )
    assert "drawn at the lower edge: B -7" in text
    assert "not drawn, for want of an L0 above 0: C" in text
    nothing = tuple(dataclasses.replace(e, figures=dataclasses.replace(e.figures, l0=None)) for e in entries)
    assert "│" not in text_of(dataclasses.replace(report, entries=nothing))


def test_json_is_one_document_with_everything(two: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    compare(CompareConfig(("one",), json=True, html=str(tmp_path / "out.html")))
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert data["entries"][2]["select"] == "one:hebb:0"
    assert data["entries"][2]["figures"]["evr_pooled"] == 0.6
    assert len(data["pairs"][0]["correlation"]["pairs"]) == 24
    assert data["notes"] == ["run one: gone, seed 0, diverged at step 3"]
    assert "page: " in printed.err
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ""] == ["out.html"]


def test_numbers_that_are_none_do_not_spoil_it(two: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    make_run(
        two, "odd", {("bp", 0): sae_of(DECODERS[0], bias=-1e9), ("hebb", 0): sae_of(DECODERS[1])}, rows={"mse": 1.0}
    )
    compare(CompareConfig(("odd",), json=True, html=str(tmp_path / "out.html")))
    data = json.loads(capsys.readouterr().out)
    assert data["pairs"][0]["cosine"]["found"]["mean"] is None
    text = text_of(made("odd"))
    assert "cosine: nothing to match" in text
    assert "None" not in text


@pytest.mark.parametrize("path", ["nowhere/out.html", "."])
def test_a_page_that_cannot_be_written_is_said_before_the_work(two: Store, tmp_path: Path, path: str):
    with pytest.raises(UserError, match=r"^--html .*(folder)"):
        compare(CompareConfig(("nobody",), html=str(tmp_path / path)), Console(file=io.StringIO()))


def test_stopping_says_that_nothing_is_written(two: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsae.compare.report.compare_saes", stop)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped; nothing was written$"):
        compare(CompareConfig(("one",), html=str(tmp_path / "out.html")), Console(file=io.StringIO()))
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"threshold": 0.0}, {"threshold": 1.0}, {"html": "here/"}])
def test_settings_are_checked(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CompareConfig(**wrong)


def test_the_settings_cost_no_import():
    code = "import sys, hsae.compare; print({'torch', 'numpy', 'scipy', 'rich'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ---- the page


@pytest.fixture
def page_file(two: Store, hostile: str, tmp_path: Path) -> Path:
    """A page of five SAEs with hostile names."""
    out = tmp_path / "out.html"
    (tmp_path / "loss.json").write_text(
        json.dumps(
            {"run": "one", "saes": [{"setup": "bp", "seed": seed, "recovered_mean": 0.5 + seed / 4} for seed in (0, 1)]}
        )
    )
    settings = CompareConfig(("one", hostile), html=str(out), losses=(str(tmp_path / "loss.json"),))
    compare(settings, Console(file=io.StringIO(), width=80))
    return out


def test_the_page_is_one_safe_file(page_file: Path):
    text = page_file.read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert not any(word in text for word in ("http:", "https:", "src=", "@import", "url("))
    assert "default-src &#x27;none&#x27;" in text
    assert text.count('<section class="compare">') == 10


def test_latents_can_be_links(store: Store):
    rows = rows_of(store, "hook", 640)
    found = compared(sae_of(DECODERS[0]), sae_of(DECODERS[1]), rows)
    text = fragment(found, lambda side, latent: f"/{side}/{latent}?<&")
    twin = found.cosine.alike[0]
    assert f'<a href="/a/{twin.a}?&lt;&amp;">{twin.a}</a> ↔ <a href="/b/{twin.b}?&lt;&amp;">{twin.b}</a>' in text
    assert f'<a href="/b/{found.cosine.lone_b[0].latent}?&lt;&amp;">' in text
    assert "href" not in fragment(found)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with launched() as chromium:
        yield chromium


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(chromium: Chromium, page_file: Path, dark: bool):
    with chromium.tab(page_file, width=390, dark=dark) as page:
        # The page itself never scrolls sideways; wide tables do, by themselves.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        paper, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (sum(map(int, paper[4:-1].split(","))) < sum(map(int, ink[4:-1].split(",")))) == dark

        def column() -> list[str]:
            return page.locator("table.sortable tbody tr td:last-child").all_text_contents()

        head = page.get_by_role("button", name="loss recovered")
        head.click()
        assert column() == [".750", ".500", "–", "–", "–"]
        head.click()
        assert column() == [".500", ".750", "–", "–", "–"]
        assert page.locator("th[aria-sort=ascending]").count() == 1
        page.get_by_role("button", name="SAE").click()
        keys = page.locator("table.sortable tbody tr td:first-child").all_text_contents()
        assert [key[0] for key in keys][:3] == ["C", "B", "A"]
        # The plots: five SAEs by EVR, two by loss recovered.
        assert page.locator(".plots svg").count() == 2
        assert [page.locator(".plots svg").nth(i).locator("circle").count() for i in (0, 1)] == [5, 2]
        page.get_by_role("link", name="A–B").click()
        assert page.url.endswith("#pair-0")
