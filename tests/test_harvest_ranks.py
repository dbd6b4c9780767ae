"""Several processes harvest one store: the bytes are those of one, whoever dies, is interrupted or comes later."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harvesters import content, start, start_ranks, until, whole_shards
from tiny_lm import make_model, make_text

from hsae.errors import UserError
from hsae.harvesting.feed import Layout
from hsae.harvesting.finish import End, _all_shards, missing
from hsae.store import Manifest, StoreWriter

HOOKS = ("blocks.0.mlp.hook_post", "blocks.0.hook_resid_pre")
STORE = Path("activations", "s")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A harvest of 28 shards of 8 contexts, from a text that has duplicates everywhere."""
    folder = tmp_path_factory.mktemp("from")
    stories = make_text(420)
    stories[5::9] = stories[4::9][: len(stories[5::9])]
    text = folder / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(stories))
    make_model(folder / "model", intermediate_size=512)  # a wide hook point makes many shards of 1 MiB
    given = ("--model", str(folder / "model"), "--data", str(text), "--hooks", *HOOKS, "--context", "64")
    return (*given, "--shard-mib", "1", "--batch-sequences", "4", "--name", "s", "--dedupe", "--tokens", "14336")


PACKINGS = {"packed": (), "documents": ("--pack", "documents", "--tokens", "30000")}
"""the second asks for more than there is"""


