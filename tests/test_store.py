"""The store gives back what went in, notices damage, and its rows come in an order that can be entered anywhere."""

import hashlib
import os
import shutil
import struct
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import agree, edit
from safetensors.torch import save

from hsae.errors import UserError
from hsae.graph import Resident
from hsae.store import Store, StoreWriter, direct
from hsae.store import rows as rows_module

HOOK, WIDTH, CONTEXT, SHARD = "blocks.1.hook_resid_pre", 3, 5, 4
PLAN = {"harvest": {"model": "none"}}
TABLES: dict[str, dict[str, Any]] = {"model": {}, "tokenizer": {}, "text": {}, "harvest": {}}


def shard(index: int, sequences: int = SHARD) -> dict[str, Any]:
    """Rows that say who they are: [their number in the store, 1, noise]. Every seventh does not count."""
    number = torch.arange(sequences * CONTEXT) + index * SHARD * CONTEXT
    noise = torch.randn(len(number), generator=torch.Generator().manual_seed(index))
    values = torch.stack([number.float(), torch.ones(len(number)), noise], 1).view(sequences, CONTEXT, WIDTH)
    keep = (number % 7 != 0).view(sequences, CONTEXT)
    return {
        "index": index,
        "tokens": number.view(sequences, CONTEXT) % 50,
        "activations": {HOOK: values},
        "keep": {HOOK: keep},
        "excluded": {HOOK: {"special": int((~keep).sum())}},
        "cursor": {"document": index},
    }


def write(folder: Path, shards: int = 5, dtype: str = "fp32", last: int = 2, masked: bool = True) -> Store:
    """A store of `shards` shards, the last one of `last` sequences; goes on with what is there."""
    writer = StoreWriter(folder, PLAN, dtype)
    for index in set(range(shards)) - writer.records.keys():
        data = shard(index, last if index == shards - 1 else SHARD)
        if not masked:
            data["keep"] = {HOOK: torch.ones_like(data["keep"][HOOK])}
        writer.write(**data)
    writer.finish(shard_sequences=SHARD, context=CONTEXT, **TABLES)
    return Store(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    store = write(tmp_path / "s", dtype=dtype)
    assert store.manifest.sequences == 18
    assert store.manifest.tokens == 18 * CONTEXT
    for index, record in enumerate(store.manifest.shards):
        put = shard(index, record.sequences)
        tokens, values, keep = store.read(record, "tokens", HOOK, f"{HOOK}#keep")
        assert torch.equal(tokens, put["tokens"].int())
        assert values.dtype == torch_dtype
        assert torch.equal(values, put["activations"][HOOK].to(torch_dtype))
        assert torch.equal(keep, put["keep"][HOOK])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_moments_are_those_of_the_stored_values_that_count(tmp_path: Path, dtype: str) -> None:
    store = write(tmp_path / "s", dtype=dtype)
    record = store.manifest.hooks[HOOK]
    chunks = list(store.chunks(HOOK, 4))
    rows = torch.cat([chunk.activations[chunk.keep] for chunk in chunks]).double()
    assert record.kept == len(rows) == 90 - 13  # 0, 7, …, 84 do not count
    assert record.excluded == {"special": 13}
    torch.testing.assert_close(torch.tensor(record.mean).double(), rows.mean(0), atol=0, rtol=1e-6)
    torch.testing.assert_close(torch.tensor(record.second_moment).double(), rows.square().mean(0), atol=0, rtol=1e-6)
    torch.testing.assert_close(record.variance, rows.var(0, correction=0).mean().item(), atol=0, rtol=1e-12)


def test_chunks_cover_a_range_in_order(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    chunks = list(store.chunks(HOOK, 3, first=2, last=17))
    numbers = torch.cat([chunk.activations[..., 0].flatten() for chunk in chunks])
    assert torch.equal(numbers, torch.arange(2 * CONTEXT, 17 * CONTEXT).float())
    assert max(len(chunk.tokens) for chunk in chunks) <= 3
    assert all(chunk.activations[0, 0, 0] == chunk.first * CONTEXT for chunk in chunks)


# ---- interrupted writing


def _nothing(folder: Path) -> None:
    pass


def _lose_an_entry(folder: Path) -> None:
    (folder / "journal" / "00002.json").unlink()


def _tear_an_entry(folder: Path) -> None:
    path = folder / "journal" / "00002.json"
    path.write_bytes(path.read_bytes()[:-40])


def _flip_a_digit_of_an_entry(folder: Path) -> None:
    path = folder / "journal" / "00001.json"
    path.write_text(path.read_text().replace('"count": 17', '"count": 18'))


def _swap_two_entries(folder: Path) -> None:
    one, two = (folder / "journal" / name for name in ("00000.json", "00001.json"))
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])


