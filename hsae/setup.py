"""A setup: which rule trains the encoder, which the decoder, and the SAE between them. Stock ones: `hsae/setups/`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hsae import config
from hsae.errors import UserError, choices
from hsae.rules import Rule
from hsae.rules.backprop import Backprop
from hsae.sae import Variant
from hsae.sae.relu import ReLU

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
    init: Literal["normal", "kaiming"] = "normal"
    """normal: N(0, init_std²), bias by the rule; kaiming: PyTorch's default for linear layers"""
    init_std: float | None = None
    """standard deviation of the normal initialisation; unset: 1/√width, rows of unit norm"""

    def __post_init__(self) -> None:
        if self.tied:
            config.require(self.decoder is None, "decoder", 'unset ("") when tied', self.decoder)
        else:
            config.require(self.decoder is not None, "decoder", "a rule, unless tied", self.decoder)
        config.require(self.init_std is None or self.init_std > 0, "init_std", "above 0", self.init_std)


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
            old = {(Variant if key == "sae" else Rule).selector: old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not {Rule.selector, Variant.selector} & {*value}:
            value = {**old, **value}
        merged[key] = value
    return merged
