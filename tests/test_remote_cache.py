"""The cache of shards: bounded, shared, and never with half a file under a whole one's name."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from hsae.errors import UserError
from hsae.store import cache


def test_a_shard_that_is_read_never_goes(tmp_path: Path):
    kept = cache.Cache(tmp_path, 0)
    held = kept.make("a", 3, lambda aside: aside.write_bytes(b"one") and None)
    os.close(kept.make("b", 3, lambda aside: aside.write_bytes(b"two") and None))
    assert (tmp_path / "a").read_bytes() == b"one"
    again = kept.hold("a")
    assert again is not None
    os.close(held)
    os.close(kept.make("d", 3, lambda aside: aside.write_bytes(b"ten") and None))
    assert (tmp_path / "a").read_bytes() == b"one"
    os.close(again)
    os.close(kept.make("c", 3, lambda aside: aside.write_bytes(b"six") and None))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_came_under_the_name_of_a_file_that_goes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x").write_text("old")
    (tmp_path / "new").write_text("new")
    lock = fcntl.flock

    def late(handle: int, operation: int) -> None:
        if (tmp_path / "new").exists():
            os.replace(tmp_path / "new", tmp_path / "x")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert not cache._delete(str(tmp_path / "x"))
    assert (tmp_path / "x").read_text() == "new"
    assert cache._delete(str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_what_is_being_fetched_counts_as_large_as_it_will_be(tmp_path: Path):
    kept = cache.Cache(tmp_path, 10)
    os.close(kept.make("old", 6, lambda aside: aside.write_bytes(b"sixsix") and None))

    def look(aside: Path) -> None:
        assert not (tmp_path / "old").exists()
        aside.write_bytes(b"fives")

    os.close(kept.make("new", 5, look))


def test_two_who_want_the_same_shard_fetch_it_once(tmp_path: Path):
    fetched = []

    def slowly(aside: Path) -> None:
        fetched.append(1)
        time.sleep(0.2)
        aside.write_bytes(b"data")

    threads = [threading.Thread(target=lambda: os.close(cache.Cache(tmp_path, 100).make("x", 4, slowly))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path):
    kept = cache.Cache(tmp_path, 100)

    def half(aside: Path) -> None:
        aside.write_bytes(b"ha")
        raise UserError("no")

    with pytest.raises(UserError):
        kept.make("x", 4, half)
    assert list(tmp_path.iterdir()) == []
