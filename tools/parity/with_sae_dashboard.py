"""sae-dashboard reads the dashboards that we wrote: every field of every feature, and none that it does not know."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sae_dashboard.neuronpedia.neuronpedia_dashboard import (  # pyright: ignore[reportMissingImports]
    NeuronpediaDashboardBatch,
)

folder = Path(sys.argv[1])
batches = sorted(folder.glob("batch-*.json"))
assert batches, f"{folder} has no batch"
features = 0
for path in batches:
    written = json.loads(path.read_text(encoding="utf-8"))
    read = NeuronpediaDashboardBatch(**written)
    assert read.to_dict() == written, f"{path.name} reads as something else"
    features += len(read.features)
skipped = json.loads((folder / "skipped_indexes.json").read_text(encoding="utf-8"))["skipped_indexes"]
print(json.dumps({"features": features, "skipped": len(skipped)}))
