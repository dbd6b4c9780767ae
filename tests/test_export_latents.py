"""`hsae export --to delphi` and `--to neuronpedia`: what the files say of the latents, counted here from the codes."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from shared_runs import HOOK, make_run, make_store
from torch import Tensor

from hsae.errors import UserError
from hsae.evidence.entries import Encoder, Entries
from hsae.evidence.latent import Histogram
from hsae.export import ExportConfig, export
from hsae.export._dashboard import Facts, above, features
from hsae.run import Run
from hsae.store import Store
from hsae.unembedding import Unembedding

SCALE = 0.4


def codes(run: Run, store: Store, setup: str = "relu") -> tuple[Tensor, Tensor]:
    """The code of every position, 0 where it does not count, in the units of the activations; and the tokens."""
    chunk = next(store.chunks(store.hook()[0], store.manifest.sequences))
    chunks = list(store.chunks(store.hook()[0], 5))
    x, keep = (torch.cat([getattr(c, name) for c in chunks]) for name in ("activations", "keep"))
    assert len(chunk.tokens) <= len(x)
    return run.sae(setup).encode(x) / SCALE * keep[..., None], torch.cat([c.tokens for c in chunks])


def delphi_cache(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, int], dict[str, np.ndarray]]]:
    """The whole cache, dense, as delphi's reader puts it together: activations, tokens, and the files."""
    files = {(int(a), int(b)): load_file(p) for p in folder.glob("*.safetensors") for a, b in [p.stem.split("_")]}
    tokens = next(iter(files.values()))["tokens"]
    code = np.zeros((*tokens.shape, max(last for _, last in files) + 1), np.float32)
    for (first, last), file in files.items():
        where = file["locations"].astype(np.int64)
        assert where[:, 2].max(initial=0) <= last - first
        code[where[:, 0], where[:, 1], where[:, 2] + first] = file["activations"].astype(np.float32)
        assert np.array_equal(file["tokens"], tokens)
    return code, tokens, files


