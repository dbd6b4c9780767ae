"""`hsae import`: SAEs in other tools' formats, made here as they write them, become runs that compute the same."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from shared_runs import HOOK, SETUPS, make_run, make_store
from torch import Tensor

import hsae
from hsae import cli, registry
from hsae.errors import UserError
from hsae.export import ExportConfig, export
from hsae.importing import ImportConfig, import_sae
from hsae.inspect import InspectConfig, inspect
from hsae.record import CONFIG, RESULT
from hsae.rules.backprop import Backprop
from hsae.run import Run
from hsae.sae import SAE
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.matryoshka import Matryoshka
from hsae.setup import Setup
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

WIDTH, LATENTS = 5, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 97 * len(shape) + sum(shape)))


def activations() -> Tensor:
    return draw(200, WIDTH, seed=1) * 2


def bring(folder: Path, name: str = "in", **more: Any) -> Run:
    """Import without measuring."""
    return import_sae(ImportConfig(str(folder), name, measure=False, **more))


def agree(sae: SAE, x: Tensor, code: Tensor, reconstruction: Tensor) -> None:
    assert (code > 0).any(0).sum() >= 6, "too few latents fire for this to show anything"
    torch.testing.assert_close(sae.encode(x), code, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(sae(x), reconstruction, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("to", ["saelens", "sparsify", "dictionary-learning", "safetensors"])
def test_what_we_export_comes_back_as_it_was(cache: Path, tmp_path: Path, to: str):
    x = activations()
    for setup in ("topk",) if to == "sparsify" else SETUPS:
        run = make_run(setup, [setup], scale=0.4)
        export(ExportConfig(setup, to, out=str(tmp_path / setup)))
        back, sae = bring(tmp_path / setup, f"{setup}-back"), run.sae()
        mine = back.sae()
        agree(mine, x, sae.encode(x) / 0.4, sae(x))
        assert back.setups == run.setups, "the provenance beside it says how it was trained"
        row = back.result.rows[0]
        assert (row.setup, row.seed, row.evr, row.l0) == (setup, 0, None, None), "its table is measured, not believed"
        folder = "layers.3" if to == "sparsify" else setup
        assert back.result.origin.startswith(f"imported from {folder}, made by hsae {hsae.__version__}")
        assert back.result.hook == HOOK
        assert back.result.model["fingerprint"] == "test"
        assert (mine.W_dec is mine.W_enc) == (setup == "tied")


def test_thresholds_survive_to_the_last_bit(cache: Path, tmp_path: Path):
    for setup in ("batchtopk", "matryoshka"):
        run = make_run(setup, [setup])
        for to in ("saelens", "dictionary-learning", "safetensors"):
            export(ExportConfig(setup, to, out=str(tmp_path / f"{setup}-{to}")))
            back = bring(tmp_path / f"{setup}-{to}", f"{setup}-{to}").sae()
            assert torch.equal(back.parameters["threshold"], run.sae().parameters["threshold"])


def saelens(folder: Path, architecture: str, metadata: dict[str, Any] | None = None, **cfg: Any) -> dict[str, Tensor]:
    """A folder as SAELens 6 writes it, and its tensors."""
    folder.mkdir(parents=True)
    w = {"W_enc": draw(WIDTH, LATENTS), "W_dec": draw(LATENTS, WIDTH, seed=2), "b_dec": draw(WIDTH)}
    if architecture == "gated":
        w |= {name: draw(LATENTS, seed=i) * 0.3 for i, name in enumerate(("b_gate", "b_mag", "r_mag"))}
    else:
        w |= {"b_enc": draw(LATENTS) * 0.3}
    if architecture == "jumprelu":
        w |= {"threshold": draw(LATENTS, seed=4) * 0.5}
    save_file(w, folder / "sae_weights.safetensors")
    whole = {"architecture": architecture, "d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32"} | cfg
    whole["metadata"] = {"sae_lens_version": "6.54.12", "hook_name": HOOK, "model_name": "tiny"} | (metadata or {})
    (folder / "cfg.json").write_text(json.dumps(whole))
    return w


def topk(u: Tensor, k: int) -> Tensor:
    kept = u.relu().topk(k, dim=-1)
    return torch.zeros_like(u).scatter(-1, kept.indices, kept.values)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "topk-rescaled", "jumprelu", "gated"])
def test_saelens(cache: Path, tmp_path: Path, architecture: str, centred: bool):
    rescaled = architecture == "topk-rescaled"
    architecture = architecture.removesuffix("-rescaled")
    more = {"k": 3, "rescale_acts_by_decoder_norm": rescaled} if architecture == "topk" else {}
    w = saelens(tmp_path / "sae", architecture, apply_b_dec_to_input=centred, **more)
    x = activations()
    seen = x - w["b_dec"] if centred else x
    norm = w["W_dec"].norm(dim=1)
    if architecture == "gated":
        pre = seen @ w["W_enc"]
        code = (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
    else:
        u = seen @ w["W_enc"] + w["b_enc"]
        code = u.relu() if architecture != "topk" else topk(u * norm if rescaled else u, 3)
        if architecture == "jumprelu":
            code = code * (u > w["threshold"])  # some thresholds are below 0
    run = bring(tmp_path / "sae")
    agree(run.sae(), x, code, (code / norm if rescaled else code) @ w["W_dec"] + w["b_dec"])
    assert run.result.origin == "imported from sae, made by SAELens 6.54.12"
    assert (run.result.hook, run.result.model) == (HOOK, {"name": "tiny"})
    # What is not known of the training is not claimed: the files have the rule's name, and no settings of it.
    assert 'encoder = "backprop"' in (run.folder / CONFIG).read_text()
    assert "lr" not in (run.folder / CONFIG).read_text()


def test_saelens_before_version_6(cache: Path, tmp_path: Path):
    w = saelens(tmp_path / "new", "topk", k=3)
    old = {"d_in": WIDTH, "d_sae": LATENTS, "hook_point": "blocks.3.hook_resid_post", "model_name": "gpt2"}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "normalize_activations": False}
    (tmp_path / "new" / "cfg.json").write_text(json.dumps(old))
    x = activations()
    code = topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 2)
    run = bring(tmp_path / "new")
    agree(run.sae(), x, code, code @ w["W_dec"] + w["b_dec"])
    assert (run.result.hook, run.result.model) == ("blocks.3.hook_resid_post", {"name": "gpt2"})


def test_saelens_log_thresholds_and_a_scaling_factor_of_one(cache: Path, tmp_path: Path):
    w = saelens(tmp_path / "sae", "jumprelu", apply_b_dec_to_input=False)
    w["log_threshold"] = w.pop("threshold").abs().log()
    save_file(w | {"scaling_factor": torch.ones(LATENTS)}, tmp_path / "sae" / "sae_weights.safetensors")
    x = activations()
    u = x @ w["W_enc"] + w["b_enc"]
    code = u * (u > w["log_threshold"].exp())
    agree(bring(tmp_path / "sae").sae(), x, code, code @ w["W_dec"] + w["b_dec"])


def test_half_precision_is_read_in_float32(cache: Path, tmp_path: Path):
    w = {key: value.bfloat16() for key, value in saelens(tmp_path / "sae", "standard").items()}
    save_file(w, tmp_path / "sae" / "sae_weights.safetensors")
    sae = bring(tmp_path / "sae").sae()
    assert torch.equal(sae.W_dec, w["W_dec"].float())
    assert sae.b_enc.dtype == torch.float32


def sparsify(folder: Path, **cfg: Any) -> dict[str, Tensor]:
    folder.mkdir(parents=True)
    w = {"encoder.weight": draw(LATENTS, WIDTH), "encoder.bias": draw(LATENTS) * 0.3, "b_dec": draw(WIDTH)}
    w |= {"W_dec": draw(LATENTS, WIDTH, seed=2)}
    save_file(w, folder / "sae.safetensors")
    own = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": LATENTS, "k": 3}
    own |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH} | cfg
    (folder / "cfg.json").write_text(json.dumps(own))
    return w


def test_sparsify(cache: Path, tmp_path: Path):
    w, x = sparsify(tmp_path / "many" / "layers.3"), activations()
    code = topk((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 3)
    run = bring(tmp_path / "many")  # the only SAE in the folder of a model
    agree(run.sae(), x, code, code @ w["W_dec"] + w["b_dec"])
    assert run.result.hook == "blocks.3.hook_resid_post"
    assert run.result.origin == "imported from layers.3, made by sparsify"


def dictionary(folder: Path, name: str, w: dict[str, Tensor], **trainer: Any) -> None:
    folder.mkdir(parents=True)
    own = {"dict_class": name, "activation_dim": WIDTH, "dict_size": LATENTS, "layer": 3, "lm_name": "tiny"}
    (folder / "config.json").write_text(json.dumps({"trainer": own | trainer, "buffer": {"ctx_len": 16}}))
    torch.save(w, folder / "ae.pt")


def linear(bias: str) -> dict[str, Tensor]:
    return {"encoder.weight": draw(LATENTS, WIDTH), "decoder.weight": draw(WIDTH, LATENTS), bias: draw(WIDTH)}


def matrices() -> dict[str, Tensor]:
    w = {"W_enc": draw(WIDTH, LATENTS), "W_dec": draw(LATENTS, WIDTH), "b_enc": draw(LATENTS) * 0.3}
    return w | {"b_dec": draw(WIDTH)}


def forward(name: str, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The classes of dictionary_learning, as its source has them."""
    if "W_enc" in w:
        u = (x if name == "JumpReluAutoEncoder" else x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        code = u.relu() * (u.relu() > w["threshold"])
        return code, code @ w["W_dec"] + w["b_dec"]
    bias = w[next(key for key in w if key in ("bias", "b_dec", "decoder_bias", "decoder.bias"))]
    u = (x if name == "AutoEncoderNew" else x - bias) @ w["encoder.weight"].T
    if name == "GatedAutoEncoder":
        code = (u + w["gate_bias"] > 0) * (u * w["r_mag"].exp() + w["mag_bias"]).relu()
    else:
        u = u + w["encoder.bias"]
        code = topk(u, int(w["k"])) if name == "AutoEncoderTopK" else u.relu()
        code = code * (code > w["threshold"]) if name == "BatchTopKSAE" else code
    return code, code @ w["decoder.weight"].T + bias


K = {"k": torch.tensor(3, dtype=torch.int), "threshold": torch.tensor(0.4)}
CLASSES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "AutoEncoder": lambda: linear("bias") | {"encoder.bias": draw(LATENTS) * 0.3},
    "AutoEncoderNew": lambda: linear("decoder.bias") | {"encoder.bias": draw(LATENTS) * 0.3},
    "AutoEncoderTopK": lambda: linear("b_dec") | {"encoder.bias": draw(LATENTS) * 0.3} | K,
    "BatchTopKSAE": lambda: linear("b_dec") | {"encoder.bias": draw(LATENTS) * 0.3} | K,
    "MatryoshkaBatchTopKSAE": lambda: matrices() | K | {"group_sizes": torch.tensor([2, 2, 4])},
    "JumpReluAutoEncoder": lambda: matrices() | {"threshold": draw(LATENTS).abs()},
    "GatedAutoEncoder": lambda: (
        linear("decoder_bias")
        | {key: draw(LATENTS, seed=i) * 0.3 for i, key in enumerate(("gate_bias", "mag_bias", "r_mag"))}
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning(cache: Path, tmp_path: Path, name: str):
    w, x = CLASSES[name](), activations()
    dictionary(tmp_path / "sae", name, w)
    run = bring(tmp_path / "sae")
    agree(run.sae(), x, *forward(name, w, x))
    assert run.result.hook == "blocks.3.hook_resid_post"
    variant = run.setups["imported"].sae
    if name == "BatchTopKSAE":
        assert variant == BatchTopK(k=3.0)
    if name == "MatryoshkaBatchTopKSAE":
        assert variant == Matryoshka(k=3.0, shares=(0.25, 0.5, 1.0))


def test_a_threshold_that_was_never_set_lets_everything_pass(cache: Path, tmp_path: Path):
    w, x = CLASSES["BatchTopKSAE"]() | {"threshold": torch.tensor(-1.0)}, activations()
    dictionary(tmp_path / "sae", "BatchTopKSAE", w)
    agree(bring(tmp_path / "sae").sae(), x, *forward("BatchTopKSAE", w, x))


def test_a_zero_threshold_is_relu(cache: Path, tmp_path: Path):
    w = CLASSES["JumpReluAutoEncoder"]() | {"threshold": torch.zeros(LATENTS)}
    dictionary(tmp_path / "sae", "JumpReluAutoEncoder", w, submodule_name="mlp_layer_3")
    run = bring(tmp_path / "sae", hook="blocks.3.hook_mlp_out")
    assert registry.name_of(run.setups["imported"].sae) == "relu"
    assert run.result.hook == "blocks.3.hook_mlp_out"


@pytest.mark.parametrize(
    ("made", "cfg", "words"),
    [
        ("transcoder", {}, "architecture 'transcoder' cannot be represented"),
        ("standard", {"normalize_activations": "layer_norm"}, "normalised \\(layer_norm\\)"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, "fold them"),
        ("standard", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ("standard", {"metadata": {"hook_head_index": 3}}, "of one head"),
        ("standard", {"activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
        ("topk", {"k": 0}, "k must be a whole number of 1 or above, not 0"),
        ("topk", {}, "k must be a whole number"),
        ("standard", {"d_sae": 9}, r"W_enc is \[5, 8\], where \[5, 9\] is wanted"),
        ("standard", {"d_in": "5"}, "d_in must be a whole number"),
    ],
)
def test_what_saelens_has_and_we_do_not(cache: Path, tmp_path: Path, made: str, cfg: dict[str, Any], words: str):
    saelens(tmp_path / "sae", made, **cfg)
    with pytest.raises(UserError, match=words) as found:
        bring(tmp_path / "sae")
    assert "\n" not in str(found.value)
    assert not list((cache / "runs").glob("*")) if (cache / "runs").exists() else True


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"transcode": True}, "a transcoder, which cannot be represented"),
        ({"skip_connection": True}, "a skip connection"),
        ({"activation": "groupmax"}, "activation 'groupmax' cannot be represented; topk can"),
        ({"signed": True}, "signed topk"),
        ({"num_latents": 0, "expansion_factor": 2}, "where"),
    ],
)
def test_what_sparsify_has_and_we_do_not(cache: Path, tmp_path: Path, cfg: dict[str, Any], words: str):
    sparsify(tmp_path / "layers.3", **cfg)
    with pytest.raises(UserError, match=words):
        bring(tmp_path / "layers.3")


def test_tensors_that_are_missing_left_over_or_not_numbers(cache: Path, tmp_path: Path):
    w = saelens(tmp_path / "sae", "standard")
    path = tmp_path / "sae" / "sae_weights.safetensors"
    for wrong, words in (
        ({key: value for key, value in w.items() if key != "b_dec"}, "has no tensor 'b_dec'"),
        (w | {"W_skip": draw(WIDTH, WIDTH)}, "holds W_skip, which no SAE of hsae has"),
        (
            w | {"b_enc": w["b_enc"].index_fill(0, torch.tensor([1]), torch.nan)},
            "b_enc holds numbers that are not finite",
        ),
    ):
        save_file(wrong, path)
        with pytest.raises(UserError, match=words):
            bring(tmp_path / "sae")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or unreadable"):
        bring(tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        bring(tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_text("{")
    with pytest.raises(UserError, match=r"cfg\.json: damaged or unreadable"):
        bring(tmp_path / "sae")


class Bomb:
    """What a pickle can do to those who open it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_pytorch_file_is_executed(cache: Path, tmp_path: Path):
    dictionary(tmp_path / "sae", "AutoEncoder", {})
    for number, write in enumerate((torch.save, lambda data, path: path.write_bytes(pickle.dumps(data)))):
        write({"bias": Bomb(tmp_path / f"boom{number}")}, tmp_path / "sae" / "ae.pt")
        with pytest.raises(UserError, match="not a file of tensors alone") as found:
            bring(tmp_path / "sae")
        assert "\n" not in str(found.value)
        assert not (tmp_path / f"boom{number}").exists()
    torch.save([1], tmp_path / "sae" / "ae.pt")
    with pytest.raises(UserError, match="not a state dict"):
        bring(tmp_path / "sae")
    torch.save({"bias": 3}, tmp_path / "sae" / "ae.pt")
    with pytest.raises(UserError, match=r"decoder\.weight"):
        bring(tmp_path / "sae")


def test_dictionary_classes_that_we_do_not_have(cache: Path, tmp_path: Path):
    dictionary(tmp_path / "sae", "IdentityDict", {})
    with pytest.raises(UserError, match="dict_class 'IdentityDict' cannot be represented; AutoEncoder, "):
        bring(tmp_path / "sae")
    broken = CLASSES["MatryoshkaBatchTopKSAE"]() | {"group_sizes": torch.tensor([2, 2])}
    dictionary(tmp_path / "other", "MatryoshkaBatchTopKSAE", broken)
    with pytest.raises(UserError, match="group_sizes do not add up to the 8 latents"):
        bring(tmp_path / "other")


def test_folders(cache: Path, tmp_path: Path):
    for words, folder in (
        ("name the folder of an SAE", ""),
        ("no such folder", str(tmp_path / "nix")),
        ("no SAE there of a format that is read", str(tmp_path)),
    ):
        with pytest.raises(UserError, match=words):
            import_sae(ImportConfig(folder))
    for layer in (3, 4):
        sparsify(tmp_path / "model" / f"layers.{layer}")
    with pytest.raises(UserError, match=r"holds several SAEs \(layers.3, layers.4\); name one folder"):
        bring(tmp_path / "model")
    with pytest.raises(UserError, match="a file; name its folder"):
        bring(tmp_path / "model" / "layers.3" / "cfg.json")
    with pytest.raises(UserError, match="use letters, digits"):
        bring(tmp_path / "model" / "layers.3", "../x")
    run = bring(tmp_path / "model" / "layers.3", "")
    assert run.name == "sparsify-layers.3"
    with pytest.raises(UserError, match="is there already; give another name"):
        bring(tmp_path / "model" / "layers.3", "")


def test_provenance_that_is_not_this_saes_is_not_believed(cache: Path, tmp_path: Path):
    make_run("topk", ["topk"])
    export(ExportConfig("topk", "safetensors", out=str(tmp_path / "sae")))
    path = tmp_path / "sae" / "config.json"
    config = json.loads(path.read_text())
    for change in (
        {"settings": {"encoder": "no such rule"}},
        {"settings": config["hsae"]["settings"] | {"sae": {"kind": "topk", "k": 5}}},
        {"settings": config["hsae"]["settings"] | {"sae": {"kind": "gated"}}},
        {"settings": 3},
        {"seed": "x"},
        {"setup": "../../escape"},
    ):
        path.write_text(json.dumps(config | {"hsae": config["hsae"] | change}))
        run = bring(tmp_path / "sae", f"in{len(list((cache / 'runs').iterdir()))}")
        assert run.result.rows[0].setup == "imported"
        assert run.setups["imported"] == Setup(decoder=Backprop(), sae=run.sae().variant)


@pytest.fixture
def there(cache: Path, tmp_path: Path) -> Path:
    """A SAELens SAE for the hook point of `make_store`, under the residual stream's other name."""
    saelens(tmp_path / "sae", "standard", {"hook_name": "blocks.3.hook_resid_post", "model_name": "Tiny"})
    return tmp_path / "sae"


def test_the_newest_store_that_fits_measures_it(there: Path, capsys: Any):
    make_store("old")
    store = make_store("fits")
    make_store("wide", width=6)
    make_store("elsewhere", hook="blocks.2.hook_mlp_out")
    run = import_sae(ImportConfig(str(there), "in", held_out=40), Console(width=80))
    result, row = run.result, run.result.rows[0]
    assert (result.store, result.hook, result.held_out) == ("fits", HOOK, 40)
    assert result.store_fingerprint == store.manifest.fingerprint
    assert result.model["fingerprint"] == "test", "Tiny and owner/tiny are one model"
    # The first 40 positions that count of the last 3 sequences.
    (chunk,) = store.chunks(HOOK, 3, 21)
    x = chunk.activations[chunk.keep][:40]
    sae = run.sae()
    assert row.mse == pytest.approx(float((sae(x) - x).square().mean()), rel=1e-5)
    assert row.l0 is not None
    assert row.l0 == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()))
    assert (row.dead, row.train_mse, row.tokens_per_second) == (None, None, None)
    assert [b.name for b in result.baselines] == ["mean", f"pca-{round(row.l0)}", "k-means-8"]
    out = capsys.readouterr().out
    assert "imported from sae, made by SAELens 6.54.12" in out
    assert "how it was trained is not known" in out.replace("\n", " ")


def test_metrics_are_those_of_training(planted: Callable[..., Store], tmp_path: Path):
    planted()
    table = {"store": "planted", "setups": ["bp"], "latents": 24, "batch_tokens": 64, "steps": 20, "held_out": 100}
    trained = train(TrainConfig.from_table(table | {"name": "trained", "baselines": False}, "test"))
    export(ExportConfig("trained", "safetensors", out=str(tmp_path / "sae")))
    back = import_sae(ImportConfig(str(tmp_path / "sae"), "back", held_out=100, baselines=False))
    for name in ("mse", "evr", "evr_std", "evr_median", "evr_pooled", "l1", "l0", "dictionary"):
        assert getattr(back.result.rows[0], name) == pytest.approx(getattr(trained.result.rows[0], name), rel=1e-5)
    assert back.result.held_out == trained.result.held_out


def test_another_model_is_said(there: Path, capsys: Any):
    (there / "cfg.json").write_text((there / "cfg.json").read_text().replace("Tiny", "gpt2"))
    make_store()
    run = import_sae(ImportConfig(str(there), "in", held_out=40, baselines=False), Console(width=200))
    assert "store shared is of model owner/tiny, the SAE is for gpt2" in capsys.readouterr().out
    assert run.result.model == {"name": "gpt2"}


def test_stores_that_do_not_fit(there: Path, cache: Path):
    make_store("wide", width=6)
    make_store("small")
    (cache / "activations" / "broken").mkdir()
    (cache / "activations" / "broken" / "manifest.json").write_text("{}")
    for settings, words in (
        (ImportConfig(str(there), "in", "wide"), "6 wide, the SAE is for 5"),
        (ImportConfig(str(there), "in", "nix"), "no store 'nix'"),
        (
            ImportConfig(str(there), "in", "small", hook="blocks.1.hook_mlp_out"),
            "no hook point 'blocks.1.hook_mlp_out'",
        ),
        (ImportConfig(str(there), "in", "small", held_out=10_000), "lower --held-out"),
    ):
        with pytest.raises(UserError, match=words):
            import_sae(settings)
    assert not (cache / "runs" / "in").exists()


def test_without_a_store_the_table_is_blank_and_can_be_shown(there: Path, cache: Path, capsys: Any):
    run = import_sae(ImportConfig(str(there), "in"), Console(width=80))
    out = capsys.readouterr().out
    assert "no store fits it (blocks.3.hook_resid_post, 5 wide)" in out.replace("\n", " ")
    assert run.result.rows[0].evr is None
    assert "imported" in out
    with pytest.raises(UserError, match="no store 'unknown'"):
        inspect(InspectConfig("in"))
    make_store("later")
    inspect(InspectConfig("in", on="later", hook=HOOK, json=True), Console(width=80))
    assert json.loads(capsys.readouterr().out)["table"][0]["evr"] is None


def test_an_imported_run_goes_on_to_other_verbs(there: Path, cache: Path, tmp_path: Path, capsys: Any):
    make_store()
    assert cli.run(["import", str(there), "--name", "in", "--held-out", "40", "--no-baselines"]) == 0
    assert "next: hsae inspect --run in" in capsys.readouterr().out
    assert cli.run(["inspect", "--run", "in", "--latent", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert cli.run(["export", "in", "--to", "saelens", "--out", str(tmp_path / "again")]) == 0
    w, again = load_file(there / "sae_weights.safetensors"), load_file(tmp_path / "again" / "sae_weights.safetensors")
    assert torch.equal(w["W_enc"], again["W_enc"])
    assert (
        "imported from sae" in json.loads((tmp_path / "again" / "cfg.json").read_text())["metadata"]["hsae"]["origin"]
    )


def test_an_import_that_fails_leaves_nothing(there: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsae.run.RunWriter.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        bring(there)
    assert list((cache / "runs").iterdir()) == []
    assert RESULT == "run.json"
