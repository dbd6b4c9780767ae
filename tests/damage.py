"""Every class of damage to a store or a run: its name, the file that it concerns, and how it is done to a folder.

A store here is one of several full shards with a tokeniser, such as `hsae harvest` makes of the bundled model; a run is
one of `hsae train`. Damage that is called hostile agrees with every checksum: what vouches for it is sealed again.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hsae.seal import Checksum, read_json, write_json

SHARD, OTHER = "00001.safetensors", "00000.safetensors"
MANIFEST, TOKENIZER = "manifest.json", "tokenizer/tokenizer.json"
RESULT, CONFIG, METRICS = "run.json", "config.toml", "metrics.jsonl"
WEIGHTS, CHECKPOINT = "sae.safetensors", "checkpoint.safetensors"


@dataclass(frozen=True)
class Damage:
    """One class of damage.

    Attributes:
        name: in words.
        kind: what it is done to.
        file: the file that must be named, by its path in the folder.
        inject: does it to a folder.
        or_file: another file that may be named instead, where the damage is theirs together.
    """

    name: str
    kind: Literal["store", "run", "unfinished run"]
    file: str
    inject: Callable[[Path], None]
    or_file: str = ""


# ---- bytes


def flip(path: Path, place: float | int = 0.5, bits: int = 1) -> None:
    """Change one byte: at a share of the file, or at a place in it (negative: from its end)."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= bits
    path.write_bytes(data)


def cut(path: Path, left: float) -> None:
    """Keep the first part of a file only."""
    data = path.read_bytes()
    path.write_bytes(data[: min(int(left * len(data)), len(data) - 1)])


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a sealed table, and seal it again."""
    data, _ = read_json(path, "")
    change(data)
    write_json(path, data)


def unsealed(path: Path) -> None:
    """Leave out what came with the seals: a manifest or a result as they were before."""
    data, _ = read_json(path, "")
    data.pop("files", None)
    data.pop("made", None)
    path.write_text(json.dumps(data, indent=1) + "\n")


def agree(folder: Path) -> None:
    """Have the manifest or the result vouch for the files as they are now."""

    def store(data: dict[str, Any]) -> None:
        for shard in data["shards"]:
            found = Checksum.of(folder / shard["file"])
            shard |= {"bytes": found.bytes, "sha256": found.sha256}
        run(data)

    def run(data: dict[str, Any]) -> None:
        for name in data["files"]:
            found = Checksum.of(folder / name)
            data["files"][name] = {"bytes": found.bytes, "sha256": found.sha256}

    edit(*((folder / MANIFEST, store) if (folder / MANIFEST).exists() else (folder / RESULT, run)))


def header(path: Path, change: Callable[[dict[str, Any]], Any], hostile: bool = True) -> None:
    """Change the header of a safetensors file, which keeps its length where there is room for that."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    table = json.loads(raw[8 : 8 + length])
    table = change(table) or table
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * max(length - len(text), -len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    if hostile:
        agree(path.parent)


def begin_of(path: Path, pick: Callable[[str], bool]) -> int:
    """Where the first tensor with such a name begins in a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    table = {name: entry for name, entry in json.loads(raw[8 : 8 + length]).items() if name != "__metadata__"}
    return 8 + length + next(entry["data_offsets"][0] for name, entry in table.items() if pick(name))


def put(path: Path, pick: Callable[[str], bool], data: bytes) -> None:
    """Overwrite the beginning of a tensor, and have the checksums agree."""
    raw, at = bytearray(path.read_bytes()), begin_of(path, pick)
    raw[at : at + len(data)] = data
    path.write_bytes(raw)
    agree(path.parent)


# ---- files


def swap(folder: Path) -> None:
    """Exchange two shards."""
    one, two = folder / OTHER, folder / SHARD
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)


def foreign(path: Path) -> None:
    """In a shard's place one of another store: of the same form, with other numbers."""
    raw, at = path.read_bytes(), begin_of(path, _is_hook)
    path.write_bytes(raw[:at] + bytes(len(raw) - at))


def link_out(path: Path) -> None:
    """In a file's place a link to a copy of it in another folder."""
    away = path.parents[2] / f"away-{path.name}"
    shutil.move(path, away)
    path.symlink_to(away)


def pipe(path: Path) -> None:
    """In a file's place a pipe, which would be waited for."""
    path.unlink()
    os.mkfifo(path)


def folder_there(path: Path) -> None:
    """In a file's place a folder."""
    path.unlink()
    path.mkdir()


# ---- what is done to which file


def _on(file: str, change: Callable[..., Any], *more: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, *more)


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / MANIFEST, change)


def _result(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / RESULT, change)


def _is_hook(name: str) -> bool:
    return name != "tokens" and not name.endswith("#keep")


def _hook(table: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in table.items() if name != "__metadata__" and _is_hook(name))


def _first(data: dict[str, Any]) -> dict[str, Any]:
    return next(iter(data["hooks"].values()))


