"""A setup: which rule trains the encoder, which the decoder, and the SAE between them. Stock ones: `hsae/setups/`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hsae import config, registry
from hsae.errors import UserError, choices
from hsae.revival import Revival
from hsae.rules import Rule
from hsae.rules.backprop import Backprop
from hsae.sae import Variant
from hsae.sae.relu import ReLU
from hsae.schedule import Schedule

STOCK = Path(__file__).parent / "setups"


@dataclass(frozen=True)
class Setup:
    """How one SAE learns."""

    encoder: Rule = field(default_factory=Backprop)
    """the rule that trains W_enc and b_enc"""
    decoder: Rule | None = None
    """the rule that trains W_dec; none when tied"""
    tied: bool = False
    """one matrix serves as encoder and decoder"""
    sae: Variant = field(default_factory=ReLU)
    """activation function and sparsity penalty"""
    init: Literal["normal", "kaiming", "tied-safe"] = "normal"
    """normal: N(0, init_std²); tied-safe: the same with √(2/latents); kaiming: PyTorch's default for linear layers"""
    init_std: float | None = None
    """standard deviation of the normal initialisation; unset: 1/√width, rows of unit norm"""
    decoder_init: Literal["own", "encoder"] = "own"
    """the decoder starts from its own draw, or from the encoder's weights"""
    init_gain: bool = False
    """before the first step, scale the encoder by the one factor that reconstructs the first batch best"""
    decoder_norm: Literal["free", "unit"] = "free"
    """unit: rows of the matrix that decodes are brought to unit norm after every step"""
    decoder_bias: bool = False
    """a bias of the decoder, learned by backpropagation"""
    centre: Literal["none", "mean", "median"] = "none"
    """taken from activations before the encoder, added after the decoder: the store's mean, or the geometric median"""
    target_l0: float | None = None
    """steer the sparsity until this many latents are active a token, on held-out tokens (it looks at 4,096 of them)"""
    schedule: Schedule = field(default_factory=Schedule)
    """how learning rates and the sparsity penalty change over the training"""
    revive: Revival | None = None
    """what is done for dead latents; unset: nothing"""

    def __post_init__(self) -> None:
        require = config.require
        if self.tied:
            require(self.decoder is None, "decoder", 'unset ("") when tied', self.decoder)
            require(not self.init_gain, "init_gain", "false when tied: the gain would count twice", self.init_gain)
        else:
            require(self.decoder is not None, "decoder", "a rule, unless tied", self.decoder)
        require(self.init_std is None or self.init_std > 0, "init_std", "above 0", self.init_std)
        require(self.target_l0 is None or self.target_l0 > 0, "target_l0", "above 0", self.target_l0)
        learns = not self.decoder_bias or isinstance(self.decoder, Backprop)
        require(learns, "decoder_bias", "false unless backprop trains the decoder", self.decoder_bias)
        if self.decoder is not None:
            name = registry.name_of(self.decoder)
            require(not self.decoder.encoder_only, "decoder", "a rule for decoders: residual, backprop, …", name)
        self._carries()

    def _carries(self) -> None:
        """Refuse what the rules cannot train."""
        rule, kind = registry.name_of(self.encoder), registry.name_of(self.sae)
        by_gradient = isinstance(self.encoder, Backprop)
        if self.sae.trained and not by_gradient:
            can = _names(Variant, lambda variant: not variant.trained)
            raise ValueError(f"sae: {kind} has parameters that only backprop trains; {rule} can train {can}")
        if self.target_l0 is not None and self.sae.penalised and not by_gradient:
            can = _names(Variant, lambda variant: not variant.penalised)
            raise ValueError(f"target_l0: {rule} does not follow the penalty of {kind}; it can be steered with {can}")
        if self.revive is not None and self.revive.gradient:
            name, others = registry.name_of(self.revive), _names(Revival, lambda revival: not revival.gradient)
            both = by_gradient and (self.tied or isinstance(self.decoder, Backprop))
            config.require(both, "revive", f"one of {others} where a local rule learns", name)
            silent = f"one of {others} for {kind}, whose dead latents have no drive that a loss could use"
            config.require(self.sae.masks, "revive", silent, name)

    @property
    def variant(self) -> Variant:
        """The SAE's variant, at the target L0 where that is set outright."""
        return self.sae if self.target_l0 is None else self.sae.aimed(self.target_l0)


def _names(base: type[Any], wanted: Callable[[Any], bool]) -> str:
    """The entries of a registry that a condition on their class picks."""
    every = registry.names(base.package)
    return ", ".join(name for name in every if wanted(registry.find(base.package, name, base)))


def stock() -> list[str]:
    """Names of the stock setups."""
    return sorted(path.stem for path in STOCK.glob("*.toml"))


def resolve(names: Iterable[str], tables: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Setup]:
    """The setups of these names: stock ones, with the tables' changes, or ones that a table defines anew.

    Args:
        names: the setups to train, in order.
        tables: `[train.setup.NAME]` of the config file: changes to a stock setup, or a whole one.
        where: the config's name for error lines.

    Raises:
        UserError: a name that is neither stock nor in `tables`, or a table with a mistake.
    """
    known = {*stock(), *tables}
    setups = {}
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise UserError(f"{where}: setup name {name!r}: use small letters, digits and hyphens")
        if name not in known:
            raise UserError(f"{where}: no setup named {name!r}; {choices(name, known)}")
        path = STOCK / f"{name}.toml"
        base = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        setups[name] = config.build(Setup, _merge(base, tables.get(name, {})), where, f"setup.{name}")
    return setups


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` on top. A table that names another rule or kind replaces the whole table."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {(Rule if key in ("encoder", "decoder") else Variant).selector: old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not {Rule.selector, Variant.selector} & {*value}:
            value = {**old, **value}
        merged[key] = value
    return merged
