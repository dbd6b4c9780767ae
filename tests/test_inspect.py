"""`hsae inspect` on a run and a store made by hand: what it shows, where it puts it, and what it refuses."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import agree
from rich.cells import cell_len
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from hsae.errors import UserError, visible
from hsae.evidence import open_index, open_subject
from hsae.evidence.draws import Windows
from hsae.figures import figure, fraction, percent, scientific, thousands
from hsae.inspect import InspectConfig, inspect
from hsae.inspect.ink import ORANGE, Ink, keyword_line
from hsae.inspect.terminal import run_table
from hsae.inspect.tokens import Pieces
from hsae.interpret.results import Explanation, Score
from hsae.plain import finite
from hsae.record import Result, Row
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.store import Store, StoreWriter

HOOK = "blocks.4.hook_resid_pre"
SHARED = Path(__file__).parents[2] / "shared"
SEQUENCES, CONTEXT, LATENTS = 40, 24, 6
HOSTILE = {
    "[bold]": 0,
    "[/]": 1,
    "<script>": 2,
    "a\u202eb": 3,
    "\x1b[31m": 4,
    "new\nline": 5,
    "x" * 100_000: 6,
    "漢字": 7,
}


def make_store(
    cache: Path,
    name: str = "store",
    words: list[str] | None = None,
    width: int = LATENTS,
    model: str = "m",
    hooks: tuple[str, ...] = (HOOK,),
) -> Store:
    """Latent j fires at position 2j + 3 of every sequence from j on, by 1 + sequence / 8; latent 5 never does."""
    x = torch.zeros(SEQUENCES, CONTEXT, width)
    for latent in range(5):
        for s in range(latent, SEQUENCES):
            x[s, 2 * latent + 3, latent] = 1 + s / 8
    words = words or [f"word{i}" for i in range(30)]
    tokens = (torch.arange(SEQUENCES)[:, None] * (len(words) > 8) + torch.arange(CONTEXT)) % len(words)
    keep = torch.ones(SEQUENCES, CONTEXT, dtype=torch.bool)
    keep[:, 0] = False
    writer = StoreWriter(cache / "activations" / name, {"test": name}, "fp32")
    for index, part in enumerate((slice(0, 16), slice(16, 32), slice(32, None))):
        values, kept = ({hook: tensor[part].clone() for hook in hooks} for tensor in (x, keep))
        writer.write(index, tokens[part], values, kept, {hook: {"first": len(tokens[part])} for hook in hooks})
    tables = {"model": {"fingerprint": model}, "tokenizer": {}, "text": {}, "harvest": {}}
    writer.finish(shard_sequences=16, context=CONTEXT, **tables)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)} | {"a": len(words)}, unk_token="a"))
    (writer.folder / "tokenizer").mkdir()
    tokenizer.save(str(writer.folder / "tokenizer" / "tokenizer.json"))
    return Store(writer.folder)


def make_run(cache: Path, store: Store, name: str = "run", latents: int = LATENTS) -> Run:
    """Setups bp and bp-tied of identity weights under seeds 0 and 1, and hebb-tied, which diverged."""

    def identity() -> SAE:
        return SAE(torch.eye(latents), torch.zeros(latents), torch.eye(latents), torch.zeros(latents), ReLU())

    saes = {(setup, seed): identity() for setup in ("bp", "bp-tied") for seed in (0, 1)}
    row = Row("bp", 0, 4.02e-5, 0.9294, 0.1, 0.95, 0.9311, 2.56e-3, 32.44, 612, 2588, tokens_per_second=123_456.0)
    nothing = dict.fromkeys(("mse", "evr", "evr_std", "evr_median", "evr_pooled", "l1", "l0", "dictionary", "dead"))
    rows = [replace(row, setup=setup, seed=seed) for setup in ("bp", "bp-tied") for seed in (0, 1)]
    rows.append(Row("hebb-tied", 0, **nothing, tokens_per_second=None, diverged="at step 12: MSE is [NaN]"))
    rows[1] = replace(rows[1], evr=-655.2, evr_pooled=-0.0402, mse=6.9e2)
    writer = RunWriter(
        cache / "runs" / name, {"setup": {n: {"decoder": "backprop"} for n in ("bp", "bp-tied", "hebb-tied")}}
    )
    return writer.finish(
        saes,
        Result(
            version=1,
            store=store.name,
            store_fingerprint=store.manifest.fingerprint,
            model={"fingerprint": "m"},
            hook=HOOK,
            width=latents,
            latents=latents,
            scale=1.0,
            folded=False,
            steps=5,
            tokens=100,
            held_out=16_384,
            dead_window=500_000,
            rows=tuple(rows),
        ),
    )


@pytest.fixture
def run(cache: Path) -> Run:
    """A store, and a run trained on it."""
    return make_run(cache, make_store(cache))


def shown(width: int = 80, colour: bool = False, **settings: Any) -> str:
    """What `hsae inspect` prints."""
    file = io.StringIO()
    system = "truecolor" if colour else None
    inspect(InspectConfig(**settings), Console(file=file, width=width, force_terminal=colour, color_system=system))
    return file.getvalue()


def error(**settings: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as caught:
        shown(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("run")
class TestOverview:
    def test_has_the_table_the_latents_and_the_dead(self) -> None:
        lines = shown().splitlines()
        text = "\n".join(lines)
        assert lines[0] == "run run"
        rows = [" ".join(line.split()) for line in lines]
        assert "920 of 960 tokens · no normalisation" in text
        assert "bp-tied ×2 4.0e-5 .929 .931 – 2.6e-3 32.4 612 2,588" in rows
        assert "bp ×2 3.5e2 -327 .445 – 2.6e-3 32.4 612 2,588" in rows
        # Half the interval of two values is 12.706 times half their distance: 12.706 · 0.4856 for the pooled EVR.
        assert "± 4.4e3 4.2e3 6.17 0.0e0 0.0 0 0" in rows
        assert "bp-tied ×2 .929 .100 .950 .931 – – –" in rows
        assert "hebb-tied 0 – – – – – – – –" in rows
        assert "hebb-tied, seed 0, diverged at step 12: MSE is [NaN]" in text
        assert "Over 16,384 held-out tokens" in text
        assert "(others: --setup bp-tied, hebb-tied; --seed 1)" in text
        assert "Dead: 1 of 6 latents never fire on this store: 5" in text
        assert lines[-1].startswith("next: hsae inspect --latent ")

    def test_pick_shows_the_first_of_the_most_selective(self) -> None:
        first = json.loads(shown(json=True))["most_selective"][0]["latent"]
        assert shown(pick=True) == shown(latent=str(first))

    def test_latents_are_ranked_and_show_their_strongest_contexts(self) -> None:
        document = json.loads(shown(json=True))
        assert [g["latent"] for g in document["most_active"]] == [0, 1, 2, 3, 4]
        assert document["most_active"][1]["rate"] == pytest.approx(39 / 920)
        first = document["most_active"][1]["contexts"][0]
        assert (first["sequence"], first["position"], first["activation"]) == (39, 5, 1 + 39 / 8)
        assert first["text"][first["peak"]].strip() == f"word{(39 + 5) % 30}"
        assert (document["dead_latents"], document["dead"]) == (1, [5])
        assert document["table"][0]["mse"] == 4.02e-5
        assert document["table"][4]["evr"] is None

    def test_an_index_is_kept_beside_the_run(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        first = shown()
        (file,) = (run.folder / "evidence").iterdir()
        assert re.fullmatch(r"bp-0-[0-9a-f]{12}\.safetensors", file.name)
        # From now on nothing is encoded.
        monkeypatch.setattr("hsae.evidence.build.build", lambda *_: pytest.fail("built again"))
        assert shown() == first
        assert json.loads(shown(latent="2", json=True))["firings"] == 38

    @pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"\xff" * 100, lambda data: b""])
    def test_a_damaged_index_is_made_anew(self, run: Run, damage: Callable[[bytes], bytes]) -> None:
        first = shown()
        (file,) = (run.folder / "evidence").iterdir()
        file.write_bytes(damage(file.read_bytes()))
        assert shown() == first

    def test_other_weights_have_another_index(self, cache: Path, run: Run) -> None:
        before = shown(latent="2")
        weights = run.folder / "sae.safetensors"
        tensors = load_file(weights)
        tensors["bp/0/W_enc"][2] *= 2
        save_file(tensors, weights)
        agree(run.folder)
        assert f"maximum {2 * (1 + 39 / 8):.1f}" in shown(latent="2")
        assert len(list((run.folder / "evidence").iterdir())) == 2
        assert "maximum 5.88" in before

    def test_an_index_of_another_sae_under_its_name_is_not_believed(self, run: Run) -> None:
        before = open_index(open_subject("run"))
        tensors = load_file(run.folder / "sae.safetensors")
        tensors["bp/0/W_enc"][2] *= 2
        save_file(tensors, run.folder / "sae.safetensors")
        agree(run.folder)
        subject = open_subject("run")
        before.path.rename(subject.index_path)
        assert open_index(subject).maximum[2] == 2 * before.maximum[2]

    def test_an_index_that_was_stopped_is_gone_on_with(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hsae.evidence.build.ROWS", 4 * CONTEXT)
        subject, passed, again = open_subject("run"), [], []

        def stop(positions: int) -> None:
            passed.append(positions)
            if sum(passed) >= 480:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            open_index(subject, advance=stop)
        assert [file.suffix for file in subject.index_path.parent.iterdir()] == [".partial"]
        index = open_index(subject, advance=again.append)
        assert (again[0], sum(again)) == (480, SEQUENCES * CONTEXT)
        assert index.latent(2).firings == 38
        assert list(subject.index_path.parent.iterdir()) == [subject.index_path]

    def test_an_index_that_was_stopped_in_the_middle_of_a_chunk_is_that_of_an_unbroken_pass(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hsae.evidence.build.ROWS", 4 * CONTEXT)
        monkeypatch.setattr("hsae.evidence.build.EVERY", 0.0)
        subject, add, left = open_subject("run"), Windows.add, [3]

        def stopped(self: Windows, *what: Any) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt  # what was gathered before the windows has this chunk, they have not
            add(self, *what)

        monkeypatch.setattr(Windows, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            open_index(subject)
        passed: list[int] = []
        index = open_index(subject, advance=passed.append)
        assert passed[0] == 2 * 4 * CONTEXT
        broken = index.path.read_bytes()
        index.path.unlink()
        assert open_index(subject).path.read_bytes() == broken

    def test_a_run_folder_that_cannot_be_written_to(self, run: Run) -> None:
        (run.folder / "evidence").write_text("a file where a folder is wanted")
        assert json.loads(shown(latent="2", json=True))["firings"] == 38

    def test_the_seed_and_setup_that_are_named(self) -> None:
        assert json.loads(shown(json=True, setup="bp-tied"))["head"]["setup"] == "bp-tied"
        head = json.loads(shown(json=True, setup="bp-tied", seed=1))["head"]
        assert (head["setup"], head["seed"], head["setups"]) == ("bp-tied", 1, ["bp", "bp-tied", "hebb-tied"])
        assert "next: hsae inspect --setup bp-tied --seed 1 --latent" in shown(setup="bp-tied", seed=1)

    def test_a_setup_that_diverged_still_has_its_table(self) -> None:
        text = shown(setup="hebb-tied")
        assert "hebb-tied, seed 0, diverged" in text
        assert text.endswith("hebb-tied, seed 0, diverged: it has no latents to show\n")


class TestLatent:
    def test_numbers_contexts_and_tokens(self, run: Run) -> None:
        document = json.loads(shown(json=True, latent="2"))
        strengths = [1 + s / 8 for s in range(2, 40)]
        assert (document["latent"], document["firings"], document["maximum"]) == (2, 38, 1 + 39 / 8)
        assert document["rate"] == pytest.approx(38 / 920)
        assert document["mean"] == pytest.approx(sum(strengths) / 38)
        assert sum(document["histogram"]["counts"]) == 38
        assert len(document["top"]) == 16
        assert [len(part) for part in document["samples"]] == [6] * 5
        for rank, context in enumerate(document["top"]):
            s = 39 - rank
            assert (context["sequence"], context["position"], context["activation"]) == (s, 7, 1 + s / 8)
        for context in (*document["top"], *itertools.chain(*document["samples"])):
            s = context["sequence"]
            assert context["text"][context["peak"]].strip() == f"word{(s + 7) % 30}"
            assert context["tokens"][context["peak"]] == (s + 7) % 30
            assert [i for i, a in enumerate(context["activations"]) if a] == [context["peak"]]
            assert len(context["tokens"]) == len(context["text"]) == len(context["activations"])
        use = document["tokens"][0]
        # The token of sequence 39 and of sequence 9, 30 before it: it fires on it at position 7 of both.
        assert (use["token"], use["text"].strip(), use["firings"]) == (16, "word16", 2)
        # Decoder rows are those of the identity, and every two latents fire at different positions.
        assert sorted((one["latent"], one["cosine"]) for one in document["near"]) == [(i, 0.0) for i in (0, 1, 3, 4, 5)]
        assert document["coactive"] == document["promoted"] == []
        assert document["logits"] == "store store names no language model"

    def test_peaks_stand_in_one_column(self, run: Run) -> None:
        lines = [line for line in shown(latent="0").splitlines() if "«" in line]
        assert len(lines) == 10 + 5 * 2
        assert len({line.index("«") for line in lines}) == 1
        for s, line in zip(range(39, 29, -1), lines[:10], strict=True):
            assert line.startswith(f"{1 + s / 8:7.2f}  ")
            assert f"« word{(s + 3) % 30}»" in line

    def test_contexts_as_many_as_asked_for(self, run: Run) -> None:
        assert sum("«" in line for line in shown(latent="0", contexts=3).splitlines()) == 3 + 10

    def test_several_in_their_order(self, run: Run) -> None:
        text = shown(latent="4,0-2")
        assert re.findall(r"^latent (\d) of 6", text, re.MULTILINE) == ["4", "0", "1", "2"]
        assert [one["latent"] for one in json.loads(shown(latent="4,0-2", json=True))] == [4, 0, 1, 2]
        assert text.count("─" * 80) == 3

    def test_an_explanation_that_there_is(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        score = Score(0.91, 0.8, 0.95, 9, 10, 19, 20)
        made = {0: Explanation(0, "[bold]fires on word3", detection=score)}
        monkeypatch.setattr("hsae.interpret.results.read_explanations", lambda subject: made)
        assert "[bold]fires on word3  (detection .910)" in shown(latent="0")
        assert "detection" not in shown(latent="1")
        assert json.loads(shown(latent="0", json=True))["explanation"]["text"] == "[bold]fires on word3"

    def test_colour_marks_the_peak_in_orange(self, run: Run) -> None:
        text = shown(latent="0", colour=True)
        assert "«" not in text
        assert "48;2;{};{};{}m".format(*ORANGE) in text

    def test_one_that_never_fires_says_so(self, run: Run) -> None:
        text = shown(latent="5")
        assert "never fires" in text
        assert "hsae inspect" in text
        assert json.loads(shown(latent="5", json=True))["top"] == []


@pytest.mark.parametrize("width", [80, 60, 200])
@pytest.mark.parametrize("latent", ["", "0", "5"])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_the_terminal(cache: Path, width: int, latent: str, colour: bool) -> None:
    make_run(cache, make_store(cache, "a-store-with-a-long-name-" * 4, words=list(HOSTILE)))
    text = shown(width=width, latent=latent, colour=colour)
    if colour:
        from rich.text import Text

        text = Text.from_ansi(text).plain
    assert max(cell_len(line) for line in text.splitlines()) <= width


def test_hostile_text_is_shown_as_text(cache: Path) -> None:
    make_run(cache, make_store(cache, words=list(HOSTILE)))
    text = "".join(shown(width=200, latent=str(latent)) for latent in range(5)) + shown(width=200)
    for wanted in ("[bold]", "[/]", "<script>", "a\\u202eb", "\\x1b[31m", "new⏎line", "漢字"):
        assert wanted in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    document = json.loads(shown(latent="0", json=True))
    assert {t.strip() for t in document["top"][0]["text"]} == set(HOSTILE)


def test_json_is_one_document_and_nothing_else(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for latent in ("", "1", "5", "0-5"):
        inspect(InspectConfig(json=True, latent=latent))
        json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_values_that_json_does_not_have_become_null() -> None:
    assert finite({"a": (1.5, float("nan")), "b": [float("inf"), None, "x", 3]}) == {
        "a": [1.5, None],
        "b": [None, None, "x", 3],
    }


class TestRefusals:
    def test_nothing_there(self, cache: Path) -> None:
        assert "make one with `hsae train`" in error()

    def test_no_such_run_setup_seed_or_latent(self, run: Run) -> None:
        assert error(run="rum") == f"no run 'rum' in {run.folder.parent}; there is run"
        assert error(setup="bq").startswith("run run has no setup 'bq'; there is bp, bp-tied, hebb-tied")
        assert error(seed=7) == "run run has no seed 7 of bp; there is 0, 1"
        assert error(latent="6") == "latent 6 is not in 0…5"
        for wrong in ("-1", "1,x", "5-2", "1;2", "0-999999999"):
            with pytest.raises(ValueError, match="latent must be numbers and ranges such as 27,30-40"):
                InspectConfig(latent=wrong)
        assert "diverged" in error(setup="hebb-tied", latent="0")

    def test_another_store(self, cache: Path, run: Run) -> None:
        assert error(on="nowhere").startswith("no store 'nowhere' in")
        make_store(cache, "wide", width=LATENTS + 1)
        assert error(on="wide") == f"store wide: {HOOK} is 7 wide, run run has SAEs for 6"
        assert error(on="wide", latent="0") == f"store wide: {HOOK} is 7 wide, run run has SAEs for 6"
        assert error(hook="blocks.5").startswith("store store has no hook point 'blocks.5'; there is blocks.4")

    def test_the_store_trained_on_is_gone(self, cache: Path, run: Run) -> None:
        (cache / "activations" / "store").rename(cache / "activations" / "moved")
        assert error().endswith("--on names another")
        assert "Most active" in shown(on="moved")

    def test_contexts_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="contexts must be 1 or above"):
            InspectConfig(contexts=0)


class TestWarnings:
    def test_a_store_of_another_model(self, cache: Path, run: Run) -> None:
        make_store(cache, "other", model="another")
        assert "WARNING: store other is of another model" in shown(on="other")
        assert "WARNING: store other is of another model" in shown(on="other", latent="0")
        assert "WARNING" not in shown()

    def test_a_store_made_anew(self, cache: Path, run: Run) -> None:
        (cache / "activations" / "store").rename(cache / "activations" / "old")
        make_store(cache, words=["x", "y"])
        assert "WARNING" not in shown(on="old")
        folder = cache / "activations" / "store"
        whole = Store(folder).manifest
        shards = whole.shards[:2]
        hooks = {h: replace(r, kept=sum(s.kept[h] for s in shards), excluded={}) for h, r in whole.hooks.items()}
        replace(whole, shards=shards, hooks=hooks, sequences=32).write(folder)
        assert "WARNING: store store has been made anew" in shown(latent="0")

    def test_another_hook_point(self, cache: Path, run: Run) -> None:
        make_store(cache, "two", hooks=("blocks.5.hook_resid_pre", HOOK))
        assert "WARNING" not in shown(on="two", latent="0")
        assert f"· {HOOK} ·" in shown(on="two", latent="0")
        assert "blocks.5.hook_resid_pre is not the hook point" in shown(on="two", hook="blocks.5.hook_resid_pre")


class TestPieces:
    def test_bytes_of_one_character_go_to_the_token_that_completes_it(self) -> None:
        alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        text = " naïve 🙂 x"
        ids = tokenizer.encode(text).ids
        pieces = Pieces(tokenizer)(ids)
        assert len(pieces) == len(ids) == len(text.encode())
        assert "".join(pieces) == text
        assert pieces[3:5] == ("", "ï")
        assert pieces[8:12] == ("", "", "", "🙂")
        # A window may start or end inside a character; every token keeps a piece of its own place.
        assert Pieces(tokenizer)(ids[9:13])[-1] == " "
        assert len(Pieces(tokenizer)(ids[:10])) == 10
        assert Pieces(tokenizer).one(ids[0]) == " "
        assert Pieces(tokenizer).one(ids[8]) == f"⟨{ids[8]}⟩"
        transformers = pytest.importorskip("transformers")
        wrapped = Pieces(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer))
        assert wrapped(ids) == pieces

    @pytest.mark.skipif(not (SHARED / "data" / "stories260K").is_dir(), reason="needs the tokeniser of ../shared/data")
    def test_sentencepiece_keeps_the_leading_space(self) -> None:
        tokenizer = Tokenizer.from_file(str(SHARED / "data" / "stories260K" / "tokenizer.json"))
        ids = tokenizer.encode("Once upon a time, Zoë said: “hi”\nThe end", add_special_tokens=False).ids
        pieces = Pieces(tokenizer)(ids)
        assert "".join(pieces) == " Once upon a time, Zoë said: “hi”\nThe end"
        whole = dict(zip(ids, pieces, strict=True))
        the, a = tokenizer.encode("the a", add_special_tokens=False).ids
        assert Pieces(tokenizer)([the, the]) == (" the", " the")
        assert Pieces(tokenizer).one(the) == " the"
        assert whole[a] == " a"
        assert Pieces(tokenizer)([1, the]) == ("<s>", " the")

    def test_without_a_tokenizer_and_beyond_its_vocabulary(self) -> None:
        assert Pieces(None)([3, 70]) == ("⟨3⟩", "⟨70⟩")
        assert Pieces(None).one(5) == "⟨5⟩"
        tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
        assert [p.strip() for p in Pieces(tokenizer)([1, 9, 1])] == ["b", "⟨9⟩", "b"]

    def test_visible(self) -> None:
        assert visible("plain ü 漢") == "plain ü 漢"
        assert visible("a\nb\tc\x00\u2028\u200b") == "a⏎b\\tc\\x00\\u2028\\u200b"


class TestKeywordLine:
    """A context on one line: the peak at a fixed column, cropped to so many cells on either side."""

    def line(self, text: list[str], peak: int, before: int, after: int, colour: bool = False) -> str:
        strengths = [float(i == peak) for i in range(len(text))]
        return keyword_line(text, strengths, peak, before, after, Ink(colour)).plain

    def test_is_cropped_on_both_sides(self) -> None:
        text = ["The ", "quick ", "brown ", "fox ", "jumps"]
        assert self.line(text, 2, 7, 9, colour=True) == " quick brown fox"
        assert self.line(text, 2, 7, 9) == "quick «brown »fo"
        assert self.line(text, 0, 6, 6, colour=True) == "      The qu"
        assert self.line(text, 4, 4, 20, colour=True) == "fox jumps"

    def test_marks_keep_the_column_and_survive_the_crop(self) -> None:
        assert self.line(["ab", "cd", "ef"], 1, 6, 6) == "   ab«cd»ef"
        assert self.line(["ab", "cdefghij", "k"], 1, 6, 5) == "   ab«cdef»"

    def test_wide_characters_count_as_two_cells(self) -> None:
        assert self.line(["漢字漢", "字", "漢字"], 1, 5, 5, colour=True).rstrip() == " 字漢字漢"

    def test_an_empty_peak_marks_the_character_it_is_part_of(self) -> None:
        assert self.line(["ab", "", "é", "x"], 1, 4, 6) == " ab«é»x"

    def test_every_token_has_its_own_strength(self) -> None:
        ink = Ink(colour=True)
        line = keyword_line(["ab", "cd", "ef", "gh", "ij"], [0.2, 0.0, 1.0, 0.0, 0.6], 2, 8, 8, ink)
        styled = {line.plain[span.start : span.end]: span.style for span in line.spans if span.style != ink.style(0.0)}
        assert styled == {"ab": ink.style(0.2), "ef": ink.style(1.0), "ij": ink.style(0.6)}

    def test_opacity_follows_strength(self) -> None:
        ink = Ink(colour=True)
        full, half, none = ink.style(1.0), ink.style(0.5), ink.style(0.0)
        assert full.bgcolor is not None
        assert half.bgcolor is not None
        assert none.bgcolor is None
        assert full.bgcolor.triplet == ORANGE
        assert half.bgcolor.triplet is not None
        assert 0 < half.bgcolor.triplet[0] < ORANGE[0]
        light = Ink(colour=True, light=True).style(0.01).bgcolor
        assert light is not None
        assert light.triplet is not None
        assert min(light.triplet) > 200


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (scientific(4.02e-5), "4.0e-5"),
        (scientific(690.0), "6.9e2"),
        (scientific(None), "–"),
        (fraction(0.9294), ".929"),
        (fraction(-0.52), "-.520"),
        (fraction(-13.24), "-13.2"),
        (fraction(0.9999), "1"),
        (thousands(8_846.4), "8,846"),
        (thousands(123_456.0), "123k"),
        (percent(0.97249), "97.2%"),
        (percent(0.0969), "9.69%"),
        (percent(0.00012), "0.012%"),
        (percent(3e-6), "<.001%"),
        (percent(0.0), "0%"),
        (percent(1.0), "100%"),
        (figure(0.15), "0.150"),
        (figure(123.4), "123"),
        (figure(2.5e-5), "2.5e-5"),
    ],
)
def test_figures(shown: str, wanted: str) -> None:
    assert shown == wanted


def test_run_table_fits_eighty_columns(run: Run) -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(run_table(run))
    lines = file.getvalue().splitlines()
    assert "…" not in file.getvalue()
    assert max(map(len, lines)) <= 80


def test_no_language_model_is_imported_and_where_the_index_stands_no_pytorch(run: Run) -> None:
    look = "i.inspect(i.InspectConfig(latent='0')); i.inspect(i.InspectConfig());"
    for unwanted in ({"transformer_lens", "transformers", "datasets"}, {"torch"}):
        code = (
            "import sys, hsae.inspect as i; assert 'torch' not in sys.modules and 'rich' not in sys.modules;"
            f"{look} assert not {unwanted} & set(sys.modules), set(sys.modules) & {unwanted}"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
