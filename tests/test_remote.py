"""Stores behind URLs: read as a local copy is, within bounds, and through faults."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import object_store
import pytest
import torch
from object_store import BUCKET, Fault, ObjectStore, kill, needs_s3, wait_for

from hsae.config import read_file
from hsae.errors import UserError
from hsae.evidence.subject import open_subject
from hsae.files import named_folder
from hsae.seal import json_bytes
from hsae.store import Store, place, remote
from hsae.store.place import Place
from hsae.trainconfig import TrainConfig
from hsae.training import train

Planted = Callable[..., Store]
SMALL: dict[str, Any] = {
    "setups": ["bp", "hebb-tied"],
    "latents": 24,
    "batch_tokens": 128,
    "held_out": 128,
    "baselines": False,
    "epochs": 2,
}
bucket, elsewhere, quick, servers = (
    object_store.bucket,
    object_store.elsewhere,
    object_store.quick,
    object_store.servers,
)


def upload(folder: Path, url: str) -> str:
    """A store's folder to a URL, which is given back."""
    to = Place(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            to.put(path, path.relative_to(folder).as_posix())
    return url


def shard_files(home: Path) -> list[Path]:
    folder = home / "remote" / "shards"
    return sorted(folder.iterdir()) if folder.exists() else []


def weights(folder: Path) -> bytes:
    return (folder / "sae.safetensors").read_bytes()


def everything(store: Store) -> torch.Tensor:
    return torch.cat([chunk.activations for chunk in store.chunks("hook", 5)])


# ---- a store behind a URL is the store


@pytest.mark.parametrize(
    "protocol",
    ["file", "memory", pytest.param("s3", marks=needs_s3), pytest.param("http", marks=needs_s3)],
)
def test_training_is_that_on_a_local_copy(
    planted: Planted,
    elsewhere: Callable[[str], Path],
    tmp_path: Path,
    protocol: str,
    request: pytest.FixtureRequest,
):
    local = planted("stories")
    config = TrainConfig.from_table(SMALL | {"store": "stories"}, "test")
    here = train(config)
    if protocol in ("s3", "http"):
        servers = request.getfixturevalue("bucket")
        upload(local.folder, f"s3://{BUCKET}/deep/stories")
        url = f"s3://{BUCKET}/deep/stories" if protocol == "s3" else f"{servers.endpoint}/{BUCKET}/deep/stories"
    else:
        url = upload(local.folder, f"file://{tmp_path}/far/stories" if protocol == "file" else "memory://far/stories")
    home = elsewhere("other")
    run = train(TrainConfig.from_table(SMALL | {"store": url + "/"}, "test"))
    assert weights(run.folder) == weights(here.folder)
    assert run.name == here.name
    assert (run.result.store, run.result.store_fingerprint) == (url, here.result.store_fingerprint)
    # The run finds its store again, and reruns itself.
    again = TrainConfig.from_table(read_file(run.folder / "config.toml", "train"), "config.toml")
    assert again.store == url
    assert train(again).folder == run.folder
    subject = open_subject()
    assert (subject.store, subject.warnings) == ("stories", ())
    assert torch.equal(everything(Store(subject.folder)), everything(local))
    assert [path.stem for path in shard_files(home)] == sorted(s.sha256 for s in local.manifest.shards)
    assert Store(subject.folder).address == url


def test_what_lies_beside_the_shards_comes_too(planted: Planted, elsewhere: Callable[[str], Path], tmp_path: Path):
    folder = planted().folder
    (folder / "tokenizer" / "more").mkdir(parents=True)
    beside = ("tokenizer/tokenizer.json", "tokenizer/more/merges.txt", "truth.safetensors")
    for name in beside:
        (folder / name).write_text(name)
    store = Store(folder)
    store.manifest.write(folder)
    (folder / "stranger.txt").write_text("not of the store")
    url = upload(folder, f"file://{tmp_path}/far/s")
    elsewhere("other")
    mirror = Store.open(url).folder
    found = {path.relative_to(mirror).as_posix(): path.read_text() for path in mirror.rglob("*") if path.is_file()}
    assert found.pop("manifest.json") == (folder / "manifest.json").read_text()
    assert found == {name: name for name in beside}


def test_an_older_store_without_a_seal_comes_with_its_tokenizer(
    planted: Planted, elsewhere: Callable[[str], Path], tmp_path: Path
):
    folder = planted().folder
    data = json.loads((folder / "manifest.json").read_text())
    for name in ("seal", "files", "made"):
        del data[name]
    (folder / "manifest.json").write_text(json.dumps(data))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "tokenizer" / ".hidden").write_text("{}")
    url = upload(folder, f"file://{tmp_path}/far/s")
    elsewhere("other")
    mirror = Store.open(url).folder
    assert sorted(p.name for p in mirror.rglob("*")) == ["manifest.json", "tokenizer", "tokenizer.json"]