def _orphan_shard_and_parts(folder: Path) -> None:
    (folder / "00003.safetensors").write_bytes(b"half")
    (folder / ".00003.safetensors.part").write_bytes(b"less")
    (folder / "journal" / ".00003.json.part").write_bytes(b"{")
    (folder / ".manifest.json.part").write_bytes(b"{")


def _short_shard(folder: Path) -> None:
    path = folder / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _lost_shard(folder: Path) -> None:
    (folder / "00001.safetensors").unlink()


@pytest.mark.parametrize(
    ("accident", "whole"),
    [
        (_nothing, [0, 1, 2]),
        (_lose_an_entry, [0, 1]),
        (_tear_an_entry, [0, 1]),
        (_flip_a_digit_of_an_entry, [0, 2]),
        (_swap_two_entries, [2]),
        (_orphan_shard_and_parts, [0, 1, 2]),
        (_short_shard, [0, 1]),
        (_lost_shard, [0, 2]),
    ],
)
def test_resume_gives_the_bytes_of_an_unbroken_run(
    tmp_path: Path, accident: Callable[[Path], None], whole: list[int]
) -> None:
    write(tmp_path / "unbroken")
    writer = StoreWriter(tmp_path / "broken", PLAN, "fp32")
    assert writer.records == {}
    for index in (2, 0, 1):
        writer.write(**shard(index))
    accident(tmp_path / "broken")
    again = StoreWriter(tmp_path / "broken", PLAN, "fp32")
    assert sorted(again.records) == whole
    assert again.sequences == len(whole) * SHARD
    assert all(again.records[index]["told"] == {"cursor": {"document": index}} for index in whole)
    left = {p.relative_to(again.folder).as_posix() for p in again.folder.rglob("*") if p.is_file()}
    names = [name for index in whole for name in (f"{index:05d}.safetensors", f"journal/{index:05d}.json")]
    assert left == {"plan.json", *names}
    write(tmp_path / "broken")
    assert content(tmp_path / "broken") == content(tmp_path / "unbroken")


