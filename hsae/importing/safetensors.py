"""Our own neutral format: `config.json` and `sae.safetensors`, as `hsae export --to safetensors` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hsae.errors import UserError
from hsae.export._plain import Plain
from hsae.export.safetensors import FORMAT, FORMULAS
from hsae.importing._base import Foreign, Reader, Tensors, read_json, read_tensors, table, text, whole_number


class SafeTensors(Reader):
    """A folder of `hsae export --to safetensors`."""

    files = ("config.json", "sae.safetensors")

    def read(self, folder: Path) -> Foreign:
        path = folder / "config.json"
        config, found = read_json(path), read_tensors(folder / "sae.safetensors")
        activation = config.get("activation")
        if config.get("format") != FORMAT or activation not in [*FORMULAS]:
            raise UserError(f"{path}: not written by `hsae export --to safetensors`")
        if "W_enc" not in found or found["W_enc"].ndim != 2:
            raise UserError(f"{folder / 'sae.safetensors'}: has no matrix W_enc")
        latents, width = found["W_enc"].shape
        tensors = Tensors(folder / "sae.safetensors", found)
        shapes = {"W_enc": (latents, width), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
        own = {"jumprelu": ("threshold",), "gated": ("log_gain", "magnitude_bias")}.get(activation, ())
        weights = [tensors.take(name, *shape) for name, shape in shapes.items()]
        more: dict[str, Any] = {name: tensors.take(name, latents) for name in own}
        tensors.require_done()
        k = whole_number(config, "k", path) if activation == "topk" else None
        provenance = table(config, "hsae")
        model = text(table(provenance, "model"), "name")
        by = f"hsae {text(provenance, 'version')}".strip()
        plain = Plain(activation, *weights, k=k, **more)
        return Foreign(plain, text(provenance, "hook"), model, by, provenance=provenance)
