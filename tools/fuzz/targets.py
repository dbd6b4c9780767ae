"""What is fuzzed: functions from bytes to nothing. Anything but a `UserError` that they let through is a finding.

Each has seeds, from which a fuzzer starts, and words, which it puts in. `tests/fuzz_cases/TARGET.txt` keeps what was
found, a Python bytes literal a line; `tests/test_hostile_files.py` replays it, `tools/fuzz/run.py` looks for more.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import dataclasses
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hsae import config, registry
from hsae.errors import UserError
from hsae.evaluate import EvaluateConfig
from hsae.harvesting.config import HarvestConfig
from hsae.header import BadHeader
from hsae.setup import stock
from hsae.store import HookRecord, Manifest, ShardRecord, Store, StoreWriter
from hsae.store.direct import Doubt, read_rows
from hsae.store.manifest import keep_key
from hsae.trainconfig import TrainConfig
from hsae.verbs import LAB, VERBS

ROOT = Path(__file__).parents[2]
HOOK, CONTEXT, WIDTH, SEQUENCES = "hook", 4, 3, 5
SCRATCH = Path(tempfile.mkdtemp(prefix="hsae-fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """One reader, what a fuzzer starts from, and the words that the reader looks for."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: Callable[[], list[str]]


def read_config(data: bytes) -> None:
    """The config reader: a file, and the settings of every verb from it."""
    path = SCRATCH / "fuzz.toml"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        config.read_file(path, "train")  # what is no config for one verb is none for the others
        for section, build in SETTINGS.items():
            with contextlib.suppress(UserError):
                build(config.read_file(path, section), str(path))


def _builder(kind: type) -> Callable[[dict, str], object]:
    return lambda table, where: config.build(kind, table, where)


SETTINGS: dict[str, Callable[[dict, str], object]] = {
    "train": TrainConfig.from_table,
    "harvest": _builder(HarvestConfig),
    "evaluate": _builder(EvaluateConfig),
    **{name: _builder(getattr(importlib.import_module(v.home), v.config)) for name, v in VERBS.items()},
    **{f"lab.{name}": _builder(getattr(importlib.import_module(v.home), v.config)) for name, v in LAB.items()},
}


def config_seeds() -> list[bytes]:
    """The configs that come with the project, and one of every kind of value."""
    files = [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.toml"))]
    kinds = b'[train]\nlatents = 0x10\nepochs = 1e-3\nseeds = [0, 1]\nstore = "a"\nsetup.bp = {encoder = {lr = inf}}\n'
    return [*files, kinds, b"[lab.surgery]\nfactor = 2\n[[train]]\n", b"[harvest]\ncontext = 1979-05-27T07:32:00Z\n"]


def config_words() -> list[str]:
    """Sections, keys and names of the registries."""
    names = [*config.SECTIONS, *stock()]
    for package in ("hsae.rules", "hsae.sae", "hsae.revival"):
        names += [*registry.names(package), package.rsplit(".", 1)[-1]]
    for kind in (TrainConfig, HarvestConfig):
        names += [field.name for field in dataclasses.fields(kind)]
    return sorted({*names, "[[", "]]", "'''", "nan", "inf", "0x", "rule", "kind", "encoder", "decoder", "schedule"})


def read_manifest(data: bytes) -> None:
    """The manifest's reader, and what every verb asks of a manifest first."""
    (SCRATCH / "manifest.json").write_bytes(data)
    with contextlib.suppress(UserError):
        manifest = Manifest.read(SCRATCH)
        assert all(Path(shard.file).name == shard.file for shard in manifest.shards)
        assert manifest.tokens >= 0
        assert manifest.fingerprint
        for name in manifest.hooks:
            manifest.hook("fuzz", name)


def manifest_seeds() -> list[bytes]:
    """The manifest of a store, sealed and not."""
    sealed = (_store().folder / "manifest.json").read_bytes()
    plain = {key: value for key, value in json.loads(sealed).items() if key != "seal"}
    return [sealed, json.dumps(plain).encode(), json.dumps(plain | {"shards": [], "hooks": {}}).encode()]


def manifest_words() -> list[str]:
    """Keys of a manifest."""
    kinds = (Manifest, ShardRecord, HookRecord)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return sorted({*names, "seal", "hsae-activations", "../", "NaN", "Infinity", "-1", "1e999", "9223372036854775808"})


def read_shard(data: bytes) -> None:
    """A shard whose size and checksum are the manifest's, whatever is in it: our reader and safetensors', side by side.

    Where both give rows, these must be the same. Bytes that begin with `{` are a header alone: its length and the rows
    of a good shard are put around it.
    """
    store = _store()
    if data.startswith(b"{"):
        good = (store.folder / "seed.bin").read_bytes()
        data = len(data).to_bytes(8, "little") + data + good[8 + int.from_bytes(good[:8], "little") :]
    path = store.folder / store.manifest.shards[0].file
    path.write_bytes(data)
    shard = dataclasses.replace(store.manifest.shards[0], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    rows, plain = (torch.full((shard.kept[HOOK], WIDTH), 7.0) for _ in range(2))
    with contextlib.suppress(UserError):
        Store(store.folder).fill(plain, shard, HOOK, shard.sequences)
        with contextlib.suppress(Doubt, BadHeader):
            read_rows(path, store.manifest.layout(shard), HOOK, shard.sequences, rows, None)
            assert torch.equal(rows.view(torch.int32), plain.view(torch.int32)), "two readings of one shard differ"
    with contextlib.suppress(UserError):
        Store(store.folder).read(shard, "tokens", HOOK, keep_key(HOOK))


def shard_seeds() -> list[bytes]:
    """A shard as we write it, and its header with the parts in another order."""
    store = _store()
    raw = (store.folder / "seed.bin").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    return [raw, raw[8 : 8 + size], json.dumps(dict(reversed(header.items()))).encode()]


def shard_words() -> list[str]:
    """Words of a header."""
    return [
        "dtype",
        "shape",
        "data_offsets",
        "__metadata__",
        "F32",
        "BF16",
        "BOOL",
        "I32",
        HOOK,
        keep_key(HOOK),
        "tokens",
    ]


def _store() -> Store:
    """A store of one shard, made once; `seed.bin` is a copy of the shard."""
    folder = SCRATCH / "store"
    if not (folder / "seed.bin").exists():
        writer = StoreWriter(folder, {"fuzz": 1}, "fp32")
        keep = torch.ones(SEQUENCES, CONTEXT, dtype=torch.bool)
        keep[:, 0] = False
        values = torch.arange(SEQUENCES * CONTEXT * WIDTH).float().view(SEQUENCES, CONTEXT, WIDTH)
        tokens = torch.zeros(SEQUENCES, CONTEXT, dtype=torch.long)
        writer.write(0, tokens, {HOOK: values}, {HOOK: keep}, {HOOK: {"first": SEQUENCES}})
        tables = {"model": {}, "tokenizer": {}, "text": {}, "harvest": {}}
        manifest = writer.finish(shard_sequences=SEQUENCES, context=CONTEXT, **tables)
        (folder / "seed.bin").write_bytes((folder / manifest.shards[0].file).read_bytes())
    return Store(folder)


def cases(name: str) -> list[bytes]:
    """What fuzzing found for a target."""
    path = ROOT / "tests" / "fuzz_cases" / f"{name}.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [ast.literal_eval(line) for line in lines if not line.startswith("#")]


TARGETS = {
    "config": Target(read_config, config_seeds, config_words),
    "manifest": Target(read_manifest, manifest_seeds, manifest_words),
    "shard": Target(read_shard, shard_seeds, shard_words),
}
