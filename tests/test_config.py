"""Config tables: what is right comes through, what is wrong is one line with the key, the file and the choices."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsae import config
from hsae.errors import UserError
from hsae.harvesting import HarvestConfig
from hsae.inspect import InspectConfig
from hsae.rules.oja import Oja
from hsae.rules.softhebb import SoftHebb
from hsae.trainconfig import TrainConfig

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/**/*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_reads(path: Path):
    harvest = config.build(HarvestConfig, config.read_file(path, "harvest"), str(path))
    train = TrainConfig.from_table(config.read_file(path, "train"), str(path))
    config.build(InspectConfig, config.read_file(path, "inspect"), str(path))
    assert train.store in ("", harvest.name)


def test_a_config_survives_its_own_table():
    hot = {"hebb-tied": {"encoder": {"temperature": 9}}}
    settings = TrainConfig.from_table({"setups": ["bp", "hebb-tied"], "seeds": [1, 2], "setup": hot}, "test")
    assert settings.setup["hebb-tied"].encoder == SoftHebb(temperature=9.0)
    assert TrainConfig.from_table(config.table(settings), "test") == settings


def test_a_table_can_name_another_rule():
    settings = TrainConfig.from_table({"setups": ["hebb-tied"], "setup": {"hebb-tied": {"encoder": "oja"}}}, "test")
    assert settings.setup["hebb-tied"].encoder == Oja()
    settings = TrainConfig.from_table(
        {"setups": ["mine"], "setup": {"mine": {"tied": True, "encoder": {"rule": "oja", "lr": 1}}}}, "test"
    )
    assert settings.setup["mine"].encoder == Oja(lr=1.0)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"latent": 3}, "my.toml: unknown key 'latent'; nearest: latents"),
        ({"latents": "3"}, "my.toml: latents must be a whole number, not '3'"),
        ({"latents": True}, "my.toml: latents must be a whole number, not True"),
        ({"latents": 0}, "my.toml: latents must be 1 or above, not 0"),
        ({"epochs": -1}, "my.toml: epochs must be above 0, not -1"),
        ({"seeds": []}, "my.toml: seeds must be different, at least one, not ()"),
        ({"seeds": [0, "1"]}, "my.toml: seeds[1] must be a whole number, not '1'"),
        ({"setups": ["bq"]}, "my.toml: no setup named 'bq'; there is bp, bp-dec, bp-tied, hebb-tied"),
        ({"setups": ["Bad/../name"]}, "my.toml: setup name 'Bad/../name': use small letters, digits and hyphens"),
        ({"setup": {"mine": {}}}, "my.toml: setup.mine is set but not trained: add it to setups"),
        ({"normalise": {"mode": "x"}}, "normalise.mode must be one of 'none', 'factor', 'variance', not 'x'"),
        ({"normalise": 3}, "my.toml: normalise must be a table, not 3"),
        ({"setup": {"bp": {"encoder": {"rule": "ojja"}}}}, "setup.bp.encoder.rule: no rules entry named 'ojja'"),
        ({"setup": {"bp": {"encoder": {"lr": 0}}}}, "my.toml: setup.bp.encoder.lr must be above 0, not 0.0"),
        ({"setup": {"bp": {"encoder": {"temperature": 1}}}}, "my.toml: unknown key 'setup.bp.encoder.temperature'"),
        ({"setup": {"bp": {"tied": True}}}, "my.toml: setup.bp.decoder must be unset"),
        ({"setup": {"bp": {"sae": {"kind": "topk", "k": 0}}}}, "my.toml: setup.bp.sae.k must be 1 or above, not 0"),
    ],
)
def test_a_mistake_is_one_line(table: dict[str, Any], line: str):
    with pytest.raises(UserError) as error:
        TrainConfig.from_table(table, "my.toml")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[train\n", "not valid TOML"),
        (b"[trane]\n", "unknown section [trane]"),
        (b"latents = 3\n", "unknown section [latents]"),
        (b"train = 3\n", "train must be a table"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: bytes, line: str):
    path = tmp_path / "my.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        config.read_file(path, "train")
    assert line in str(error.value)
    assert str(path) in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no such config file"):
        config.read_file(tmp_path / "absent.toml", "train")
    with pytest.raises(UserError, match="a folder"):
        config.read_file(tmp_path, "train")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["latents", "setups", "setup", "seeds", "normalise", "steps", "hook", "epochs", "held_out", "x"])


@settings(max_examples=300, deadline=None)
@given(table=st.dictionaries(KEYS, JSON, max_size=4))
def test_any_table_is_a_config_or_one_line(table: dict[str, Any]):
    # Anything but a config or a UserError fails the test by itself.
    with contextlib.suppress(UserError):
        assert TrainConfig.from_table(table, "my.toml").latents >= 1
