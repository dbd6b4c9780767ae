"""Stores, runs, indexes and names from a stranger: read, or refused in one line; nothing else happens."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import io
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hostile import DEEP, ESCAPES, VALUES, WORDS, Line, complaint, do, outcome, snapshot
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from shared_runs import MODEL, SETUPS, make_run, make_store
from test_hostile import EXAMPLES, sized

from hsae.errors import UserError
from hsae.evidence.file import write as write_index
from hsae.evidence.index import Index
from hsae.export import ExportConfig, export
from hsae.harvesting.sources import open_source
from hsae.seal import write_json
from hsae.terminal import Terminal

HOUSE = Path(__file__).parents[1]
PATHS = (
    "../x",
    "../../../x",
    "/tmp/x",
    "a/b",
    "..",
    "a\\..\\b",
    "C:\\x",
    "C:x",
    "a\0b",
    "~/x",
    "//host/x",
    "file:///x",
)
BOMBS = {
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep tables": '{"a":' * DEEP + "1" + "}" * DEEP,
    "a number of 10,000 digits": '{"version": ' + "9" * 10_000 + "}",
    "a million keys": "{" + ",".join(f'"{i}":0' for i in range(1_000_000 if EXAMPLES else 50_000)) + "}",
    "a key ten times": '{"version": 1, "version": 2' + ', "format": "x"' * 10 + "}",
    "half a surrogate pair": '{"format": "\\ud800", "version": "\\udfff"}',
    "not finite": '{"format": NaN, "version": Infinity}',
    "nothing": "",
    "not UTF-8": "\udcff",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a store that has a tokeniser, a run with evidence, SAEs of three tools, and text."""
    home = tmp_path_factory.mktemp("strangers") / "cwd"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", "cache")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(home)
        make_run(store=make_store())
        for to in ("saelens", "sparsify", "dictionary-learning", "safetensors"):
            export(ExportConfig(run="made", to=to, setup="topk", out=to))
        assert do("inspect --run made --latent 1 --setup relu").code == 0
        shutil.copytree(home, home.parent / "kept")
        yield home


@pytest.fixture
def there(world: Path) -> Iterator[Path]:
    """The world, put back afterwards."""
    yield world
    restore(world)


def restore(world: Path) -> None:
    for path in world.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(world.parent / "kept", world, dirs_exist_ok=True)


# ---- one value of a table is another


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in plain data, tables and lists included."""
    if isinstance(data, dict) and data:
        return [path, *(leaf for key, value in data.items() for leaf in leaves(value, (*path, key)))]
    if isinstance(data, list) and data:
        return [path, *(leaf for i, value in enumerate(data[:2]) for leaf in leaves(value, (*path, i)))]
    return [path]


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Plain data with another value in one place; `...` takes it out."""
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


ABSURD = st.sampled_from((..., None, *VALUES, *WORDS, *PATHS, ESCAPES, [[]] * 3, {"x": ESCAPES}, 2**31, 10**12, 2**62))
TABLES = {
    "cache/activations/shared/manifest.json": (
        "inspect --latent 1",
        "compare made",
        "verify shared",
        "export made --to delphi",
    ),
    "cache/runs/made/run.json": (
        "inspect",
        "compare made",
        "verify made",
        "export made --to sparsify",
        "push made --dry-run",
    ),
    "cache/runs/made/config.toml": ("inspect", "compare made", "export made --to saelens", "push made --dry-run"),
    "saelens/cfg.json": ("import saelens --name x --held-out 32",),
    "sparsify/layers.3/cfg.json": ("import sparsify --name x --held-out 32",),
    "dictionary-learning/config.json": ("import dictionary-learning --name x --held-out 32",),
    "safetensors/config.json": ("import safetensors --name x --held-out 32",),
}


