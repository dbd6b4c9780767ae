"""What goes wrong in a harvest: no room, no right, no memory, numbers that are none, another way of computing."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harvesters import NOBODY, content, start, until, whole_shards
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_lm import make_model, make_text

from hsae.errors import UserError
from hsae.harvesting import HarvestConfig, harvest
from hsae.harvesting.again import again
from hsae.lm import LM
from hsae.seal import read_json, write_json
from hsae.store import Manifest, Store

HOOK, WIDE = "blocks.1.hook_resid_pre", "blocks.0.mlp.hook_post"
STORE = Path("activations", "s")
ROOT = sys.platform == "linux" and os.geteuid() == 0


def can_mount() -> bool:
    """Whether a small disk can be had."""
    if not ROOT or shutil.which("mount") is None:
        return False
    folder = tempfile.mkdtemp()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    Path(folder).rmdir()
    return done.returncode == 0


with_mount = pytest.mark.skipif(not can_mount(), reason="only root may mount a small disk")
HOMES = (Path(sys.prefix, "bin"), Path(__file__).resolve())
OPEN = all(folder.stat().st_mode & 0o001 for home in HOMES for folder in home.parents)
with_user = pytest.mark.skipif(
    not (ROOT and OPEN), reason="root alone can become another user, who must see the packages"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("from")
    return make_model(folder / "model", intermediate_size=512)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(make_text(300)))
    return path


@pytest.fixture(scope="module")
def words(model: Path, text: Path) -> tuple[str, ...]:
    """A harvest of 20 shards of 1 MiB."""
    given = ("--model", str(model), "--data", str(text), "--hooks", WIDE, "--context", "64", "--shard-mib", "1")
    return (*given, "--batch-sequences", "4", "--name", "s", "--tokens", "10240")


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("whole") / "cache"
    assert start(cache, *words).end()[0] == 0
    return content(cache / STORE)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 44 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=44m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# ---- disks


@with_mount
@pytest.mark.fault("Disk", "The disk is full", "a tmpfs of 44 MiB that others fill meanwhile", "hsae harvest")
def test_a_disk_that_fills_up_is_one_line_and_the_same_command_goes_on(
    words: tuple[str, ...], whole: dict[str, str], disk: Path, tmp_path: Path
):
    """One line, exit code 2; with room again the same command leaves the bytes of an unbroken harvest"""
    out = tmp_path / "out"
    running = start(disk / "cache", *words, out=out)
    until(lambda: whole_shards(disk / "cache" / STORE) > 2, running)
    with open(disk / "others", "wb") as file:
        try:
            while file.write(b"\0" * (1 << 20)):
                file.flush()
        except OSError:
            pass
    code, said = running.end()
    assert code == 2, said
    line = said.splitlines()[-1]
    assert re.fullmatch(r"hsae: .*the disk is full; free some of it, and the same command goes on", line)
    assert not list((disk / "cache" / STORE).rglob(".*.part"))
    code, said = start(disk / "cache", *words, out=out).end()
    assert (code, len(said.splitlines())) == (2, 1)
    assert "more are needed" in said
    (disk / "others").unlink()
    kept = whole_shards(disk / "cache" / STORE)
    code, said = start(disk / "cache", *words, out=out).end()
    assert code == 0, said
    assert f"going on after {8 * kept} sequences" in said
    assert content(disk / "cache" / STORE) == whole


def test_a_limit_on_files_is_one_line(words: tuple[str, ...], whole: dict[str, str], tmp_path: Path):
    code, said = start(tmp_path / "cache", *words, file=600_000).end()
    assert code == 2
    assert said.splitlines()[-1].endswith("the disk is full; free some of it, and the same command goes on")
    assert start(tmp_path / "cache", *words).end()[0] == 0
    assert content(tmp_path / "cache" / STORE) == whole


@with_user
@pytest.mark.fault("Disk", "A folder that may not be written", "the process belongs to another user", "hsae harvest")
def test_no_right_to_write_is_one_line(words: tuple[str, ...], tmp_path: Path):
    (tmp_path / "cache").mkdir(mode=0o755)
    for folder in tmp_path.parents:
        if str(folder).startswith(tempfile.gettempdir() + "/"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    bundled = ("--model", "bundled", "--data", "bundled", "--hooks", WIDE, "--context", "64", "--tokens", "640")
    environment = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    code, said = start(tmp_path / "cache", *bundled, "--name", "s", user=NOBODY, environment=environment).end()
    assert code == 2, said
    assert re.fullmatch(r"hsae: .*/cache/activations.*: Permission denied\n", said)


@with_mount
@pytest.mark.fault("Disk", "A disk that may only be read", "a tmpfs mounted again with ro", "hsae harvest")
def test_a_read_only_disk_is_one_line(words: tuple[str, ...], whole: dict[str, str], disk: Path, tmp_path: Path):
    running = start(disk / "cache", *words, out=tmp_path / "out")
    until(lambda: whole_shards(disk / "cache" / STORE) > 2, running)
    running.send(signal.SIGKILL)
    running.end()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, said = start(disk / "cache", *words, out=tmp_path / "out").end()
    assert code == 2
    assert re.fullmatch(r"hsae: .*: Read-only file system", said.splitlines()[-1])
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert start(disk / "cache", *words, out=tmp_path / "out").end()[0] == 0
    assert content(disk / "cache" / STORE) == whole


# ---- processes


@pytest.mark.fault("Processes", "The process that holds a store is killed", "SIGKILL", "hsae harvest")
def test_a_second_process_is_refused_and_the_lock_of_a_dead_one_is_free(
    words: tuple[str, ...], whole: dict[str, str], tmp_path: Path
):
    """The next one goes on at once, and leaves no half-written file"""
    cache = tmp_path / "cache"
    first = start(cache, *words, out=tmp_path / "first")
    until(lambda: whole_shards(cache / STORE) > 1, first)
    first.send(signal.SIGSTOP)
    code, said = start(cache, *words, out=tmp_path / "second").end()
    assert code == 2
    assert said == f"hsae: {cache / STORE}: another hsae harvest is writing it; wait for that one, or stop it\n"
    first.send(signal.SIGKILL)
    first.end()
    (cache / STORE / ".00009.safetensors.part").write_bytes(b"half")
    (cache / STORE / ".tmp.part").mkdir()
    assert start(cache, *words, out=tmp_path / "second").end()[0] == 0
    assert content(cache / STORE) == whole
    assert not list((cache / STORE).glob(".*"))


def test_ctrl_c_finishes_the_shard(words: tuple[str, ...], whole: dict[str, str], tmp_path: Path):
    cache = tmp_path / "cache"
    running = start(cache, *words)
    until(lambda: whole_shards(cache / STORE) > 1, running)
    running.send(signal.SIGINT)
    code, said = running.end(20)
    kept = whole_shards(cache / STORE)
    assert code == 130
    last = said.splitlines()[-1]
    assert last == f"hsae: interrupted; {8 * kept} of 160 sequences are kept, and the same command goes on from there"
    assert "going on after" in (again := start(cache, *words).end())[1]
    assert again[0] == 0
    assert content(cache / STORE) == whole


@pytest.mark.fault("Processes", "Other code computes the rest", "HSAE_KERNELS changed between", "hsae harvest")
def test_another_way_of_computing_is_not_mixed_in(words: tuple[str, ...], whole: dict[str, str], tmp_path: Path):
    """One line that says how to go on; the store is left as it is"""
    cache = tmp_path / "cache"
    running = start(cache, *words)
    until(lambda: whole_shards(cache / STORE) > 1, running)
    running.send(signal.SIGKILL)
    running.end()
    before = content(cache / STORE)
    code, said = start(cache, *words, environment={"HSAE_KERNELS": "torch"}).end()
    assert code == 2
    assert re.fullmatch(
        r"hsae: .*computed by the fast tap with C kernels, the rest would be by the fast tap with PyTorch, and last "
        r"digits would differ; set HSAE_KERNELS as it was, or give another --name\n",
        said,
    )
    left = content(cache / STORE)
    assert {name: left[name] for name in left} == {name: before[name] for name in left}
    # Another version of PyTorch cannot be taken back: it is said, and both are in the manifest.
    for path in (cache / STORE / "journal").glob("0*.json"):
        entry, _ = read_json(path, "")
        entry["told"]["made"]["torch"] = "2.0.0"
        write_json(path, entry)
    kept = whole_shards(cache / STORE)
    code, said = start(cache, *words).end()
    assert code == 0
    assert f"note: last digits may differ from the whole shards' (torch 2.0.0, now {torch.__version__})" in said
    ways = Manifest.read(cache / STORE).made["ways"]
    assert [(way["torch"], way["shards"]) for way in ways] == [("2.0.0", kept), (torch.__version__, 20 - kept)]
    assert {name: sum_ for name, sum_ in content(cache / STORE).items() if name != "manifest.json"} == {
        name: sum_ for name, sum_ in whole.items() if name != "manifest.json"
    }


def test_an_unfinished_store_of_an_older_version_is_refused(words: tuple[str, ...], tmp_path: Path):
    (tmp_path / "cache" / STORE).mkdir(parents=True)
    (tmp_path / "cache" / STORE / "journal.jsonl").write_text("{}\n")
    code, said = start(tmp_path / "cache", *words).end()
    assert code == 2
    assert "an unfinished store of an older version of hsae; give another --name, or delete the folder" in said


# ---- memory


@pytest.mark.fault("Memory", "The model's pass takes more memory than there is", "RLIMIT_AS", "hsae harvest")
def test_out_of_memory_takes_fewer_contexts_at_a_time(words: tuple[str, ...], tmp_path: Path):
    """The batch is halved until it fits, that is said, and the bytes are the same"""
    stories = tmp_path / "text.txt"
    stories.write_text("\n<|endoftext|>\n".join(make_text(1900)))
    many = (*words, "--batch-sequences", "1024", "--shard-mib", "16", "--dtype", "bf16")
    many = (*many, "--tokens", "65536", "--data", str(stories))
    assert start(tmp_path / "free", *many).end()[0] == 0
    code, said = start(tmp_path / "bound", *many, memory=500 << 20).end()
    assert code == 0, said
    assert "out of memory: going on with 512 of 1024 contexts in a pass" in said
    assert content(tmp_path / "bound" / STORE) == content(tmp_path / "free" / STORE)


@pytest.fixture
def run(
    model: Path, text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Store, list[str]]]:
    """Harvest 20 contexts of 32 tokens in shards of 8, with some settings changed; and what was printed."""
    monkeypatch.setattr(HarvestConfig, "shard_sequences", lambda *_: 8)
    settings: dict[str, Any] = {"model": str(model), "data": (str(text),), "hooks": (HOOK,), "context": 32}
    settings |= {"tokens": 640, "name": "s", "batch_sequences": 4}

    def make(**changes: Any) -> tuple[Store, list[str]]:
        console = Console(file=(out := io.StringIO()), width=200)
        return Store(harvest(HarvestConfig(**settings | changes), console)), out.getvalue().splitlines()

    return make


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("products: no memory for some rows"),
    ],
)
@pytest.mark.parametrize(("most", "told"), [(3, [2]), (1, [2, 1]), (0, [2, 1])])
def test_the_batch_is_halved_and_that_is_said_once(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception, most: int, told: list[int]
):
    wanted = content(run(name="w", batch_sequences=4)[0].folder)
    real, failed = LM.tap, []

    def scarce(self: LM, tokens: torch.Tensor, hooks: Any) -> Any:
        if len(tokens) > most:
            failed.append(len(tokens))
            raise error
        return real(self, tokens, hooks)

    monkeypatch.setattr(LM, "tap", scarce)
    if most == 0:
        with pytest.raises(UserError, match=r"out of memory for one context of 32 tokens .*; lower --context"):
            run()
        return
    store, said = run()
    lines = [line for line in said if "out of memory" in line]
    assert lines == [f"out of memory: going on with {n} of 4 contexts in a pass" for n in told]
    assert len(failed) == len(told)
    same = {name: checksum for name, checksum in content(store.folder).items() if name != "manifest.json"}
    assert same == {name: checksum for name, checksum in wanted.items() if name != "manifest.json"}


def test_other_errors_are_no_lack_of_memory(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any) -> Any:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(LM, "tap", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        run()


# ---- numbers that are none


@pytest.fixture(params=["nan", "inf", "huge"])
def poisoned(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> tuple[str, Path, int]:
    """The kind, a model in which one token's embedding is so, and that token."""
    folder = shutil.copytree(model, tmp_path / "poisoned")
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("wte.weight")]
    token = 273  # " dog"
    weights[name][token, 3] = {"nan": torch.nan, "inf": -torch.inf, "huge": 1e5}[request.param]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return request.param, folder, token