def test_killed_between_manifest_and_clearing_up(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    folder = tmp_path / "killed"
    writer = StoreWriter(folder, PLAN, "fp32")
    for index in range(5):
        writer.write(**shard(index, 2 if index == 4 else SHARD))
    shutil.copytree(folder, tmp_path / "copy")
    writer.finish(shard_sequences=SHARD, context=CONTEXT, **TABLES)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    write(folder)
    assert content(folder) == content(tmp_path / "whole")


def test_another_plan_is_refused(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "s", PLAN, "fp32").write(**shard(0))
    with pytest.raises(UserError, match=r"unfinished store made with other settings \(harvest.model\)"):
        StoreWriter(tmp_path / "s", {"harvest": {"model": "other"}}, "fp32")
    with pytest.raises(UserError, match=r"made with other settings \(more\); give another --name"):
        StoreWriter(tmp_path / "s", PLAN | {"more": 1}, "fp32")
    write(tmp_path / "s")
    with pytest.raises(UserError, match="already holds a store"):
        StoreWriter(tmp_path / "s", PLAN, "fp32")


@pytest.mark.parametrize(("value", "said"), [(1e6, "does not fit fp16; use --dtype bf16"), (float("nan"), "gave nan")])
def test_values_that_cannot_be_stored(tmp_path: Path, value: float, said: str) -> None:
    writer = StoreWriter(tmp_path / "s", PLAN, "fp16")
    data = shard(0)
    data["activations"][HOOK][2, 1, 0] = value
    with pytest.raises(UserError, match=f"{HOOK}, shard 0, sequence 2 in it, position 1: .*{said}"):
        writer.write(**data)
    assert not list((tmp_path / "s").glob("*.safetensors"))


# ---- damage


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_flip, "its checksum is not the manifest's"), (_truncate, "bytes, the manifest says"), (Path.unlink, "missing")],
)
def test_damage_names_the_file(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    store = write(tmp_path / "s")
    damage(tmp_path / "s" / "00003.safetensors")
    store.read(store.manifest.shards[2], "tokens")
    with pytest.raises(UserError, match=rf"00003\.safetensors: .*{said}"):
        store.read(store.manifest.shards[3], "tokens")
    with pytest.raises(UserError, match=r"00003\.safetensors"):
        next(store.rows(HOOK, seed=0).batches(10_000))


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an activation store"):
        Store(tmp_path)
    StoreWriter(tmp_path / "s", PLAN, "fp32")
    with pytest.raises(UserError, match="an unfinished store"):
        Store(tmp_path / "s")
    write(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    for bad in ("[]", "{}", "3"):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"manifest\.json"):
            Store(tmp_path / "s")


# ---- the shuffled stream


def numbers(store: Store, rows: int, start: int = 0, batch: int = 8, **options: Any) -> list[int]:
    """The identities of `rows` rows of the stream from row `start` on."""
    stream = store.rows(HOOK, **({"seed": 0} | options)).batches(batch, start)
    return torch.cat(list(islice(stream, -(-rows // batch))))[:rows, 0].int().tolist()


# Bytes of a pool: all shards in one, or two at a time.
@pytest.mark.parametrize("pool_bytes", [1 << 20, 40 * WIDTH * 4])
def test_an_epoch_has_every_row_that_counts_once(tmp_path: Path, pool_bytes: int) -> None:
    store = write(tmp_path / "s")
    wanted = [n for n in range(90) if n % 7]
    stream = store.rows(HOOK, seed=0, pool_bytes=pool_bytes)
    assert stream.rows_per_epoch == len(wanted)
    two = numbers(store, 2 * len(wanted), pool_bytes=pool_bytes)
    first, second = two[: len(wanted)], two[len(wanted) :]
    assert sorted(first) == sorted(second) == wanted
    assert first != wanted
    assert first != second


@pytest.mark.parametrize("pool_bytes", [1 << 20, 40 * WIDTH * 4])
def test_the_stream_can_be_entered_at_any_row(tmp_path: Path, pool_bytes: int) -> None:
    store = write(tmp_path / "s")
    whole = numbers(store, 250, pool_bytes=pool_bytes)
    for start in (0, 1, 37, 76, 77, 78, 120, 154, 200):
        assert numbers(store, 40, start, batch=5, pool_bytes=pool_bytes) == whole[start : start + 40]


def test_the_order_is_a_function_of_the_seed(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    assert numbers(store, 80, seed=3) == numbers(Store(tmp_path / "s"), 80, seed=3)
    assert numbers(store, 80, seed=3) != numbers(store, 80, seed=4)


def test_pools_are_bounded(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    stream = store.rows(HOOK, seed=0, pool_bytes=40 * WIDTH * 4)
    for epoch in range(5):
        pools = stream._pools(epoch)
        assert sorted(index for pool in pools for index in pool) == [0, 1, 2, 3, 4]
        assert len(pools) > 1
        assert all(sum(store.manifest.shards[i].kept[HOOK] for i in pool) <= 40 for pool in pools)


# ---- the stream beside the few lines that define it

POOLS = {"one pool": 1 << 20, "pools of two": 40 * WIDTH * 4, "pools of one": 1}


def defined(store: Store, seed: int, rows: int, held_out: int, pool_bytes: int) -> torch.Tensor:
    """The first rows of the stream, by its definition: shards in a random order, as many together as fit a pool (at
    least one), all rows of a pool permuted."""

    def draws(*place: int | str) -> torch.Generator:
        digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") // 2)

    shards, left = [], store.manifest.sequences - held_out
    for record in store.manifest.shards:
        values, keep = store.read(record, HOOK, f"{HOOK}#keep")
        shards.append(values[: max(left, 0)][keep[: max(left, 0)]].float())
        left -= record.sequences
    limit = max(pool_bytes // (4 * WIDTH), *map(len, shards))
    found: list[torch.Tensor] = []
    epoch = 0
    while sum(map(len, found)) < rows:
        pools: list[list[int]] = [[]]
        for index in torch.randperm(len(shards), generator=draws("shards", epoch)).tolist():
            if pools[-1] and sum(len(shards[i]) for i in pools[-1]) + len(shards[index]) > limit:
                pools.append([])
            pools[-1].append(index)
        for number, pool in enumerate(pools):
            together = torch.cat([shards[i] for i in sorted(pool)])
            found.append(together[torch.randperm(len(together), generator=draws("rows", epoch, number))])
        epoch += 1
    return torch.cat(found)[:rows]


@pytest.mark.parametrize("pool_bytes", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("masked", "held_out"), [(True, 0), (False, 0), (True, 3), (False, 6)])
def test_rows_come_in_the_order_that_is_defined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool_bytes: int, dtype: str, masked: bool, held_out: int
) -> None:
    monkeypatch.setattr(direct, "PIECE", 64)  # a shard is many pieces
    store = write(tmp_path / "s", dtype=dtype, masked=masked)
    for seed in (0, 5):
        wanted = defined(store, seed, 240, held_out, pool_bytes)
        stream = Store(tmp_path / "s").rows(HOOK, seed, held_out, pool_bytes)
        # Twice: the first epoch hashes what it reads, a later stream does not.
        for batch, start in ((8, 0), (16, 0), (7, 1), (50, 63), (200, 40)):
            count = (240 - start) // batch
            got = list(islice(stream.batches(batch, start), count))
            assert {(*part.shape, part.dtype) for part in got} == {(batch, WIDTH, torch.float32)}
            assert torch.equal(torch.cat(got), wanted[start : start + count * batch])


def test_two_streams_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    rows = store.rows(HOOK, 0, pool_bytes=POOLS["pools of two"])
    wanted = defined(store, 0, 200, 0, POOLS["pools of two"])
    both = list(islice(zip(rows.batches(10), rows.batches(10, 50), strict=True), 15))
    assert torch.equal(torch.cat([one for one, _ in both]), wanted[:150])
    assert torch.equal(torch.cat([other for _, other in both]), wanted[50:])


@pytest.mark.parametrize("pool_bytes", POOLS.values(), ids=POOLS)
def test_a_batch_that_is_kept_does_not_change(tmp_path: Path, pool_bytes: int) -> None:
    store = write(tmp_path / "s")
    kept = list(islice(store.rows(HOOK, 0, pool_bytes=pool_bytes).batches(10), 40))
    assert torch.equal(torch.cat(kept), defined(store, 0, 400, 0, pool_bytes))
    # Nor does writing into one change what comes later.
    stream = store.rows(HOOK, 0, pool_bytes=pool_bytes).batches(10)
    for batch in kept:
        assert torch.equal(next(stream).clone(), batch)
        batch.zero_()


@pytest.mark.parametrize(("pool_bytes", "most"), [(1 << 20, 1), (40 * WIDTH * 4, 2)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_memory_is_two_pools_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool_bytes: int, most: int, dtype: str
) -> None:
    store, rooms = write(tmp_path / "s", dtype=dtype), []
    monkeypatch.setattr(rows_module, "room", lambda *size: rooms.append(direct.room(*size)) or rooms[-1])
    monkeypatch.setattr(store, "read", None)  # which makes tensors of its own
    for _ in islice(store.rows(HOOK, 0, pool_bytes=pool_bytes).batches(10), 60):
        pass
    assert len(rooms) == most
    assert all(room.nbytes <= min(77, pool_bytes // (4 * WIDTH)) * WIDTH * room.element_size() for room in rooms)
    assert {room.element_size() for room in rooms} == {4 if dtype == "fp32" else 2}


def test_a_store_of_one_pool_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, filled = write(tmp_path / "s"), []
    fill = store.fill
    monkeypatch.setattr(store, "fill", lambda *place: filled.append(place[1].file) or fill(*place))
    rows = store.rows(HOOK, 0)
    for start in (0, 100):
        list(islice(rows.batches(10, start), 30))
    assert sorted(filled) == [record.file for record in store.manifest.shards]


def test_a_stream_that_is_dropped_ends_its_threads(tmp_path: Path) -> None:
    stream = write(tmp_path / "s").rows(HOOK, 0).batches(10)
    next(stream)
    assert any(thread.name.startswith("store") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("store") for thread in threading.enumerate())


# ---- reading straight into memory


def _plain(store: Store, index: int, sequences: int) -> torch.Tensor:
    values, keep = store.read(store.manifest.shards[index], HOOK, f"{HOOK}#keep")
    return values[:sequences][keep[:sequences]]


@pytest.mark.parametrize("piece", [1, 24, 100, 1 << 20])
def test_the_direct_reading_shows_every_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(direct, "PIECE", piece)
    store = write(tmp_path / "s")
    record, wanted = store.manifest.shards[2], _plain(store, 2, 3)
    for digest in (hashlib.sha256(), None):
        rows, path = torch.full_like(wanted, -1), tmp_path / "s" / record.file
        direct.read_rows(path, store.manifest.layout(record), HOOK, 3, rows, digest and digest.update)
        assert torch.equal(rows, wanted)
        assert digest is None or digest.hexdigest() == record.sha256


def _renew(folder: Path, data: bytes) -> Store:
    """Put bytes in the place of a shard, and say in the manifest that they are right."""
    (folder / "00002.safetensors").write_bytes(data)
    agree(folder)
    return Store(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:7],
        lambda data: struct.pack("<Q", 1 << 62) + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b'"BOOL"', b'"B00L"'),
        lambda data: data.replace(b"#keep", b"#kept"),
        lambda data: data.replace(b"[4,5,3]", b"[4,3,5]"),
        lambda data: data.replace(b'"data_offsets":[', b'"data_offsets":"', 1),
    ],
    ids=["short", "long header", "no header", "dtype", "key", "shape", "offsets"],
)
def test_a_shard_that_is_none(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    write(tmp_path / "s")
    path = tmp_path / "s" / "00002.safetensors"
    whole = path.read_bytes()
    damaged = change(whole)
    assert damaged != whole
    # Once as the manifest does not know it, once as what it says is right.
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"00002\.safetensors: (damaged|\d+ bytes)") as told:
        next(Store(tmp_path / "s").rows(HOOK, 0).batches(10))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"00002\.safetensors: ") as told:
        next(_renew(tmp_path / "s", damaged).rows(HOOK, 0).batches(10))
    assert "\n" not in str(told.value)


def test_a_shard_in_another_dtype_than_its_store(tmp_path: Path) -> None:
    store = write(tmp_path / "s", dtype="bf16")
    record = store.manifest.shards[2]
    tokens, values, keep = store.read(record, "tokens", HOOK, f"{HOOK}#keep")
    other = save({"tokens": tokens, HOOK: values.float(), f"{HOOK}#keep": keep})
    with pytest.raises(UserError, match=r"00002\.safetensors: .* is F32 .* says BF16"):
        next(_renew(tmp_path / "s", other).rows(HOOK, 0).batches(77))


def test_a_count_that_is_wrong_in_the_manifest(tmp_path: Path) -> None:
    write(tmp_path / "s")

    def move(manifest: dict[str, Any]) -> None:
        # The sum over the shards stays what it was.
        manifest["shards"][2]["kept"][HOOK] += 1
        manifest["shards"][3]["kept"][HOOK] -= 1

    edit(tmp_path / "s" / "manifest.json", move)
    with pytest.raises(UserError, match=r"0000[23]\.safetensors: .*other positions of .* count than the manifest says"):
        next(Store(tmp_path / "s").rows(HOOK, 0).batches(10))


def test_damage_found_while_reading_ahead_comes_as_one_line(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    stream = store.rows(HOOK, 0, pool_bytes=POOLS["pools of one"])
    last = stream._pools(0)[-1][0]
    _flip(tmp_path / "s" / store.manifest.shards[last].file)
    batches, before = stream.batches(1), 77 - store.manifest.shards[last].kept[HOOK]
    assert len(list(islice(batches, before))) == before
    with pytest.raises(UserError, match=rf"{last:05d}\.safetensors: damaged"):
        next(batches)


def test_a_shard_that_is_lost_after_it_was_found_right(tmp_path: Path) -> None:
    store = write(tmp_path / "s")
    batches = store.rows(HOOK, 0, pool_bytes=POOLS["pools of one"]).batches(77)
    next(batches)
    path = tmp_path / "s" / store.manifest.shards[0].file
    os.truncate(path, path.stat().st_size - 1)
    # Some rows of the second epoch may have been read before that.
    with pytest.raises(UserError, match=r"00000\.safetensors: .*its header tells of \d+ bytes, it has \d+"):
        list(islice(batches, 2))


@pytest.mark.parametrize("held_out", [1, 2, 3, 9])
def test_held_out_sequences_never_come(tmp_path: Path, held_out: int) -> None:
    store = write(tmp_path / "s")
    trained = [n for n in range((18 - held_out) * CONTEXT) if n % 7]
    stream = store.rows(HOOK, seed=0, held_out=held_out)
    assert stream.rows_per_epoch == len(trained)
    assert sorted(numbers(store, len(trained), held_out=held_out)) == trained


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="harvest more"):
        write(tmp_path / "s").rows(HOOK, seed=0, held_out=18)


def test_naming_stores_and_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="no store in"):
        Store.open()
    write(tmp_path / "activations" / "one")
    assert Store.open().name == Store.open("one").name == Store.open(tmp_path / "activations" / "one").name == "one"
    with pytest.raises(UserError, match=r"no store 'two' in .*there is one"):
        Store.open("two")
    assert Store.open().hook()[0] == HOOK
    with pytest.raises(UserError, match=f"no hook point 'x'; there is {HOOK}"):
        Store.open().hook("x")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("start", [0, 5, 133])
def test_rows_kept_in_memory_and_picked_by_number_are_the_stream(tmp_path: Path, dtype: str, start: int) -> None:
    store = write(tmp_path / "s", dtype=dtype)
    hook, _ = store.hook()
    rows = store.rows(hook, 3, held_out=2, pool_bytes=1 << 10)
    resident = Resident(rows.shards(), rows.rows_per_epoch, torch.device("cpu"))
    batches, numbers = rows.batches(7, start=start), rows.numbers(7, start=start)
    for _ in range(2 * rows.rows_per_epoch // 7 + 3):
        assert torch.equal(resident.pick(next(numbers)), next(batches))
