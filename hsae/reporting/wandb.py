"""Weights & Biases: each SAE is a run there, and the runs of one training are a group. WANDB_MODE=offline works too."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae import config
from hsae.errors import UserError, one_line
from hsae.files import replacing
from hsae.reporting import Key
from hsae.trainconfig import TrainConfig

if TYPE_CHECKING:
    from wandb import Run

STATE = "hsae.json"
INIT_SECONDS = 30.0


class WeightsAndBiases:
    """A sink that logs to Weights & Biases.

    The ids of its runs are kept in the run's folder: a training that goes on goes on there too, from the step that the
    service has. Offline every start writes the whole history into a new folder, and what an earlier start left that was
    not synced is taken away.

    Args:
        folder: the run's folder; local files go to `wandb/` in it.
        settings: of the training.
        say: shows a line to the user.

    Raises:
        UserError: the package is missing, nobody is logged in, or the service cannot be reached.
    """

    def __init__(self, folder: Path, settings: TrainConfig, say: Callable[[str], None]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs a package: pip install wandb") from None
        self.folder = folder / "wandb"
        self.folder.mkdir(exist_ok=True)
        keys = [(setup, seed) for setup in settings.setups for seed in settings.seeds]
        self._ids = self._known(settings.wandb, keys)
        self._runs: dict[Key, Run] = {}
        if not self._ids:
            say(f"Weights & Biases: project {settings.wandb} has this run already")
            return
        # It would print into the middle of the progress that is drawn: what it says is said here.
        quiet = wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS)
        try:
            for setup, seed in keys:
                self._runs[setup, seed] = wandb.init(
                    project=settings.wandb,
                    group=folder.name,
                    name=f"{folder.name} {setup} {seed}",
                    id=self._ids[_name((setup, seed))],
                    resume="allow",
                    reinit="create_new",
                    dir=str(folder),
                    config=_config(settings, setup, seed),
                    settings=quiet,
                )
        except wandb.Error as error:
            for run in self._runs.values():
                run.finish(exit_code=1)
            raise UserError(
                f"--wandb {settings.wandb}: {one_line(error)}; WANDB_MODE=offline logs into {self.folder}"
            ) from None
        self._forget_unsynced()
        run = next(iter(self._runs.values()))
        say(f"Weights & Biases: {f'wandb sync {self.folder}/offline-run-*' if run.offline else run.project_url}")

    def __enter__(self) -> WeightsAndBiases:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for run in self._runs.values():
            run.finish(exit_code=0 if kind is None else 1)

    def log(self, key: Key, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one SAE at one step; nothing where the service has that step already."""
        run = self._runs.get(key)
        if run is not None and step >= run.starting_step:
            run.log(dict(values), step=step)

    def result(self, key: Key, step: int, values: Mapping[str, float]) -> None:
        """The numbers over the held-out tokens: the run's summary. With them all of it is told."""
        if (run := self._runs.get(key)) is not None:
            run.summary.update({f"held-out/{name}": value for name, value in values.items()})
            self._write(done=[*self._state.get("done", []), _name(key)])

    def _known(self, project: str, keys: list[Key]) -> dict[str, str]:
        """The ids of the runs there, made if there are none; none where everything has been told."""
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        self._state: dict[str, Any] = state if state.get("project") == project else {}
        names = [_name(key) for key in keys]
        if set(names) <= {*self._state.get("done", [])}:
            return {}
        self._write(project=project, ids={name: secrets.token_hex(4) for name in names} | self._state.get("ids", {}))
        return self._state["ids"]

    def _write(self, **changes: Any) -> None:
        self._state |= changes
        with replacing(self.folder / STATE) as aside:
            aside.write_text(json.dumps(self._state, indent=1) + "\n", encoding="utf-8")

    def _forget_unsynced(self) -> None:
        """Take away the folders of earlier starts offline: the new ones have their points, and all after them."""
        for run in self._runs.values():
            for old in self.folder.glob(f"offline-run-*-{run.id}") if run.offline else ():
                if not old.samefile(run.settings.sync_dir) and not any(old.glob("*.synced")):
                    shutil.rmtree(old, ignore_errors=True)


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _config(settings: TrainConfig, setup: str, seed: int) -> dict[str, Any]:
    """What one SAE was trained with, for the columns of the service's tables."""
    table = config.table(settings)
    left_out = {"setup", "setups", "seeds", "name", "tensorboard", "wandb"}
    left_out |= {"store", "synthetic", "stream"} - {settings.data}
    shared = {name: value for name, value in table.items() if name not in left_out}
    return shared | {"setup": setup, "seed": seed} | table["setup"][setup]
