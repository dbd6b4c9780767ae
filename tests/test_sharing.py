"""push and pull against a hub on the loopback: what goes up comes down, and nothing half-loaded counts."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import edit
from fake_hub import TOKEN, Hub, blob, serving
from markdown_it import MarkdownIt
from rich.console import Console

from hsae import config
from hsae.errors import UserError
from hsae.harvesting import HarvestConfig
from hsae.record import Record
from hsae.run import Run
from hsae.seal import Checksum, json_bytes
from hsae.sharing import PullConfig, PushConfig, pull, push
from hsae.sharing.card import card
from hsae.sharing.contents import publish
from hsae.sharing.markdown import block, code, plain, table
from hsae.store import Store
from hsae.trainconfig import TrainConfig
from hsae.training import train

SMALL = {
    "setups": ["bp", "hebb-tied"],
    "latents": 24,
    "batch_tokens": 128,
    "held_out": 128,
    "steps": 4,
    "baselines": False,
}
MODEL = ("name", "architecture", "revision", "layers", "width")
FILES = ["README.md", "config.toml", "metrics.jsonl", "run.json", "sae.safetensors"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client is pointed at, with a token that may write."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    # A client that an earlier test opened keeps that test's proxy.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def run(planted: Callable[..., Store]) -> Run:
    planted()
    return train(TrainConfig.from_table(SMALL | {"name": "mine", "wandb": ""}, "test"))


def said(do: Callable[[Any, Console], None], settings: Any) -> str:
    file = io.StringIO()
    do(settings, Console(file=file, width=200))
    return file.getvalue()


def refusal(do: Callable[[Any, Console], None], settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        said(do, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def runs(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "runs").iterdir())


class TestRoundTrip:
    def test_what_is_pushed_is_pulled(self, hub: Hub, run: Run, cache: Path) -> None:
        text = said(push, PushConfig(run="mine", to="me/theirs"))
        assert sorted(hub.files["me/theirs"]["main"]) == FILES
        assert "5 files" in text
        assert f"uploaded: {hub.endpoint}/me/theirs/commit/" in text
        assert hub.messages == ["Run mine"]
        text = said(pull, PullConfig("me/theirs"))
        assert "next: hsae inspect --run theirs\n" in text
        there = Run.open("theirs")
        assert sorted(path.name for path in there.folder.iterdir()) == FILES[1:]
        assert there.result == run.result
        assert torch.equal(there.sae("hebb-tied", 0).W_enc, run.sae("hebb-tied", 0).W_enc)
        assert not (cache / "pulls" / "theirs").exists()

    def test_the_first_question_takes_the_shortest_way(self, hub: Hub, run: Run) -> None:
        said(push, PushConfig(to="me/a"))
        assert [line for line in hub.asked if "LFS" not in line][:2] == [
            "GET /api/models/me/a",
            "POST /api/repos/create",
        ]

    def test_a_branch_a_message_and_a_licence(self, hub: Hub, run: Run) -> None:
        said(push, PushConfig(to="me/a", revision="seeds", message="Two\nlines", license="mit"))
        assert sorted(hub.files["me/a"]["seeds"]) == FILES
        assert hub.files["me/a"]["main"] == {}
        assert hub.messages == ["Two\nlines"]
        assert "license: mit\n" in hub.files["me/a"]["seeds"]["README.md"].decode()
        assert refusal(pull, PullConfig("me/a")) == (
            "me/a: no run of hsae (it has no config.toml, run.json, sae.safetensors)"
        )
        said(pull, PullConfig("me/a", name="b", revision="seeds"))
        assert Run.open("b").result == run.result

    def test_private(self, hub: Hub, run: Run) -> None:
        said(push, PushConfig(to="me/secret", private=True))
        assert hub.private == {"me/secret"}
        said(push, PushConfig(to="me/open"))
        assert refusal(push, PushConfig(to="me/open", private=True)).startswith("me/open: is on the hub and public")
        assert hub.private == {"me/secret"}

    def test_a_run_that_is_here_is_not_loaded_again(self, hub: Hub, run: Run, cache: Path) -> None:
        said(push, PushConfig(to="me/mine"))
        hub.asked.clear()
        assert f"{cache}/runs/mine: is here already" in said(pull, PullConfig("me/mine"))
        assert hub.asked == ["GET /api/models/me/mine"]

    def test_another_run_of_that_name_is_left_alone(self, hub: Hub, run: Run, cache: Path) -> None:
        said(push, PushConfig(to="me/mine"))
        (run.folder / "sae.safetensors").write_bytes(b"other")
        assert "is there already, and is not that run" in refusal(pull, PullConfig("me/mine"))
        assert (run.folder / "sae.safetensors").read_bytes() == b"other"

    def test_other_formats_beside_it(self, hub: Hub, run: Run) -> None:
        text = said(push, PushConfig(to="me/a", formats=("saelens", "sparsify")[:1]))
        names = set(hub.files["me/a"]["main"])
        assert {"saelens/bp-0/cfg.json", "saelens/bp-0/sae_weights.safetensors"} <= names
        readme = hub.files["me/a"]["main"]["README.md"].decode()
        assert "| `saelens` | `saelens/bp-0`, `saelens/hebb-tied-0` |" in readme
        assert "- saelens\n" in readme.split("---")[1]
        assert "note:" not in text
        # sparsify has TopK alone, and these are ReLU.
        assert refusal(push, PushConfig(to="me/a", formats=("sparsify",))).startswith("not as sparsify: ")


class TestWhatIsTold:
    def test_no_folder_of_this_machine(self, planted: Callable[..., Store], cache: Path, tmp_path: Path) -> None:
        planted("elsewhere")
        (tmp_path / "deep").mkdir()
        (cache / "activations" / "elsewhere").rename(tmp_path / "deep" / "elsewhere")
        settings = {"store": str(tmp_path / "deep" / "elsewhere"), "tensorboard": False, "wandb": ""}
        run = train(TrainConfig.from_table(SMALL | settings, "test"))
        model = {"name": str(tmp_path / "models" / "my-lm"), "files": "abc", "fingerprint": "f"}
        edit(run.folder / "run.json", lambda result: result.update(model=model))
        said(push, PushConfig(run=run.name, dry_run=True))
        folder = cache / "pushes" / run.name
        assert sorted(path.name for path in folder.iterdir()) == FILES
        for path in folder.iterdir():
            assert str(tmp_path).encode() not in path.read_bytes()
        pushed = Record(folder)
        assert (pushed.result.store, pushed.result.model["name"]) == ("elsewhere", "my-lm")
        assert config.read_file(folder / "config.toml", "train")["store"] == "elsewhere"
        assert "wandb" not in (folder / "config.toml").read_text()

    def test_the_store_can_be_made_anew_from_what_everybody_has(self, run: Run, cache: Path) -> None:
        harvest = config.table(HarvestConfig(model="bundled", data=("bundled",), tokens=1000, name="x"))
        for model, text, known in (
            ({"name": "bundled", "files": "f"}, {"files": [{"name": "stories.parquet"}]}, True),
            ({"name": "owner/lm", "revision": "a" * 40}, {"dataset": "owner/text:en", "revision": "b" * 40}, True),
            ({"name": "owner/lm", "files": "f"}, {"dataset": "owner/text"}, False),
            ({"name": "owner/lm"}, {"files": [{"name": "book.txt"}]}, False),
        ):
            data = ("owner/text:en",) if "dataset" in text else ("bundled",) if known else ("/home/me/book.txt",)
            table = harvest | {"model": model["name"], "data": list(data), "trust_remote_code": True}
            store = Store.open("planted")
            replace(store.manifest, model=model, text=text, harvest=table).write(store.folder)
            told = publish(Record.open("mine"))
            assert (told.harvest is not None) is known
            assert "hsae harvest cache/runs/a/config.toml" in card(told, "me/a") or not known
            if told.harvest:
                made = config.build(HarvestConfig, told.harvest, "test")
                assert not made.trust_remote_code
                assert (made.model, made.data, made.store_name) == (model["name"], data, "planted")
                assert (made.model_revision, made.data_revision) == (
                    model.get("revision", ""),
                    text.get("revision", ""),
                )
                said(push, PushConfig(run="mine", dry_run=True))
                assert config.read_file(cache / "pushes" / "mine" / "config.toml", "harvest") == told.harvest

    def test_a_store_made_anew_is_not_the_one_trained_on(self, run: Run, planted: Callable[..., Store]) -> None:
        told = publish(Record.open("mine"))
        assert told.positions == 64 * 32
        shutil.rmtree(Store.open("planted").folder)
        planted(sequences=32)
        assert publish(Record.open("mine")).positions is None

    def test_dry_run_asks_nobody_and_needs_no_token(self, hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        text = said(push, PushConfig(dry_run=True))
        assert "nothing is uploaded" in text
        assert hub.asked == []
        stray = Path(os.environ["HSAE_CACHE"]) / "pushes" / "mine" / "stray"
        stray.write_text("of an earlier run")
        said(push, PushConfig(dry_run=True))
        assert not stray.exists()


class TestCard:
    def told(self, run: Run, **changes: Any) -> Any:
        return replace(publish(Record(run.folder)), **changes)

    def test_metadata_that_the_hub_reads(self, run: Run) -> None:
        told = self.told(run, base_model="owner/lm", datasets=("owner/text",))
        text = card(told, "me/a", "apache-2.0", {"saelens": ["saelens/bp-0"]})
        head = yaml.safe_load(text.split("---\n")[1])
        assert head["library_name"] == "hsae"
        assert head["license"] == "apache-2.0"
        assert (head["base_model"], head["datasets"]) == ("owner/lm", ["owner/text"])
        assert {"sparse-autoencoder", "hsae", "saelens"} <= set(head["tags"])
        assert "license" not in yaml.safe_load(card(self.told(run), "me/a").split("---\n")[1])

    def test_numbers_of_every_setup_and_seed(self, run: Run) -> None:
        row = replace(run.result.rows[0], mse=4.02e-5, evr=0.929, evr_pooled=0.93, l0=13.24, dead=1234)
        worse = replace(row, setup="hebb-tied", seed=7, evr_pooled=-0.52)
        gone = replace(row, setup="oja", seed=1, diverged="at step 3: the loss is nan")
        text = card(self.told(run, rows=(row, worse, gone)), "me/a")
        l1 = f"{row.l1:.1e}".replace("e-0", "e-").replace("e+0", "e")
        assert f"| `bp` | 0 | 4.0e-5 | .929 | .930 | {l1} | 13.2 | {row.dictionary} | 1,234 |" in text
        assert "| `oja` | 1 | diverged | – | – | – | – | – | – |" in text
        warned = text.split("**Before you use it**")[1].split("##")[0]
        assert "`hebb-tied`, seed 7: EVR .929, pooled -.520. Below 0" in warned
        assert "`oja`, seed 1: diverged at step 3" in warned
        assert "`bp`" not in warned
        assert 'hsae.load("a", setup="bp", seed=0)' in text
        assert "Before you use it" not in card(self.told(run, rows=(row,)), "me/a")

    def test_an_imported_sae_was_not_trained_here(self, run: Run) -> None:
        record = Record(run.folder)
        assert "trained with hsae" in card(publish(record), "me/a")
        record.result = replace(record.result, origin="imported from x, made by saelens 6", steps=0, tokens=0)
        text = card(publish(record), "me/a")
        assert "trained with hsae" not in text
        assert "imported from x, made by saelens 6" in text
        assert "0 steps" not in text

    def test_the_code_in_it_runs(self, run: Run) -> None:
        code = card(self.told(run), "me/mine").split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {"activations": torch.randn(3, 5, 16)}
        exec(code, names)
        assert names["code"].shape == (3, 5, 24)
        assert names["reconstruction"].shape == (3, 5, 16)

    def test_text_of_a_run_is_only_text(self, run: Run) -> None:
        evil = "a|b`c</td><script>alert(1)</script>[x](javascript:y)\n# head\n---\n![i](u)\u202e"
        row = replace(run.result.rows[0], setup=evil, diverged=evil)
        record = Record(run.folder)
        record.result = replace(record.result, hook=evil, rows=(row,))
        record.tables = {evil: {"encoder": {"rule": evil}, "sae": {"kind": evil, "k": evil}}}
        store = Store.open("planted")
        replace(store.manifest, text={"dataset": evil}, harvest={evil: evil}).write(store.folder)
        record.result = replace(record.result, model=dict.fromkeys(MODEL, evil))
        told = replace(publish(record), store=evil)
        cut = evil.partition(":")[0]  # what follows names a configuration of the dataset
        assert (told.model, told.data, told.base_model, told.datasets) == (evil, (cut,), "", ())
        text = card(told, "me/a", "", {"saelens": [evil]})
        _, head, body = text.split("---\n", 2)
        assert yaml.safe_load(head).keys() == {"library_name", "tags"}
        parser = MarkdownIt("commonmark", {"html": True}).enable("table")
        tokens = [t for token in parser.parse(body) for t in (token, *(token.children or ()))]
        html = "".join(t.content for t in tokens if t.type in ("html_inline", "html_block"))
        assert set(re.findall(r"<[^>]*>", html)) <= {"<code>", "</code>"}
        assert not [t for t in tokens if t.type in ("link_open", "image")]
        assert [t.content for t in tokens if t.type == "inline" and t.content in ("Use", "Metrics")] == [
            "Use",
            "Metrics",
        ]
        assert sum(t.type == "heading_open" for t in tokens) == 4
        rows = [line for line in body.splitlines() if line.startswith("| ")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} <= {3, 5, 10}
        assert "\u202e" not in text

    def test_pieces(self) -> None:
        assert plain("a_b*c") == r"a\_b\*c"
        assert plain("<b>&") == "&lt;b&gt;&amp;"
        assert code("x.y") == "`x.y`"
        assert code("a`b") == r"<code>a\`b</code>"
        assert code("") == "<code></code>"
        assert block("a\n```\nb").splitlines() == ["````", "a", "```", "b", "````"]
        assert table(["a", "b"], [["1", "2"]], ".r").splitlines() == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]


class TestRefusals:
    def test_names(self, hub: Hub, run: Run) -> None:
        for bad in ("me", "me/", "/a", "me/a/b", "me/../a", "../a", "me/.git", "https://x/y", "me/a b"):
            with pytest.raises(ValueError, match="OWNER/NAME"):
                PushConfig(to=bad)
            with pytest.raises(ValueError, match="OWNER/NAME"):
                PullConfig(repository=bad)
        for bad in ("../x", "a/b", ".x", "-x", "a b", "/tmp/x"):
            with pytest.raises(ValueError, match="name must be"):
                PullConfig("me/a", name=bad)
        assert refusal(push, PushConfig()).startswith("hsae push needs --to OWNER/NAME")
        assert refusal(pull, PullConfig()) == "hsae pull needs a repository: hsae pull OWNER/NAME"
        assert refusal(push, PushConfig(run="nine", to="me/a")).startswith("no run 'nine' in")

    def test_no_token_or_a_wrong_one(self, hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        wrong = "the hub does not know your token: log in anew with `hf auth login`"
        assert refusal(push, PushConfig(to="me/a")) == wrong
        assert refusal(pull, PullConfig("me/a")) == wrong
        monkeypatch.delenv("HF_TOKEN")
        assert refusal(push, PushConfig(to="me/a")) == (
            "no token for the hub: log in with `hf auth login`, or set HF_TOKEN"
        )

    def test_no_right_no_repository_no_revision(self, hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.read_only.add("them/a")
        assert refusal(push, PushConfig(to="them/a")).startswith("them/a: your token may not do this (You don't have")
        assert refusal(pull, PullConfig("me/none")).startswith("me/none: not on the hub, or private")
        said(push, PushConfig(to="me/a", private=True))
        assert refusal(pull, PullConfig("me/a", name="b", revision="v9")) == "me/a: the hub has no revision 'v9' of it"
        monkeypatch.delenv("HF_TOKEN")
        assert refusal(pull, PullConfig("me/a", name="b")).startswith("me/a: not on the hub, or private")

    def test_a_hub_that_is_busy_or_away(self, hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.status = 503
        assert refusal(pull, PullConfig("me/a")) == "me/a: the hub answered 503; try again later"
        assert refusal(push, PushConfig(to="me/a")) == "me/a: the hub answered 503; try again later"
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert refusal(pull, PullConfig("me/a")).startswith("me/a: the hub cannot be reached (ConnectError)")
        assert refusal(push, PushConfig(to="me/a")).startswith("me/a: the hub cannot be reached (ConnectError)")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "cannot be reached" in refusal(pull, PullConfig("me/a"))


def replace_there(files: dict[str, bytes], name: str, old: bytes, new: bytes) -> None:
    """Change a file on the hub as a stranger can who has its checksums agree."""
    assert old in files[name]
    files[name] = files[name].replace(old, new)
    table = json.loads(files["run.json"])
    del table["seal"]
    table["files"]["config.toml"] = dataclasses.asdict(Checksum.of_bytes(files["config.toml"]))
    files["run.json"] = json_bytes(table)


class TestHalf:
    """What arrived torn, wrong or too much is no run."""

    def files(self, hub: Hub) -> dict[str, bytes]:
        said(push, PushConfig(to="me/a"))
        return hub.files["me/a"]["main"]

    def test_weights_that_stop_in_the_middle(
        self, hub: Hub, run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.files(hub)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        hub.cut = "/sae.safetensors"
        assert refusal(pull, PullConfig("me/a", name="b")).startswith("me/a: ")
        assert runs(cache) == ["mine"]
        hub.cut = ""
        said(pull, PullConfig("me/a", name="b"))
        assert Run.open("b").result == run.result

    def test_weights_that_are_other_bytes(
        self, hub: Hub, run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fake_hub

        good = self.files(hub)["sae.safetensors"]
        monkeypatch.setattr(
            fake_hub.Handler,
            "resolve",
            lambda self, body, repo, revision, path: self.answer(
                200,
                good[::-1] if path == "sae.safetensors" else hub.files[repo]["main"][path],
                ETag='"e"',
                X_Repo_Commit=revision,
            ),
        )
        routes = [(m, p, fake_hub.Handler.resolve if "resolve" in p else d) for m, p, d in fake_hub.ROUTES]
        monkeypatch.setattr(fake_hub, "ROUTES", routes)
        assert refusal(pull, PullConfig("me/a", name="b")) == (
            "me/a: sae.safetensors did not arrive as the hub has it; give the same command again"
        )
        assert runs(cache) == ["mine"]
        assert not (cache / "pulls" / "b" / "sae.safetensors").exists()

    @pytest.mark.parametrize("name", ["config.toml", "run.json", "sae.safetensors"])
    def test_a_file_that_is_damaged_there(self, hub: Hub, run: Run, cache: Path, name: str) -> None:
        files = self.files(hub)
        files[name] = files[name][: len(files[name]) // 2]
        assert refusal(pull, PullConfig("me/a", name="b")).startswith("me/a: what it holds is no whole run: ")
        assert runs(cache) == ["mine"]

    def test_a_table_that_promises_other_weights(self, hub: Hub, run: Run, cache: Path) -> None:
        files = self.files(hub)
        replace_there(files, "run.json", b'"latents": 24', b'"latents": 25')
        assert "W_enc has shape [24, 16], the run says [25, 16]" in refusal(pull, PullConfig("me/a", name="b"))
        assert runs(cache) == ["mine"]

    @pytest.mark.parametrize(
        ("name", "old", "new", "said"),
        [
            ("run.json", b'"setup": "bp"', b'"setup": "../../bp"', "config.toml does not say how its SAEs"),
            ("config.toml", b'name = "mine"', b'name = "../mine"', "'../mine' cannot be the name of a setup or a run"),
            ("config.toml", b"[train]\n", b"[harvest]\ntrust-remote-code = true\n\n[train]\n", "trust_remote_code on"),
        ],
    )
    def test_what_would_lead_a_later_command_astray(
        self, hub: Hub, run: Run, cache: Path, name: str, old: bytes, new: bytes, said: str
    ) -> None:
        files = self.files(hub)
        replace_there(files, name, old, new)
        assert said in refusal(pull, PullConfig("me/a", name="b"))
        assert runs(cache) == ["mine"]

    def test_only_the_files_of_a_run_are_taken(self, hub: Hub, run: Run, cache: Path) -> None:
        hub.put("me/a", **{"../../x": b"1", "pytorch_model.bin": b"2", "evidence/a.safetensors": b"3"})
        self.files(hub)
        said(pull, PullConfig("me/a", name="b"))
        assert sorted(path.name for path in (cache / "runs" / "b").iterdir()) == FILES[1:]
        assert not [line for line in hub.asked if "model.bin" in line or ".." in line]

    def test_one_without_metrics_is_a_run(self, hub: Hub, run: Run) -> None:
        del self.files(hub)["metrics.jsonl"]
        said(pull, PullConfig("me/a", name="b"))
        assert Run.open("b").result == run.result

    def test_a_table_far_too_large(self, hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        from hsae.sharing import download

        self.files(hub)
        monkeypatch.setattr(download, "MOST_BYTES", 100)
        assert "no run of hsae (config.toml has" in refusal(pull, PullConfig("me/a", name="b"))

    def test_a_kill_in_the_middle_and_the_same_command_again(self, hub: Hub, run: Run, cache: Path) -> None:
        """A process that is killed while the weights arrive leaves no run; the next one makes it."""
        self.files(hub)["sae.safetensors"] += b"\0" * 1000
        import fake_hub

        slow, send = fake_hub.Handler.answer, fake_hub.Handler.answer

        def drip(self: Any, status: int, body: Any = None, **headers: str) -> None:
            if self.command == "GET" and self.path.endswith("sae.safetensors"):
                time.sleep(60)
            send(self, status, body, **headers)

        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HSAE_CACHE": str(cache),
        }
        fake_hub.Handler.answer = drip  # pyright: ignore[reportAttributeAccessIssue]
        try:
            command = [sys.executable, "-m", "hsae", "pull", "me/a", "--name", "b"]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            end = time.monotonic() + 30
            while not [line for line in hub.asked if line.startswith("GET") and line.endswith("sae.safetensors")]:
                assert time.monotonic() < end
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        finally:
            fake_hub.Handler.answer = slow  # pyright: ignore[reportAttributeAccessIssue]
        assert runs(cache) == ["mine"]
        assert "run.json" in {path.name for path in (cache / "pulls" / "b").iterdir()}
        hub.files["me/a"]["main"]["sae.safetensors"] = (run.folder / "sae.safetensors").read_bytes()
        said(pull, PullConfig("me/a", name="b"))
        assert Run.open("b").result == run.result


def test_the_fake_hub_hashes_as_git_does() -> None:
    assert blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_help_is_quick() -> None:
    code = "import sys, hsae.sharing; assert not {'torch', 'rich', 'huggingface_hub'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
