"""hsae: train and read sparse autoencoders, by backpropagation or by local Hebbian rules.

    import hsae
    sae = hsae.load("my-run", setup="bp")
    code = sae.encode(activations)

Names are imported when first used, so that `import hsae` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsae.errors import UserError
    from hsae.harvesting import HarvestConfig, harvest
    from hsae.run import Run
    from hsae.sae import SAE
    from hsae.store import Store
    from hsae.trainconfig import TrainConfig
    from hsae.training import train

__version__ = "0.1.0"
__all__ = ["SAE", "HarvestConfig", "Run", "Store", "TrainConfig", "UserError", "harvest", "load", "train"]

_HOMES = {
    "HarvestConfig": "harvesting",
    "harvest": "harvesting",
    "Run": "run",
    "SAE": "sae",
    "Store": "store",
    "TrainConfig": "trainconfig",
    "train": "training",
    "UserError": "errors",
}


def load(run: str = "", setup: str = "", seed: int | None = None) -> SAE:
    """A trained SAE from a run.

    Args:
        run: name under cache/runs, or path; empty: the newest run.
        setup: the setup; empty: the run's first.
        seed: the seed; None: the setup's first.

    Raises:
        UserError: it is not there; the line says what is.
    """
    from hsae.run import Run

    return Run.open(run).sae(setup, seed)


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'hsae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hsae.{_HOMES[name]}"), name)