def _move_border(table: dict[str, Any]) -> None:
    entries = [entry["data_offsets"] for name, entry in table.items() if name != "__metadata__"]
    one, two = sorted(entries)[:2]
    one[1] += 4
    two[0] += 4


def _bytes_of_file(file: str, kind: Any) -> list[Damage]:
    return [
        Damage(f"{file}: a byte flipped at its beginning", kind, file, _on(file, flip, 12)),
        Damage(f"{file}: a byte flipped in the middle", kind, file, _on(file, flip)),
        Damage(f"{file}: a byte flipped at its end", kind, file, _on(file, flip, -2)),
        Damage(f"{file}: cut short by a byte", kind, file, _on(file, cut, 1.0)),
        Damage(f"{file}: cut in half", kind, file, _on(file, cut, 0.5)),
        Damage(f"{file}: empty", kind, file, _on(file, cut, 0.0)),
    ]


def _gone_or_longer(file: str, kind: Any) -> list[Damage]:
    return [
        Damage(f"{file}: a byte too many", kind, file, _on(file, lambda p: p.write_bytes(p.read_bytes() + b"\0"))),
        Damage(f"{file}: missing", kind, file, _on(file, Path.unlink)),
        Damage(f"{file}: renamed", kind, file, _on(file, lambda p: p.rename(p.with_name("other")))),
        Damage(f"{file}: a folder in its place", kind, file, _on(file, folder_there)),
        Damage(f"{file}: a pipe in its place", kind, file, _on(file, pipe)),
        Damage(f"{file}: a link to another folder", kind, file, _on(file, link_out)),
    ]


def _of_shard() -> list[Damage]:
    path = SHARD

    def lie(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
        return Damage(f"shard, hostile: {name}", "store", path, _on(path, header, change))

    def at(pick: Callable[[str], bool]) -> Callable[[Path], None]:
        return lambda folder: flip(folder / path, begin_of(folder / path, pick))

    def longer_than_file(file: Path) -> None:
        file.write_bytes(struct.pack("<Q", 1 << 62) + file.read_bytes()[8:])
        agree(file.parent)

    def more(file: Path) -> None:
        file.write_bytes(file.read_bytes() + b"\0" * 8)
        agree(file.parent)

    def deep(file: Path) -> None:
        size = file.stat().st_size
        file.write_bytes((struct.pack("<Q", size - 8) + b'{"a":' * size)[:size])
        agree(file.parent)

    return [
        Damage("shard: a token flipped", "store", path, at(lambda name: name == "tokens")),
        Damage("shard: an activation flipped", "store", path, at(_is_hook)),
        Damage("shard: a position that counts flipped", "store", path, at(lambda name: name.endswith("#keep"))),
        Damage("shard: exchanged with another", "store", path, swap, OTHER),
        Damage("shard: of another store", "store", path, _on(path, foreign)),
        lie("a huge shape", lambda t: _hook(t).update(shape=[1 << 40, 1 << 10, 4])),
        lie("a shape of another size", lambda t: _hook(t).update(shape=[1, 1, 1])),
        lie("axes exchanged", lambda t: _hook(t).update(shape=_hook(t)["shape"][::-1])),
        lie("negative offsets", lambda t: _hook(t).update(data_offsets=[-8, _hook(t)["data_offsets"][1]])),
        lie("offsets beyond the file", lambda t: _hook(t).update(data_offsets=[0, 1 << 50])),
        lie("tensors that overlap", lambda t: t["tokens"].update(data_offsets=_hook(t)["data_offsets"])),
        lie("a border between tensors that moved", _move_border),
        lie("another type of numbers", lambda t: t["tokens"].update(dtype="F32")),
        lie("an unknown type of numbers", lambda t: t["tokens"].update(dtype="F4")),
        lie("a tensor that is not there", lambda t: t.pop("tokens") and None),
        lie("a tensor too many", lambda t: t.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})),
        lie("a list for a header", lambda t: [1, 2]),
        Damage("shard, hostile: a header longer than the file", "store", path, _on(path, longer_than_file)),
        Damage("shard, hostile: a header without an end", "store", path, _on(path, deep)),
        Damage("shard, hostile: bytes of no tensor", "store", path, _on(path, more)),
        Damage(
            "shard, hostile: fewer positions count", "store", path, _on(path, put, lambda n: "#keep" in n, b"\0" * 9)
        ),
        Damage("shard, hostile: a flag that is none", "store", path, _on(path, put, lambda n: "#keep" in n, b"\2")),
        Damage("shard, hostile: a negative token", "store", path, _on(path, put, lambda n: n == "tokens", b"\xff" * 4)),
    ]