@pytest.fixture(scope="module")
def alone(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What one process makes of each packing."""
    found = {}
    for name, more in PACKINGS.items():
        cache = tmp_path_factory.mktemp("alone") / name
        code, said = start(cache, *words, *more, threads=2).end()
        assert code == 0, said
        found[name] = content(cache / STORE)
    assert found["packed"] != found["documents"]
    return found


@pytest.mark.parametrize(("size", "packing"), [(2, "packed"), (3, "documents"), (4, "packed")])
def test_all_bytes_are_those_of_one_process(
    words: tuple[str, ...], alone: dict[str, dict[str, str]], tmp_path: Path, size: int, packing: str
):
    cache = tmp_path / "cache"
    ended = [rank.end() for rank in start_ranks(cache, size, *words, *PACKINGS[packing])]
    assert [code for code, _ in ended] == [0] * size, ended
    assert content(cache / STORE) == alone[packing]
    manifest = Manifest.read(cache / STORE)
    assert manifest.text["ran_out"] == (packing == "documents")
    assert manifest.text["duplicates"] > 30
    assert f", {size} processes -> " in ended[0][1]
    assert all(said == "" for _, said in ended[1:])


@pytest.mark.fault("Processes", "A process of several is killed", "SIGKILL in the middle", "torchrun … hsae harvest")
def test_others_finish_what_a_killed_rank_and_its_companions_leave(
    words: tuple[str, ...], alone: dict[str, dict[str, str]], tmp_path: Path
):
    """Three processes, then two, then one harvest the store of one process"""
    cache, before = tmp_path / "cache", 0
    for size in (3, 2):
        ranks = start_ranks(cache, size, *words)
        until(lambda before=before: whole_shards(cache / STORE) > before + 3, ranks[0])
        ranks[-1].send(signal.SIGKILL)
        time.sleep(0.1)
        for rank in ranks[:-1]:  # as torchrun does
            rank.send(signal.SIGTERM)
        ended = [rank.end(30) for rank in ranks]
        assert ended[-1][0] == -signal.SIGKILL
        assert {code for code, _ in ended[:-1]} <= {2, 130}, ended
        assert "the same command" in ended[0][1]
        before = whole_shards(cache / STORE)
    # Each that was killed may have given a shard its name without telling the journal: that one is written again.
    told = {path.stem for path in (cache / STORE).glob("journal/0*.json")}
    shards = list((cache / STORE).glob("0*.safetensors"))
    kept = {path: path.stat().st_mtime_ns for path in shards if path.stem in told}
    assert len(kept) == before >= len(shards) - 2
    code, said = start(cache, *words).end()
    assert code == 0, said
    assert f"going on after {8 * before} sequences" in said
    assert content(cache / STORE) == alone["packed"]
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_a_rank_that_dies_is_noticed_by_those_that_wait(words: tuple[str, ...], tmp_path: Path):
    """Without anybody to end them: what waits for the dead one says so and ends."""
    ranks = start_ranks(tmp_path / "cache", 2, *words)
    until(lambda: whole_shards(tmp_path / "cache" / STORE) > 1, ranks[0])
    ranks[1].send(signal.SIGKILL)
    code, said = ranks[0].end()
    assert (code, said.splitlines()[-1]) == (
        2,
        "hsae: another of the processes has ended; give the same command again to go on",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_within_seconds(
    words: tuple[str, ...], alone: dict[str, dict[str, str]], tmp_path: Path, number: signal.Signals
):
    cache = tmp_path / "cache"
    ranks = start_ranks(cache, 2, *words)
    # Both are at work: one has the even shards, one the odd ones.
    until(lambda: {int(path.stem) % 2 for path in (cache / STORE).glob("journal/0*.json")} == {0, 1}, ranks[0])
    for rank in ranks:
        rank.send(number)
    ended = [rank.end(20) for rank in ranks]
    assert [code for code, _ in ended] == [130, 130], ended
    lines = [line for line in ended[0][1].splitlines() if "interrupted" in line]
    assert lines == ["hsae: interrupted; whole shards are kept, and the same command goes on from there"]
    assert ended[1][1] == ""
    assert not (cache / STORE / "manifest.json").exists()
    assert start(cache, *words).end()[0] == 0
    assert content(cache / STORE) == alone["packed"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--data", "none.txt"), "none.txt: no such file"),
        (("--hooks", "blocks.9.hook_resid_pre"), "has no hook point"),
        (("--context", "99"), "takes 64 tokens at most"),
    ],
)
def test_a_mistake_is_one_line_for_all(words: tuple[str, ...], tmp_path: Path, more: tuple[str, ...], said: str):
    first, second = start_ranks(tmp_path / "cache", 2, *words, *more)
    code, line = first.end()
    assert code == 2
    assert re.fullmatch(rf"hsae: .*{re.escape(said)}.*\n", line)
    second.send(signal.SIGTERM)  # as torchrun does
    # It has heard of the first's end, or not yet; where it waits in compiled code, the signal itself ends it.
    code, said = second.end()
    assert code in (2, 130, -signal.SIGTERM)
    assert said == ""
    assert not (tmp_path / "cache" / STORE).exists()


def test_a_rank_that_is_left_holds_the_folder(words: tuple[str, ...], tmp_path: Path):
    """Where all others and torchrun itself were killed, one that still writes keeps a new harvest out."""
    cache = tmp_path / "cache"
    ranks = start_ranks(cache, 2, *words)
    until(lambda: whole_shards(cache / STORE) > 1, ranks[0])
    ranks[1].send(signal.SIGSTOP)
    ranks[0].send(signal.SIGKILL)
    ranks[0].end()
    code, said = start(cache, *words, out=tmp_path / "new").end()
    assert code == 2
    assert "another hsae harvest is writing it" in said
    ranks[1].send(signal.SIGKILL)
    ranks[1].end()
    assert start(cache, *words, out=tmp_path / "new").end()[0] == 0


def test_ranks_that_compute_in_different_ways_are_refused(words: tuple[str, ...], tmp_path: Path):
    ranks = start_ranks(tmp_path / "cache", 2, *words, environments={1: {"HSAE_KERNELS": "torch"}})
    ended = [rank.end() for rank in ranks]
    assert [code for code, _ in ended] == [2, 2]
    assert "compute in different ways (this one by the fast tap with C kernels)" in ended[0][1]
    assert "compute in different ways (this one by the fast tap with PyTorch)" in ended[1][1]
    assert whole_shards(tmp_path / "cache" / STORE) == 0


def test_a_shard_that_another_machine_wrote_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network file system may show it late."""
    import torch

    monkeypatch.setattr("hsae.harvesting.finish.LOOK", 0.01)
    writer, other = (StoreWriter(tmp_path / "s", {}, "fp32") for _ in range(2))
    data: dict[str, Any] = {"tokens": torch.zeros(2, 3).int(), "activations": {"h": torch.ones(2, 3, 1)}}
    data |= {"keep": {"h": torch.ones(2, 3, dtype=torch.bool)}, "excluded": {"h": {}}}
    layout, ends = Layout(sequences=8, shard=2, batch=2), [End(4, 0)]
    writer.write(0, **data)
    assert missing(layout, writer) == [1, 2, 3]
    with pytest.raises(UserError, match="shard 1 is gone; give the same command again"):
        _all_shards(writer, layout, ends, patience=0.0)
    late = threading.Timer(0.1, other.write, (1,), data)
    late.start()
    records = _all_shards(writer, layout, ends, patience=30.0)
    late.join()
    assert [record["file"] for record in records] == ["00000.safetensors", "00001.safetensors"]


@pytest.mark.fault("Processes", "A process of several is killed", "SIGKILL in the middle", "torchrun … hsae harvest")
def test_torchrun_makes_up_for_a_killed_rank(
    words: tuple[str, ...], alone: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Torchrun starts all of them again, and the store is that of one process"""
    cache = tmp_path / "cache"
    monkeypatch.setenv("HSAE_CACHE", str(cache))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run = subprocess.Popen(
        (*launch, "--max-restarts", "1", "-m", "hsae", "harvest", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        start_time = time.monotonic()
        while whole_shards(cache / STORE) < 2:
            assert run.poll() is None, run.communicate()
            assert time.monotonic() - start_time < 150
            time.sleep(0.005)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        out, error = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == 0, error
    assert "Traceback" not in error, error
    assert "going on after " in out
    assert content(cache / STORE) == alone["packed"]
