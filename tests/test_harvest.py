"""From model and text to a store: the right activations for the right tokens, whole after any interruption."""

import io
import json
import multiprocessing
import multiprocessing.process
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_lm import harvest_into, make_model, make_text, save_model

from hsae.errors import UserError
from hsae.files import sha256
from hsae.harvesting import HarvestConfig, harvest
from hsae.harvesting.exclude import keep_mask
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.store import Store
from hsae.tapping import FastTap

SHARED = Path(__file__).parents[2] / "shared" / "data"
HOOK, UPPER = "blocks.1.hook_resid_pre", "blocks.2.mlp.hook_post"

Harvest = Callable[..., Store]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(make_text(60)))
    return path


@pytest.fixture
def settings(model: Path, stories: Path, cache: Path) -> dict[str, Any]:
    """A small harvest: 20 contexts of 32 tokens."""
    return {
        "model": str(model),
        "data": (str(stories),),
        "hooks": (HOOK,),
        "context": 32,
        "tokens": 640,
        "name": "s",
        "batch_sequences": 4,
    }


@pytest.fixture
def run(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Harvest:
    """Harvest with some settings changed, in shards of 8 contexts."""
    monkeypatch.setattr(HarvestConfig, "shard_sequences", lambda *_: 8)

    def make(console: Console | None = None, **changes: Any) -> Store:
        config = HarvestConfig(**{**settings, **changes})
        return Store(harvest(config, console or quiet()))

    return make


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def everything(store: Store, hook: str = HOOK) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, activations and keep mask of a whole store."""
    chunks = list(store.chunks(hook, 1000))
    return (
        torch.cat([c.tokens for c in chunks]),
        torch.cat([c.activations for c in chunks]),
        torch.cat([c.keep for c in chunks]),
    )


def bytes_of(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- what is in the store


def test_tokens_are_the_text_and_activations_are_the_models(run: Harvest, model: Path, stories: Path) -> None:
    store = run(hooks=(HOOK, UPPER))
    lm = load_lm(str(model), device="cpu")
    wanted: list[int] = []
    for story in stories.read_text().split("\n<|endoftext|>\n"):
        wanted += [*lm.tokenizer(story)["input_ids"], lm.tokenizer.eos_token_id]
    tokens = everything(store)[0]
    assert tokens.flatten().tolist() == wanted[:640]
    with torch.inference_mode():
        _, cache = lm.bridge.run_with_cache(tokens.long())
    for hook, width in ((HOOK, 16), (UPPER, 32)):
        assert store.manifest.hooks[hook].width == width
        torch.testing.assert_close(everything(store, hook)[1], cache[hook], atol=1e-5, rtol=0)
    assert store.tokenizer.decode(tokens[0].tolist()).startswith(make_text(1)[0][:50])


def test_the_manifest_says_what_was_done(run: Harvest, stories: Path) -> None:
    manifest = run(dtype="bf16").manifest
    assert (manifest.sequences, manifest.shard_sequences, manifest.context) == (20, 8, 32)
    assert [s.sequences for s in manifest.shards] == [8, 8, 4]
    assert manifest.model["architecture"] == "GPTNeoForCausalLM"
    assert (manifest.model["layers"], manifest.model["width"], manifest.model["vocabulary"]) == (4, 16, 300)
    assert manifest.text["files"] == [
        {"name": "stories.txt", "bytes": stories.stat().st_size, "sha256": sha256(stories)}
    ]
    assert manifest.text["ran_out"] is False
    assert manifest.harvest["context"] == 32
    assert manifest.harvest["device"] == "cpu"


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_dtypes(run: Harvest, dtype: str, error: float) -> None:
    exact, rounded = everything(run())[1], everything(run(dtype=dtype, name="r"))[1]
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=1e-7, rtol=error)


def test_one_document_a_row(run: Harvest) -> None:
    store = run(pack="documents", context=64, tokens=640, exclude_special=True)
    tokens, values, keep = everything(store)
    end = store.manifest.tokenizer["eos"]
    assert torch.equal(keep, tokens != end)
    assert not keep.all()
    assert keep[:, 0].all()
    assert store.manifest.hooks[HOOK].excluded == {"padding": int((~keep).sum())}
    rows = values[keep].double()
    torch.testing.assert_close(torch.tensor(store.manifest.hooks[HOOK].mean).double(), rows.mean(0))


def test_positions_that_do_not_count(run: Harvest) -> None:
    tokens, _, keep = everything(run(exclude_special=True, exclude_first=2))
    special = tokens == 0
    assert torch.equal(keep, ~special & (torch.arange(32) >= 2))
    excluded = Store.open("s").manifest.hooks[HOOK].excluded
    assert excluded == {"special": int(special.sum()), "first": int((~special)[:, :2].sum())}
    assert Store.open("s").manifest.hooks[HOOK].kept == int(keep.sum())


def test_each_position_is_counted_under_its_first_reason() -> None:
    config = HarvestConfig(exclude_special=True, exclude_first=1, exclude_norm=3.0, context=6)
    tokens = torch.tensor([[0, 5, 5, 0, 5, 0], [5, 5, 5, 5, 5, 5]])
    norms = torch.tensor([[90.0, 1.0, 2.0, 1.0, 7.0, 99.0], [99.0, 1.0, 3.0, 3.1, 1.0, 1.0]])
    values = torch.stack([norms, torch.zeros_like(norms)], -1)
    keep, excluded = keep_mask(config, tokens, torch.tensor([5, 6]), values, special=(0,))
    # Medians without padding: 2 (of 90 1 2 1 7) and 1 (the lower middle of 99 1 3 3.1 1 1).
    assert keep.int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1]]
    assert excluded == {"padding": 1, "special": 2, "first": 1, "norm": 2}


# ---- plan, progress, end


def test_shards_say_where_they_start(run: Harvest) -> None:
    store = run(dedupe=True)
    assert store.manifest.shards[0].cursor == {
        "document": 0,
        "used": 0,
        "documents": 0,
        "duplicates": 0,
        "truncated": 0,
    }
    for shard in store.manifest.shards[1:]:
        assert shard.cursor is not None
        assert shard.cursor["document"] > 0
    assert store.manifest.made["ways"][0]["shards"] == 3


def test_a_policy_makes_another_store(run: Harvest) -> None:
    run()
    with pytest.raises(UserError, match=r"other settings \(non_finite\)"):
        run(non_finite="drop")
    run(non_finite="drop", name="d")
    with pytest.raises(UserError, match=r"other settings \(non_finite\)"):
        run(name="d")


def test_found_again_without_model_or_text(run: Harvest, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = run()
    before = bytes_of(store.folder)
    (store.folder / "plan.json").write_text("{}")  # killed just before clearing up
    monkeypatch.setattr("hsae.harvesting.load_lm", None)
    console = quiet()
    assert run(console).folder == store.folder
    assert "already harvested" in printed(console)
    assert bytes_of(store.folder) == before


def test_another_store_under_the_name(run: Harvest, model: Path, stories: Path, tmp_path: Path) -> None:
    text, folder = tmp_path / "t.txt", tmp_path / "model"
    shutil.copy(stories, text)
    shutil.copytree(model, folder)
    run(data=(str(text),), model=str(folder))
    with pytest.raises(UserError, match=r"other settings \(dtype, exclude_first\); give another --name"):
        run(data=(str(text),), model=str(folder), dtype="fp16", exclude_first=1)
    text.write_text(text.read_text() + " More.")
    with pytest.raises(UserError, match="the content of the data"):
        run(data=(str(text),), model=str(folder))
    save_model(folder, intermediate_size=48)
    with pytest.raises(UserError, match="the content of the data, the files of the model"):
        run(data=(str(text),), model=str(folder))


def test_default_names_follow_the_settings(model: Path) -> None:
    base = HarvestConfig(model="some/Model-1M", data=("a/stories v2.txt",))
    assert base.store_name.startswith("Model-1M_stories-v2_")
    assert HarvestConfig(model="some/Model-1M", data=("a/stories v2.txt",), device="cpu").store_name == base.store_name
    assert HarvestConfig(model="some/Model-1M", data=("a/stories v2.txt",), context=64).store_name != base.store_name


def test_text_that_runs_out(run: Harvest, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join([*make_text(4), make_text(1)[0]]))
    console = quiet()
    store = run(console, data=(str(path),), document_separator="\n\n", dedupe=True)
    assert 0 < store.manifest.sequences < 20
    assert f"the text ran out: the store holds {store.manifest.tokens:,} of the 640 tokens" in printed(console)
    assert store.manifest.text["ran_out"] is True
    assert store.manifest.text["duplicates"] == 1
    assert store.manifest.text["documents"] == 4


@pytest.mark.parametrize("content", ["", "\n<|endoftext|>\n", "Too short."])
def test_not_enough_text(run: Harvest, tmp_path: Path, cache: Path, content: str) -> None:
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=r"short\.txt: not enough text for one context of 32 tokens"):
        run(data=(str(path),))
    assert not (cache / "activations" / "s").exists()


def test_too_little_disk_is_an_error_at_the_start(run: Harvest, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 20 << 20))
    run(name="fits")
    with pytest.raises(UserError, match=r"6\.4 GiB more are needed, 20\.0 MiB are free; lower --tokens"):
        run(tokens=100_000_000)
    assert not (cache / "activations" / "s").exists()


def test_what_is_said_fits_80_columns(run: Harvest) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    run(console)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", printed(console))
    assert max(len(line) for line in said.replace("\r", "\n").splitlines()) <= 80
    assert "20 sequences of 32 in 3 shards, 43.1 KiB" in said
    assert "about 1 s" in said
    assert "640 positions count, variance " in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hooks": ("blocks.7.hook_resid_pre",)}, r"no hook point 'blocks.7.hook_resid_pre'; nearest: .*resid_pre"),
        ({"context": 65}, "takes 64 tokens at most, --context is 65"),
        ({"data": ("no.txt",)}, r"no\.txt: no such file"),
        ({"hooks": ("blocks.0.attn.hook_pattern",)}, "not one vector for each position"),
    ],
)
def test_mistakes_are_one_line(run: Harvest, cache: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)
    assert not (cache / "activations" / "s").exists()


@pytest.mark.parametrize(
    "field",
    [{"hooks": ()}, {"hooks": ("a", "a")}, {"context": 1}, {"exclude_norm": 0.5}, {"name": "../x"}, {"tokens": 0}],
)
def test_settings_out_of_range(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        HarvestConfig(**field)


# ---- the hub, from a machine that cannot reach it


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
@pytest.mark.parametrize("what", ["model", "data"])
def test_hub_unreachable(model: Path, tmp_path: Path, what: str, environment: dict[str, str]) -> None:
    local: dict[str, Any] = {"model": str(model)} if what == "data" else {"data": (str(Path(__file__)),)}
    if what == "model":
        (tmp_path / "a.txt").write_text("A story.")
        local["data"] = (str(tmp_path / "a.txt"),)
    code = f"""
from hsae.errors import UserError
from hsae.harvesting import HarvestConfig, harvest
try:
    harvest(HarvestConfig(context=32, hooks=({HOOK!r},), **{local!r}))
except UserError as error:
    print(error)
"""
    home = {"HF_HOME": str(tmp_path), "HSAE_CACHE": str(tmp_path / "cache")}
    start = time.monotonic()
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | home | environment, capture_output=True, text=True, check=True
    )
    assert time.monotonic() - start < 60  # almost all of it is importing; the hub's own retries would add 25 s
    (line,) = out.stdout.splitlines()
    assert ("roneneldan/TinyStories-1M" if what == "model" else "dataset roneneldan/TinyStories") in line
    assert "bundled" in line
    assert out.stderr == ""


# ---- the fast tap, and threads beside it


def test_the_fast_tap_computes_once_it_was_checked(run: Harvest, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, checked = [], LM.trust_fast
    monkeypatch.setattr(FastTap, "tap", lambda *args, real=FastTap.tap: taken.append(1) or real(*args))

    def given_up(*args: Any) -> str:
        checked(*args)
        args[0]._trusted.clear()
        return "it differs; it is not used"

    fast = run()
    assert len(taken) == 1 + 2 + 5  # the check, the time, the batches
    monkeypatch.setattr(LM, "trust_fast", given_up)
    console = quiet()
    bridge = run(console, name="r")
    assert len(taken) == 8 + 1
    assert printed(console).splitlines().count("it differs; it is not used") == 1
    assert not torch.equal(everything(fast)[1], everything(bridge)[1])
    torch.testing.assert_close(everything(fast)[1], everything(bridge)[1], atol=1e-5, rtol=0)


def test_a_fast_tap_that_differs_is_given_up(run: Harvest, monkeypatch: pytest.MonkeyPatch) -> None:
    right = everything(run())[1]
    tampered = lambda *args, real=FastTap.tap: {hook: x * 1.001 for hook, x in real(*args).items()}  # noqa: E731
    monkeypatch.setattr(FastTap, "tap", tampered)
    console = quiet()
    store = run(console, name="r")
    said = f"{HOOK}: the fast computation differs from TransformerLens' by 1.0e-03; it is not used"
    assert printed(console).splitlines().count(said) == 1
    torch.testing.assert_close(everything(store)[1], right, atol=1e-5, rtol=0)


def test_two_harvests_are_equal_byte_for_byte(run: Harvest, cache: Path) -> None:
    first = bytes_of(run(dtype="bf16", exclude_special=True).folder)
    (cache / "activations" / "s").rename(cache / "first")
    assert bytes_of(run(dtype="bf16", exclude_special=True).folder) == first


def test_bytes_do_not_depend_on_the_batch(run: Harvest) -> None:
    whole = {name: checksum for name, checksum in bytes_of(run().folder).items() if name[0] == "0"}
    for batch in (1, 3, 20):
        made = bytes_of(run(batch_sequences=batch, name=f"b{batch}").folder)
        assert {name: checksum for name, checksum in made.items() if name[0] == "0"} == whole


def test_mistakes_far_into_the_text_keep_the_shards_before_them(run: Harvest, tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"tokens": [token] * 32}) + "\n" for token in [5] * 10 + [900] + [5] * 10))
    with pytest.raises(UserError, match="token id 900"):
        run(data=(str(path),), batch_sequences=2)
    assert (tmp_path / "cache" / "activations" / "s" / "00000.safetensors").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "tokenise"]


# ---- interruptions


def test_ctrl_c_and_resume(run: Harvest, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    whole = bytes_of(run().folder)
    (cache / "activations" / "s").rename(cache / "whole")
    real, calls = keep_mask, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the second shard
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr("hsae.harvesting.passes.keep_mask", interrupted)
    with pytest.raises(KeyboardInterrupt, match="8 of 20 sequences are kept, and the same command goes on"):
        run()
    with pytest.raises(UserError, match="unfinished store made with other settings"):
        run(exclude_first=1)
    console = quiet()
    assert bytes_of(run(console).folder) == whole
    assert "going on after 8 sequences" in printed(console)
    assert len(calls) == 4 + 3  # the refused run computed nothing, the last one only what was missing


def test_two_at_once(run: Harvest, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*args: Any) -> Any:
        with pytest.raises(UserError, match="another hsae harvest is writing it"):
            run()
        raise InterruptedError

    monkeypatch.setattr("hsae.harvesting.passes.keep_mask", meanwhile)
    with pytest.raises(InterruptedError):
        run()


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """SIGKILL at random instants, then the same command: every file equals an unbroken run's."""
    text, model = tmp_path / "long.txt", tmp_path / "model"
    text.write_text("\n<|endoftext|>\n".join(make_text(1200)))
    make_model(model, intermediate_size=512)  # a wide hook point makes many shards of 1 MiB
    config = HarvestConfig(
        model=str(model),
        data=(str(text),),
        hooks=("blocks.0.mlp.hook_post", "blocks.0.hook_resid_pre"),
        context=64,
        tokens=50_000,
        shard_mib=1,
        batch_sequences=4,
        dedupe=True,
        name="s",
    )
    # Processes forked from one that has imported everything start in no time, and are real ones to kill.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["transformer_lens.model_bridge", "hsae.harvesting", "tiny_lm"])

    def start(cache: str) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=harvest_into, args=(str(tmp_path / cache), config))
        process.start()
        return process

    def finish(cache: str) -> dict[str, str]:
        process = start(cache)
        process.join(timeout=120)
        assert process.exitcode == 0
        return bytes_of(tmp_path / cache / "activations" / "s")

    def whole_shards() -> int:
        return len(list((tmp_path / "killed" / "activations" / "s").glob("journal/0*.json")))

    unbroken = finish("unbroken")
    assert len([name for name in unbroken if name.endswith(".safetensors")]) == 98
    clock, kills = random.Random(5), 0
    for _ in range(5):
        before, process = whole_shards(), start("killed")
        # Wait until it writes, then for a moment that has nothing to do with what it is doing.
        while process.is_alive() and whole_shards() <= before:
            time.sleep(0.001)
        time.sleep(clock.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert finish("killed") == unbroken


# ---- real models


@pytest.mark.skipif(
    not SHARED.exists(),
    reason="needs the real models and text of ../shared/data, which may not be copied into the project",
)
def test_tinystories_1m_layout_with_the_default_config(cache: Path, tmp_path: Path) -> None:
    """A folder in the hub's layout with TinyStories-1M's own sizes, harvested as by default, equals TransformerLens."""
    folder = tmp_path / "TinyStories-1M"
    sizes = {"hidden_size": 64, "num_heads": 16, "intermediate_size": 256, "num_layers": 8, "vocab_size": 50257}
    save_model(folder, **sizes, window_size=256, max_position_embeddings=2048)
    for file in (SHARED / "gpt2_tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)
    text = str(SHARED / "text" / "tinystories_valid_head.txt")
    store = Store(harvest(HarvestConfig(model=str(folder), data=(text,), tokens=1024, name="d"), quiet()))
    hook = "blocks.4.hook_resid_pre"
    tokens, values, keep = everything(store, hook)
    assert tokens.shape == (2, 512)
    assert keep.all()
    with torch.inference_mode():
        _, cache_of_all = load_lm(str(folder), device="cpu").bridge.run_with_cache(tokens.long())
    torch.testing.assert_close(values, cache_of_all[hook], atol=1e-5, rtol=0)
    assert store.tokenizer.decode(tokens[0].tolist())[:20] == Path(text).read_text()[:20]


@pytest.mark.skipif(
    not SHARED.exists(),
    reason="needs the real models and text of ../shared/data, which may not be copied into the project",
)
def test_stories260k(cache: Path) -> None:
    data = (str(SHARED / "text" / "tinystories_train_sample.txt"),)
    model = str(SHARED / "stories260K")
    config = HarvestConfig(model=model, data=data, separator="bos", tokens=2048, exclude_special=True)
    store = Store(harvest(config, quiet()))
    tokens, _, keep = everything(store, "blocks.4.hook_resid_pre")
    assert tokens[0, 0] == 1
    assert store.tokenizer.decode(tokens[0].tolist()).startswith("One day, a little girl named Lily")
    assert torch.equal(keep, tokens != 1)
    # The model has learnt something: its residual stream is far from the unit variance of a random one.
    assert 0.8 < store.manifest.hooks["blocks.4.hook_resid_pre"].variance < 1.4
