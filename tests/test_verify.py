"""Whatever is damaged is found by everything that reads it, and by `hsae verify`, and named with its file."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import (
    CHECKPOINT,
    CONFIG,
    DAMAGES,
    MANIFEST,
    METRICS,
    RESULT,
    SHARD,
    TOKENIZER,
    WEIGHTS,
    Damage,
    edit,
    flip,
    link_out,
    put,
    unsealed,
)
from rich.console import Console
from safetensors.torch import save_file
from shared_runs import make_run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hsae import seal
from hsae.cli import run
from hsae.errors import UserError
from hsae.evidence import build, file, open_index, open_subject
from hsae.harvesting import HarvestConfig, harvest
from hsae.header import BadHeader, parse
from hsae.record import Record
from hsae.run import Run, RunWriter
from hsae.store import Manifest, Store, StoreWriter
from hsae.store.manifest import keep_key
from hsae.store.tokenizer import read_tokenizer
from hsae.truth import FILE, Truth
from hsae.verify import RepairConfig, VerifyConfig, repair, verify

HOOK, WIDTH, CONTEXT, SEQUENCES, SHARDS = "blocks.4.hook_resid_pre", 5, 8, 4, 4
KEYS = ("tokens", HOOK, keep_key(HOOK))
ALL = {CONFIG, METRICS, WEIGHTS}
file_sum = file._sum


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a store, one of made data, a run, and a run that was cut off; nothing in it is ever changed."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", str(home))
        _make_store(home / "activations" / "store")
        made = home / "activations" / "made"
        Truth(torch.eye(3, WIDTH), torch.full((3,), 0.5)).write(_folder(made))
        _make_store(made)
        (_folder(home / "runs" / "run") / METRICS).write_text("".join(f'{{"step": {i}}}\n' for i in range(9)))
        make_run("run", ("relu", "jumprelu"), store=Store.open("store"))
        writer = RunWriter(home / "runs" / "begun", {"name": "begun"})
        writer.log([{"step": step, "mse": 0.5} for step in range(6)])
        writer.checkpoint({"w": torch.randn(40)}, {"step": 5, "times": [0.5]})
        writer.log([{"step": 6, "mse": 0.25}])
    return home


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _make_store(folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    writer = StoreWriter(folder, {"test": folder.name}, "fp32")
    for index in range(SHARDS):
        tokens = torch.randint(0, 40, (SEQUENCES, CONTEXT), generator=generator)
        values = torch.randn(SEQUENCES, CONTEXT, WIDTH, generator=generator)
        keep = torch.rand(SEQUENCES, CONTEXT, generator=generator) < 0.8
        keep[0] = True
        left = {HOOK: {"first": int((~keep).sum())}}
        writer.write(index, tokens, {HOOK: values}, {HOOK: keep}, left, cursor={"documents": index})
    (folder / "tokenizer").mkdir()
    Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, "w0")).save(str(folder / TOKENIZER))
    tables: dict[str, dict[str, Any]] = {"model": {"fingerprint": "test"}, "tokenizer": {}, "text": {}, "harvest": {}}
    writer.finish(shard_sequences=SEQUENCES, context=CONTEXT, **tables)


@pytest.fixture
def copy(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache, to damage."""
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(whole, tmp_path / "cache")


# ---- readers: each reads all that it can of one kind of file


def _read(folder: Path) -> None:
    store = Store(folder)
    for shard in store.manifest.shards:
        store.read(shard, *KEYS)


def _chunks(folder: Path) -> None:
    for _ in Store(folder).chunks(HOOK, 3):
        pass


def _rows(folder: Path) -> None:
    store = Store(folder)
    rows = store.rows(HOOK, seed=0, pool_bytes=1)
    for _ in itertools.islice(rows.batches(rows.rows_per_epoch), 1):
        pass


def _shards(folder: Path) -> None:
    for _ in Store(folder).rows(HOOK, seed=0).shards():
        pass


