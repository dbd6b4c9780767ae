"""TensorBoard's event files: `tensorboard --logdir RUN/tensorboard` shows one curve for each setup and seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hsae.errors import UserError
from hsae.reporting import Key

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 5


class TensorBoard:
    """A sink that writes event files into the run's folder.

    What stood there is written anew, from the first step. The files of before are emptied, not deleted: a TensorBoard
    that is open on them would stop at one that is gone.

    Args:
        folder: the run's folder.
        say: shows a line to the user.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs a package: pip install tensorboard") from None
        self._make = SummaryWriter
        self.folder = folder / "tensorboard"
        for old in self.folder.glob("*/events.*"):
            os.truncate(old, 0)
        self._writers: dict[Key, SummaryWriter] = {}
        say(f"TensorBoard: tensorboard --logdir {self.folder}")

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def log(self, key: Key, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one SAE at one step."""
        if key not in self._writers:
            setup, seed = key
            # An open TensorBoard forgets what it has read of the files of before.
            self._writers[key] = self._make(
                str(self.folder / f"{setup}-{seed}"), purge_step=0, flush_secs=FLUSH_SECONDS
            )
        for name, value in values.items():
            self._writers[key].add_scalar(name, value, step)

    def result(self, key: Key, step: int, values: Mapping[str, float]) -> None:
        """The numbers over the held-out tokens, in a group of their own at the last step."""
        self.log(key, step, {f"held-out/{name}": value for name, value in values.items()})
