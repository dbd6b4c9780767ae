"""`hsae export`: what other tools compute from the files alone, by formulas written down here from their sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import edit
from rich.console import Console
from safetensors.torch import load_file
from shared_runs import HOOK, SETUPS, make_run, make_store
from torch import Tensor

import hsae
from hsae import cli, registry
from hsae.errors import UserError
from hsae.export import ExportConfig, export
from hsae.export._hooks import canonical, module_of, residual_layer
from hsae.export._plain import plain
from hsae.export._provenance import public
from hsae.sae import SAE
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.gated import Gated
from hsae.sae.jumprelu import JumpReLU
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK

GOLDEN = Path(__file__).parent / "golden" / "export"


def activations() -> Tensor:
    return torch.randn(200, 5, generator=torch.Generator().manual_seed(1)) * 2


def topk(u: Tensor, k: int) -> Tensor:
    kept = u.relu().topk(k, dim=-1)
    return torch.zeros_like(u).scatter(-1, kept.indices, kept.values)


def saelens(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """docs of SAELens: the encoders and decoders of its four architectures."""
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert (cfg["normalize_activations"], cfg["reshape_activations"], cfg["dtype"]) == ("none", "none", "float32")
    x = x - w["b_dec"] if cfg["apply_b_dec_to_input"] else x
    if cfg["architecture"] == "gated":
        assert set(w) == {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}
        gate = (x @ w["W_enc"] + w["b_gate"] > 0).float()
        code = gate * (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        u = x @ w["W_enc"] + w["b_enc"]
        assert set(w) - {"threshold"} == {"W_enc", "W_dec", "b_dec", "b_enc"}
        if cfg["architecture"] == "topk":
            assert cfg["rescale_acts_by_decoder_norm"] is False
            code = topk(u, cfg["k"])
        else:
            assert (cfg["architecture"] == "jumprelu") == ("threshold" in w)
            code = u.relu() * (u > w["threshold"]) if "threshold" in w else u.relu()
    return code, code @ w["W_dec"] + w["b_dec"]


def sparsify(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    assert set(w) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
    assert (cfg["activation"], cfg["transcode"], cfg["skip_connection"]) == ("topk", False, False)
    assert w["encoder.weight"].shape == (cfg["num_latents"], cfg["d_in"])
    code = topk(torch.nn.functional.linear(x - w["b_dec"], w["encoder.weight"], w["encoder.bias"]), cfg["k"])
    return code, code @ w["W_dec"] + w["b_dec"]


def dictionary_learning(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Its classes, with what `from_pretrained` does to an AutoEncoder on the way."""
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    w = torch.load(folder / "ae.pt", weights_only=True)
    name = trainer["dict_class"]
    if name == "JumpReluAutoEncoder":
        u = x @ w["W_enc"] + w["b_enc"]
        code = (u * (u > w["threshold"])).relu()
        return code, code @ w["W_dec"] + w["b_dec"]
    encoder, decoder = w["encoder.weight"], w["decoder.weight"]
    assert (encoder.shape, decoder.shape) == ((8, 5), (5, 8))
    bias = w[{"AutoEncoder": "bias", "AutoEncoderTopK": "b_dec", "GatedAutoEncoder": "decoder_bias"}[name]]
    u = (x - bias) @ encoder.T
    if name == "AutoEncoder":
        norm = decoder.norm(dim=0)
        norm = torch.ones_like(norm) if torch.allclose(norm, torch.ones_like(norm)) else norm
        code, decoder = ((u + w["encoder.bias"]) * norm).relu(), decoder / norm
    elif name == "AutoEncoderTopK":
        assert w["k"].dtype == torch.int32
        assert int(w["k"]) == trainer["k"]
        code = topk(u + w["encoder.bias"], trainer["k"])
    else:
        code = (u + w["gate_bias"] > 0) * (w["r_mag"].exp() * u + w["mag_bias"]).relu()
    return code, code @ decoder.T + bias


