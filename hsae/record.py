"""What a run folder says of itself, read without PyTorch: its table, its settings, and what tells its SAEs apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hsae import config
from hsae.errors import UserError, choices
from hsae.files import named_folder

RESULT, CONFIG, METRICS = "run.json", "config.toml", "metrics.jsonl"
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "sae.safetensors"
VERSION = 1

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Row:
    """One SAE's line in the run's table. Metrics are over the held-out tokens; None where training diverged.

    Attributes:
        dead: latents that fired on none of the last `dead_window` training tokens.
        train_mse, train_evr_pooled, train_l0: of the same trained SAE, over as many training tokens.
        mmcs, mcc, found: how much of a known truth the dictionary holds (`hsae.truth`); None where there is none.
        mmcs_random: what a random dictionary of that size has.
        rule: diagnostics of a local rule's last step (`hsae.diagnostics.Diagnostics`).
        alignment: of the encoder and of the decoder in the last step (`hsae.alignment.Alignment`), where it was probed.
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
    alignment: dict[str, dict[str, float]] | None = None
    diverged: str | None = None


@dataclass(frozen=True)
class Baseline:
    """One line of a table; metrics are those of `hsae.metrics`, None where they are not finite.

    `l0`: numbers that stand for a token. `dictionary`: components or centroids used by at least one held-out token.
    """

    name: str
    mse: float | None
    evr: float | None
    evr_std: float | None
    evr_median: float | None
    evr_pooled: float | None
    l0: float | None
    dictionary: int


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
        origin: of an SAE that was imported, or edited by surgery: where it is from and what was done to it; then
            `store` is what it was measured on, and nothing is known of its training. Empty for a run of `hsae train`.
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
    origin: str = ""


class Record:
    """A finished training run, without its weights.

    Args:
        folder: its folder (see `Record.open` for names).
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
        self.tables: dict[str, Any] = config.read_file(folder / CONFIG, "train").get("setup", {})

    @classmethod
    def open(cls: type[R], name: str | Path = "") -> R:
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
            raise UserError(f"run {self.name} has no setup {setup!r}; {choices(setup, self.tables)}")
        seed = next(iter(of_setup)) if seed is None else seed
        if seed not in of_setup:
            raise UserError(f"run {self.name} has no seed {seed} of {setup}; {choices(str(seed), map(str, of_setup))}")
        return of_setup[seed]

    def whole(self, setup: str = "", seed: int | None = None) -> Row:
        """As `row`, but where neither is named the first that did not diverge (the first, where all did)."""
        if setup or seed is not None:
            return self.row(setup, seed)
        return next((row for row in self.result.rows if not row.diverged), self.result.rows[0])

    def fingerprint(self, row: Row) -> str:
        """Hex digits that change with any weight or setting of an SAE.

        Raises:
            UserError: it diverged, or the file of the weights is missing or damaged.
        """
        self.require_weights(row)
        path, prefix = self.folder / WEIGHTS, f"{row.setup}/{row.seed}/"
        scale = 1.0 if self.result.folded else self.result.scale
        digest = hashlib.sha256(json.dumps([self.tables.get(row.setup), scale], sort_keys=True).encode())
        try:
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                for key in sorted(key for key in header if key.startswith(prefix)):
                    first, last = header[key]["data_offsets"]
                    digest.update(
                        json.dumps([key.removeprefix(prefix), header[key]["dtype"], header[key]["shape"]]).encode()
                    )
                    file.seek(8 + size + first)
                    digest.update(file.read(last - first))
        except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
            raise UserError(f"{path}: damaged or unreadable ({error})") from None
        return digest.hexdigest()[:16]

    def require_weights(self, row: Row) -> None:
        """Refuse an SAE that diverged.

        Raises:
            UserError: it did.
        """
        if row.diverged:
            raise UserError(
                f"run {self.name}: {row.setup} (seed {row.seed}) diverged {row.diverged}: it has no weights"
            )