@pytest.mark.parametrize("rows", [5, 2048])
def test_delphi_has_every_firing(cache: Path, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hsae.export.delphi.ROWS", rows)
    store = make_store()
    run = make_run(scale=SCALE, store=store)
    export(ExportConfig("made", "delphi", "relu", out=str(tmp_path / "out"), splits=3))
    code, tokens, files = delphi_cache(tmp_path / "out" / "latents" / "layers.3")
    ours, there = codes(run, store)
    assert np.array_equal(tokens, there.numpy())
    assert tokens.dtype == np.int64
    assert sorted(files) == [(0, 1), (2, 4), (5, 7)]  # what linspace(0, 8, 4) cuts
    kept = torch.where(ours > 1e-5, ours, 0).half().float().numpy()
    np.testing.assert_allclose(code, kept, rtol=1e-3, atol=0)
    assert (code[:, 0] == 0).all(), "the first position does not count"
    for (first, last), file in files.items():
        assert (file["locations"].dtype, file["activations"].dtype) == (np.uint16, np.float16)
        assert len(file["activations"]) == np.count_nonzero(kept[..., first : last + 1])
        order = file["locations"].astype(np.int64) @ np.array([10_000, 100, 1])
        assert (np.diff(order) > 0).all(), "by sequence, position and latent, as delphi has them"
    assert sorted(p.name for p in (tmp_path / "out" / "latents" / "layers.3").iterdir()) == [
        *(f"{a}_{b}.safetensors" for a, b in sorted(files)),
        "config.json",
    ]


def test_delphi_reads_entries_in_whatever_order_threads_left_them(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Backwards(Encoder):
        """The last row's entries come first in memory."""

        def __call__(self, x: Tensor) -> Entries:
            e = super().__call__(x)
            order = torch.arange(len(x) - 1, -1, -1)
            _, at = e.of_rows(order)
            start = torch.zeros_like(e.start)
            start[order] = (e.count[order].cumsum(0) - e.count[order]).to(start.dtype)
            return replace(e, start=start, latent=e.latent[at], code=e.code[at])

    monkeypatch.setattr("hsae.export.delphi.Encoder", Backwards)
    store = make_store()
    run = make_run(scale=SCALE, store=store)
    export(ExportConfig("made", "delphi", "relu", out=str(tmp_path / "out"), splits=3))
    code, _, _ = delphi_cache(tmp_path / "out" / "latents" / "layers.3")
    ours = codes(run, store)[0]
    np.testing.assert_allclose(code, torch.where(ours > 1e-5, ours, 0).half().float().numpy(), rtol=1e-3, atol=0)


def test_delphi_says_what_its_cache_is_from(cache: Path, tmp_path: Path):
    make_run(scale=SCALE, store=make_store())
    export(ExportConfig("made", "delphi", "topk", out=str(tmp_path / "out"), tokens=20, splits=1))
    config = json.loads((tmp_path / "out" / "latents" / "layers.3" / "config.json").read_text())
    assert (config["cache_ctx_len"], config["n_tokens"], config["n_splits"]) == (16, 32, 1), "whole sequences"
    assert (config["model_name"], config["dataset_repo"]) == ("owner/tiny", "owner/stories, more.txt")
    code, tokens, _ = delphi_cache(tmp_path / "out" / "latents" / "layers.3")
    assert tokens.shape == (2, 16)
    assert ((code > 0).sum(-1) <= 3).all()


def test_delphi_takes_wide_numbers_where_it_must(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hsae.export import delphi

    run = make_run(scale=SCALE, store=(store := make_store()))
    original = delphi._Split.__init__
    monkeypatch.setattr(delphi._Split, "__init__", lambda self, home, a, b, small: original(self, home, a, b, False))
    export(ExportConfig("made", "delphi", "relu", out=str(tmp_path / "out"), splits=2))
    code, _, files = delphi_cache(tmp_path / "out" / "latents" / "layers.3")
    assert {file["locations"].dtype for file in files.values()} == {np.dtype(np.uint32)}
    assert np.count_nonzero(code) == int((codes(run, store)[0] > 1e-5).sum())


def test_delphi_refuses_what_float16_does_not_hold(cache: Path, tmp_path: Path):
    make_run(scale=1e-6, store=make_store())
    with pytest.raises(UserError, match=r"latent \d: an activation above 65,504"):
        export(ExportConfig("made", "delphi", "relu", out=str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.fixture
def dashboards(cache: Path, tmp_path: Path) -> tuple[Run, Store, Path]:
    store = make_store()
    run = make_run(scale=SCALE, store=store)
    return run, store, export(ExportConfig("made", "neuronpedia", "relu", out=str(tmp_path / "out")))


def read(folder: Path) -> list[dict[str, Any]]:
    batch = json.loads((folder / "dashboards" / "batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", 4, "res-made-relu-0")
    return batch["features"]


def test_neuronpedia_features(dashboards: tuple[Run, Store, Path]):
    run, store, folder = dashboards
    code, tokens = codes(run, store)
    found = read(folder)
    kept = 24 * 15
    for feature in found:
        mine = code[..., feature["feature_index"]]
        assert feature["frac_nonzero"] == pytest.approx(float((mine > 0).sum()) / kept, abs=1e-5)
        assert sum(feature["freq_hist_data_bar_heights"]) == int((mine > 0).sum())
        assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"]) == (24, 16)
        top = [a for a in feature["activations"] if a["bin_contains"] == -1]
        assert all(a["bin_min"] == -1 and a["bin_max"] == pytest.approx(float(mine.max()), abs=1e-3) for a in top)
        peaks = mine.amax(1)
        best = sorted(peaks[peaks > 0].tolist(), reverse=True)[:16]
        assert [a["values"][a["qualifying_token_index"]] for a in top] == pytest.approx(best, abs=1e-3)
        assert len(top) == len(best)
        first = int(peaks.argmax())
        assert top[0]["tokens"] == [f"⟨{token}⟩" for token in tokens[first].tolist()]
        assert top[0]["values"] == pytest.approx(mine[first].tolist(), abs=1e-3)
        direction = run.sae("relu").W_dec[feature["feature_index"]]
        assert feature["neuron_alignment_indices"] == direction.topk(3).indices.tolist()
        share = direction.topk(3).values.abs() / direction.abs().sum()
        assert feature["neuron_alignment_l1"] == pytest.approx(share.tolist(), abs=1e-3)
    assert len(found) >= 6


def test_neuronpedia_intervals(dashboards: tuple[Run, Store, Path]):
    run, store, folder = dashboards
    code, _ = codes(run, store)
    for feature in read(folder):
        mine = code[..., feature["feature_index"]]
        groups: dict[tuple[float, float], set[float]] = {}
        for activation in feature["activations"]:
            if activation["bin_contains"] >= 0:
                low, high = activation["bin_min"], activation["bin_max"]
                groups.setdefault((low, high), set()).add(activation["bin_contains"])
                assert low - 1e-3 <= activation["values"][activation["qualifying_token_index"]] <= high + 1e-3
        assert len(groups) >= 2
        width = float(mine.max()) / 5
        for (low, high), (share,) in groups.items():
            assert high - low == pytest.approx(width, abs=2e-3)
            true = float(((mine > low) & (mine <= high)).sum() + (low == 0) * (24 * 15 - (mine > 0).sum())) / (24 * 15)
            assert share == pytest.approx(true, abs=0.03), "bins of the histogram are taken for even"


def test_above_a_level():
    histogram = Histogram(0.5, (4, 2, 6))
    assert [above(histogram, level) for level in (0.0, 0.5, 1.0, 1.5, 9.0)] == [12, 8, 6, 0, 0]
    assert above(histogram, 0.25) == 10
    assert above(Histogram(0.0, ()), 0.0) == 0


def test_neuronpedia_coactive_latents(dashboards: tuple[Run, Store, Path]):
    run, store, folder = dashboards
    code, _ = codes(run, store)
    on = (code.flatten(0, 1) > 0).double()
    on = on[torch.cat([c.keep for c in store.chunks(HOOK, 24)]).flatten()]
    phi = torch.corrcoef(on.T)
    cosine = (on.T @ on) / on.norm(dim=0)[:, None] / on.norm(dim=0)
    for feature in read(folder):
        i = feature["feature_index"]
        assert feature["correlated_features_indices"]
        for j, p, c in zip(
            *(feature[f"correlated_features_{name}"] for name in ("indices", "pearson", "l1")), strict=True
        ):
            assert p == pytest.approx(float(phi[i, j]), abs=1e-3)
            assert c == pytest.approx(float(cosine[i, j]), abs=1e-3)


def test_neuronpedia_tables_for_an_upload(dashboards: tuple[Run, Store, Path], monkeypatch: pytest.MonkeyPatch):
    _, _, folder = dashboards
    place = folder / "upload" / "tiny" / "4-res-made-relu-0"
    rows = {p.stem: json.loads(p.read_text()) for p in place.glob("*.jsonl")}
    assert set(rows) == {"release", "model", "sourceset", "source"}
    assert rows["source"]["id"] == "4-res-made-relu-0"
    assert rows["source"]["setName"] == rows["sourceset"]["name"] == rows["release"]["name"] == "res-made-relu-0"
    assert rows["sourceset"]["releaseName"] == rows["release"]["name"]
    assert {row["modelId"] for row in (rows["source"], rows["sourceset"])} == {rows["model"]["id"]} == {"tiny"}
    stage_one = read(folder)
    lines = {
        name: [
            json.loads(line) for line in gzip.decompress((place / name / "batch-0.jsonl.gz").read_bytes()).splitlines()
        ]
        for name in ("features", "activations")
    }
    assert [row["index"] for row in lines["features"]] == [str(f["feature_index"]) for f in stage_one]
    for feature, row in zip(stage_one, lines["features"], strict=True):
        mine = [a for a in lines["activations"] if a["index"] == row["index"]]
        assert [a["tokens"] for a in mine] == [a["tokens"] for a in feature["activations"]]
        assert row["maxActApprox"] == max(a["maxValue"] for a in mine)
        assert row["layer"] == mine[0]["layer"] == rows["source"]["id"]
        assert row["hookName"] == HOOK
        assert all(a["values"][a["maxValueTokenIndex"]] == a["maxValue"] for a in mine)
    ids = [row["id"] for row in lines["activations"]]
    assert len(set(ids)) == len(ids)
    assert {len(name) for name in ids} == {25}


def test_dead_latents_are_skipped(cache: Path, tmp_path: Path):
    store, made = make_store(), make_run(scale=SCALE, setups=["relu"]).sae("relu")
    dead = replace(made, b_enc=made.b_enc.index_fill(0, torch.tensor([2, 5]), -1e3))
    make_run("dying", ["relu"], scale=SCALE, store=store, saes={"relu": dead})
    folder = export(ExportConfig("dying", "neuronpedia", out=str(tmp_path / "out"))) / "dashboards"
    assert json.loads((folder / "skipped_indexes.json").read_text())["skipped_indexes"] == [2, 5]
    batch = json.loads((folder / "batch-0.json").read_text())
    assert [f["feature_index"] for f in batch["features"]] == [0, 1, 3, 4, 6, 7]
    make_run("dead", ["relu"], scale=SCALE, store=store, saes={"relu": replace(made, b_enc=made.b_enc - 1e3)})
    with pytest.raises(UserError, match="no latent of relu fires on store shared"):
        export(ExportConfig("dead", "neuronpedia", out=str(tmp_path / "none")))


def test_the_logit_lens(cache: Path, tmp_path: Path):
    """With an unembedding: all logits of unit directions go into the histogram, and their ends into the table."""
    from hsae.evidence import open_index, open_subject
    from hsae.inspect.tokens import Pieces

    run = make_run(scale=SCALE, store=make_store())
    index = open_index(open_subject("made", "relu"))
    W = torch.randn(60, 5, generator=torch.Generator().manual_seed(5))
    sae = run.sae("relu").folded()
    facts = Facts(sae, index, Pieces(None), 1 / SCALE, Unembedding(W, centred=False), 24, 16, "")
    (feature,) = features(facts, [3])
    logits = W @ (sae.W_dec[3] / sae.W_dec[3].norm())
    logits = logits - logits.mean()
    assert sum(feature["logits_hist_data_bar_heights"]) == 60
    bars = feature["logits_hist_data_bar_values"]
    width = float(logits.max() - logits.min()) / 50
    assert bars[0] == pytest.approx(float(logits.min()) + width / 2, abs=2e-3)
    assert bars[-1] == pytest.approx(float(logits.max()) - width / 2, abs=2e-3)
    assert (
        features(Facts(sae, index, Pieces(None), 1.0, None, 24, 16, ""), [3])[0]["logits_hist_data_bar_heights"] == []
    )
