"""The run folder: `config.toml`, `metrics.jsonl`, `checkpoint.safetensors`; when whole `sae.safetensors`, `run.json`.

The checkpoint carries its state (step, divergences, times) in its header, so that both change in one rename.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae import config
from hsae.baselines import Baseline
from hsae.errors import UserError, choices
from hsae.files import named_folder, replacing
from hsae.sae import SAE
from hsae.setup import Setup

RESULT, CONFIG, METRICS = "run.json", "config.toml", "metrics.jsonl"
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "sae.safetensors"
VERSION = 1
# Settings that change how training goes, not what comes out.
INDIFFERENT = ("baselines", "device", "checkpoint_seconds", "log_every", "micro_batch")


@dataclass(frozen=True)
class Row:
    """One SAE's line in the run's table. Metrics are over the held-out tokens; None where training diverged.

    Attributes:
        dead: latents that fired on none of the last `dead_window` training tokens.
        train_mse, train_evr_pooled, train_l0: of the same trained SAE, over as many training tokens.
        mmcs, mcc, found: how much of a known truth the dictionary holds (`hsae.truth`); None where there is none.
        mmcs_random: what a random dictionary of that size has.
        rule: diagnostics of a local rule's last step (`hsae.diagnostics.Diagnostics`).
    """

    setup: str
    seed: int
    mse: float | None = None
    evr: float | None = None
    evr_std: float | None = None
    evr_median: float | None = None
    evr_pooled: float | None = None
    l1: float | None = None
    l0: float | None = None
    dictionary: int | None = None
    dead: int | None = None
    train_mse: float | None = None
    train_evr_pooled: float | None = None
    train_l0: float | None = None
    mmcs: float | None = None
    mmcs_random: float | None = None
    mcc: float | None = None
    found: float | None = None
    tokens_per_second: float | None = None
    rule: dict[str, float] | None = None
    diverged: str | None = None


@dataclass(frozen=True)
class Result:
    """What a finished run says of itself, in `run.json`.

    Attributes:
        store: name or path of the store trained on, and its `fingerprint`.
        model: the model's table from the store's manifest.
        scale: activations were multiplied by it before training.
        folded: the saved weights take activations at the store's own scale.
        baselines: what the SAEs must beat, over the same tokens.
        tokens: training tokens seen; `held_out`: tokens that the table was measured on.
    """

    version: int
    store: str
    store_fingerprint: str
    model: dict[str, Any]
    hook: str
    width: int
    latents: int
    scale: float
    folded: bool
    steps: int
    tokens: int
    held_out: int
    dead_window: int
    rows: tuple[Row, ...]
    baselines: tuple[Baseline, ...] = ()


class Run:
    """A finished training run.

    Args:
        folder: its folder (see `Run.open` for names).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            data = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if (folder / CONFIG).exists():
                raise UserError(f"{folder}: an unfinished run; `hsae train {folder / CONFIG}` finishes it") from None
            raise UserError(f"{folder}: not a run (it has no {RESULT})") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{folder / RESULT}: damaged or unreadable ({error})") from None
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise UserError(f"{folder / RESULT}: not the result of a run that this hsae reads (version {VERSION})")
        self.result = config.build(Result, data, str(folder / RESULT))
        tables = config.read_file(folder / CONFIG, "train").get("setup", {})
        self.setups = {
            name: config.build(Setup, table, str(folder / CONFIG), f"setup.{name}") for name, table in tables.items()
        }

    @classmethod
    def open(cls, name: str | Path = "") -> Run:
        """Open a run by path, by name under the cache, or (nothing given) the newest."""
        return cls(named_folder(str(name), "runs", RESULT))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def row(self, setup: str = "", seed: int | None = None) -> Row:
        """The table's line of a setup and seed; the first setup and its first seed when none is named.

        Raises:
            UserError: it is not in the run; the line names what is.
        """
        setup = setup or self.result.rows[0].setup
        of_setup = {row.seed: row for row in self.result.rows if row.setup == setup}
        if not of_setup:
            raise UserError(f"run {self.name} has no setup {setup!r}; {choices(setup, self.setups)}")
        seed = next(iter(of_setup)) if seed is None else seed
        if seed not in of_setup:
            raise UserError(f"run {self.name} has no seed {seed} of {setup}; {choices(str(seed), map(str, of_setup))}")
        return of_setup[seed]

    def sae(self, setup: str = "", seed: int | None = None) -> SAE:
        """A trained SAE.

        Raises:
            UserError: it is not in the run, or it diverged, or the file is damaged.
        """
        row = self.row(setup, seed)
        if row.diverged:
            raise UserError(
                f"run {self.name}: {row.setup} (seed {row.seed}) diverged {row.diverged}: it has no weights"
            )
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