def neutral(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """By the formulas that the format itself gives."""
    config, w = json.loads((folder / "config.json").read_text()), load_file(folder / "sae.safetensors")
    u = x @ w["W_enc"].T + w["b_enc"]
    formulas: dict[str, Callable[[], Tensor]] = {
        "relu": u.relu,
        "topk": lambda: topk(u, config["k"]),
        "jumprelu": lambda: torch.where(u > w["threshold"], u.relu(), 0),
        "gated": lambda: torch.where(u > 0, (w["log_gain"].exp() * u + w["magnitude_bias"]).relu(), 0),
    }
    code = formulas[config["activation"]]()
    return code, code @ w["W_dec"] + w["b_dec"]


FORWARD = {"saelens": saelens, "sparsify": sparsify, "dictionary-learning": dictionary_learning, "safetensors": neutral}


def exported(to: str, setup: str, place: Path) -> Path:
    """The folder that the format's reader is given, of the run that is called as its setup."""
    export(ExportConfig(setup, to, setup, out=str(place)))
    return place / "layers.3" if to == "sparsify" else place


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("to", FORWARD)
def test_the_function_is_the_one_that_was_trained(cache: Path, tmp_path: Path, to: str, scale: float):
    x = activations()
    for setup in ("topk",) if to == "sparsify" else SETUPS:
        sae = make_run(setup, [setup], scale=scale).sae(setup)
        code, reconstruction = FORWARD[to](exported(to, setup, tmp_path / setup), x)
        assert (code > 0).any(0).sum() >= 6, "too few latents fire for this to show anything"
        torch.testing.assert_close(code, sae.encode(x) / scale, rtol=1e-5, atol=2e-5, msg=f"the code of {setup}")
        torch.testing.assert_close(reconstruction, sae(x), rtol=1e-5, atol=2e-5, msg=f"reconstruction of {setup}")


def test_a_format_that_cannot_say_an_activation_function_names_those_that_can(cache: Path, tmp_path: Path):
    for setup in ("relu", "jumprelu", "gated"):
        make_run("made", [setup]).folder.rename(cache / setup)
        with pytest.raises(UserError, match=r"sparsify can say topk only; formats for it: .*saelens, safetensors$"):
            export(ExportConfig(str(cache / setup), "sparsify", out=str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()


def test_weights_that_were_folded_in_training_are_not_folded_again(cache: Path, tmp_path: Path):
    run = make_run("jumprelu", ["jumprelu"], scale=0.4, folded=True)
    x = activations()
    code, _ = saelens(exported("saelens", "jumprelu", tmp_path / "out"), x)
    torch.testing.assert_close(code, run.sae("jumprelu").encode(x), rtol=1e-5, atol=1e-5)


def by_hand(kind: str) -> SAE:
    """Four latents on three dimensions, in numbers that float32 holds exactly, whatever is done to them here."""
    W_enc = torch.tensor([[1, 0, 0.5], [-2, 1, 0], [0.25, -0.5, 1], [1, 1, 1]])
    W_dec = torch.tensor([[1, 0, 0.0], [0, 1, 0], [0, 0, 1], [0, -1, 0]])
    b_enc, b_dec = torch.tensor([0.5, 0, -0.25, -1]), torch.tensor([1.0, -2, 0.5])
    ones = torch.ones(4)
    variants: Mapping[str, tuple[Any, float, dict[str, Tensor]]] = {
        "relu": (ReLU(), 0.5, {}),
        "topk": (TopK(k=2), 0.5, {}),
        "batchtopk": (BatchTopK(k=2.0), 0.5, {"threshold": torch.tensor(0.75)}),
        "jumprelu": (JumpReLU(), 1.0, {"log_threshold": torch.zeros(4)}),
        "gated": (Gated(), 1.0, {"log_gain": torch.zeros(4), "magnitude_bias": ones / 4}),
    }
    variant, scale, parameters = variants[kind]
    return SAE(W_enc, b_enc, W_dec, b_dec, variant, scale, parameters)


KINDS = ("relu", "topk", "batchtopk", "jumprelu", "gated")


def write_golden(kind: str, folder: Path) -> None:
    """One kind in every format that takes it; into `GOLDEN / kind` where the golden files are to be made anew."""
    sae = by_hand(kind)
    own = {"kind": kind, "k": 2} if "topk" in kind else kind
    make_run("golden", {kind: {"encoder": "backprop", "decoder": "backprop", "sae": own}}, sae.scale, saes={kind: sae})
    for to in FORWARD:
        if to != "sparsify" or kind == "topk":
            export(ExportConfig("golden", to, out=str(folder / to)))


@pytest.mark.parametrize("kind", KINDS)
def test_golden_files(cache: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hsae, "__version__", "0")
    write_golden(kind, tmp_path / "out")
    written, there = (
        sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in (tmp_path / "out", GOLDEN / kind)
    )
    assert written == there
    for name in written:
        path, golden = tmp_path / "out" / name, GOLDEN / kind / name
        if path.suffix == ".pt":  # a zip, whose bytes are the version's of PyTorch that wrote it
            ours, theirs = torch.load(path), torch.load(golden)
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        elif path.suffix == ".json":
            assert json.loads(path.read_text()) == json.loads(golden.read_text())
        else:
            assert path.read_bytes() == golden.read_bytes()


def test_golden_numbers_by_hand():
    """A few of the golden numbers, worked out on paper."""
    w = load_file(GOLDEN / "topk" / "sparsify" / "layers.3" / "sae.safetensors")
    # Scale 0.5: b_enc is doubled, b_dec is doubled to (2, -4, 1), and b_enc + W_enc b_dec for activations less b_dec.
    assert w["encoder.bias"].tolist() == [1 + 2.5, 0 - 8, -0.5 + 0.5 + 2 + 1, -2 - 1]
    assert w["b_dec"].tolist() == [2, -4, 1]
    gated = torch.load(GOLDEN / "gated" / "dictionary-learning" / "ae.pt")
    assert gated["gate_bias"].tolist() == [0.5 + 1.25, 0 - 4, -0.25 + 0.25 + 1 + 0.5, -1 - 0.5]
    assert gated["mag_bias"].tolist() == [value + 0.25 for value in gated["gate_bias"].tolist()]
    jump = load_file(GOLDEN / "jumprelu" / "saelens" / "sae_weights.safetensors")
    assert jump["threshold"].tolist() == [1, 1, 1, 1]
    assert jump["W_enc"].tolist()[0] == [1, -2, 0.25, 1]


def test_a_drive_at_the_cut_is_active_and_one_below_is_not():
    """BatchTopK is active from its cut on, JumpReLU formats above their threshold: the boundary must not move."""
    sae = SAE(
        torch.eye(1), torch.zeros(1), torch.eye(1), torch.zeros(1), BatchTopK(), 1.0, {"threshold": torch.tensor(0.3)}
    )
    form = plain(sae)
    cut = torch.tensor(0.3)
    drives = torch.stack([torch.nextafter(cut, torch.tensor(0.0)), cut, torch.nextafter(cut, torch.tensor(1.0))])
    assert form.threshold is not None
    assert (drives > form.threshold).tolist() == (sae.encode(drives[:, None])[:, 0] > 0).tolist() == [False, True, True]
    never = {"threshold": torch.tensor(0.0)}
    closed = plain(SAE(torch.eye(1), torch.zeros(1), torch.eye(1), torch.zeros(1), BatchTopK(), 1.0, never))
    assert closed.threshold is not None
    assert closed.threshold.tolist() == [0]


def test_more_latents_a_token_than_there_are(cache: Path, tmp_path: Path):
    make_run("topk", {"topk": SETUPS["topk"] | {"sae": {"kind": "topk", "k": 99}}})
    assert json.loads((exported("saelens", "topk", tmp_path / "out") / "cfg.json").read_text())["k"] == 8


def test_dictionary_learning_takes_the_class_that_its_reader_leaves_as_it_is(cache: Path, tmp_path: Path):
    classes = {}
    for setup in ("relu", "tied", "unit", "topk", "gated"):
        make_run(setup, [setup])
        config = json.loads((exported("dictionary-learning", setup, tmp_path / setup) / "config.json").read_text())
        classes[setup] = config["trainer"]["dict_class"]
        assert config["trainer"]["layer"] == 3
        assert config["trainer"]["submodule_name"] == "resid_post_layer_3"
    assert classes["relu"] == classes["tied"] == "JumpReluAutoEncoder"  # decoder norms are not 1
    assert classes["unit"] == "AutoEncoder"
    assert classes["topk"] == "AutoEncoderTopK"
    assert classes["gated"] == "GatedAutoEncoder"


def test_provenance(cache: Path, tmp_path: Path):
    store = make_store()
    make_run("tied", ["tied"], scale=0.4, store=store)
    cfg = json.loads((exported("saelens", "tied", tmp_path / "out") / "cfg.json").read_text())
    metadata = cfg["metadata"]
    assert metadata["model_name"] == "owner/tiny"
    assert metadata["hook_name"] == HOOK
    assert metadata["context_size"] == 16
    assert metadata["prepend_bos"] is True
    assert metadata["seqpos_slice"] == [1, None]
    assert metadata["dataset_path"] == "owner/stories, more.txt", "a folder of the machine is nobody's business"
    own = metadata["hsae"]
    assert own["rule"] == {"encoder": "softhebb"}
    assert own["settings"]["encoder"]["rule"] == "softhebb"
    assert (own["run"], own["setup"], own["seed"], own["scale"]) == ("tied", "tied", 0, 0.4)
    assert own["metrics"] == {"evr": 0.9, "l0": 2.5}
    assert own["store"] == {"name": "shared", "fingerprint": store.manifest.fingerprint} | own["store"]
    assert own["dataset"]["data"] == ["owner/stories", "more.txt"]
    assert (own["steps"], own["training_tokens"]) == (10, 1000)
    assert "/home" not in json.dumps(cfg)


def test_without_its_store_an_export_says_nothing_of_the_data(cache: Path, tmp_path: Path, capsys: Any):
    make_run()
    out = tmp_path / "out"
    export(ExportConfig("made", "saelens", out=str(out)), Console(width=80))
    assert "context_size" not in json.loads((out / "cfg.json").read_text())["metadata"]
    assert "trained on a store that cannot be opened" in capsys.readouterr().out.replace("\n", " ")


def test_a_store_that_was_not_trained_on_says_nothing_of_the_training(cache: Path, tmp_path: Path, capsys: Any):
    make_run(store=make_store())
    make_store("other", exclude_first=2).folder.joinpath("00000.safetensors").touch()
    edit(cache / "activations" / "other" / "manifest.json", lambda found: found["shards"][0].update(sha256="0" * 64))
    export(ExportConfig("made", "saelens", on="other", out=str(tmp_path / "out")), Console(width=80))
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert "dataset_path" not in metadata
    assert "dataset" not in metadata["hsae"]
    assert metadata["hsae"]["store"]["name"] == "shared"
    assert "store other is not the one that run made was trained on" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("owner/name", "owner/name"),
        ("owner/name:config", "owner/name:config"),
        ("gpt2", "gpt2"),
        ("../shared/data/stories260K", "stories260K"),
        ("/home/me/model", "model"),
        ("data/x.txt", "x.txt"),
        ("a/b/model.gguf", "model.gguf"),
    ],
)
def test_names_without_folders(name: str, shown: str):
    assert public(name) == shown


@pytest.mark.parametrize(
    ("hook", "layer", "module", "other"),
    [
        ("blocks.4.hook_resid_pre", 3, "layers.3", "h.3"),
        ("blocks.4.hook_resid_post", 4, "layers.4", "h.4"),
        ("blocks.0.hook_resid_pre", -1, None, None),
        ("blocks.2.hook_mlp_out", None, "layers.2.mlp", "h.2.mlp"),
        ("blocks.2.attn.hook_z", None, None, None),
    ],
)
def test_hook_points(hook: str, layer: int | None, module: str | None, other: str | None):
    assert residual_layer(hook) == layer
    assert module_of(hook, "LlamaForCausalLM") == module
    assert module_of(hook, "GPTNeoForCausalLM") == other
    assert module_of(hook, "GPTNeoXForCausalLM") == module
    assert canonical(canonical(hook)) == canonical(hook)


def test_a_residual_stream_has_one_canonical_name():
    assert canonical("blocks.4.hook_resid_pre") == canonical("blocks.3.hook_resid_post") == "blocks.3.hook_resid_post"
    assert canonical("blocks.0.hook_resid_pre") == "blocks.0.hook_resid_pre"


def test_hook_points_that_no_block_puts_out(cache: Path, tmp_path: Path):
    make_run(hook="blocks.0.hook_resid_pre")
    export(ExportConfig("made", "dictionary-learning", "topk", out=str(tmp_path / "d")))
    trainer = json.loads((tmp_path / "d" / "config.json").read_text())["trainer"]
    assert (trainer["layer"], trainer["submodule_name"]) == (None, "blocks.0.hook_resid_pre")
    export(ExportConfig("made", "sparsify", "topk", out=str(tmp_path / "s")))
    assert (tmp_path / "s" / "blocks.0.hook_resid_pre" / "cfg.json").exists()


def test_mistakes_are_one_line(cache: Path, tmp_path: Path):
    run = make_run("made", ["relu", "gated"], diverged=["gated"], store=make_store())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    every = "delphi, dictionary-learning, neuronpedia, saelens, safetensors, sparsify"
    wrong = [
        (ExportConfig("made"), f"name a format with --to: {every}"),
        (ExportConfig("made", "saelen"), "no export format 'saelen'; nearest: saelens"),
        (ExportConfig("nix", "saelens"), "no run 'nix'"),
        (ExportConfig("made", "saelens", "nix"), "no setup 'nix'"),
        (ExportConfig("made", "saelens", "relu", 7), "no seed 7"),
        (ExportConfig("made", "saelens", "gated"), r"gated \(seed 0\) diverged at step 3.*no weights"),
        (ExportConfig("made", "saelens", out=str(tmp_path / "full")), "is there already"),
        (ExportConfig("made", "saelens", out=str(tmp_path / "full" / "file" / "x")), "cannot be made"),
        (ExportConfig("made", "saelens", on="nix"), "no store 'nix'"),
        (ExportConfig("made", "delphi", splits=9, out=str(tmp_path / "out")), "there are 8 latents only"),
    ]
    for settings, words in wrong:
        with pytest.raises(UserError, match=words) as found:
            export(settings)
        assert "\n" not in str(found.value)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("cache", "full")] == []
    assert (tmp_path / "full" / "file").read_text() == "mine"
    (run.folder / "run.json").unlink()
    with pytest.raises(UserError, match="an unfinished run"):
        export(ExportConfig("made", "saelens"))


