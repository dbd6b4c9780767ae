"""The run folder: `config.toml`, `metrics.jsonl`, `checkpoint.safetensors`; when whole `sae.safetensors`, `run.json`.

The checkpoint carries its state (step, divergences, times) in its header, so that both change in one rename.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae import config
from hsae.errors import UserError
from hsae.files import replacing
from hsae.record import CHECKPOINT, CONFIG, METRICS, RESULT, VERSION, WEIGHTS, Record, Result
from hsae.sae import SAE
from hsae.setup import Setup

# Settings that change how training goes, not what comes out.
INDIFFERENT = ("baselines", "device", "checkpoint_seconds", "log_every", "micro_batch", "probe", "tensorboard", "wandb")


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
            UserError: it is not in the run, or it diverged, or the file is damaged.
        """
        row = self.row(setup, seed)
        self.require_weights(row)
        path, prefix = self.folder / WEIGHTS, f"{row.setup}/{row.seed}"
        made = self.setups[row.setup]
        own = made.variant.inference(made.variant.parameters(1))
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(f"{prefix}/{key}") for key in ("W_enc", "b_enc", "b_dec", *own)}
                W_dec = tensors["W_enc"] if made.tied else file.get_tensor(f"{prefix}/W_dec")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged or unreadable ({error})") from None
        scale = 1.0 if self.result.folded else self.result.scale
        parameters = {name: tensors.pop(name) for name in own}
        return SAE(**tensors, W_dec=W_dec, variant=made.variant, scale=scale, parameters=parameters)


class RunWriter:
    """Makes a run folder, or goes on with one.

    Args:
        folder: the run's folder; made if it is not there.
        resolved: the `[train]` table that repeats the run.

    Raises:
        UserError: the folder holds a run with another config.
    """

    def __init__(self, folder: Path, resolved: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        if path.exists():
            there = config.read_file(path, "train")
            differ = [key for key in {**there, **resolved} if there.get(key) != resolved.get(key)]
            if differ := [key for key in differ if key not in INDIFFERENT]:
                what = ", ".join(differ)
                raise UserError(
                    f"{folder}: holds a run with another config ({what}); give another --name, or delete it"
                )
            return
        with replacing(path) as aside:
            aside.write_text(tomli_w.dumps({"train": dict(resolved)}), encoding="utf-8")

    def checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save everything that going on needs."""
        with replacing(self.folder / CHECKPOINT) as aside:
            aside.write_bytes(save(_contiguous(tensors), metadata={"state": json.dumps(dict(state))}))

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint's tensors and state, and the metrics file cut back to its step; None before the first."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            (self.folder / METRICS).unlink(missing_ok=True)
            return None
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it to train from the start") from None
        self._cut_metrics(state["step"])
        return tensors, state

    def _cut_metrics(self, step: int) -> None:
        path = self.folder / METRICS
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the torn last line of a killed process
                break
        with replacing(path) as aside:
            aside.write_text("".join(kept), encoding="utf-8")

    def log(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append to `metrics.jsonl`, a line each."""
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
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
            aside.write_bytes(save(_contiguous(tensors), metadata={"format": "hsae-sae", "version": str(VERSION)}))
        with replacing(self.folder / RESULT) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return Run(self.folder)


# Written as bytes: safetensors' own save_file goes through a temporary file that a kill would leave behind.
def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
