"""sparsify: `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

from hsae.errors import UserError
from hsae.export._hooks import hook_of
from hsae.export._plain import Plain
from hsae.importing._base import Foreign, Reader, Tensors, read_json, read_tensors, table, text, uncentred, whole_number


class Sparsify(Reader):
    """What `SparseCoder.save_to_disk` writes."""

    files = ("cfg.json", "sae.safetensors")

    def read(self, folder: Path) -> Foreign:
        path = folder / "cfg.json"
        cfg = read_json(path)
        for key, what in (("transcode", "a transcoder"), ("skip_connection", "an SAE with a skip connection")):
            if cfg.get(key):
                raise UserError(f"{path}: {what}, which cannot be represented: an SAE reconstructs what it is given")
        if (activation := cfg.get("activation", "topk")) != "topk" or cfg.get("signed"):
            name = "signed topk" if cfg.get("signed") else activation
            raise UserError(f"{path}: activation {name!r} cannot be represented; topk can")
        width = whole_number(cfg, "d_in", path)
        named = bool(cfg.get("num_latents"))
        latents = (
            whole_number(cfg, "num_latents", path) if named else width * whole_number(cfg, "expansion_factor", path)
        )
        tensors = Tensors(folder / "sae.safetensors", read_tensors(folder / "sae.safetensors"))
        W_enc, W_dec = tensors.take("encoder.weight", latents, width), tensors.take("W_dec", latents, width)
        b_dec = tensors.take("b_dec", width)
        b_enc = uncentred(tensors.take("encoder.bias", latents), W_enc, b_dec)
        tensors.require_done()
        k = min(whole_number(cfg, "k", path), latents)
        provenance = table(cfg, "hsae")
        by = f"hsae {text(provenance, 'version')} for sparsify" if provenance else "sparsify"
        model = text(table(provenance, "model"), "name")
        hook = text(provenance, "hook") or hook_of(folder.name)
        return Foreign(Plain("topk", W_enc, b_enc, W_dec, b_dec, k=k), hook, model, by, provenance=provenance)