def test_a_store_of_another_width(cache: Path, tmp_path: Path):
    make_run(store=make_store())
    make_store("wide", width=6)
    with pytest.raises(UserError, match="6 wide, run made has SAEs for 5"):
        export(ExportConfig("made", "saelens", on="wide", out=str(tmp_path / "out")))


def test_formats_that_hold_activations_need_the_store(cache: Path):
    make_run()
    for to in ("delphi", "neuronpedia"):
        with pytest.raises(UserError, match=f"--to {to} takes activations from the run's store: .*--on names another"):
            export(ExportConfig("made", to))


def test_an_export_that_fails_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsae.export.saelens.write_tensors", stop)
    with pytest.raises(KeyboardInterrupt, match="out was not written"):
        export(ExportConfig("made", "saelens", out=str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "left by a kill").touch()
    monkeypatch.undo()
    monkeypatch.setenv("HSAE_CACHE", str(cache))
    export(ExportConfig("made", "saelens", out=str(tmp_path / "out")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_an_interruption_after_an_export_has_its_name_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_run()

    def stop(path: Path) -> None:
        if path == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr("hsae.export._files.flush", stop)
    with pytest.raises(KeyboardInterrupt, match="out was written"):
        export(ExportConfig("made", "saelens", out=str(tmp_path / "out")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_the_verb(cache: Path, capsys: Any):
    make_run(scale=0.4)
    assert cli.run(["export", "made", "--to", "sparsify", "--setup", "topk"]) == 0
    place = cache / "exports" / "made-topk-0-sparsify"
    out = capsys.readouterr().out
    assert (place / "layers.3" / "sae.safetensors").exists()
    assert f'next: SparseCoder.load_from_disk("{place / "layers.3"}")' in out
    assert "the scale 0.4 is folded" in out


def test_every_exporter_has_a_format_of_its_own():
    names = registry.names("hsae.export")
    assert names == ["delphi", "dictionary-learning", "neuronpedia", "saelens", "safetensors", "sparsify"]
