"""The activation store: shards with the tokens beside the activations, and a manifest that vouches for them.

Names are imported when first used: the manifest is read without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsae.store.manifest import HookRecord, Manifest, ShardRecord
    from hsae.store.reader import Chunk, Store
    from hsae.store.writer import StoreWriter

__all__ = ["Chunk", "HookRecord", "Manifest", "ShardRecord", "Store", "StoreWriter"]

_HOMES = {
    "Chunk": "reader",
    "HookRecord": "manifest",
    "Manifest": "manifest",
    "ShardRecord": "manifest",
    "Store": "reader",
    "StoreWriter": "writer",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'hsae.store' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hsae.store.{_HOMES[name]}"), name)
