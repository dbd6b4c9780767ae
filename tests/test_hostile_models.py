"""A model from a stranger: its code runs only where `--trust-remote-code` says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import do
from tiny_lm import make_model, make_text, save_tokenizer

HARVEST = "harvest --model model --data text.txt --hooks blocks.1.hook_resid_pre --tokens 256 --context 16 --device cpu"
TRAIN = "train --setups bp --steps 2 --latents 8 --batch-tokens 64 --held-out 32 --device cpu --name made --seeds 0 1"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast
class Config(GPTNeoConfig): {kind}
class Model(GPTNeoForCausalLM): config_class = Config
class Words(PreTrainedTokenizerFast): pass
"""
CLASSES = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"}
# Verbs that load a model or a tokeniser, each in all ways in which it does.
VERBS = {
    "harvest": HARVEST + " --name other",
    "harvest, its tokeniser": HARVEST.replace("--model model", "--model good") + " --tokenizer model --name other",
    "evaluate": "evaluate --run made --tokens 32 --device cpu",
    "ablate": "ablate --latent 1 --tokens 32 --controls 1 --device cpu",
    "steer": "steer --latent 1 --prompt a --tokens 2 --device cpu",
    "compare": "compare made --tokens 32",
    "inspect": "inspect --latent 1",
    "export": "export made --to delphi",
    "interpret": "interpret --explainer transformers --model model --sample 1",
    "lab surgery": "lab surgery inject --memory mlp --model model --scale tiny",
    "lab hybrid-lm": "lab hybrid-lm ordering --scale tiny --tokenizer model",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a model, a store of it and a run on that."""
    home = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", "cache")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(home / "modules"))
        patch.syspath_prepend(str(home / "modules"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(home)
        make_model(home / "model")
        shutil.copytree(home / "model", home / "good")
        (home / "text.txt").write_text("\n".join(make_text(40)))
        assert do(HARVEST).code == 0
        assert do(TRAIN).code == 0
        yield home


@pytest.fixture
def mark(folder: Path) -> Iterator[Path]:
    """What a stranger's code leaves where it runs."""
    path = folder / "mark"
    yield path
    path.unlink(missing_ok=True)
    shutil.rmtree(folder / "model")
    shutil.copytree(folder / "good", folder / "model")


def poison(model: Path, mark: Path, known: bool) -> None:
    """A model that names code of its own. `known`: transformers could load it without, too."""
    told = json.loads((model / "config.json").read_text())
    told |= {"auto_map": CLASSES, "model_type": "gpt_neo" if known else "gpt_neo_of_mine"}
    (model / "config.json").write_text(json.dumps(told))
    told = json.loads((model / "tokenizer_config.json").read_text())
    told |= {"auto_map": {"AutoTokenizer": ["code.Words", None]}, "tokenizer_class": "Words"}
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    kind = "pass" if known else "model_type = 'gpt_neo_of_mine'"
    (model / "code.py").write_text(CODE.format(mark=str(mark), kind=kind))


@pytest.mark.fault("Strangers", "A model brings code", "auto_map and a .py in its folder", "every verb that loads one")
@pytest.mark.parametrize("verb", VERBS)
def test_code_of_a_model_does_not_run_unless_it_is_trusted(folder: Path, mark: Path, verb: str) -> None:
    """Code of a model or a tokeniser does not run without --trust-remote-code; a line says what it wants."""
    poison(folder / "model", mark, known=False)
    done = do(VERBS[verb])
    assert not mark.exists()
    assert done.code in (0, 2)
    if done.code == 2:
        assert "--trust-remote-code" in done.err


def test_a_line_tells_of_the_flag(folder: Path, mark: Path) -> None:
    """Where the code is needed, the line names the flag."""
    poison(folder / "model", mark, known=False)
    done = do(VERBS["harvest"])
    assert done.code == 2
    assert "needs code from its own folder" in done.err


def test_trusted_code_runs(folder: Path, mark: Path) -> None:
    """With --trust-remote-code the code runs, and the harvest is made by it."""
    poison(folder / "model", mark, known=True)
    assert do(HARVEST + " --name untrusted").code == 0
    assert not mark.exists()
    done = do(HARVEST + " --name trusted --trust-remote-code")
    assert done.code == 0, done.err
    assert mark.exists()
    assert (folder / "cache" / "activations" / "trusted" / "manifest.json").exists()


@pytest.mark.fault("Strangers", "A store's tokeniser brings code", "auto_map and a .py in its folder", "every verb")
def test_the_tokeniser_of_a_store_never_runs_code(folder: Path, mark: Path) -> None:
    """A store's tokeniser that names code is refused, or read without it, by every verb."""
    store = next((folder / "cache" / "activations").iterdir())
    kept = folder / "kept-store"
    shutil.copytree(store, kept)
    try:
        for whole in (True, False):
            shutil.rmtree(store)
            shutil.copytree(kept, store)
            manifest = json.loads((store / "manifest.json").read_text())
            for name in ("seal", "files"):  # as a stranger makes it, who seals nothing
                manifest.pop(name, None)
            (store / "manifest.json").write_text(json.dumps(manifest))
            shutil.rmtree(store / "tokenizer")
            save_tokenizer(store / "tokenizer")
            if not whole:
                (store / "tokenizer" / "tokenizer.json").unlink()
            poison_tokenizer(store / "tokenizer", mark)
            for verb in ("inspect --latent 1", "compare made --tokens 32", "interpret --sample 1", "ablate --latent 1"):
                do(verb)
                assert not mark.exists(), verb
    finally:
        shutil.rmtree(store)
        shutil.move(kept, store)


def poison_tokenizer(tokenizer: Path, mark: Path) -> None:
    told = {"auto_map": {"AutoTokenizer": ["code.Words", None]}, "tokenizer_class": "Words"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(told))
    (tokenizer / "config.json").write_text(json.dumps({"auto_map": CLASSES, "model_type": "mine"}))
    (tokenizer / "code.py").write_text(CODE.format(mark=str(mark), kind="pass"))
