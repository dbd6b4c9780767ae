"""What a run folder says of itself, read without PyTorch: its table, its settings, and what tells its SAEs apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hsae import config
from hsae.errors import UserError, choices, one_line
from hsae.files import named_folder, own
from hsae.header import read as read_header
from hsae.seal import Checksum, read_json

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
        files: the run's other files that are final. Empty in older runs.
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
    files: dict[str, Checksum] = field(default_factory=dict, compare=False)


class Record:
    """A finished training run, without its weights.

    Args:
        folder: its folder (see `Record.open` for names).

    Attributes:
        sealed: its result has a seal (see `hsae.seal`).

    Raises:
        UserError: it is none, not finished, damaged, or contradicts itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            data, self.sealed = read_json(folder / RESULT, self._mend)
        except FileNotFoundError:
            if (folder / CONFIG).exists():
                raise UserError(f"{folder}: an unfinished run; `hsae train {folder / CONFIG}` finishes it") from None
            raise UserError(f"{folder}: not a run (it has no {RESULT})") from None
        if data.get("version") != VERSION:
            raise UserError(f"{folder / RESULT}: not the result of a run that this hsae reads (version {VERSION})")
        self.result = config.build(Result, data, str(folder / RESULT))
        self.check_file(CONFIG)
        self.tables: dict[str, Any] = config.read_file(folder / CONFIG, "train").get("setup", {})
        if wrong := self._contradiction():
            raise UserError(f"{folder / RESULT}: damaged: {wrong}; {self._mend}")

    @property
    def _mend(self) -> str:
        return f"`hsae repair {self.folder}` says how to mend it"

    def _contradiction(self) -> str:
        """What in the result cannot be; empty: it can all be."""
        result = self.result
        names = [(row.setup, row.seed) for row in result.rows]
        if not names or len(set(names)) < len(names):
            return "it names no SAE, or one of them twice"
        tables = self.tables if isinstance(self.tables, dict) else {}
        if not all(isinstance(tables.get(setup), dict) for setup, _ in names):
            return f"{CONFIG} does not say how its SAEs were trained"
        # Names of files are made of them.
        if odd := [name for name, _ in names if name in ("", ".", "..") or "/" in name or "\\" in name]:
            return f"{odd[0]!r} cannot be the name of a setup"
        if min(result.width, result.latents) < 1 or not result.scale > 0:
            return f"{result.latents} latents, width {result.width}, scale {result.scale}"
        if wrong := [n for n, sum in result.files.items() if n not in (CONFIG, METRICS, WEIGHTS) or not sum.possible]:
            return f"no run has such a file {wrong[0]!r}"
        return ""

    def check_file(self, name: str) -> Path:
        """A file of the run, read once and held against the result, where that names it (older ones do not).

        Raises:
            UserError: it is missing or damaged, or a link to a file elsewhere.
        """
        path = self.folder / name
        if name in self.result.files:
            self.result.files[name].check(path, self.folder, RESULT, self._mend)
        elif path.exists():
            own(path, self.folder)
        return path

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.check_file(METRICS)
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: damaged or unreadable ({one_line(error)}); {self._mend}") from None

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
        """Hex digits that change with any weight or setting of an SAE. They come from the weights as they are now.

        Raises:
            UserError: it diverged, or the file of the weights is missing or damaged.
        """
        self.require_weights(row)
        path, prefix = self.folder / WEIGHTS, f"{row.setup}/{row.seed}/"
        scale = 1.0 if self.result.folded else self.result.scale
        digest = hashlib.sha256(json.dumps([self.tables.get(row.setup), scale], sort_keys=True).encode())
        try:
            with open(own(path, self.folder), "rb") as file:
                for key, entry in sorted(read_header(file).tensors.items()):
                    if key.startswith(prefix):
                        digest.update(json.dumps([key.removeprefix(prefix), entry.dtype, entry.shape]).encode())
                        file.seek(entry.begin)
                        digest.update(file.read(entry.end - entry.begin))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged or unreadable ({one_line(error)}); {self._mend}") from None
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