def _of_manifest() -> list[Damage]:
    def told(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
        return Damage(f"manifest: {name}", "store", MANIFEST, _manifest(change))

    def text(name: str, old: str, new: str) -> Damage:
        def inject(folder: Path) -> None:
            unsealed(folder / MANIFEST)
            data = (folder / MANIFEST).read_text()
            assert old in data
            (folder / MANIFEST).write_text(data.replace(old, new, 1))

        return Damage(f"manifest: {name}", "store", MANIFEST, inject)

    def other_sums(data: dict[str, Any]) -> None:
        data["shards"][1] |= {"sha256": "0" * 64}

    return [
        *_bytes_of_file(MANIFEST, "store"),
        *_gone_or_longer(MANIFEST, "store"),
        told("a newer version", lambda d: d.update(version=99)),
        told("of another format", lambda d: d.update(format="other")),
        told("a number that is text", lambda d: d.update(sequences="many")),
        told("a table that is a list", lambda d: d.update(hooks=[])),
        told("a key that nobody knows", lambda d: d.update(surprise=1)),
        told("a key that is missing", lambda d: d.pop("context")),
        text("moments that are no numbers", '"mean": [\n', '"mean": [\n NaN,\n'),
        text("a number beyond every limit", '"context": ', '"context": 1' + "0" * 5000),
        text("tables without an end", '"model": {', '"model": ' + '{"a": ' * 100_000),
        told("sequences are not the shards' sum", lambda d: d.update(sequences=d["sequences"] + 1)),
        told("shards of another length", lambda d: d.update(shard_sequences=d["shard_sequences"] + 1)),
        told("more positions count than there are", lambda d: _first(d).update(kept=1 << 40)),
        told("moments of another width", lambda d: _first(d)["mean"].pop()),
        told("moments that no numbers have", lambda d: _first(d).update(second_moment=[-1.0] * _first(d)["width"])),
        told("another width", lambda d: _first(d).update(width=_first(d)["width"] * 2)),
        told("no positions", lambda d: d.update(context=0)),
        told("a huge context", lambda d: d.update(context=1 << 60)),
        told("a shard twice", lambda d: d["shards"][1].update(file=d["shards"][0]["file"])),
        told("shards out of order", lambda d: d["shards"].reverse()),
        told("an unknown dtype", lambda d: d.update(dtype="fp64")),
        told("no shards", lambda d: d.update(shards=[], sequences=0)),
        told("a shard in another folder", lambda d: d["shards"][1].update(file="../other.safetensors")),
        told("a shard at an absolute path", lambda d: d["shards"][1].update(file="/etc/passwd")),
        told(
            "a tokeniser in another folder", lambda d: d["files"].update({"tokenizer/../../x": d["files"][TOKENIZER]})
        ),
        told("a file that no store has", lambda d: d["files"].update({"other/x": d["files"][TOKENIZER]})),
        Damage("manifest: checksums of another store", "store", SHARD, _manifest(other_sums)),
    ]


def _of_run() -> list[Damage]:
    def told(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
        return Damage(f"result: {name}", "run", RESULT, _result(change))

    def lie(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
        return Damage(f"weights, hostile: {name}", "run", WEIGHTS, _on(WEIGHTS, header, change))

    def weight(table: dict[str, Any]) -> dict[str, Any]:
        return next(value for name, value in table.items() if name.endswith("W_enc"))

    return [
        *_bytes_of_file(RESULT, "run"),
        *(damage for file in (CONFIG, WEIGHTS, METRICS) for damage in _bytes_of_file(file, "run")),
        *(damage for file in (CONFIG, WEIGHTS, METRICS) for damage in _gone_or_longer(file, "run")),
        told("a newer version", lambda d: d.update(version=99)),
        told("a number that is text", lambda d: d.update(latents="many")),
        told("no SAE", lambda d: d.update(rows=[])),
        told("an SAE that was not trained", lambda d: d["rows"][0].update(setup="other")),
        told("a setup in another folder", lambda d: d["rows"][0].update(setup="../../x")),
        told("a scale of nothing", lambda d: d.update(scale=0.0)),
        Damage("result: more latents than weights", "run", WEIGHTS, _result(lambda d: d.update(latents=1 << 40))),
        lie("a huge shape", lambda t: weight(t).update(shape=[1 << 40, 1 << 20])),
        lie("axes exchanged", lambda t: weight(t).update(shape=weight(t)["shape"][::-1])),
        lie("offsets beyond the file", lambda t: weight(t).update(data_offsets=[0, 1 << 50])),
        Damage(
            "weights, hostile: one that is no number",
            "run",
            WEIGHTS,
            _on(WEIGHTS, put, lambda name: name.endswith("W_enc"), struct.pack("<f", float("nan"))),
        ),
    ]


DAMAGES: tuple[Damage, ...] = (
    *_bytes_of_file(SHARD, "store"),
    *_gone_or_longer(SHARD, "store"),
    *_of_shard(),
    *_of_manifest(),
    *_bytes_of_file(TOKENIZER, "store"),
    *_gone_or_longer(TOKENIZER, "store"),
    *_of_run(),
    *_bytes_of_file(CHECKPOINT, "unfinished run"),
    Damage(f"{METRICS}: a byte flipped before the checkpoint", "unfinished run", METRICS, _on(METRICS, flip, 10)),
    Damage(f"{METRICS}: cut short", "unfinished run", METRICS, _on(METRICS, cut, 0.5)),
)
