"""Splicing replaces the activation, the sums are what they say, and another model is not taken for the store's."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from tiny_lm import make_model, make_text
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from hsae import cli
from hsae.errors import UserError
from hsae.evaluate import EvaluateConfig, Evaluation, evaluate
from hsae.harvesting import HarvestConfig, harvest
from hsae.harvesting.text import BUNDLED as STORIES
from hsae.inspect.losses import show
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.record import Result, Row
from hsae.run import Run, RunWriter
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.splice import measure, padding
from hsae.store import Chunk, Store

HOOK = "blocks.2.hook_resid_pre"
HOOKS = (HOOK, "blocks.1.mlp.hook_post", "blocks.2.attn.hook_z", "blocks.3.hook_attn_out", "blocks.0.hook_resid_post")
WIDTH, CONTEXT = 16, 32


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a store of the first, packed, and one with a document a row and positions that do not count."""
    home = tmp_path_factory.mktemp("evaluate")
    make_model(home / "model")
    make_model(home / "other", intermediate_size=48)
    (home / "text.txt").write_text("<|endoftext|>".join(text[: 40 + 5 * i] for i, text in enumerate(make_text(24, 60))))
    common = {"model": str(home / "model"), "data": (str(home / "text.txt"),), "hooks": (HOOK,), "context": CONTEXT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(home / "cache"))
        for config in (
            HarvestConfig(**common, tokens=20 * CONTEXT, name="packed"),
            HarvestConfig(**common, tokens=20 * CONTEXT, name="bf16", dtype="bf16"),
            HarvestConfig(**common, tokens=20 * CONTEXT, name="documents", pack="documents", exclude_first=2),
        ):
            harvest(config, Console(quiet=True))
    return home


@pytest.fixture(scope="module")
def lm(home: Path) -> LM:
    return load_lm(str(home / "model"), device="cpu")


