"""Stores behind a URL: a mirror folder with everything but the shards, which are fetched when they are asked for.

The mirror, `remote/KEY/NAME` under the cache, is an ordinary store's folder to all that reads manifests, tokenisers
and what else lies beside the shards. KEY stands for the URL and the manifest's bytes, so a mirror never changes: a
store that is made anew gets another. The shards of all stores go to one cache of bounded size, `remote/shards`, under
their checksums.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from hsae.errors import UserError
from hsae.files import cache_root, sha256
from hsae.seal import Checksum
from hsae.store.cache import Cache
from hsae.store.manifest import BESIDE, NAME, Manifest, ShardRecord
from hsae.store.place import Place, TooLarge

SIZE = "HSAE_REMOTE_CACHE_MIB"
DEFAULT_MIB = 4096
READERS = 8
"""shards that are fetched at once: one connection seldom fills the way to an object store"""
PATIENCE = 15.0
"""seconds for the first answer; a wrong address should show soon"""
LARGEST = 1 << 30
"""bytes of a manifest; and of a file beside the shards where the manifest does not say"""
URL = "url"


def mirror(url: str) -> Path:
    """The folder of a store behind a URL, without its shards; made if it is not there as the store is now.

    Raises:
        UserError: no store there, or one that is damaged or not whole; no permission, no answer.
    """
    place, home = Place(url, PATIENCE), _home()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=home) as aside:
        made = Path(aside) / "made" / place.name
        made.mkdir(parents=True)
        _fetch_manifest(place, made / NAME)
        key = hashlib.sha256(place.url.encode() + b"\0" + (made / NAME).read_bytes()).hexdigest()[:16]
        if not (home / key).exists():
            try:
                # Before anything else is fetched: every name in it is checked here.
                _fetch_beside(place, made, Manifest.read(made))
            except UserError as error:
                raise UserError(str(error).replace(str(made), place.url)) from None
            (made.parent / URL).write_text(place.url, encoding="utf-8")
            with suppress(OSError):  # another process was faster
                os.rename(made.parent, home / key)
    return home / key / place.name


def url_of(folder: Path) -> str:
    """The URL that a folder mirrors; empty if it is no mirror. Nothing in the folder itself is asked, since a
    stranger may have made it.
    """
    home, path = _home().resolve(), folder.resolve()
    if home not in path.parents or path.parent.parent != home:
        return ""
    try:
        return (path.parent / URL).read_text(encoding="utf-8")
    except OSError:
        return ""


def _home() -> Path:
    return cache_root() / "remote"


def _fetch_manifest(place: Place, to: Path) -> None:
    try:
        place.get(NAME, to, LARGEST)
    except FileNotFoundError as error:
        begun = False
        with suppress(UserError):  # a web server may list nothing
            begun = "plan.json" in place.files()
        if begun:
            mend = f"give its `hsae harvest --to {place.url}` command again"
            raise UserError(f"{place.url}: an unfinished store; {mend}") from None
        said = "" if NAME in str(error) else f": {error}"
        raise UserError(f"{place.url}: no activation store there (no {NAME}{said})") from None
    except TooLarge:
        raise UserError(f"{place.url}/{NAME}: over {LARGEST >> 20} MiB, so not the manifest of a store") from None


def _fetch_beside(place: Place, folder: Path, manifest: Manifest) -> None:
    """What lies beside the shards: the files that the manifest names, or in an older store those that are there."""
    sizes = {name: checksum.bytes for name, checksum in manifest.files.items()}
    if not manifest.sealed:
        tokenizer, truth = BESIDE
        found = [f"{tokenizer}/{name}" for name in place.files(tokenizer) if not name.startswith(".")]
        sizes = dict.fromkeys([*found, truth], LARGEST)
    for name, most in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.get(name, path, most)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            if name in manifest.files:
                raise UserError(f"{place.url}/{name}: missing; harvest the store again") from None
        except TooLarge:
            raise UserError(f"{place.url}/{name}: over {most} bytes; harvest the store again") from None


class Shards:
    """The shards of a store behind a URL.

    Args:
        folder: the store's mirror.
        url: what it mirrors.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.place = folder, Place(url)
        self._cache = Cache(_home() / "shards", _most())
        self._whole: set[str] = set()

    @contextmanager
    def held(self, shard: ShardRecord) -> Iterator[Path]:
        """A shard on this machine, whole and as the manifest says, which stays until the end.

        Raises:
            UserError: it cannot be had, or what comes is not it.
        """
        name = f"{shard.sha256}.safetensors"
        path = self._cache.folder / name
        handle = self._cache.hold(name)
        if handle is not None and shard.sha256 not in self._whole and Checksum.of(path) != shard.checksum:
            # Damaged on this disk.
            self._cache.drop(name)
            os.close(handle)
            handle = None
        if handle is None:
            handle = self._cache.make(name, shard.bytes, lambda aside: self._fetch(shard, aside))
        try:
            self._whole.add(shard.sha256)
            yield path
        finally:
            os.close(handle)

    def ahead(self, shard: ShardRecord) -> None:
        """Begin to fetch a shard that is read next. Should it fail, the one who reads it will meet the error."""
        self._thread.submit(self._ahead, shard)

    def _ahead(self, shard: ShardRecord) -> None:
        with suppress(UserError, OSError), self.held(shard):
            pass

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def _fetch(self, shard: ShardRecord, aside: Path) -> None:
        """A shard, twice if what comes first is not as the manifest says."""
        wrong = ""
        for _ in range(2):
            try:
                self.place.get(shard.file, aside, shard.bytes)
                size = aside.stat().st_size
                if size < shard.bytes:
                    wrong = f"{size} bytes, the manifest says {shard.bytes}"
                elif sha256(aside) != shard.sha256:
                    wrong = "damaged (its checksum is not the manifest's)"
                else:
                    return
            except TooLarge:
                wrong = f"more than the {shard.bytes} bytes that the manifest says"
            except FileNotFoundError:
                wrong = "missing"
                break
        self._require_same_manifest()
        raise UserError(f"{self.place.url}/{shard.file}: {wrong}; restore the file, or harvest the store again")

    def _require_same_manifest(self) -> None:
        with tempfile.TemporaryDirectory(prefix=".", dir=_home()) as folder:
            now = Path(folder) / NAME
            _fetch_manifest(self.place, now)
            if now.read_bytes() != (self.folder / NAME).read_bytes():
                raise UserError(f"{self.place.url}: has been made anew since it was opened; give the command again")


def _most() -> int:
    """Bytes that the cache of shards may take."""
    text = os.environ.get(SIZE, str(DEFAULT_MIB))
    if not text.isdecimal():
        raise UserError(f"{SIZE}: a whole number of MiB is wanted, not {text!r}")
    return int(text) << 20
