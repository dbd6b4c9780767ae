"""A folder is a registry: `rule = "oja"` names `hsae/rules/oja.py`, and the class defined there."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from hsae.errors import UserError, choices


def names(package: str) -> list[str]:
    """The names in a registry folder (`hsae.rules` -> ["backprop", "oja", …]), read without importing them."""
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_"))


def find(package: str, name: str, base: type, where: str = "") -> type[Any]:
    """The one subclass of `base` defined in the registry's module `name`.

    Raises:
        UserError: there is no such module; the line names those that exist.
    """
    if name not in names(package):
        prefix = f"{where}: " if where else ""
        raise UserError(
            f"{prefix}no {package.rsplit('.', 1)[-1]} entry named {name!r}; {choices(name, names(package))}"
        )
    module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, it defines {len(found)}")
    return found[0]


def name_of(instance: object) -> str:
    """The registry name of a rule or a variant: its module's last part."""
    return type(instance).__module__.rsplit(".", 1)[-1].replace("_", "-")
