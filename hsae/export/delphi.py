"""delphi's latent cache: what it makes itself by running a model, here from the activations in a store.

`latents/<module>/{first}_{last}.safetensors` for each share of the latents: `locations` [n, 3] (sequence, position,
latent - first), `activations` [n] in float16, `tokens` [sequence, position]; and a `config.json`. As in delphi's own,
activations of at most 1e-5 are left out. Positions that do not count in the store have none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError
from hsae.evidence.entries import Encoder
from hsae.export import ExportConfig
from hsae.export._base import Exporter, Subject
from hsae.export._files import write_json
from hsae.export._hooks import module_of
from hsae.export._provenance import data_names
from hsae.files import replacing
from hsae.progress import Bar
from hsae.store import Store

if TYPE_CHECKING:
    from rich.console import Console

LEAST = 1e-5
"""activations must be above it"""
ROWS = 4096
"""rows of code that are held at once"""


class Delphi(Exporter):
    """A folder whose `latents` is for `LatentDataset`."""

    needs_store = True
    load = 'LatentDataset("{folder}/latents", sampler_cfg, constructor_cfg, tokenizer, modules=["{module.name}"])'

    def write(self, subject: Subject, settings: ExportConfig, folder: Path, errors: Console | None) -> str:
        store, hook, latents = subject.store, subject.hook, subject.plain.latents
        assert store is not None
        if settings.splits > latents:
            raise UserError(f"--splits {settings.splits}: there are {latents} latents only")
        context = store.manifest.context
        sequences = min(store.manifest.sequences, -(-(settings.tokens or store.manifest.tokens) // context))
        module = module_of(hook, subject.architecture) or hook
        home = folder / "latents" / module
        home.mkdir(parents=True)
        encode = Encoder(subject.sae)
        small = max(sequences, context, latents) <= 1 << 16
        with ExitStack() as stack, Bar(errors, "encode", sequences * context) as bar:
            splits = [stack.enter_context(_Split(home, *ends, small)) for ends in _shares(latents, settings.splits)]
            for chunk in store.chunks(hook, max(1, ROWS // context), 0, sequences):
                place, x = chunk.keep.nonzero(), chunk.activations[chunk.keep]
                place[:, 0] += chunk.first
                for where, part in zip(place.split(ROWS), x.split(ROWS), strict=True):
                    entries = encode(part)
                    row, at = entries.of_rows(torch.arange(len(part)))
                    kept = entries.code[at] > LEAST
                    row, at = row[kept], at[kept]
                    latent, value = entries.latent[at].long(), entries.code[at].half()
                    _require_finite(value, latent)
                    for split in splits:
                        split.add(where[row], latent, value)
                bar.advance(chunk.keep.numel())
            for split in splits:
                split.finish(store, sequences)
        write_json(home / "config.json", _config(subject, store, sequences, settings.splits))
        return f"latents/{module}"


def _shares(latents: int, splits: int) -> Iterator[tuple[int, int]]:
    """The first and the last latent of each file, as delphi cuts them."""
    bounds = torch.linspace(0, latents, steps=splits + 1).long().tolist()
    for first, end in pairwise(bounds):
        yield first, end - 1


def _require_finite(value: Float[Tensor, "firing"], latent: Int[Tensor, "firing"]) -> None:
    if not (finite := value.isfinite()).all():
        wrong = int(latent[~finite][0])
        raise UserError(f"latent {wrong}: an activation above 65,504, which delphi's float16 does not hold")


def _config(subject: Subject, store: Store, sequences: int, splits: int) -> dict[str, object]:
    """delphi's `CacheConfig`, the model, and where the SAE comes from."""
    harvest = store.manifest.harvest
    return {
        "dataset_repo": ", ".join(data_names(store)),
        "dataset_split": str(harvest.get("split", "")),
        "dataset_name": "",
        "dataset_column": str(harvest.get("column") or "text"),
        "batch_size": int(harvest.get("batch_sequences", 1)),
        "cache_ctx_len": store.manifest.context,
        "n_tokens": sequences * store.manifest.context,
        "n_splits": splits,
        "model_name": subject.model,
        "hsae": subject.provenance,
    }


@dataclass(frozen=True)
class _Part:
    """One tensor of a file that is made as it comes: its bytes so far, aside."""

    kind: str
    shape: tuple[int, ...]
    file: IO[bytes]


class _Split:
    """The file of some latents. What comes goes to files aside, since nobody knows how much it will be.

    Args:
        home: the folder.
        first, last: its latents.
        small: no location needs more than 16 bits.
    """

    def __init__(self, home: Path, first: int, last: int, small: bool) -> None:
        self.path, self.first, self.last = home / f"{first}_{last}.safetensors", first, last
        self._kind, self._dtype = ("U16", torch.uint16) if small else ("U32", torch.uint32)
        self._aside = {name: home / f".{first}-{name}" for name in ("tokens", "locations", "activations")}
        self._files: dict[str, IO[bytes]] = {}
        self._count = 0

    def __enter__(self) -> _Split:
        self._files = {name: open(path, "w+b") for name, path in self._aside.items()}  # noqa: SIM115 (closed below)
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self._files.items():
            file.close()
            self._aside[name].unlink()

    def add(
        self, where: Int[Tensor, "firing 2"], latent: Int[Tensor, "firing"], value: Float[Tensor, "firing"]
    ) -> None:
        """Take in those firings of a stretch of rows that are this file's."""
        mine = (latent >= self.first) & (latent <= self.last)
        locations = torch.cat([where[mine], latent[mine, None] - self.first], 1).to(self._dtype)
        self._files["locations"].write(locations.numpy().tobytes())
        self._files["activations"].write(value[mine].numpy().tobytes())
        self._count += len(locations)

    def finish(self, store: Store, sequences: int) -> None:
        """Write the file, with the tokens of so many first sequences."""
        left = sequences
        for shard in store.manifest.shards:
            if left > 0:
                (tokens,) = store.read(shard, "tokens")
                self._files["tokens"].write(tokens[:left].long().numpy().tobytes())
                left -= shard.sequences
        # The widest numbers first, so that every tensor starts at a multiple of its numbers' size.
        parts = {
            "tokens": _Part("I64", (sequences, store.manifest.context), self._files["tokens"]),
            "locations": _Part(self._kind, (self._count, 3), self._files["locations"]),
            "activations": _Part("F16", (self._count,), self._files["activations"]),
        }
        with replacing(self.path) as aside:
            _assemble(aside, parts)


def _assemble(path: Path, parts: Mapping[str, _Part]) -> None:
    """A safetensors file of parts that need not fit into memory."""
    header, end = {}, 0
    for name, part in parts.items():
        start, end = end, end + part.file.tell()
        header[name] = {"dtype": part.kind, "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts.values():
            part.file.seek(0)
            shutil.copyfileobj(part.file, file)
