"""The activation store: shards with the tokens beside the activations, and a manifest that vouches for them."""

from hsae.store.manifest import HookRecord, Manifest, ShardRecord
from hsae.store.reader import Chunk, Store
from hsae.store.writer import StoreWriter

__all__ = ["Chunk", "HookRecord", "Manifest", "ShardRecord", "Store", "StoreWriter"]