# ---- the cache on this machine


def test_shards_are_fetched_when_asked_for_and_once(planted: Planted, elsewhere: Any, bucket: ObjectStore):
    local = planted()
    upload(local.folder, f"s3://{BUCKET}/s")
    elsewhere("other")
    bucket.asked.clear()
    store = Store.open(f"s3://{BUCKET}/s")
    assert bucket.gets("safetensors") == []
    store.read(store.manifest.shards[2], "tokens")
    assert [path.rpartition("/")[2] for path in bucket.gets("safetensors")] == ["00002.safetensors"]
    everything(store)
    everything(Store.open(f"s3://{BUCKET}/s"))
    assert len(bucket.gets("safetensors")) == 4


@pytest.mark.parametrize("shards", [0, 1.5, 3])
def test_the_cache_keeps_its_bound(
    planted: Planted, elsewhere: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: float
):
    local = planted()
    one = local.manifest.shards[0].bytes
    assert len({shard.bytes for shard in local.manifest.shards}) == 1
    url = upload(local.folder, f"file://{tmp_path}/far/s")
    home = elsewhere("other")
    monkeypatch.setattr(remote, "_most", lambda: int(shards * one))
    largest, fetch = [0], Place.get

    def measured(self: Place, name: str, to: Path, most: int) -> None:
        fetch(self, name, to, most)
        if name.endswith(".safetensors"):
            largest.append(sum(path.stat().st_size for path in shard_files(home)))

    monkeypatch.setattr(Place, "get", measured)
    store = Store.open(url)
    # In turn, so that nothing is in use but the one that is read.
    for shard in [*local.manifest.shards, *local.manifest.shards]:
        assert torch.equal(store.read(shard, "tokens")[0], local.read(shard, "tokens")[0])
    assert max(largest) == max(int(shards), 1) * one
    # And with all readers at once it is the same rows. (Files come and go then: nothing is measured.)
    monkeypatch.setattr(Place, "get", fetch)
    batches = zip(store.rows("hook", 3).batches(100), local.rows("hook", 3).batches(100), strict=False)
    assert all(torch.equal(here, there) for here, there in islice(batches, 50))


def test_the_least_recently_used_go_first(planted: Planted, elsewhere: Any, tmp_path: Path, monkeypatch: Any):
    local = planted()
    url = upload(local.folder, f"file://{tmp_path}/far/s")
    home = elsewhere("other")
    shards = local.manifest.shards
    monkeypatch.setattr(remote, "_most", lambda: 3 * shards[0].bytes)
    store = Store.open(url)
    for index in (0, 1, 2, 0, 3):  # 0 was used again, so 1 goes
        store.read(shards[index], "tokens")
        time.sleep(0.01)
    assert [p.stem for p in shard_files(home)] == sorted(shards[i].sha256 for i in (0, 2, 3))


def test_many_readers_of_a_cache_that_is_far_too_small(
    planted: Planted, elsewhere: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    local = planted()
    url = upload(local.folder, f"file://{tmp_path}/far/s")
    home = elsewhere("other")
    monkeypatch.setattr(remote, "_most", lambda: local.manifest.shards[0].bytes)
    tokens = [local.read(shard, "tokens")[0] for shard in local.manifest.shards]

    def read(seed: int) -> int:
        store, right = Store.open(url), 0
        for index in random.Random(seed).choices(range(4), k=25):
            right += torch.equal(store.read(store.manifest.shards[index], "tokens")[0], tokens[index])
        return right

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(read, range(6))) == [25] * 6
    assert len(shard_files(home)) <= 6
    assert not [path for path in shard_files(home) if path.name.endswith(".part")]