@pytest.fixture
def cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with the stores of `home`."""
    (tmp_path / "cache").mkdir()
    shutil.copytree(home / "cache" / "activations", tmp_path / "cache" / "activations")
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def identity() -> SAE:
    """x = relu(x) - relu(-x)."""
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    return SAE(both, torch.zeros(2 * WIDTH), both.clone(), torch.zeros(WIDTH), ReLU())


def zero() -> SAE:
    nothing = torch.zeros(2 * WIDTH, WIDTH)
    return SAE(nothing, torch.zeros(2 * WIDTH), nothing.clone(), torch.zeros(WIDTH), ReLU())


def make_run(store: Store, width: int = WIDTH, held_out: int = 6 * CONTEXT) -> Run:
    """A run of an identity SAE, one that gives zeros under two seeds, and one that diverged."""
    saes = {("same", 0): identity(), ("none", 0): zero(), ("none", 1): zero()}
    rows = [*(Row(setup, seed) for setup, seed in saes), Row("gone", 0, diverged="at step 3")]
    setups = {name: {"decoder": "backprop"} for name in ("same", "none", "gone")}
    writer = RunWriter(store.folder.parents[1] / "runs" / "run", {"held_out": held_out, "setup": setups})
    result = Result(
        version=1,
        store=store.name,
        store_fingerprint=store.manifest.fingerprint,
        model=store.manifest.model,
        hook=next(iter(store.manifest.hooks)),
        width=width,
        latents=2 * WIDTH,
        scale=1.0,
        folded=False,
        steps=5,
        tokens=100,
        held_out=held_out,
        dead_window=1000,
        rows=tuple(rows),
    )
    return writer.finish(saes, result)


def edit_manifest(store: Store, **changes: Any) -> Store:
    dataclasses.replace(store.manifest, **changes).write(store.folder)
    return Store(store.folder)


def tokens(sequences: int = 3, length: int = 20) -> Tensor:
    return torch.randint(1, 300, (sequences, length), generator=torch.Generator().manual_seed(1))


def chunk(ids: Tensor, keep: Tensor | None = None) -> Chunk:
    keep = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
    return Chunk(0, ids, torch.zeros(*ids.shape, WIDTH), keep)


def refused(**settings: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as caught:
        evaluate(EvaluateConfig(device="cpu", **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestReplacing:
    @pytest.mark.parametrize("hook", HOOKS)
    def test_the_value_that_is_returned_is_what_the_model_goes_on_with(self, lm: LM, hook: str):
        clean = lm.logits(tokens())
        assert torch.equal(lm.logits(tokens(), hook, torch.clone), clean)
        value = torch.randn(lm.widths((hook,))[hook], generator=torch.Generator().manual_seed(2))
        ours = lm.logits(tokens(), hook, lambda x: value.expand_as(x).clone())

        def theirs(x: Tensor, hook: Any) -> Tensor:
            return value.view(x.shape[2:]).expand_as(x).clone()

        with torch.inference_mode():
            torch.testing.assert_close(ours, lm.bridge.run_with_hooks(tokens(), fwd_hooks=[(hook, theirs)]))
        assert (ours - clean).abs().max() > 1e-3

    def test_what_stands_above_sees_the_replacement_alone(self, lm: LM):
        """Swapped with another sequence's activation, a residual stream carries that sequence's prediction."""
        ids = tokens(2)
        swapped = lm.logits(ids, "blocks.3.hook_resid_post", lambda x: x.flip(0))
        torch.testing.assert_close(swapped, lm.logits(ids).flip(0))

    def test_it_leaves_the_bridge_as_it_was(self, lm: LM):
        def fails(x: Tensor) -> Tensor:
            raise RuntimeError("inside")

        with pytest.raises(RuntimeError, match="inside"):
            lm.logits(tokens(), HOOK, fails)
        assert all(not point.fwd_hooks for point in lm.bridge.hook_dict.values())

    def test_hook_points_that_cannot_be_replaced(self, lm: LM):
        with pytest.raises(UserError, match="not the residual stream"):
            lm.logits(tokens(), "blocks.1.hook_resid_mid", torch.clone)
        with pytest.raises(UserError, match="fires 0 times"):
            lm.logits(tokens(), "blocks.1.attn.hook_result", torch.clone)
        with pytest.raises(UserError, match=r"no hook point 'blocks.9.hook_resid_pre'"):
            lm.logits(tokens(), "blocks.9.hook_resid_pre", torch.clone)


class TestSums:
    def test_against_pytorchs_own(self, lm: LM):
        ids = tokens()
        losses = measure(lm, HOOK, [chunk(ids)], {"half": lambda x: x / 2})
        clean, half = lm.logits(ids).double(), lm.logits(ids, HOOK, lambda x: x / 2).double()
        log_p, log_q = (logits[:, :-1].flatten(0, 1).log_softmax(-1) for logits in (clean, half))
        target = ids[:, 1:].flatten()
        assert losses.tokens == len(target)
        assert losses.spliced == ids.numel()
        assert losses.clean.kl == 0
        assert losses.clean.cross_entropy == pytest.approx(cross_entropy(log_p, target).item(), rel=1e-6)
        assert losses.replaced["half"].cross_entropy == pytest.approx(cross_entropy(log_q, target).item(), rel=1e-6)
        kl = kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()
        assert losses.replaced["half"].kl == pytest.approx(kl, rel=1e-4)

    def test_positions_that_do_not_count_keep_the_clean_activation(self, lm: LM):
        ids = tokens(1)
        keep = torch.zeros_like(ids, dtype=torch.bool)
        seen = []
        losses = measure(lm, HOOK, [chunk(ids, keep)], {"zero": torch.zeros_like})
        assert (losses.replaced["zero"], losses.spliced) == (losses.clean, 0)
        keep[0, 5] = True
        x = lm.tap(ids, (HOOK,))[HOOK]
        measure(lm, HOOK, [chunk(ids, keep)], {"look": lambda rows: seen.append(rows.clone()) or rows})
        assert torch.equal(seen[0], x[0, 5:6])
        changed = x.clone()
        changed[0, 5] = 0
        expected = cross_entropy(lm.logits(ids, HOOK, lambda _: changed)[0, :-1], ids[0, 1:]).item()
        loss = measure(lm, HOOK, [chunk(ids, keep)], {"zero": torch.zeros_like}).replaced["zero"]
        assert loss.cross_entropy == pytest.approx(expected, rel=1e-6)
        assert loss.kl > 0

    def test_targets_that_are_padding_do_not_count(self, lm: LM):
        ids, keep = tokens(2, 12), torch.ones(2, 12, dtype=torch.bool)
        ids[0, 8:], keep[0, 8:] = 0, False
        ids[1, 3], keep[1, 3] = 0, False  # no padding: something stands behind it
        padded = chunk(ids, keep)
        assert padding(padded, 0).nonzero().tolist() == [[0, 8], [0, 9], [0, 10], [0, 11]]
        assert not padding(padded, None).any()
        losses = measure(lm, HOOK, [padded], {}, pad=0)
        assert losses.tokens == 7 + 11
        parts = [measure(lm, HOOK, [chunk(row)], {}) for row in (ids[:1, :8], ids[1:])]
        mean = sum(part.clean.cross_entropy * part.tokens for part in parts) / 18
        assert losses.clean.cross_entropy == pytest.approx(mean, rel=1e-6)

    def test_the_bundled_models_loss_on_its_own_stories(self):
        lm = load_lm("bundled", device="cpu")
        text = "".join(pq.read_table(STORIES)["text"].to_pylist()[:3])
        ids = torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"][:256]).view(2, 128)
        with torch.inference_mode():
            logits = lm.bridge.original_model(ids).logits.double()
        expected = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
        found = measure(lm, HOOK, [chunk(ids)], {"same": torch.clone, "zero": torch.zeros_like})
        assert found.clean.cross_entropy == pytest.approx(expected, abs=1e-5)
        assert found.replaced["same"] == found.clean
        assert found.replaced["zero"].cross_entropy > expected + 1


@pytest.fixture
def found(cache: Path) -> Evaluation:
    make_run(Store.open("packed"))
    return evaluate(EvaluateConfig(tokens=5 * CONTEXT + 1, device="cpu"))


class TestEvaluate:
    def test_an_identity_recovers_all_and_zeros_nothing(self, found: Evaluation):
        same, none, _ = found.saes
        assert [(sae.setup, sae.seed) for sae in found.saes] == [("same", 0), ("none", 0), ("none", 1)]
        assert same.cross_entropy == pytest.approx(found.clean.cross_entropy, abs=1e-5)
        assert same.kl == pytest.approx(0, abs=1e-6)
        assert (same.recovered_zero, same.recovered_mean) == (pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))
        assert (same.l0, none.l0) == (WIDTH, 0)
        assert (none.cross_entropy, none.kl) == (found.zero.cross_entropy, found.zero.kl)
        assert none.recovered_zero == 0
        assert found.zero.kl > 0
        assert (found.sequences, found.tokens, found.spliced) == (6, 6 * (CONTEXT - 1), 6 * CONTEXT)
        assert found.notes == ("gone, seed 0, diverged at step 3",)

    def test_the_stores_last_sequences_are_taken(self, cache: Path, lm: LM, found: Evaluation):
        store = Store.open("packed")
        last = next(store.chunks(HOOK, 6, store.manifest.sequences - 6))
        mean = torch.tensor(store.manifest.hooks[HOOK].mean, dtype=torch.float32)
        losses = measure(lm, HOOK, [last], {"mean": lambda x: mean.expand_as(x)})
        assert found.clean.cross_entropy == pytest.approx(losses.clean.cross_entropy, rel=1e-6)
        assert found.mean.cross_entropy == pytest.approx(losses.replaced["mean"].cross_entropy, rel=1e-6)

    @pytest.mark.parametrize("batch", [1, 5, 100])
    def test_the_batch_changes_nothing(self, found: Evaluation, batch: int):
        other = evaluate(EvaluateConfig(tokens=6 * CONTEXT, device="cpu", batch=batch))
        for a, b in zip((found.clean, found.zero, found.mean), (other.clean, other.zero, other.mean), strict=True):
            assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), abs=1e-6)
        assert other.tokens == found.tokens

    def test_padding_and_excluded_positions(self, cache: Path):
        store = Store.open("documents")
        make_run(store)
        found = evaluate(EvaluateConfig(tokens=1_000_000, device="cpu"))
        excluded = store.manifest.hooks[HOOK].excluded
        assert excluded["padding"] > 0
        assert found.sequences == store.manifest.sequences
        assert found.spliced == store.manifest.hooks[HOOK].kept
        assert found.tokens == store.manifest.tokens - excluded["padding"] - found.sequences
        assert found.saes[0].kl == pytest.approx(0, abs=1e-6)

    def test_a_store_in_bf16_is_of_its_model(self, cache: Path):
        make_run(Store.open("bf16"))
        assert evaluate(EvaluateConfig(tokens=CONTEXT, device="cpu", setups=("same",))).saes[0].l0 == WIDTH

    def test_setups_and_seeds_that_are_named(self, found: Evaluation):
        some = evaluate(EvaluateConfig(tokens=CONTEXT, device="cpu", setups=("none",), seeds=(1,)))
        assert [(sae.setup, sae.seed) for sae in some.saes] == [("none", 1)]
        assert some.notes == ()

    def test_what_was_trained_on_is_said(self, found: Evaluation):
        note = evaluate(EvaluateConfig(tokens=8 * CONTEXT, device="cpu", setups=("same",))).notes
        assert note == (f"2 of the 8 sequences were trained on; --tokens {6 * CONTEXT} takes held-out ones only",)


class TestRefusals:
    def test_what_is_not_there(self, cache: Path):
        assert "no run in" in refused()
        make_run(Store.open("packed"))
        assert "no setup 'oops'" in refused(setups=("oops",))
        assert "no seed 7 of none" in refused(setups=("none",), seeds=(7,))
        assert "every SAE asked for diverged" in refused(setups=("gone",))
        shutil.rmtree(cache / "activations" / "packed")
        assert "trained on a store that cannot be opened: no store 'packed'" in refused()

    def test_the_model_is_gone_or_was_never_there(self, cache: Path, home: Path):
        store = Store.open("packed")
        edit_manifest(store, model={**store.manifest.model, "name": str(home / "moved")})
        make_run(store)
        assert "moved: nothing there; name its model with --model" in refused()
        found = evaluate(EvaluateConfig(device="cpu", tokens=CONTEXT, model=str(home / "model"), setups=("same",)))
        assert found.notes == ()
        edit_manifest(store, model={"fingerprint": "made up"})
        assert "names no language model" in refused()

    def test_another_model(self, cache: Path, home: Path, lm: LM):
        make_run(Store.open("packed"))
        other = str(home / "other")
        line = refused(model=other)
        assert load_lm(other, device="cpu").fingerprint in line
        assert lm.fingerprint in line
        assert f"at {HOOK} it differs by" in line

    def test_another_models_shape(self, cache: Path, home: Path, tmp_path: Path):
        make_run(Store.open("packed"))
        make_model(tmp_path / "wide", hidden_size=32)
        assert f"{HOOK} is 32 wide, 16 in the store" in refused(model=str(tmp_path / "wide"))
        make_model(tmp_path / "short", max_position_embeddings=16)
        assert "it takes 16 tokens at most" in refused(model=str(tmp_path / "short"))
        make_model(tmp_path / "shallow", num_layers=2)
        assert f"it has no hook point {HOOK}" in refused(model=str(tmp_path / "shallow"))

    def test_weights_that_differ_above_the_hook_are_said(self, cache: Path, tmp_path: Path):
        from safetensors.torch import load_file, save_file

        make_run(Store.open("packed"))
        path = make_model(tmp_path / "tuned") / "model.safetensors"
        weights = load_file(path)
        weights["transformer.h.3.mlp.c_fc.weight"] *= 2
        save_file(weights, path, {"format": "pt"})
        found = evaluate(EvaluateConfig(device="cpu", tokens=CONTEXT, model=str(tmp_path / "tuned"), setups=("same",)))
        assert [note for note in found.notes if "its weights are not the same" in note]

    def test_an_activation_that_leads_nowhere(self, cache: Path, monkeypatch: pytest.MonkeyPatch):
        make_run(Store.open("packed"))
        clean = LM.logits
        monkeypatch.setattr(LM, "logits", lambda self, ids, *_: clean(self, ids))
        assert "replacing the activation changes nothing" in refused(tokens=CONTEXT)

    @pytest.mark.parametrize("field", ["tokens", "batch"])
    def test_numbers_out_of_range(self, field: str):
        with pytest.raises(ValueError, match=f"{field} must be 1 or above, not 0"):
            EvaluateConfig(**{field: 0})


class TestFace:
    def test_the_table_fits_80_columns(self, found: Evaluation):
        hostile = dataclasses.replace(found, run="[bold]\x1b[31m", notes=("[red]look[/]",))
        big = dataclasses.replace(found.saes[0], setup="x" * 30, cross_entropy=float("nan"), recovered_zero=None)
        file = io.StringIO()
        show(dataclasses.replace(hostile, saes=(*found.saes, big)), Console(file=file, width=80))
        printed = file.getvalue()
        assert max(map(len, printed.splitlines())) <= 80
        assert "[bold]" in printed
        assert "note: [red]look[/]" in printed
        assert f"{found.clean.cross_entropy:.4f}" in printed
        assert "186 predictions, 192 positions spliced" in printed

    def test_json_is_one_document_and_nothing_else(self, found: Evaluation, capsys: pytest.CaptureFixture[str]):
        flags = ["--tokens", str(6 * CONTEXT), "--device", "cpu", "--json"]
        assert cli.run(["evaluate", *flags]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out) == json.loads(json.dumps(dataclasses.asdict(found)))
        assert printed.err == ""

    def test_values_that_json_does_not_have_become_null(self, found: Evaluation):
        file = io.StringIO()
        sae = dataclasses.replace(found.saes[0], kl=float("inf"))
        show(dataclasses.replace(found, saes=(sae,)), Console(file=file), as_json=True)
        assert json.loads(file.getvalue())["saes"][0]["kl"] is None

    def test_a_config_file_and_its_flags(
        self, found: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / "my.toml"
        path.write_text(f'[evaluate]\nsetups = ["none"]\ntokens = {CONTEXT}\ndevice = "cpu"\njson = true\n')
        assert cli.run(["evaluate", str(path), "--seeds", "1"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert ([sae["seed"] for sae in shown["saes"]], shown["sequences"]) == ([1], 1)
        monkeypatch.setattr(sys, "argv", ["hsae", "evaluate", "--setups", "oops"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
