"""Settings of `hsae train`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from hsae import config
from hsae.config import later
from hsae.errors import UserError
from hsae.setup import Setup, resolve
from hsae.store import HookRecord
from hsae.streaming.config import StreamConfig
from hsae.synthetic import SyntheticConfig

PAPER_SETUPS = ("bp", "bp-tied", "bp-dec", "hebb-tied")
# What is different by default on synthetic data, which is small: twice as many latents as features, and short steps.
SYNTHETIC = {"latents": 1024, "batch_tokens": 1024}


@dataclass(frozen=True)
class Normalise:
    """What activations are multiplied by before training."""

    mode: Literal["none", "factor", "variance"] = "none"
    """none; by `factor`; or by the factor that gives the store's activations `variance`"""
    factor: float = 1.0
    """the factor, for mode factor"""
    variance: float = 5.6e-4
    """variance per dimension to scale to, for mode variance; 5.6e-4 is TinyStories-1M's at blocks.4.hook_resid_pre"""
    fold: bool = False
    """fold the factor into the saved biases, so that the weights take raw activations"""

    def __post_init__(self) -> None:
        config.require(self.factor > 0, "factor", "above 0", self.factor)
        config.require(self.variance > 0, "variance", "above 0", self.variance)

    def scale(self, record: HookRecord) -> float:
        """The number to multiply a hook point's activations by."""
        if self.mode == "variance":
            return math.sqrt(self.variance / record.variance)
        return self.factor if self.mode == "factor" else 1.0


@dataclass(frozen=True)
class TrainConfig:
    """Training of one or more setups, under one or more seeds, in one pass over a store."""

    store: str = ""
    """store to train on: a name under cache/activations or a path; empty: the newest"""
    data: Literal["store", "synthetic", "stream"] = "store"
    """synthetic: make, or find, a store whose true directions are known (see synthetic); stream: read text and store
    nothing (see stream)"""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """what to make where data is synthetic"""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """what to read where data is a stream; --stream MODEL is --data stream --stream.model MODEL"""
    hook: str = ""
    """hook point; needed only if the store has several"""
    setups: tuple[str, ...] = PAPER_SETUPS
    """setups to train side by side"""
    setup: dict[str, Setup] = field(default_factory=lambda: resolve(PAPER_SETUPS, {}, "train"))
    """each setup's rules and variant"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the initial weights; every setup is trained under each"""
    data_seed: int = 0
    """seed of the order of the data, which all setups and seeds share"""
    latents: int = 3200
    """size of the dictionary"""
    batch_tokens: int = 16384
    """tokens in one step"""
    micro_batch: int = 0
    """tokens computed at once (same result, other memory); 0: 512 on a CPU, all on a GPU"""
    products: Literal["ieee", "tf32", "tf32x3", "bf16"] = "ieee"
    """how a CUDA GPU multiplies: float32; tensor cores with 10 bits of mantissa, or three such products; bfloat16"""
    epochs: float = 1.0
    """times that the store is read through"""
    steps: int | None = None
    """steps, instead of epochs"""
    normalise: Normalise = field(default_factory=Normalise)
    """the scale of the activations"""
    held_out: int = 16384
    """tokens at the store's end that are never trained on; the table is measured on them"""
    baselines: bool = True
    """put what an SAE must beat into the table: the mean, PCA, k-means (a few seconds, kept for the next run)"""
    dead_window: int = 500_000
    """a latent is dead when it fired on none of this many last training tokens"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    probe: Literal["", "alignment"] = later("")
    """alignment: log how Hebbian every learning signal is (weights come out the same); empty: nothing more"""
    latent_ranks: int = later(1)
    """of several processes (torchrun), how many share out each dictionary, for those too large for one; the others
    share out the tokens"""
    checkpoint_seconds: float = 60.0
    """seconds between checkpoints"""
    tensorboard: bool = False
    """write the lines of metrics.jsonl for TensorBoard too, into tensorboard/ in the run's folder"""
    wandb: str = ""
    """project of Weights & Biases to log them to; empty: none. WANDB_MODE=offline needs no network"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    name: str = ""
    """name of the run's folder; empty: made from the store's name and the config"""

    def __post_init__(self) -> None:
        require = config.require
        require(len(self.setups) > 0, "setups", "at least one", self.setups)
        require(len(set(self.setups)) == len(self.setups), "setups", "all different", self.setups)
        require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            "seeds",
            "different, at least one",
            self.seeds,
        )
        require(min(self.seeds) >= 0, "seeds", "0 or above", self.seeds)
        for name, kind in (("synthetic", SyntheticConfig), ("stream", StreamConfig)):
            meant = self.data == name or getattr(self, name) == kind()
            require(meant, name, f"set only with data = {name} (--data {name})", getattr(self, name))
        if self.data != "store":
            require(not self.store, "store", f"unset with data = {self.data}, which makes its own", self.store)
        for name in ("latents", "batch_tokens", "held_out", "dead_window", "log_every"):
            require(getattr(self, name) >= 1, name, "1 or above", getattr(self, name))
        require(self.micro_batch >= 0, "micro_batch", "0 or above", self.micro_batch)
        require(self.latent_ranks >= 1, "latent_ranks", "1 or above", self.latent_ranks)
        require(self.epochs > 0, "epochs", "above 0", self.epochs)
        require(self.steps is None or self.steps >= 1, "steps", "1 or above", self.steps)
        require(self.checkpoint_seconds >= 0, "checkpoint_seconds", "0 or above", self.checkpoint_seconds)

    @classmethod
    def from_table(cls, table: dict[str, Any], where: str) -> TrainConfig:
        """Read a `[train]` table. `[train.setup.NAME]` changes a stock setup or defines a new one.

        Raises:
            UserError: an unknown key, a wrong type or a value out of range.
        """
        if table.get("data") == "synthetic":
            table = SYNTHETIC | table
        names, tables = setups_of(table, where)
        for name in tables:
            if name not in names:
                raise UserError(f"{where}: setup.{name} is set but not trained: add it to setups")
        plain = config.build(cls, {k: v for k, v in table.items() if k != "setup"} | {"setups": names}, where)
        return dataclasses.replace(plain, setup=resolve(names, tables, where))


def setups_of(table: dict[str, Any], where: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The names of a `[train]` table's setups, and what it changes in them.

    Raises:
        UserError: they are no names, or no tables.
    """
    names, tables = table.get("setups", list(PAPER_SETUPS)), table.get("setup", {})
    names = [names] if isinstance(names, str) else names
    fine = isinstance(tables, dict) and all(isinstance(changes, dict) for changes in tables.values())
    if not (fine and isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where}: setups must be a list of names, and setup.NAME tables")
    return names, tables
