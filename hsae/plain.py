"""Plain data for JSON."""

from __future__ import annotations

import math
from typing import Any


def finite(data: Any) -> Any:
    """The same data with None for NaN and infinities, which JSON does not have; tuples become lists."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
