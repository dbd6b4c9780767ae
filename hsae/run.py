"""The run folder: `config.toml`, `metrics.jsonl`, `checkpoint.safetensors`; when whole `sae.safetensors`, `run.json`.

The checkpoint carries its state (step, divergences, times) in its header, so that both change in one rename, and the
checksum of the metrics until then. The result carries those of the other files that are final.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae import config
from hsae.errors import UserError, one_line
from hsae.files import flush, naming, own, replacing
from hsae.header import BadHeader
from hsae.header import read as read_header
from hsae.record import CHECKPOINT, CONFIG, METRICS, RESULT, WEIGHTS, Record, Result
from hsae.sae import SAE
from hsae.seal import EMPTY, FIELD, Checksum, holds, sealed, write_json
from hsae.setup import Setup

MEND = f"delete {CHECKPOINT} to train from the start"
# Settings that change how training goes, not what comes out.
INDIFFERENT = (
    "baselines",
    "device",
    "latent_ranks",
    "checkpoint_seconds",
    "log_every",
    "micro_batch",
    "probe",
    "tensorboard",
    "wandb",
)


class Run(Record):
    """A finished training run.

    Args:
        folder: its folder (see `Run.open` for names).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.setups = {
            name: config.build(Setup, table, str(folder / CONFIG), f"setup.{name}")
            for name, table in self.tables.items()
        }

    def sae(self, setup: str = "", seed: int | None = None) -> SAE:
        """A trained SAE.

        Raises:
            UserError: it is not in the run, or it diverged, or the file is damaged or not what the result says.
        """
        row = self.row(setup, seed)
        self.require_weights(row)
        made, (latents, width) = self.setups[row.setup], (self.result.latents, self.result.width)
        shapes = {"W_enc": (latents, width), "b_enc": (latents,), "b_dec": (width,)}
        if not made.tied:
            shapes["W_dec"] = (latents, width)
        prefix = f"{row.setup}/{row.seed}"
        tensors = self._weights(prefix, shapes, torch.isfinite)
        # Only now: the file does hold that many latents.
        parameters = made.variant.inference(made.variant.parameters(latents))
        own_shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        # The logarithm of a threshold of 0 is -inf.
        parameters = self._weights(prefix, own_shapes, lambda value: ~value.isnan())
        W_enc, b_enc, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "b_dec"))
        scale = 1.0 if self.result.folded else self.result.scale
        return SAE(W_enc, b_enc, tensors.get("W_dec", W_enc), b_dec, made.variant, scale, parameters)

    @cached_property
    def _weights_path(self) -> Path:
        """The file of the weights, read and checked once."""
        return self.check_file(WEIGHTS)

    def _weights(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]], numbers: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Some tensors of an SAE, their shapes checked, and with `numbers` every number."""
        path, tensors = self._weights_path, {}
        try:
            with safe_open(path, framework="pt") as file:
                for name, shape in shapes.items():
                    key = f"{prefix}/{name}"
                    found = tuple(file.get_slice(key).get_shape())
                    if found != shape:
                        what = f"has shape {list(found)}, the run says {list(shape)}"
                        raise UserError(f"{path}: {key} {what}; {self._mend}")
                    tensors[name] = file.get_tensor(key)
                    if not (tensors[name].is_floating_point() and bool(numbers(tensors[name]).all())):
                        raise UserError(f"{path}: {key} holds what is no weight (NaN or Inf); {self._mend}")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged or unreadable ({one_line(error)}); {self._mend}") from None
        return tensors


class RunWriter:
    """Makes a run folder, or goes on with one.

    Args:
        folder: the run's folder; made if it is not there.
        resolved: the `[train]` table that repeats the run.
        store: the store's fingerprint: what was begun on these activations goes on with them, wherever they lie now.

    Raises:
        UserError: the folder holds a run with another config.
    """

    def __init__(self, folder: Path, resolved: Mapping[str, Any], store: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        if path.exists():
            there = config.read_file(path, "train")
            differ = [key for key in {**there, **resolved} if there.get(key) != resolved.get(key)]
            differ = [key for key in differ if key not in INDIFFERENT]
            moved = differ == ["store"] and store and store == _begun_on(folder)
            if differ and not moved:
                what = ", ".join(differ)
                raise UserError(
                    f"{folder}: holds a run with another config ({what}); give another --name, or delete it"
                )
            if not moved or (folder / RESULT).exists():
                return
            resolved = {**there, "store": resolved["store"]}
        with replacing(path) as aside:
            aside.write_text(tomli_w.dumps({"train": dict(resolved)}), encoding="utf-8")

    def checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save everything that going on needs."""
        metrics = json.dumps(dataclasses.asdict(self._metrics()))
        raw = save(_contiguous(tensors), metadata={"state": json.dumps(dict(state)), "metrics": metrics, FIELD: EMPTY})
        with replacing(self.folder / CHECKPOINT) as aside, open(aside, "wb") as file:
            file.writelines(sealed(raw))

    def _metrics(self) -> Checksum:
        """Of the metrics until now, which are on disk before anything says so."""
        path = self.folder / METRICS
        if not path.exists():
            return Checksum.of_bytes(b"")
        with naming(path):
            flush(path)
        return Checksum.of(path)

    def restore(self, cut: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint's tensors and state, and the metrics file cut back to its step; None before the first.

        Args:
            cut: false where another process writes the run, and cuts.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            if cut:
                (self.folder / METRICS).unlink(missing_ok=True)
            return None
        state, metrics = check_checkpoint(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged ({one_line(error)}); {MEND}") from None
        if cut:
            kept = check_metrics(self.folder, state["step"], metrics)
            with replacing(self.folder / METRICS) as aside:
                aside.write_bytes(kept)
        return tensors, state

    def log(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append to `metrics.jsonl`, a line each."""
        path = self.folder / METRICS
        with naming(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(record)) + "\n" for record in records)

    def finish(self, saes: Mapping[tuple[str, int], SAE], result: Result) -> Run:
        """Write the SAEs, then the result: from then on the folder is a run."""
        tensors = {}
        for (setup, seed), sae in saes.items():
            parts = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "b_dec": sae.b_dec, **sae.parameters}
            if sae.W_dec is not sae.W_enc:
                parts["W_dec"] = sae.W_dec
            tensors |= {f"{setup}/{seed}/{key}": value for key, value in parts.items()}
        with replacing(self.folder / WEIGHTS) as aside:
            # One entry: the library writes several in an order that changes, and with it the file's bytes.
            aside.write_bytes(save(_contiguous(tensors), metadata={"format": "hsae-sae-1"}))
        files = {name: Checksum.of(self.folder / name) for name in (WEIGHTS, CONFIG)}
        if (self.folder / METRICS).exists():  # imported SAEs have none
            files[METRICS] = self._metrics()
        write_json(self.folder / RESULT, dataclasses.asdict(dataclasses.replace(result, files=files)))
        return Run(self.folder)


def _begun_on(folder: Path) -> str | None:
    """The fingerprint of the store that a run was trained on, as far as it came; None before its first checkpoint."""
    if (folder / RESULT).exists():
        return Record(folder).result.store_fingerprint
    path = folder / CHECKPOINT
    return check_checkpoint(path)[0].get("store") if path.exists() else None


def check_checkpoint(path: Path) -> tuple[dict[str, Any], Checksum | None]:
    """Read a checkpoint once and hold it against its seal (older ones have none).

    Returns:
        the state in its header, and the checksum of the metrics until then (None in older ones).

    Raises:
        UserError: it is damaged, or no file, or a link out of the folder.
    """
    try:
        with open(own(path, path.parent), "rb") as file:
            header = read_header(file)
            told, rest = header.metadata, iter(partial(file.read, 1 << 20), b"")
            if FIELD in told and not holds(header.raw, told[FIELD], rest):
                raise BadHeader("its bytes are not those that were sealed")
        if not {"state"} <= told.keys() <= {"state", "metrics", FIELD}:
            raise BadHeader("it does not say where training was")
        state = json.loads(told["state"])
        metrics = Checksum(**json.loads(told["metrics"])) if "metrics" in told else None
        if not isinstance(state["step"], int):
            raise BadHeader("it does not say where training was")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged or unreadable ({one_line(error)}); {MEND}") from None
    return state, metrics


def check_metrics(folder: Path, step: int, metrics: Checksum | None) -> bytes:
    """The metrics of an unfinished run until its checkpoint; what was logged after it is not among them.

    Args:
        folder: of the run.
        step: the checkpoint's.
        metrics: what the checkpoint says of them.

    Raises:
        UserError: they are damaged.
    """
    path = folder / METRICS
    raw = own(path, folder).read_bytes() if path.exists() else b""
    if metrics is not None:
        raw = raw[: metrics.bytes]
        if Checksum.of_bytes(raw) != metrics:
            raise UserError(f"{path}: damaged (its checksum is not the checkpoint's); {MEND}")
        return raw
    kept = []
    for line in raw.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the torn last line of a killed process
            break
    return b"".join(kept)


# Written as bytes: safetensors' own save_file goes through a temporary file that a kill would leave behind.
def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