def test_what_is_larger_than_it_should_be_is_not_fetched_whole(tmp_path: Path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/s/large", bytes(20 << 20))
    with pytest.raises(place.TooLarge):
        Place("memory://s").get("large", tmp_path / "x", 19 << 20)
    assert (tmp_path / "x").stat().st_size == 0
    (tmp_path / "large").write_bytes(bytes(20))
    with pytest.raises(place.TooLarge):  # its copying tells nothing on the way
        Place(f"file://{tmp_path}").get("large", tmp_path / "x", 19)


@pytest.mark.fault(
    "Object stores", "A shard in the local cache is damaged", "its bytes are changed", "hsae train s3://…"
)
def test_a_shard_damaged_on_this_disk_is_fetched_again(planted: Planted, elsewhere: Any, tmp_path: Path):
    local = planted()
    url = upload(local.folder, f"file://{tmp_path}/far/s")
    home = elsewhere("other")
    everything(Store.open(url))
    for path in shard_files(home)[:2]:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert torch.equal(everything(Store.open(url)), everything(local))


def test_the_size_is_a_setting(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = upload(planted().folder, f"file://{tmp_path}/far/s")
    monkeypatch.setenv("HSAE_REMOTE_CACHE_MIB", "3")
    assert remote._most() == 3 << 20
    monkeypatch.setenv("HSAE_REMOTE_CACHE_MIB", "lots")
    with pytest.raises(UserError, match="HSAE_REMOTE_CACHE_MIB: a whole number of MiB is wanted, not 'lots'"):
        Store.open(url)


# ---- reading ahead


@needs_s3
def test_chunks_fetch_the_next_shard_meanwhile(planted: Planted, elsewhere: Any, bucket: ObjectStore):
    local = planted()
    url = upload(local.folder, f"s3://{BUCKET}/s")
    elsewhere("other")
    chunks = Store.open(url).chunks("hook", 100, last=48)
    next(chunks)
    wait_for(lambda: bool(bucket.gets("00001.safetensors")))
    assert not bucket.gets("00002.safetensors")
    assert len(list(chunks)) == 2


def test_no_more_is_fetched_ahead_than_is_read(planted: Planted, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(Store, "ahead", lambda _, shard: asked.append(shard.file))
    store = planted()
    assert len(list(store.chunks("hook", 100, first=16, last=48))) == 2
    assert asked == ["00002.safetensors"]
    asked.clear()
    assert len(list(store.rows("hook", 0).shards())) == 4
    assert asked == ["00001.safetensors", "00002.safetensors", "00003.safetensors"]


@needs_s3
def test_the_next_pool_is_fetched_while_the_current_one_is_used(planted: Planted, elsewhere: Any, bucket: ObjectStore):
    local = planted()
    url = upload(local.folder, f"s3://{BUCKET}/s")
    elsewhere("other")
    of_two_shards = 4 * 16 * 2 * local.manifest.shards[0].kept["hook"]
    batches = Store.open(url).rows("hook", seed=0, pool_bytes=of_two_shards).batches(8)
    next(batches)
    wait_for(lambda: len(bucket.gets("safetensors")) == 4)


@needs_s3
def test_the_shards_of_a_pool_are_fetched_at_once(planted: Planted, elsewhere: Any, bucket: ObjectStore):
    url = upload(planted().folder, f"s3://{BUCKET}/s")
    elsewhere("other")
    bucket.seconds, bucket.busiest = 0.2, 0
    next(Store.open(url).rows("hook", seed=0).batches(8))
    assert bucket.busiest == 4


# ---- faults on the way

ERROR = "s3://bucket/s/00001.safetensors"


@pytest.fixture
def far(planted: Planted, elsewhere: Any, bucket: ObjectStore) -> Store:
    """A local store whose copy is at s3://bucket/s; the cache is another machine's."""
    local = planted()
    upload(local.folder, f"s3://{BUCKET}/s")
    elsewhere("other")
    return local


@needs_s3
@pytest.mark.parametrize("protocol", ["s3", "http"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("00001", "status", times=2),
        Fault("00001", "reset"),
        Fault("00001", "flip"),
        Fault("00001", "cut"),
        Fault("00001", "swell"),
        Fault("manifest", "status", times=2),
    ],
    ids=lambda fault: f"{fault.path}-{fault.kind}",
)
@pytest.mark.fault(
    "Object stores",
    "503, a reset, a flipped byte, a cut or swollen answer",
    "the server does it once or twice",
    "hsae train s3://…, http://…",
)
def test_what_passes_is_tried_again(far: Store, bucket: ObjectStore, protocol: str, fault: Fault):
    bucket.faults.append(Fault(fault.path, fault.kind, fault.times))
    url = f"s3://{BUCKET}/s" if protocol == "s3" else f"{bucket.endpoint}/{BUCKET}/s"
    store = Store.open(url)
    # Alone, since whoever reads ahead would meet the fault instead.
    wanted = far.manifest.shards[1]
    assert torch.equal(store.read(wanted, "hook")[0], far.read(wanted, "hook")[0])
    assert [fault.times for fault in bucket.faults] == [0]


@needs_s3
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("flip", r"damaged \(its checksum is not the manifest's\); restore the file, or harvest the store again"),
        ("swell", r"more than the \d+ bytes that the manifest says"),
    ],
)
@pytest.mark.fault(
    "Object stores", "An object that stays damaged", "the server does it every time", "hsae train http://…"
)
def test_what_stays_wrong_is_one_line(far: Store, bucket: ObjectStore, elsewhere: Any, kind: Any, said: str):
    bucket.faults.append(Fault("00001", kind, times=100))
    url = f"{bucket.endpoint}/{BUCKET}/s"  # s3:// has checksums of its own
    with pytest.raises(UserError, match=f"^{url}/00001.safetensors: {said}"):
        everything(Store.open(url))
    assert bucket.faults[0].times == 100 - 2 * 2  # by the one who reads ahead, and by the reader: each twice
    assert not [p for p in shard_files(Path(os.environ["HSAE_CACHE"])) if far.manifest.shards[1].sha256 in p.name]


@needs_s3
@pytest.mark.fault("Object stores", "A server that stays down", "503 for ever", "hsae train http://…")
def test_a_server_that_stays_down_is_one_line(far: Store, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    url = f"{bucket.endpoint}/{BUCKET}/s"
    store = Store.open(url)
    assert store._remote is not None
    store._remote.place.patience = 0.1
    bucket.faults.append(Fault("00000", "status", times=10000))
    with pytest.raises(UserError, match=rf"^{url}/00000.safetensors: no good answer within 0 s \(503"):
        store.read(store.manifest.shards[0], "tokens")
    assert 2 < 10000 - bucket.faults[0].times < 30


@needs_s3
@pytest.mark.fault("Object stores", "An object deleted or cut short", "in the bucket", "hsae train s3://…")
def test_a_deleted_and_a_truncated_object(far: Store, bucket: ObjectStore):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    store = Store.open(f"s3://{BUCKET}/s")
    fs.pipe_file(f"{BUCKET}/s/00001.safetensors", (far.folder / "00001.safetensors").read_bytes()[:-100])
    size = far.manifest.shards[1].bytes
    with pytest.raises(UserError, match=f"^{ERROR}: {size - 100} bytes, the manifest says {size}; restore the file"):
        everything(store)
    fs.rm(f"{BUCKET}/s/00001.safetensors")
    with pytest.raises(UserError, match=f"^{ERROR}: missing; restore the file"):
        everything(store)


@needs_s3
@pytest.mark.fault(
    "Object stores", "The store is made anew while it is read", "another one is uploaded", "hsae train s3://…"
)
def test_a_store_made_anew_is_noticed_and_read_from_then_on(
    far: Store, bucket: ObjectStore, planted: Planted, elsewhere: Any
):
    store = Store.open(f"s3://{BUCKET}/s")
    store.read(store.manifest.shards[0], "tokens")
    elsewhere("cache")
    other = planted("other", width=8)
    upload(other.folder, f"s3://{BUCKET}/s")
    elsewhere("other")
    with pytest.raises(UserError, match=f"^s3://{BUCKET}/s: has been made anew since it was opened; give the command"):
        everything(store)
    now = Store.open(f"s3://{BUCKET}/s")
    assert now.folder != store.folder
    assert torch.equal(everything(now), everything(other))


SLOW = """
import sys
from hsae.store import Store
store = Store.open(sys.argv[1])
store.read(store.manifest.shards[1], "tokens")
"""


@needs_s3
@pytest.mark.fault(
    "Object stores", "A kill in the middle of a download", "SIGKILL while the server stalls", "hsae train http://…"
)
def test_a_kill_in_the_middle_of_a_download_leaves_nothing_that_counts(far: Store, bucket: ObjectStore):
    home = Path(os.environ["HSAE_CACHE"])
    bucket.faults.append(Fault("00001", "stall"))
    process = subprocess.Popen([sys.executable, "-c", SLOW, f"{bucket.endpoint}/{BUCKET}/s"], stdout=subprocess.DEVNULL)
    wait_for(lambda: any(path.stat().st_size for path in shard_files(home)) or process.poll() is not None)
    kill(process, bucket)
    (left,) = shard_files(home)
    assert left.name == f".{far.manifest.shards[1].sha256}.safetensors.{far.manifest.shards[1].bytes}.part"
    assert 0 < left.stat().st_size < far.manifest.shards[1].bytes
    store = Store.open(f"s3://{BUCKET}/s")
    assert torch.equal(everything(store), everything(far))
    assert [p.stem for p in shard_files(home)] == sorted(s.sha256 for s in far.manifest.shards)


@pytest.mark.fault("Object stores", "The disk of the cache is full", "ENOSPC during a download", "hsae train file://…")
def test_a_full_disk_is_one_line(planted: Planted, elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = upload(planted().folder, f"file://{tmp_path}/far/s")
    home = elsewhere("other")
    store = Store.open(url)

    def full(self: Any, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "get_file", full)
    with pytest.raises(UserError, match=f"^{url}/00000.safetensors: no room on the disk; HSAE_CACHE sets where"):
        store.read(store.manifest.shards[0], "tokens")
    assert shard_files(home) == []


# ---- strangers' manifests, and mistakes of users


@needs_s3
@pytest.mark.parametrize("name", ["shard", "file", "sha256"])
@pytest.mark.fault(
    "Object stores",
    "A stranger's manifest",
    "names that leave the folder, checksums that are paths",
    "hsae train s3://…",
)
def test_a_hostile_manifest_fetches_nothing(far: Store, bucket: ObjectStore, name: str):
    data = json.loads((far.folder / "manifest.json").read_text())
    del data["seal"]
    if name == "shard":
        data["shards"][0]["file"] = "../../evil.safetensors"
    elif name == "file":
        data["files"] = {"tokenizer/../../../evil": {"bytes": 4, "sha256": "0" * 64}}
    else:
        data["shards"][0]["sha256"] = "../" * 21 + "x"
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.pipe_file(f"{BUCKET}/s/manifest.json", json_bytes(data))
    bucket.asked.clear()
    with pytest.raises(UserError, match=f"^s3://{BUCKET}/s/manifest.json: damaged: ") as raised:
        Store.open(f"s3://{BUCKET}/s")
    assert os.environ["HSAE_CACHE"] not in str(raised.value)
    assert {path for _, path in bucket.asked} == {f"/{BUCKET}/s/manifest.json"}
    assert not list((Path(os.environ["HSAE_CACHE"]) / "remote").iterdir())


def test_a_url_in_a_strangers_folder_is_not_asked(planted: Planted, tmp_path: Path):
    folder = planted().folder
    (folder.parent / "url").write_text("https://example.org/x")
    (folder / "url").write_text("https://example.org/x")
    assert remote.url_of(folder) == ""
    assert Store(folder).address == "planted"
    shutil.copytree(folder, tmp_path / "else" / "planted")
    assert Store(tmp_path / "else" / "planted").address == str(tmp_path / "else" / "planted")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("foo://bar/x", "foo://bar/x: fsspec knows no protocol 'foo'; "),
        ("gs://bucket/x", r"gs://bucket/x: gcsfs is not installed: pip install 'hsae\[remote\]'"),
        ("memory://x", r"memory://x: no activation store there \(no manifest.json\)"),
        ("https://me:secret@host/x", "https://…@host/x: a URL must hold no password or token, since it is kept"),
        ("s3://KEY:secret@bucket/x", "s3://…@bucket/x: a URL must hold no password or token"),
        ("https://secret@host/x", "https://…@host/x: a URL must hold no password or token"),
        ("https://host/x?signature=secret", r"https://host/x\?…: a URL must hold no query, since it is kept"),
        ("s3://", "s3://: names no folder; write it as in s3://bucket/folder"),
    ],
)
def test_a_mistake_is_one_line(cache: Path, url: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=f"^{said}") as raised:
        Store.open(url)
    assert "secret" not in str(raised.value)


def test_a_run_is_no_url(cache: Path):
    with pytest.raises(UserError, match=r"^s3://b/run: a run must lie on this machine"):
        named_folder("s3://b/run", "runs", "run.json")


def test_s3_needs_s3fs(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(vars(sys.modules["fsspec.registry"])["_registry"], "s3", raising=False)
    with pytest.raises(UserError, match=r"^s3://b/x: s3fs is not installed: pip install 'hsae\[remote\]'$"):
        Store.open("s3://b/x")


@needs_s3
@pytest.mark.fault(
    "Object stores", "No bucket, no permission, no credentials", "the server refuses", "hsae train s3://…"
)
def test_no_bucket_no_permission_no_credentials(bucket: ObjectStore, cache: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"^s3://nowhere/x: no activation store there .*bucket does not exist"):
        Store.open("s3://nowhere/x")
    bucket.faults.append(Fault("manifest", "status", times=9, status=403))
    with pytest.raises(UserError, match=r"^s3://bucket/x/manifest.json: permission denied \(.*\); check which credent"):
        Store.open("s3://bucket/x")
    assert bucket.faults[0].times == 8  # it is not asked again
    with pytest.raises(UserError, match=r"^http://.*/manifest.json: permission denied \(403"):
        Store.open(f"{bucket.endpoint}/bucket/x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(cache / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match=r"^s3://bucket/x/manifest.json: no credentials .*set AWS_PROFILE"):
        Store.open("s3://bucket/x")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
