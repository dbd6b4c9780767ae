"""What is published of a run: its files, without the folders of the machine that they were made on."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from hsae import config
from hsae.errors import UserError
from hsae.files import named_folder
from hsae.harvesting.config import HarvestConfig
from hsae.record import CONFIG, METRICS, RESULT, WEIGHTS, Record, Row
from hsae.seal import Checksum, json_bytes
from hsae.sharing import REPOSITORY
from hsae.store import Manifest

# The files of a run that are shared. One without metrics is still a run.
NEEDED, OPTIONAL = (CONFIG, RESULT, WEIGHTS), (METRICS,)
# What the hub calls a model or a dataset; old ones have no owner.
HUB_ID = re.compile(rf"{REPOSITORY.pattern}|[\w.-]+", re.ASCII)
# What says where a training was watched, not what it did.
WATCHED = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Published:
    """A run as others see it.

    Attributes:
        record: the run.
        rows: its table.
        model: its model's name, and `base_model`: the same where the hub has it.
        data: names of what was harvested; `datasets`: those that the hub has. Empty where the store is gone.
        store: the store's name, without its folder.
        harvest: the `[harvest]` table that makes the store anew elsewhere; None where that needs files from here.
        positions: of the store; None where the store is gone.
    """

    record: Record
    rows: tuple[Row, ...]
    model: str
    base_model: str
    data: tuple[str, ...]
    datasets: tuple[str, ...]
    store: str
    harvest: dict[str, Any] | None
    positions: int | None

    def files(self) -> dict[str, bytes | Path]:
        """Name in the repository -> its bytes, or the file to take as it is."""
        folder = self.record.folder
        settings = self._config()
        files: dict[str, bytes | Path] = {CONFIG: settings, RESULT: b"", WEIGHTS: folder / WEIGHTS}
        if (folder / METRICS).exists():
            files[METRICS] = folder / METRICS
        files[RESULT] = self._result(settings, files.keys())
        return files

    def _config(self) -> bytes:
        tables = tomllib.loads((self.record.folder / CONFIG).read_text(encoding="utf-8"))
        train = {key: value for key, value in tables["train"].items() if key not in WATCHED}
        if "store" in train:
            train["store"] = self.store
        harvest = {"harvest": self.harvest} if self.harvest else {}
        return tomli_w.dumps({**tables, "train": train, **harvest}).encode()

    def _result(self, settings: bytes, shared: Collection[str]) -> bytes:
        result = self.record.result
        model = result.model | ({"name": self.model} if self.model else {})
        sums = {name: sum for name, sum in result.files.items() if name in shared}
        sums[CONFIG] = Checksum.of_bytes(settings)
        return json_bytes(dataclasses.asdict(dataclasses.replace(result, store=self.store, model=model, files=sums)))


def publish(record: Record) -> Published:
    """What can be told of a run, from its folder and, where it is still there, the store that it was trained on.

    Raises:
        UserError: the run has no weights' file, or its config cannot be read.
    """
    if not (record.folder / WEIGHTS).exists():
        raise UserError(f"{record.folder / WEIGHTS}: not there, so there is nothing to share")
    result = record.result
    named, manifest = str(result.model.get("name", "")), _manifest(record)
    bundled = named == "bundled"
    local = bool(result.model.get("files")) and not bundled
    on_hub = not local and not bundled and HUB_ID.fullmatch(named) is not None
    text = manifest.text if manifest else {}
    dataset = str(text.get("dataset", "")).partition(":")[0]
    files = [str(file.get("name", "")) for file in text.get("files", ())]
    return Published(
        record=record,
        rows=result.rows,
        model=Path(named).name if local else named,
        base_model=named if on_hub else "",
        data=(dataset,) if dataset else tuple(files),
        datasets=(dataset,) if HUB_ID.fullmatch(dataset) else (),
        store=Path(result.store).name,
        harvest=_harvest(manifest, record) if manifest else _kept(record),
        positions=manifest.tokens if manifest else None,
    )


def _manifest(record: Record) -> Manifest | None:
    """The manifest of the store that the run was trained on, if that is still here."""
    try:
        manifest = Manifest.read(named_folder(record.result.store, "activations", "manifest.json"))
    except UserError:
        return None
    return manifest if manifest.fingerprint == record.result.store_fingerprint else None


def _harvest(manifest: Manifest, record: Record) -> dict[str, Any] | None:
    """The table that harvests the same store from what everybody has."""
    try:
        settings = config.build(HarvestConfig, manifest.harvest, "manifest.json", "harvest")
    except UserError:  # a store that was made in another way, such as synthetic data
        return None
    model = settings.model == "bundled" or not manifest.model.get("files")
    data = set(settings.data) == {"bundled"} or "dataset" in manifest.text
    tokenizer = not settings.tokenizer or not Path(settings.tokenizer).exists()
    if not (model and data and tokenizer):
        return None
    pinned = {"model_revision": manifest.model.get("revision"), "data_revision": manifest.text.get("revision")}
    known = {key: value for key, value in pinned.items() if value and re.fullmatch(r"[0-9a-f]{40}", str(value))}
    # Whoever pulls it decides anew whether to run the code of the model's repository.
    safe = {"name": Path(record.result.store).name, "trust_remote_code": False}
    return config.table(settings) | known | safe


def _kept(record: Record) -> dict[str, Any] | None:
    """The table that a pulled run brought with it."""
    return config.read_file(record.folder / CONFIG, "harvest") or None