def _tokenizer(folder: Path) -> None:
    read_tokenizer(folder, Manifest.read(folder))


def _saes(folder: Path) -> None:
    run = Run(folder)
    for row in run.result.rows:
        run.sae(row.setup, row.seed)


def _metrics(folder: Path) -> None:
    Record(folder).metrics()


def _record(folder: Path) -> None:
    Record(folder)


def _restore(folder: Path) -> None:
    RunWriter(folder, {"name": "begun"}).restore()


def _verify(folder: Path) -> None:
    """As a reader: its damages are its error."""
    out = io.StringIO()
    if verify(VerifyConfig((str(folder),)), Console(file=out, width=4000)) == 1:
        raise UserError(out.getvalue())


READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    SHARD: (_read, _chunks, _rows, _shards, _verify),
    MANIFEST: (_read, _rows, _tokenizer, _verify),
    TOKENIZER: (_tokenizer, _verify),
    RESULT: (_record, _saes, _verify),
    CONFIG: (_record, _saes, _verify),
    WEIGHTS: (_saes, _verify),
    METRICS: (_metrics, _verify),
}
BEGUN = (_restore, _verify)
FOLDERS = {"store": "activations/store", "run": "runs/run", "unfinished run": "runs/begun"}
# Training rows are made of activations alone: they never see a token.
BLIND = {"shard, hostile: a negative token": (_rows, _shards)}
CASES = [
    (damage, reader)
    for damage in DAMAGES
    for reader in (BEGUN if damage.kind == "unfinished run" else READERS[damage.file])
    if reader not in BLIND.get(damage.name, ())
]


def row(damage: Damage) -> pytest.MarkDecorator:
    """The row of docs/reliability.md: one for all files to which the same can be done."""
    of, _, what = damage.name.partition(": ")
    fault, done = damage.name, "with checksums that fit" if "hostile" in of else "in that file"
    if of == damage.file:
        fault, done = what, "each file of a store and of a run in turn"
    return pytest.mark.fault("Damage", fault[0].upper() + fault[1:], done, "hsae verify, and all that reads it")


@pytest.mark.parametrize(
    ("damage", "reader"),
    [pytest.param(*case, marks=row(case[0])) for case in CASES],
    ids=[f"{d.kind}-{d.name}-{r.__name__}" for d, r in CASES],
)
def test_damage_is_found_and_named_by_whatever_reads_the_file(
    copy: Path, damage: Damage, reader: Callable[[Path], None]
) -> None:
    folder = copy / FOLDERS[damage.kind]
    reader(folder)
    damage.inject(folder)
    with pytest.raises(UserError) as told:
        reader(folder)
    # "FOLDER: not a store (it has no FILE)" names it, too.
    files = [damage.file, *filter(None, [damage.or_file])]
    assert str(folder) in str(told.value)
    assert any(file in str(told.value) for file in files)
    assert reader is _verify or "\n" not in str(told.value)