@pytest.mark.fault("Numbers", "NaN, ±inf or too large for fp16", "a token's embedding is so", "hsae harvest")
def test_numbers_that_are_none_stop_the_harvest_or_are_dropped_or_clipped(
    run: Callable[..., Any], poisoned: tuple[str, Path, int], tmp_path: Path
):
    """Stop names hook, sequence, position, token and how many; drop takes them out; clip makes them finite"""
    kind, folder, token = poisoned
    # A text that comes to the token late, so that it is not in the first shard.
    own, stories = tmp_path / "own.txt", make_text(40)
    own.write_text("\n<|endoftext|>\n".join([*(s.replace(" dog", " cat") for s in stories[:8]), *stories[8:]]))
    common: dict[str, Any] = {"hooks": ("hook_embed",), "dtype": "fp16", "data": (str(own),)}
    settings = common | {"model": str(folder)}
    clean = run(name="clean", **common)[0]
    tokens = torch.cat([c.tokens for c in clean.chunks("hook_embed", 100)])
    values = torch.cat([c.activations for c in clean.chunks("hook_embed", 100)])
    bad = tokens == token
    sequence, position = bad.nonzero()[0].tolist()
    shard = sequence // 8
    many = int(bad[shard * 8 : shard * 8 + 8].sum())
    assert shard > 0
    assert many > 1
    with pytest.raises(UserError) as stopped:
        run(**settings, name="stop")
    text = clean.tokenizer.decode([token])
    line = str(stopped.value)
    gave = {"nan": "nan", "inf": "-inf", "huge": "inf"}[kind]
    assert line.startswith(
        f"hook_embed, sequence {sequence}, position {position}, token {token} {text!r}: the model gave {gave}"
    )
    assert line.endswith(f"; {many} such in shard {shard}; --non-finite drop or clip goes on")
    assert ("--dtype bf16 or fp32 helps" in line) == (kind != "nan")

    store, said = run(**settings, name="drop", non_finite="drop")
    record = store.manifest.hooks["hook_embed"]
    found = list(store.chunks("hook_embed", 100))
    assert record.excluded == {"non-finite": int(bad.sum())}
    assert record.kept == int((~bad).sum())
    assert torch.equal(torch.cat([c.keep for c in found]), ~bad)
    stored = torch.cat([c.activations for c in found])
    assert torch.equal(stored[~bad], values[~bad])
    assert not stored[bad].any()
    torch.testing.assert_close(torch.tensor(record.mean), values[~bad].double().mean(0).float(), atol=1e-5, rtol=0)
    assert any(f"left out: {int(bad.sum())} non-finite" in each for each in said)

    store, said = run(**settings, name="clip", non_finite="clip")
    stored = torch.cat([c.activations for c in store.chunks("hook_embed", 100)])
    clipped = {"nan": 0.0, "inf": -65504.0, "huge": 65504.0}[kind]
    assert (stored[bad][:, 3] == clipped).all()
    stored[bad] = torch.where(torch.arange(16) == 3, values[bad], stored[bad])
    assert torch.equal(stored, values)
    assert store.manifest.made["clipped"] == {"hook_embed": int(bad.sum())}
    assert store.manifest.hooks["hook_embed"].kept == 640
    assert f"hook_embed: {int(bad.sum()):,} positions were not finite and are clipped" in said


