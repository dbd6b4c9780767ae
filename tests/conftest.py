"""Shapes are checked in every test: jaxtyping's annotations are enforced by beartype."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("hsae", "beartype.beartype")

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from hsae.store import Store, StoreWriter  # noqa: E402

# The tensors here are tiny: threads would only wait for each other.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """See tests/faults/README.md."""
    parser.addoption("--long-faults", action="store_true", help="fault injection with as many trials as `make faults`")


def pytest_configure(config: pytest.Config) -> None:
    """See tests/faults/README.md."""
    config.addinivalue_line(
        "markers", "fault(table, fault, injection, command): a row of docs/reliability.md; see tests/faults/README.md"
    )


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`trials(short, long)`: how many times a fault is to be injected, in the ordinary tests and by `make faults`."""
    return lambda short, long: long if request.config.getoption("--long-faults") else short


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def planted(cache: Path) -> Callable[..., Store]:
    """Makes a store of sparse combinations of planted directions, so that there is something to learn."""

    def make(
        name: str = "planted", sequences: int = 64, context: int = 32, width: int = 16, features: int = 24
    ) -> Store:
        generator = torch.Generator().manual_seed(7)
        directions = torch.nn.functional.normalize(torch.randn(features, width, generator=generator), dim=1)
        writer = StoreWriter(cache / "activations" / name, {"test": name}, "fp32")
        per_shard = sequences // 4
        for shard in range(4):
            on = torch.rand(per_shard * context, features, generator=generator) < 0.08
            strength = torch.rand(per_shard * context, features, generator=generator) * 0.2 + 0.1
            x = (on * strength) @ directions
            tokens = on.float().argmax(1).view(per_shard, context)
            keep = torch.ones(per_shard, context, dtype=torch.bool)
            writer.write(shard, tokens, {"hook": x.view(per_shard, context, width)}, {"hook": keep}, {"hook": {}})
        tables = {"model": {"fingerprint": "test"}, "tokenizer": {}, "text": {}, "harvest": {}}
        writer.finish(shard_sequences=per_shard, context=context, **tables)
        return Store.open(name)

    return make
