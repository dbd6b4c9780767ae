"""sae-lens reading its cached activations, run by sae-lens' own Python: one rate a line for each line that comes in.

python benchmarks/storage_saelens.py FOLDER HOOK CONTEXT WIDTH SECONDS BATCH
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any


def main(folder: str, hook: str, context: int, width: int, seconds: float, batch: int) -> None:
    import torch
    from sae_lens.training.activations_store import ActivationsStore  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")
    nothing: Any = None  # cached activations need no model
    settings: dict[str, Any] = {"prepend_bos": False, "hook_head_index": None, "streaming": False, "dtype": "float32"}
    settings |= {"hook_name": hook, "context_size": context, "d_in": width, "normalize_activations": "none"}
    # Contexts in the buffer, and in one filling of it: those of sae-lens' tutorial. The default of 20 holds no batch.
    settings |= {"n_batches_in_buffer": 64, "store_batch_size_prompts": 16, "train_batch_size_tokens": batch}
    settings |= {"total_training_tokens": 1, "device": torch.device("cpu"), "cached_activations_path": folder}
    print(json.dumps({"version": version("sae-lens")}), flush=True)
    for _ in sys.stdin:
        store = ActivationsStore(model=nothing, dataset=None, **settings)
        next(store)
        rows, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            rows += len(next(store))
        print(json.dumps({"rows": rows, "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]))