def test_nan_spreads_and_the_fast_tap_is_still_used(run: Callable[..., Any], poisoned: tuple[str, Path, int]):
    """Behind attention every later position is NaN, and maybe some before it, whose weight is 0 and 0 · NaN is NaN."""
    kind, folder, token = poisoned
    store, said = run(model=str(folder), hooks=("blocks.2.hook_resid_post",), non_finite="drop")
    assert not [line for line in said if "it is not used" in line]
    assert store.manifest.made["ways"][0]["tap"] == "fast"
    found = list(store.chunks("blocks.2.hook_resid_post", 100))
    tokens, keep = torch.cat([c.tokens for c in found]), torch.cat([c.keep for c in found])
    if kind == "huge":
        assert keep.all()  # fits float32
    else:
        behind = (tokens == token).cumsum(1) > 0
        assert not keep[behind].any()
        assert keep[~behind.any(1)].all()
        assert 0 < int(behind.sum()) < behind.numel()
    assert all(c.activations.isfinite().all() for c in found)


# ---- again


def test_bad_shards_are_harvested_again(run: Callable[..., Any], cache: Path):
    store, _ = run(dedupe=True, hooks=(HOOK, WIDE))
    before, quiet = content(store.folder), Console(quiet=True)
    (store.folder / "00001.safetensors").write_bytes(b"x")
    (store.folder / "00002.safetensors").unlink()
    assert again(store.folder, store.manifest, [2, 1], quiet) == [1, 2]
    assert content(store.folder) == before
    # An older store does not say where its shards start.
    old = tuple(dataclasses.replace(shard, cursor=None) for shard in store.manifest.shards)
    (store.folder / "00002.safetensors").unlink()
    assert again(store.folder, dataclasses.replace(store.manifest, shards=old), [2], quiet) == [2]
    assert content(store.folder) == before


