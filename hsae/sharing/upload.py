"""`hsae push`: a run's files and its card into one commit on the hub, or into a folder to look at first."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from hsae.errors import UserError
from hsae.figures import size
from hsae.files import cache_root, replacing
from hsae.progress import say
from hsae.record import Record
from hsae.sharing import PushConfig
from hsae.sharing.card import card
from hsae.sharing.contents import publish
from hsae.sharing.hub import TIMEOUT, asking, token
from hsae.terminal import Terminal

Files = dict[str, bytes | Path]
UNSAFE = re.compile(r"[^\w.+-]")


def push(settings: PushConfig, console: Console | None = None) -> None:
    """See `hsae.sharing.push`."""
    console = console or Terminal()
    record = Record.open(settings.run)
    if not settings.to and not settings.dry_run:
        raise UserError("hsae push needs --to OWNER/NAME, or --dry-run to look at what it would upload")
    if not settings.dry_run:
        token()
    run = publish(record)
    with tempfile.TemporaryDirectory() as made:
        files: Files = run.files()
        folders: dict[str, list[str]] = {}
        for name in settings.formats:
            folders[name] = _export(record, name, Path(made), console)
        files |= {str(path.relative_to(made)): path for path in sorted(Path(made).rglob("*")) if path.is_file()}
        files["README.md"] = card(run, settings.to, settings.license, folders).encode()
        _list(files, console)
        if settings.dry_run:
            folder = cache_root() / "pushes" / record.name
            _write(files, folder)
            say(console, f"written to {folder}; nothing is uploaded")
            return
        say(console, f"uploaded: {_upload(settings, record.name, files)}")
        say(console, f"next: hsae pull {settings.to}")


def _export(record: Record, format: str, made: Path, console: Console) -> list[str]:
    """Write the SAEs of a run as another tool reads them, those that its format can say; their folders in `made`.

    Raises:
        UserError: it can say none of them.
    """
    from hsae.export import ExportConfig, export

    folders, refused = [], []
    for row in record.result.rows:
        if row.diverged:
            continue
        # A setup is called what its user likes; a folder is not.
        folder = f"{format}/{UNSAFE.sub('-', row.setup)}-{row.seed}"
        try:
            export(ExportConfig(str(record.folder), format, row.setup, row.seed, out=str(made / folder)))
            folders.append(folder)
        except UserError as error:
            refused.append(f"not as {format}: {error}")
    if not folders:
        raise UserError(
            refused[0] if refused else f"run {record.name}: all setups diverged, so nothing can be {format}"
        )
    for line in refused:
        say(console, f"note: {line}")
    return folders


def _write(files: Files, folder: Path) -> None:
    """A folder with these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            if isinstance(content, Path):
                shutil.copyfile(content, aside)
            else:
                aside.write_bytes(content)


def _list(files: Files, console: Console) -> None:
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in files.items()}
    widest = max(map(len, sizes))
    for name, count in sizes.items():
        say(console, f"{name:{widest}}  {size(count):>10}")
    say(console, f"{len(sizes)} files, {size(sum(sizes.values()))}")


def _upload(settings: PushConfig, name: str, files: Files) -> str:
    """One commit with all files; its address."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api, to = HfApi(token=token()), settings.to
    with asking(to, settings.revision):
        try:
            public = api.model_info(to, timeout=TIMEOUT).private is False
        except RepositoryNotFoundError:
            public = False
        if public and settings.private:
            raise UserError(f"{to}: is on the hub and public; make it private there, or leave out --private")
        api.create_repo(to, private=settings.private or None, exist_ok=True)
        if settings.revision:
            api.create_branch(to, branch=settings.revision, exist_ok=True)
        done = api.create_commit(
            to,
            operations=[CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=settings.message or f"Run {name}",
            revision=settings.revision or None,
        )
    return str(done.commit_url)
