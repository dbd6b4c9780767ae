"""A store behind a URL is written so that nothing but a shard is ever lost, by whichever machine, to the same bytes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import object_store
import pytest
import torch
from object_store import BUCKET, Fault, ObjectStore, kill, needs_s3, wait_for
from rich.console import Console
from tiny_lm import make_model, make_text

from hsae.errors import UserError
from hsae.files import named_folder
from hsae.harvesting import HarvestConfig, harvest
from hsae.store import Store, StoreWriter
from hsae.store.place import Place
from hsae.store.upload import UploadingWriter

bucket, elsewhere, quick, servers = (
    object_store.bucket,
    object_store.elsewhere,
    object_store.quick,
    object_store.servers,
)

TABLES: dict[str, Any] = {"model": {}, "tokenizer": {}, "text": {}, "harvest": {}}


def shard(index: int) -> dict[str, Any]:
    values = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(index))
    keep = torch.ones(4, 8, dtype=torch.bool)
    tokens = torch.arange(32).view(4, 8)
    return {"tokens": tokens, "activations": {"hook": values}, "keep": {"hook": keep}, "excluded": {"hook": {}}}


def finish(writer: StoreWriter, tmp_path: Path) -> None:
    (tmp_path / "made").write_text("{}")
    writer.add("tokenizer/tokenizer.json", tmp_path / "made")
    writer.finish(shard_sequences=4, context=8, **TABLES)


@pytest.mark.parametrize("protocol", ["file", "memory", pytest.param("s3", marks=needs_s3)])
def test_another_machine_goes_on_where_one_died(tmp_path: Path, protocol: str, request: pytest.FixtureRequest):
    if protocol == "s3":
        request.getfixturevalue("bucket")
    to = Place({"file": f"file://{tmp_path}/far/s", "memory": "memory://far/s", "s3": f"s3://{BUCKET}/s"}[protocol])
    local = StoreWriter(tmp_path / "local", {"a": 1}, "fp32")
    for index in range(4):
        local.write(index, **shard(index))
    first = UploadingWriter(tmp_path / "one", to, {"a": 1}, "fp32")
    for index in (0, 2):
        first.write(index, **shard(index), note=index)
    assert not list((tmp_path / "one").glob("*.safetensors"))
    # The journal's entry of a shard comes after it: a shard without one does not count.
    to.put(tmp_path / "local" / "00003.safetensors", "00003.safetensors")
    with pytest.raises(UserError, match="made with other settings"):
        UploadingWriter(tmp_path / "other", to, {"a": 2}, "fp32")
    with pytest.raises(UserError, match="an unfinished store; give its `hsae harvest --to"):
        named_folder(to.url, "activations", "manifest.json")
    second = UploadingWriter(tmp_path / "two", to, {"a": 1}, "fp32")
    assert {index: record["told"] for index, record in second.records.items()} == {0: {"note": 0}, 2: {"note": 2}}
    assert "00003.safetensors" not in to.files()
    second.write(1, **shard(1))
    # The first machine was only slow, and both end it.
    first.write(3, **shard(3))
    assert set(second.whole_shards()) == {0, 1, 2, 3}
    second.records = second.whole_shards()
    finish(second, tmp_path)
    finish(local, tmp_path)
    there = {p.relative_to(tmp_path / "local").as_posix(): p.read_bytes() for p in (tmp_path / "local").rglob("*.*")}
    names = {*to.files(), *(f"tokenizer/{name}" for name in to.files("tokenizer"))}
    assert to.files("journal") == {}
    assert to.read(names) == there
    with pytest.raises(UserError, match="already holds a store"):
        UploadingWriter(tmp_path / "three", to, {"a": 1}, "fp32")


def test_what_lies_here_of_an_earlier_harvest_is_nothing(tmp_path: Path):
    here = UploadingWriter(tmp_path / "one", Place("memory://a"), {"a": 1}, "fp32")
    here.write(0, **shard(0))
    there = UploadingWriter(tmp_path / "one", Place("memory://b"), {"a": 2}, "fp32")
    assert there.records == {}
    assert set(Place("memory://b").files()) == {"plan.json"}


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "new").write_text("new")
    to = Place(f"file://{tmp_path}/far")
    to.put(tmp_path / "new", "x")
    monkeypatch.setattr(shutil, "copyfile", lambda file, aside: Path(aside).write_text("n") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        to.put(tmp_path / "new", "x")
    assert to.read(["x"]) == {"x": b"new"}


def test_what_cannot_be_written_to_is_one_line(tmp_path: Path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/s: a web server can be read but not written"):
        Place("http://127.0.0.1:9/s").put(tmp_path / "x", "x")


@needs_s3
def test_an_upload_is_tried_again(bucket: ObjectStore, tmp_path: Path):
    bucket.faults += [Fault("00001", "status", method="PUT"), Fault("journal/00001", "reset", method="PUT")]
    writer = UploadingWriter(tmp_path / "one", Place(f"s3://{BUCKET}/s"), {}, "fp32")
    for index in range(2):
        writer.write(index, **shard(index))
    assert [fault.times for fault in bucket.faults] == [0, 0]
    assert set(writer.whole_shards()) == {0, 1}
    with pytest.raises(UserError, match=r"^s3://nowhere/s/plan.json: not there .*bucket does not exist"):
        UploadingWriter(tmp_path / "two", Place("s3://nowhere/s"), {}, "fp32")


HARVEST = """
import json, sys
from hsae.harvesting import HarvestConfig, harvest
HarvestConfig.shard_sequences = lambda *_: 8
settings = json.loads(sys.argv[1])
harvest(HarvestConfig(**settings | {"hooks": tuple(settings["hooks"]), "data": tuple(settings["data"])}))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A harvest of 12 shards."""
    monkeypatch.setattr(HarvestConfig, "shard_sequences", lambda *_: 8)
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(make_text(160)))
    return {
        "model": str(make_model(tmp_path / "model")),
        "data": (str(tmp_path / "stories.txt"),),
        "hooks": ("blocks.1.hook_resid_pre",),
        "context": 32,
        "tokens": 12 * 8 * 32,
        "name": "s",
        "batch_sequences": 4,
    }


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


@needs_s3
def test_a_harvest_whose_machine_dies_goes_on_elsewhere(
    settings: dict[str, Any], elsewhere: Callable[[str], Path], bucket: ObjectStore
):
    elsewhere("local")
    local = harvest(HarvestConfig(**settings), quiet())
    home = elsewhere("dying")
    settings["to"] = f"s3://{BUCKET}/far/s"
    bucket.faults.append(Fault("journal/00004", "hold", method="PUT"))
    process = subprocess.Popen([sys.executable, "-c", HARVEST, json.dumps(settings)], stdout=subprocess.DEVNULL)
    wait_for(lambda: bucket.faults[0].times == 0 or process.poll() is not None)
    kill(process, bucket)
    # Of the shards only the one that is uploaded and the one that is written meanwhile may lie there.
    assert len(list((home / "remote" / "uploads").rglob("0*.safetensors"))) <= 2
    assert bucket.objects("far/s/journal").keys() == {f"far/s/journal/{i:05d}.json" for i in range(4)}
    bucket.asked.clear()
    elsewhere("other")
    mirror = harvest(HarvestConfig(**settings), quiet())
    made = {path.rpartition("/")[2] for method, path in bucket.asked if method == "PUT" and "/s/0" in path}
    assert made == {f"{i:05d}.safetensors" for i in range(4, 12)}
    files = {p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    assert {key.removeprefix("far/s/"): data for key, data in bucket.objects("far").items()} == files
    assert Store(mirror).address == settings["to"]
    # And again it is there already; with other settings it is another.
    bucket.asked.clear()
    assert harvest(HarvestConfig(**settings), quiet()) == mirror
    assert not [method for method, _ in bucket.asked if method == "PUT"]
    line = rf"^{settings['to']}: holds a store made with other settings \(exclude_first\); give another --to$"
    with pytest.raises(UserError, match=line):
        harvest(HarvestConfig(**settings, exclude_first=1), quiet())


def test_what_a_kill_after_the_manifest_left_is_cleared_up(settings: dict[str, Any], elsewhere: Any, tmp_path: Path):
    elsewhere("one")
    settings["to"] = f"file://{tmp_path}/far/s"
    harvest(HarvestConfig(**settings), quiet())
    left = tmp_path / "far" / "s"
    (left / "plan.json").write_text("{}")
    (left / "journal" / "00001.json").write_text("{}")
    harvest(HarvestConfig(**settings), quiet())
    assert not (left / "plan.json").exists()
    assert not list((left / "journal").iterdir())


def test_an_unfinished_store_elsewhere_of_other_settings_is_one_line(
    settings: dict[str, Any], elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere("one")
    settings["to"] = f"file://{tmp_path}/far/s"
    with monkeypatch.context() as patch:
        patch.setattr(UploadingWriter, "finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            harvest(HarvestConfig(**settings), quiet())
    differs = r"holds an unfinished store made with other settings \(harvest.exclude_first\); give another --to"
    with pytest.raises(UserError, match=f"^{settings['to']}: {differs}"):
        harvest(HarvestConfig(**settings, exclude_first=1), quiet())
    with pytest.raises(ValueError, match="to must be a URL"):
        HarvestConfig(to="/tmp/x")
