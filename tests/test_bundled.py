"""The main path on what the package carries: harvest, train, inspect on the bundled model and its stories, offline."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from hsae.cli import run
from hsae.harvesting.text import BUNDLED as STORIES
from hsae.loading import BUNDLED, load_lm
from hsae.run import Run
from hsae.store import Store

ASSETS = BUNDLED.parent
HOOK = "blocks.4.hook_resid_pre"


def test_the_bundle_is_small_and_holds_a_million_tokens():
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) < 8_000_000
    tokenizer = load_lm("bundled").tokenizer
    texts = pq.read_table(STORIES)["text"].to_pylist()
    assert sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) > 1_000_000
    assert len(set(texts)) == len(texts)


def test_the_bundled_model_has_the_layout_of_tinystories_1m():
    bridge = load_lm("bundled").bridge
    assert bridge.cfg.architecture == "GPTNeoForCausalLM"
    config = bridge.original_model.config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.window_size) == (8, 64, 16, 256)
    assert config.attention_layers == ["global", "local"] * 4
    assert config.max_position_embeddings == 512


def test_the_bundled_model_has_learnt_its_language():
    """A model of random weights has ln 4096 = 8.3 nats a token, in any order of the words."""
    lm = load_lm("bundled")
    story = pq.read_table(STORIES)["text"][0].as_py()
    ids = torch.tensor([lm.tokenizer(story, add_special_tokens=False)["input_ids"]])[:, :200]
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        own, other = (lm.bridge(tokens, return_type="loss").item() for tokens in (ids, shuffled))
    assert own < 3
    assert other > own + 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the three verbs have been at work, by the command line."""
    home = tmp_path_factory.mktemp("bundled") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(home))
        assert run(["harvest", "--model", "bundled", "--data", "bundled", "--tokens", "30_000", "--name", "b"]) == 0
        sizes = ["--latents", "256", "--batch-tokens", "1024", "--held-out", "4096", "--epochs", "4"]
        assert run(["train", *sizes, "--normalise.mode", "variance", "--init-std", "0.25", "--name", "b"]) == 0
    return home


def test_activations_are_the_models_own(home: Path):
    store, lm = Store(home / "activations" / "b"), load_lm("bundled")
    chunk = next(store.chunks(HOOK, 2, first=5))
    with torch.inference_mode():
        _, cache = lm.bridge.run_with_cache(chunk.tokens.long(), names_filter=HOOK)
    torch.testing.assert_close(chunk.activations, cache[HOOK], rtol=1e-5, atol=1e-5 * cache[HOOK].abs().max().item())


def test_the_four_setups_are_trained_and_share_what_they_must(home: Path):
    rows = {row.setup: row for row in Run(home / "runs" / "b").result.rows}
    assert list(rows) == ["bp", "bp-tied", "bp-dec", "hebb-tied"]
    assert rows["bp"].evr_pooled is not None
    assert rows["bp"].evr_pooled > 0.2
    assert (rows["bp-dec"].l0, rows["bp-dec"].dictionary) == (rows["hebb-tied"].l0, rows["hebb-tied"].dictionary)


def test_contexts_are_text_that_the_model_read(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HSAE_CACHE", str(home))
    capsys.readouterr()
    assert run(["inspect", "--run", "b", "--setup", "bp", "--pick", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    stories = "<|endoftext|>".join(pq.read_table(STORIES)["text"].to_pylist())
    sae, store = Run(home / "runs" / "b").sae("bp"), Store(home / "activations" / "b")
    assert len(shown["top"]) == 16
    for context in (*shown["top"], *itertools.chain(*shown["samples"])):
        assert "".join(context["text"]) in stories
        x = next(store.chunks(HOOK, 1, first=context["sequence"])).activations[0, context["position"]]
        assert sae.encode(x)[shown["latent"]].item() == pytest.approx(context["activation"], rel=1e-3)


def test_the_library_example_of_the_readme_runs(tmp_path: Path):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0]
    assert "tokens=100_000" in code
    small = code.replace("tokens=100_000", "tokens=30_000")
    environment = {"HSAE_CACHE": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", small], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "30,208 tokens" in done.stdout
    assert "tensor(" in done.stdout.splitlines()[-1]