@pytest.mark.fault(
    "Strangers", "A table tells lies", "any value of manifest, run, config or SAE", "every verb that reads it"
)
@sized(100, EXAMPLES // 5)
@given(data=st.data())
def test_any_value_in_a_strangers_table_is_taken_or_refused_in_one_line(world: Path, data: st.DataObject) -> None:
    """Any value of any table may be anything: a result or one line, and no file but in the cache."""
    name = data.draw(st.sampled_from(tuple(TABLES)))
    path = world / name
    toml = path.suffix == ".toml"
    table = tomllib.loads(path.read_text()) if toml else json.loads(path.read_text())
    table = {key: inner for key, inner in table.items() if key not in ("seal", "files")}
    place = data.draw(st.sampled_from(leaves(table)[1:]))
    value = data.draw(ABSURD)
    # All is drawn before anything is written: a draw may end the example, and the files must be as they were.
    sealed, line = data.draw(st.booleans()), data.draw(st.sampled_from(TABLES[name]))
    if place == ("rows",) and value == []:
        return
    table = changed(table, place, value)
    try:
        if toml:
            run = path.parent / "run.json"
            run.write_text(json.dumps(unsealed(run) | {"files": {}}))  # as a stranger makes it, who sums nothing
            path.write_bytes(tomli_w.dumps(table).encode("utf-8", "surrogatepass"))
        elif sealed and "cache" in name:
            write_json(path, table)
        else:
            path.write_text(json.dumps(table))
    except (ValueError, TypeError, AttributeError):  # what no such file can hold
        restore(world)
        return
    before = snapshot(world.parent)
    done = outcome(Line(tuple(line.split())))
    after = snapshot(world.parent)
    restore(world)
    assert not (wrong := complaint(done)), f"{wrong}: {line}\n{done.err[:2000]!r}\n{done.out[:2000]!r}"
    cache = str(world / "cache")
    made = [path for path in after if path not in before and not path.startswith(cache)]
    assert done.code != 2 or f"{cache}/runs/x" not in after, "a run is left that cannot be read"
    assert not made or line.startswith("export"), made
    assert all(path.startswith(str(world)) for path in made), made


@pytest.mark.fault("Strangers", "JSON bombs", "depth, digits, keys, not text", "every reader of JSON")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_of_json_is_one_line(there: Path, bomb: str) -> None:
    """A table of any depth, with numbers of any length or a million keys, is one line."""
    for name, lines in TABLES.items():
        if name.endswith(".json"):
            (there / name).write_bytes(BOMBS[bomb].encode("utf-8", "surrogateescape"))
            assert do(lines[0]).code == 2, name
            restore(there)
    (there / "text.jsonl").write_bytes(BOMBS[bomb].replace("\n", "").encode("utf-8", "surrogateescape") + b"\n")
    if bomb != "nothing":
        with pytest.raises(UserError):
            list(open_source(("text.jsonl",)).documents())


# ---- no path leaves its folder, no file is waited for


@pytest.mark.fault(
    "Strangers", "Names that lead out of a folder", "../, absolute, drives, NUL", "every verb that reads them"
)
@pytest.mark.parametrize("name", PATHS)
def test_no_name_in_a_strangers_table_leaves_its_folder(there: Path, name: str) -> None:
    """Shards, files, setups and runs with a path for a name are refused, or are names; nothing is made elsewhere."""
    home = there / "cache"
    manifest, run, config = (
        home / "activations/shared/manifest.json",
        home / "runs/made/run.json",
        home / "runs/made/config.toml",
    )
    before = {path for path in snapshot(there.parent) if not path.startswith(str(home))}
    for place in (("shards", 0, "file"), ("files", name)):
        table = unsealed(manifest)
        table.setdefault("files", {})
        write_json(manifest, changed(table, place, name if place[0] == "shards" else {"bytes": 1, "sha256": "0" * 64}))
        assert do("inspect --latent 1").code == 2
        assert do("verify shared").code in (1, 2)
    restore(there)
    write_json(run, changed(unsealed(run) | {"files": {}}, ("rows", 0, "setup"), name))
    train = tomllib.loads(config.read_text())["train"]
    train["setup"][name] = train["setup"]["relu"]
    config.write_text(tomli_w.dumps({"train": train | {"name": name, "store": name}}))
    for line in ("inspect --run made --latent 1", "export made --to saelens", "push made --dry-run", "compare made"):
        do(line)
    assert {path for path in snapshot(there.parent) if not path.startswith(str(home))} == before


def unsealed(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}


@pytest.mark.fault("Strangers", "Links out of a folder", "a symlink for each file", "hsae inspect, train")
@pytest.mark.parametrize(
    "name",
    [
        "runs/made/run.json",
        "runs/made/config.toml",
        "runs/made/sae.safetensors",
        "activations/shared/manifest.json",
        "activations/shared/00000.safetensors",
    ],
)
@pytest.mark.parametrize("target", ["outside", "/dev/zero", "gone"])
def test_a_link_for_a_file_is_refused_in_one_line(there: Path, name: str, target: str) -> None:
    """A link that leaves the folder, to a file, a device or nothing, is one line that shows nothing of it."""
    path = there / "cache" / name
    outside = there.parent / "outside"
    outside.write_text("the secret")
    path.unlink()
    path.symlink_to(outside if target == "outside" else target)
    try:
        done = do(
            "train --store shared --steps 1 --latents 4 --batch-tokens 32 --held-out 32 --name new --device cpu"
            if "act" in name
            else "inspect --latent 1 --run made --setup relu"
        )
        assert done.code == 2
        assert "secret" not in done.err
    finally:
        outside.unlink()


# ---- nothing unpickles


def test_no_pickle_is_read_or_written_but_for_dictionary_learning() -> None:
    """In the whole source: one torch.save (the explicit export), one torch.load (weights only), no allow_pickle."""
    found = set()
    for path in (HOUSE / "hsae").rglob("*.py"):
        where = str(path.relative_to(HOUSE / "hsae"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(where, alias.name) for alias in node.names if alias.name.split(".")[0] in BANNED}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED:
                found.add((where, node.module))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in WATCHED:
                options = [ast.unparse(k) for k in node.keywords if k.arg in ("weights_only", "allow_pickle")]
                found.add((where, ast.unparse(node.func), *options))
    assert found == {
        ("export/dictionary_learning.py", "torch.save"),
        ("importing/dictionary_learning.py", "torch.load", "weights_only=True"),
        ("harvesting/text.py", "np.load", "allow_pickle=False"),
    }


WATCHED = {"torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load", "np.save", "eval", "exec"}
BANNED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}


# ---- evidence


@pytest.mark.fault(
    "Strangers", "An index that contradicts itself", "any array of another shape, type or value", "hsae inspect"
)
@sized(60, EXAMPLES // 10)
@given(data=st.data())
def test_any_index_is_read_or_refused_in_one_line(world: Path, data: st.DataObject) -> None:
    """An index with any array changed, and sealed again: everything it says can be asked for, or it is one line."""
    (path,) = (world / "cache/runs/made/evidence").glob("*.safetensors")
    arrays = load_file(path)
    with safe_open(path, framework="pt") as file:
        facts = {key: value for key, value in file.metadata().items() if key not in ("seal", "blocks")}
    name = data.draw(st.sampled_from(sorted(arrays)))
    change = data.draw(st.sampled_from(tuple(CHANGES)))
    if change == "gone":
        del arrays[name]
    else:
        arrays[name] = CHANGES[change](arrays[name]).contiguous()
    mutated = world / "index.safetensors"
    write_index(mutated, arrays, facts)
    try:
        index = Index(mutated)
        for latent in range(index.latents):
            index.latent(latent)
            index.in_random(latent)
        assert index.rows >= 0
        assert len(index.most_selective(3)) <= 3
        assert len(index.most_active(3)) <= 3
        assert len(index.rate) == len(index.mean) == index.latents
    except UserError:
        pass
    finally:
        mutated.unlink()


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gone": lambda t: t,
    "longer": lambda t: torch.cat([t, t]),
    "empty": lambda t: t[:0],
    "flat": lambda t: t.flatten(),
    "one dimension more": lambda t: t[None],
    "no dimension": lambda t: t.flatten()[:1].sum(),
    "turned": lambda t: t.flip(0),
    "negative": lambda t: -t - 5,
    "huge": lambda t: torch.full_like(t, 2**30 if not t.is_floating_point() else 1e30),
    "tiny": lambda t: torch.full_like(t, 1) * (1e-30 if t.is_floating_point() else 1),
    "not finite": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t + 1,
    "zero": torch.zeros_like,
    "of floats": lambda t: t.float(),
    "of bytes": lambda t: t.to(torch.uint8),
    "of halves": lambda t: t.to(torch.bfloat16),
}


# ---- terminals


@pytest.mark.fault(
    "Strangers", "Terminal escapes in names", "setup, model, hook, store, tokens", "every verb that prints"
)
def test_no_escape_of_a_stranger_reaches_the_terminal(there: Path) -> None:
    """Names and tokens of a stranger come out as visible text, whatever they hold, in every verb that prints them."""
    name = "a" + ESCAPES.replace("/", "|")
    model = MODEL | {"name": ESCAPES, "architecture": ESCAPES}
    store = make_store("odd", hook=ESCAPES)
    path = store.folder / "manifest.json"
    write_json(path, unsealed(path) | {"model": model, "text": {"data": [ESCAPES]}})
    run = make_run("odd", {name: SETUPS["relu"], name + "2": SETUPS["topk"]}, store=store, hook=ESCAPES)
    told = unsealed(run.folder / "run.json")
    write_json(run.folder / "run.json", told | {"model": model, "origin": ESCAPES})
    for line in (
        "inspect --run odd",
        "inspect --run odd --latent 1",
        "compare odd",
        "verify odd",
        "export odd --to saelens",
        "push odd --dry-run",
        "evaluate --run odd",
        "interpret --run odd",
        "ablate --latent 1 --run odd",
    ):
        done = do(line)
        assert done.code in (0, 1, 2)
    for verb in ("inspect", "train --store"):
        assert do(f"{verb} {ESCAPES.split()[0]}").code == 2


def test_the_terminal_shows_text_as_text() -> None:
    """The console that all verbs print to: no escape but rich's own comes through, and brackets are brackets."""
    for forced in (False, True):
        file = io.StringIO()
        Terminal(file=file, force_terminal=forced, width=200, highlight=False).print(ESCAPES, ":smile:", style="bold")
        plain = file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert plain.rstrip("\n").isprintable()
        assert "[red]x[/][/y] :smile:" in plain
        assert "\\x1b[31m" in plain
    assert isinstance(Terminal(), Console)


# ---- what a fuzzer found


def targets() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_targets", HOUSE / "tools" / "fuzz" / "targets.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fuzz_targets"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.fault(
    "Strangers", "Bytes that a fuzzer made", "atheris, coverage-guided; `make fuzz`", "config, manifest, shard"
)
def test_what_was_fuzzed_is_read_or_refused(record_property: Callable[[str, object], None]) -> None:
    """The seeds and everything that fuzzing kept: a value or one line."""
    module, count = targets(), 0
    for name, target in module.TARGETS.items():
        for case in (*target.seeds(), *module.cases(name)):
            target.run(case)
            count += 1
    record_property("trials", count)


def test_the_fuzzed_readers_take_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness would be blind if every seed were refused: the good ones are taken."""
    module = targets()
    monkeypatch.setattr(module.contextlib, "suppress", lambda *kinds: contextlib.ExitStack())
    for name in ("manifest", "shard"):
        module.TARGETS[name].run(module.TARGETS[name].seeds()[0])