def test_what_comes_out_differently_is_not_put_into_the_store(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    store, _ = run()
    damaged = (store.folder / "00001.safetensors").read_bytes()[:-3]
    (store.folder / "00001.safetensors").write_bytes(damaged)
    real = LM.tap
    monkeypatch.setattr(LM, "tap", lambda *args: {hook: x * 1.0000002 for hook, x in real(*args).items()})
    console = Console(file=(out := io.StringIO()), width=300)
    assert again(store.folder, store.manifest, [1], console) == []
    assert "00001.safetensors: comes out with other bytes than it had, so it is left as it is" in out.getvalue()
    assert (store.folder / "00001.safetensors").read_bytes() == damaged
    assert not list(store.folder.glob(".*"))


def test_again_needs_the_same_model_and_text(run: Callable[..., Any], model: Path, text: Path, tmp_path: Path):
    own_text, own_model = tmp_path / "text.txt", shutil.copytree(model, tmp_path / "model")
    shutil.copy(text, own_text)
    store, _ = run(model=str(own_model), data=(str(own_text),))
    own_text.write_text(own_text.read_text() + " More.")
    with pytest.raises(UserError, match="the text it was made from changed; harvest it anew"):
        again(store.folder, store.manifest, [0], Console(quiet=True))
    weights = load_file(own_model / "model.safetensors")
    save_file({name: x * 1.01 for name, x in weights.items()}, own_model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="the model and the text it was made from changed"):
        again(store.folder, store.manifest, [0], Console(quiet=True))
    own_text.unlink()
    with pytest.raises(UserError, match=r"text\.txt: no such file"):
        again(store.folder, store.manifest, [0], Console(quiet=True))