def test_names_are_told_apart() -> None:
    names = [(damage.kind, damage.name) for damage in DAMAGES]
    assert len(set(names)) == len(names) > 100


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.fault(
    "Damage",
    "Any byte flipped",
    "at random, in every file of a store, a run and an unfinished run",
    "hsae verify, and all that reads it",
)
def test_any_byte_of_any_file(copy: Path, kind: str, seed: int) -> None:
    folder, draw = copy / FOLDERS[kind], random.Random(f"{kind} {seed}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        good, name = path.read_bytes(), path.relative_to(folder).as_posix()
        # What nothing vouches for yet: settings that a beginning is only compared with, metrics that are cut off.
        last = good.index(b'{"step": 6') if kind == "unfinished run" and name == METRICS else len(good)
        if kind == "unfinished run" and name == CONFIG:
            continue
        for _ in range(12):
            flip(path, draw.randrange(last), draw.randrange(1, 256))
            with pytest.raises(UserError) as told:
                _verify(folder)
            assert str(path) in str(told.value)
            readers = BEGUN if kind == "unfinished run" else READERS.get(name) or READERS[SHARD]
            with pytest.raises(UserError, match=path.name):
                readers[0](folder)
            path.write_bytes(good)
    _verify(folder)


# ---- what the seals are made of


def test_a_seal_is_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    seal.write_json(path, {"name": "ä", "numbers": [1, 2.5, None]})
    raw = path.read_bytes()
    digits = json.loads(raw)["seal"]
    assert hashlib.sha256(raw.replace(digits.encode(), b"0" * 64)).hexdigest() == digits
    assert seal.read_json(path, "") == ({"name": "ä", "numbers": [1, 2.5, None]}, True)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 9223372036854775808}',
        b'{"a": 1' + b"0" * 100_000 + b"}",
        b'{"a": ' * 100_000,
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"seal": 3}',
        b'{"seal": "' + "é".encode() * 64 + b'"}',
        b'{"seal": "' + b"0" * 64 + b'"}',
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"a\.json: damaged.*; do it again$") as told:
        seal.read_json(path, "do it again")
    assert len(str(told.value)) < 400 + len(str(path))


U8 = {"dtype": "U8", "shape": [4]}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": U8 | {"data_offsets": [0, 4]}, "b": U8 | {"data_offsets": [0, 4]}}, "does not begin where"),
        ({"a": U8 | {"data_offsets": [0, 4]}, "b": U8 | {"data_offsets": [8, 12]}}, "does not begin where"),
        ({"a": U8 | {"data_offsets": [0, 4]}, "b": U8 | {"data_offsets": [2, 6]}}, "does not begin where"),
        ({"a": U8 | {"data_offsets": [-4, 0]}, "b": U8 | {"data_offsets": [0, 4]}}, "contradicts itself"),
        ({"a": {"dtype": "U8", "shape": [-2, -4], "data_offsets": [0, 8]}}, "contradicts itself"),
        ({"a": {"dtype": "U8", "shape": [8, True], "data_offsets": [0, 8]}}, "contradicts itself"),
        ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}}, "contradicts itself"),
        ({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8], "more": 1}}, "contradicts itself"),
    ],
)
def test_headers_that_lie(tensors: dict[str, Any], said: str) -> None:
    text = json.dumps(tensors).encode()
    raw = len(text).to_bytes(8, "little") + text
    with pytest.raises(BadHeader, match=said):
        parse(raw, len(raw) + 8)


def test_every_file_that_is_final_is_named(copy: Path) -> None:
    for folder, book, others in (("activations/made", MANIFEST, {TOKENIZER, FILE}), ("runs/run", RESULT, ALL)):
        told = json.loads((copy / folder / book).read_text())["files"]
        assert told.keys() == others
        for name, found in told.items():
            raw = (copy / folder / name).read_bytes()
            assert found == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_where_a_shard_begins_in_the_text_is_kept(copy: Path) -> None:
    shards = Store.open("store").manifest.shards
    assert [shard.cursor for shard in shards] == [{"documents": i} for i in range(SHARDS)]


# ---- true directions, evidence


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_true_directions(copy: Path, harm: Callable[[Path], Any]) -> None:
    folder = copy / "activations" / "made"
    assert Truth.of(Store(folder)) is not None
    harm(folder / FILE)
    with pytest.raises(UserError, match=r"truth\.safetensors: "):
        Truth.of(Store(folder))
    assert f"{folder / FILE}: " in told(folder, code=1)


