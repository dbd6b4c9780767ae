"""sae-lens reads what we wrote, and writes what we are to read."""

from __future__ import annotations

from typing import Any

import torch
from common import rows, serve, shake
from sae_lens import SAE  # pyright: ignore[reportMissingImports]
from torch import Tensor


def read(job: dict[str, Any]) -> dict[str, Tensor]:
    if made := job.get("make"):
        cfg = {
            "architecture": made,
            "d_in": job["width"],
            "d_sae": job["latents"],
            "dtype": "float32",
            **job["options"],
        }
        cls = SAE.get_sae_class_for_architecture(made)
        sae = cls(SAE.get_sae_config_class_for_architecture(made).from_dict(cfg))
        shake(*(value for name, value in sae.named_parameters() if name != "W_enc"))
        if made == "jumprelu":
            sae.threshold.data.abs_()
        sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = "blocks.3.hook_resid_post", "bundled"
    else:
        sae = SAE.load_from_disk(job["folder"])
        provenance = sae.cfg.metadata.hsae
        assert provenance["rule"]["encoder"], "the provenance did not survive"
        _require_benchable(sae)
    if "save" in job:
        sae.save_model(job["save"])
    code = sae.encode(rows(job))
    return {"code": code, "reconstruction": sae.decode(code)}


def _require_benchable(sae: Any) -> None:
    """What SAEBench asks of an SAE."""
    for name in ("encode", "decode", "forward", "W_enc", "W_dec", "b_dec", "device", "dtype", "to", "cfg"):
        assert hasattr(sae, name), f"SAEBench wants {name}"
    assert sae.W_enc.shape == (sae.cfg.d_in, sae.cfg.d_sae)
    assert sae.W_dec.shape == (sae.cfg.d_sae, sae.cfg.d_in)
    assert torch.equal(sae(torch.zeros(1, sae.cfg.d_in)), sae.decode(sae.encode(torch.zeros(1, sae.cfg.d_in))))


serve(read)
