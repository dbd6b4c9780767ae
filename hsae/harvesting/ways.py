"""How the shards of a store were computed: what the last digits of their numbers may depend on (see `LM.way`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hsae.errors import UserError

Way = Mapping[str, Any]


def kind(way: Way) -> tuple[str, bool]:
    """The part of it that the user chooses: the implementation, and whether products are PyTorch's."""
    return way["tap"], way["kernels"] == "PyTorch"


def words(way: Way) -> str:
    """For a line."""
    by = "by TransformerLens" if way["tap"] == "bridge" else "by the fast tap"
    return f"{by} with {'PyTorch' if way['kernels'] == 'PyTorch' else 'C kernels'}"


def going_on(folder: Path, before: Iterable[Way], way: Way) -> str:
    """Whether a store may be gone on with: what differs by the user's choice is never mixed, the rest not silently.

    Args:
        folder: the store's.
        before: how its whole shards were computed.
        way: how the rest would be.

    Returns:
        one line to say; empty where nothing differs.

    Raises:
        UserError: another kind of computation.
    """
    differ: set[str] = set()
    for was in before:
        if kind(was) != kind(way):
            raise UserError(
                f"{folder}: its whole shards were computed {words(was)}, the rest would be {words(way)}, and last "
                "digits would differ; set HSAE_KERNELS as it was, or give another --name"
            )
        differ |= {
            f"{key} {was.get(key)}, now {way.get(key)}" for key in was.keys() | way if was.get(key) != way.get(key)
        }
    return f"note: last digits may differ from the whole shards' ({'; '.join(sorted(differ))})" if differ else ""


def summed(ways: Iterable[Way]) -> list[dict[str, Any]]:
    """For the manifest: each way with the number of shards in a row that were computed so."""
    found: list[dict[str, Any]] = []
    for way in ways:
        if not found or found[-1] != {**way, "shards": found[-1]["shards"]}:
            found.append({**way, "shards": 0})
        found[-1]["shards"] += 1
    return found