@pytest.fixture
def index(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an evidence index, of many blocks."""
    monkeypatch.setattr(file, "BLOCK", 256)
    return open_index(open_subject("run")).path


def test_no_byte_of_an_index_is_believed(index: Path) -> None:
    good, subject, draw = index.read_bytes(), open_subject("run"), random.Random(0)
    wanted = [open_index(subject).latent(latent) for latent in range(8)]
    start, refused = 8 + int.from_bytes(good[:8], "little"), 0
    for place in [*draw.sample(range(start), 10), *draw.sample(range(start, len(good)), 30)]:
        flip(index, place, draw.randrange(1, 256))
        assert f"{index}: damaged" in told(index.parents[1], code=1)
        try:
            assert [open_index(subject).latent(latent) for latent in range(8)] == wanted
        except UserError as error:
            refused += str(error).startswith(f"{index}: damaged")
        index.write_bytes(good)
    # The others lay where it is made anew when it is opened, or where no latent is read from.
    assert 0 < refused < 30


def test_what_is_not_read_is_not_checked(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("hsae.evidence.file._sum", lambda block: seen.append(len(block)) or file_sum(block))
    arrays = file.Arrays(index)
    assert not seen
    for _ in range(2):
        arrays.array("firings")
        assert len(seen) == 1
    arrays.check()
    assert sum(seen) == index.stat().st_size - 8 - int.from_bytes(index.read_bytes()[:8], "little")


def test_a_pass_goes_on_only_with_what_was_saved(copy: Path) -> None:
    subject = open_subject("run")
    passing = build.Passing(Run.open("run").sae("relu"), Store.open("store"), HOOK)
    for _ in itertools.islice(passing.go(), 2):
        pass
    path = copy / "a.partial"
    passing.save(path, subject.facts)
    for harm, number in ((lambda: None, passing.next), (lambda: flip(path), 0), (lambda: flip(path, 60), 0)):
        harm()
        other = build.Passing(passing.sae, passing.store, HOOK)
        other.restore(path, subject.facts)
        assert other.next == number
        passing.save(path, subject.facts)


# ---- the verb


def told(*paths: object, code: int = 0, width: int = 4000, **more: Any) -> str:
    """What `hsae verify` prints, when its exit code is as expected."""
    out = io.StringIO()
    assert verify(VerifyConfig(tuple(map(str, paths)), **more), Console(file=out, width=width)) == code
    return out.getvalue()


def test_a_line_for_everything_under_the_cache(copy: Path) -> None:
    lines = [line.split() for line in told().splitlines()]
    assert [line[:3] for line in lines] == [
        ["store", "made", "sound"],
        ["store", "store", "sound"],
        ["run", "begun", "unfinished"],
        ["run", "run", "sound"],
    ]
    assert [line.split() for line in told("run", "store", "run").splitlines()] == [lines[3], lines[1]]
    assert "at step 5; `hsae train" in told("begun")
    assert [line.split() for line in told(copy / "runs").splitlines()] == lines[2:]


def test_every_damage_has_its_line(copy: Path) -> None:
    store, run = copy / "activations" / "store", copy / "runs" / "run"
    for path in (store / "00000.safetensors", store / "00003.safetensors", store / TOKENIZER, run / METRICS):
        flip(path)
    (store / SHARD).unlink()
    (run / WEIGHTS).unlink()
    lines = told(code=1).splitlines()
    assert len(lines) == 4 + 6
    for path in (store / "00000.safetensors", store / SHARD, store / "00003.safetensors", store / TOKENIZER):
        assert sum(line.startswith(f"{path}: ") and f"`hsae repair {store}`" in line for line in lines) == 1
    for path in (run / METRICS, run / WEIGHTS):
        assert sum(line.startswith(f"{path}: ") for line in lines) == 1
    assert told("begun", "made").count("\n") == 2


def test_it_is_right_at_80_columns(copy: Path) -> None:
    flip(copy / "activations" / "store" / SHARD)
    unsealed(copy / "runs" / "run" / RESULT)
    (copy / "activations" / "made").rename(copy / "activations" / ("long-name-" * 12))
    text = told(code=1, width=80)
    table = text[: text.index("not sealed: made")]
    assert max(map(len, table.splitlines())) <= 80
    assert table.count("sound") == 2
    assert table.count("damaged") == 1


def test_what_was_made_before_there_were_seals(copy: Path) -> None:
    store, ended, begun = copy / "activations" / "store", copy / "runs" / "run", copy / "runs" / "begun"
    unsealed(store / MANIFEST)
    unsealed(ended / RESULT)
    save_file({"w": torch.ones(3)}, begun / CHECKPOINT, metadata={"state": json.dumps({"step": 3})})
    text = told()
    assert text.count(", not sealed,") == 2
    assert "\nnot sealed: made by an older hsae" in text
    for reader in (_read, _rows, _tokenizer):
        reader(store)
    for reader in (_record, _saes, _metrics):
        reader(ended)
    tensors, state = RunWriter(begun, {"name": "begun"}).restore() or ({}, {})
    assert (tensors["w"].tolist(), state) == ([1, 1, 1], {"step": 3})
    assert [record["step"] for record in map(json.loads, (begun / METRICS).read_text().splitlines())] == [0, 1, 2, 3]
    link_out(store / TOKENIZER)
    with pytest.raises(UserError, match="a link that leaves its folder"):
        _tokenizer(store)
    # Their shards and weights are checked all the same, the weights as far as they can be.
    flip(store / SHARD)
    (ended / WEIGHTS).write_bytes((ended / WEIGHTS).read_bytes()[:-1])
    assert told(code=1).count("safetensors: ") == 2
    assert "a link that leaves its folder" in told("store", code=1)


def test_metrics_are_cut_where_the_checkpoint_was(copy: Path) -> None:
    begun = copy / "runs" / "begun"
    _restore(begun)
    assert [json.loads(line)["step"] for line in (begun / METRICS).read_text().splitlines()] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda hook: hook["mean"].__setitem__(2, hook["mean"][2] + 1e-6), "its moments are not those"),
        (lambda hook: hook["second_moment"].__setitem__(2, hook["second_moment"][2] * 1.001), "its moments are not"),
    ],
)
def test_deep_computes_moments_anew(copy: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    path = copy / "activations" / "store" / MANIFEST
    assert told("store", deep=True) == told("store")
    edit(path, lambda data: change(data["hooks"][HOOK]))
    assert "sound" in told("store")
    assert f"{path}: {HOOK}: {said}" in told("store", code=1, deep=True)


def test_deep_sees_values_that_are_none(copy: Path) -> None:
    folder = copy / "activations" / "store"
    put(folder / SHARD, lambda name: name == HOOK, struct.pack("<f", float("inf")))
    assert "values that count are not finite" in told("store", code=1, deep=True)


def test_a_store_that_was_cut_off(copy: Path) -> None:
    folder = copy / "activations" / "cut"
    writer = StoreWriter(folder, {"test": "cut"}, "fp32")
    ones = torch.ones(SEQUENCES, CONTEXT, dtype=torch.bool)
    for index in (0, 2):
        writer.write(index, ones.long(), {HOOK: torch.ones(SEQUENCES, CONTEXT, 2)}, {HOOK: ones}, {HOOK: {}})
    assert told("cut").split()[:5] == ["store", "cut", "unfinished", "2", "shards;"]
    flip(folder / "00002.safetensors")
    assert f"{folder / '00002.safetensors'}: damaged" in told("cut", code=1)
    (folder / "plan.json").unlink()
    shutil.rmtree(folder / "journal")
    assert f"{folder / MANIFEST}: missing" in told("cut", code=1)


def test_words_that_name_nothing(copy: Path) -> None:
    (copy / "empty").mkdir()
    for word, said in (("stroe", "no store or run 'stroe' in .*store"), (copy / "empty", "no store and no run there")):
        with pytest.raises(UserError, match=said):
            told(word)


def test_stopping_changes_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsae.verify.report.check_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="stopped after 2 of 4; nothing was changed"):
        told()


def test_exit_codes(copy: Path) -> None:
    assert run(["verify"]) == run(["verify", "store", "--deep"]) == 0
    flip(copy / "activations" / "store" / SHARD)
    assert run(["repair", "store"]) == 1
    command = [sys.executable, "-m", "hsae", "verify", "store"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert SHARD in done.stdout
    assert "\x1b" not in done.stdout


# ---- repair


def repaired(word: object, code: int = 0) -> str:
    """What `hsae repair` prints, when its exit code is as expected."""
    out = io.StringIO()
    assert repair(RepairConfig(str(word)), Console(file=out, width=4000)) == code
    return out.getvalue()


def test_what_cannot_be_mended_is_said(copy: Path) -> None:
    store, ended = copy / "activations" / "store", copy / "runs" / "run"
    assert repaired("store").split()[2] == "sound"
    flip(store / SHARD)
    assert "was not harvested from a model, so it cannot be harvested again" in repaired("store", code=1)
    flip(store / MANIFEST)
    assert "without its manifest a store cannot be mended" in repaired("store", code=1)
    flip(ended / WEIGHTS)
    assert f"`hsae train {ended / CONFIG} --name run-again` trains it again" in repaired("run", code=1)
    flip(ended / CONFIG)
    assert "give its `hsae train` command again with another --name" in repaired("run", code=1)
    flip(copy / "runs" / "begun" / CHECKPOINT)
    assert f"delete {copy / 'runs' / 'begun' / CHECKPOINT}" in repaired("begun", code=1)


def test_what_is_made_anew_is_deleted(index: Path) -> None:
    flip(index)
    assert f"{index}: deleted; it is made anew" in repaired("run")
    assert not index.exists()
    assert "sound" in told("run")


def test_repair_needs_one_name(copy: Path) -> None:
    for word, said in (("", "hsae repair needs a store or a run"), (copy, "names several stores and runs")):
        with pytest.raises(UserError, match=said):
            repaired(word)


def test_a_store_is_as_it_was(cache: Path) -> None:
    quiet = Console(file=io.StringIO())
    settings = HarvestConfig("bundled", data=("bundled",), tokens=10_240, context=64, shard_mib=1, name="small")
    folder = harvest(settings, quiet)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len([path for path in before if path.suffix == ".safetensors"]) == 3
    flip(folder / SHARD)
    (folder / "00002.safetensors").unlink()
    (folder / TOKENIZER).unlink()
    assert told("small", code=1).count(f"`hsae repair {folder}`") == 3
    text = repaired("small")
    assert "harvested again, with the bytes of before: 00001.safetensors, 00002.safetensors" in text
    assert f"{folder / TOKENIZER}: written again" in text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "sound" in told("small", deep=True)
    # What comes out otherwise is not put there: here the manifest says another checksum.
    edit(folder / MANIFEST, lambda data: data["shards"][1].update(sha256="1" * 64))
    assert "00001.safetensors: comes out with other bytes" in repaired("small", code=1)
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == {
        path.name: raw for path, raw in before.items() if path.suffix == ".safetensors"
    }


@pytest.mark.parametrize("trust", [False, True])
def test_a_manifest_does_not_decide_whose_code_runs(copy: Path, monkeypatch: pytest.MonkeyPatch, trust: bool) -> None:
    given: list[Any] = []
    monkeypatch.setattr("hsae.verify.mend.again", lambda *args: given.append(args) or [])
    folder = copy / "activations" / "store"
    flip(folder / SHARD)
    edit(folder / MANIFEST, lambda data: data["harvest"].update(trust_remote_code=True))
    repair(RepairConfig("store", trust_remote_code=trust), Console(file=io.StringIO()))
    ((place, manifest, shards, _),) = given
    assert (place, shards, manifest.harvest["trust_remote_code"]) == (folder, [1], trust)
