"""The server around the application: the socket, the words in the terminal, the end."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING

from hsae.errors import UserError
from hsae.files import cache_root
from hsae.progress import say
from hsae.serve import ServeConfig

if TYPE_CHECKING:
    import uvicorn
    from rich.console import Console

    from hsae.serve.api import Api
    from hsae.serve.guard import Gate

ENDING = 1.0
"""seconds that requests and jobs have to end after Ctrl-C"""


def listen(settings: ServeConfig, console: Console | None) -> None:
    """See `hsae.serve.serve`."""
    from rich.text import Text

    from hsae.serve.api import Api
    from hsae.serve.guard import Gate, names_of_this_machine
    from hsae.terminal import Terminal

    console = console or Terminal()
    server_socket = _socket(settings)
    port = server_socket.getsockname()[1]
    token = settings.token or ("" if settings.local else secrets.token_urlsafe(24))
    names = frozenset() if settings.local else names_of_this_machine(settings.host)
    api = Api(settings.device, settings.trust_remote_code)
    address = _address(settings, port) + (f"?token={token}" if token else "")
    # On a line of its own and never broken, so that a terminal makes a link of it.
    console.print(Text(address), soft_wrap=True)
    if not settings.local:
        say(console, "Other machines can reach it: the token keeps them out, but the line is not encrypted.")
    say(console, f"It serves {cache_root()}; Ctrl-C ends it.")
    if settings.open:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        make_server(api, Gate(names, token, f"hsae-{port}")).run(sockets=[server_socket])
    except KeyboardInterrupt:
        say(console, "stopped")
    if not api.close(ENDING) or "torch" in sys.modules:
        # A job may be in the middle of a long computation, and PyTorch takes seconds to put itself away. Files are
        # whole at every instant: there is nothing to wait for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def make_server(api: Api, gate: Gate) -> uvicorn.Server:
    """The server: what is held of a request, and how long anybody is waited for, is in `hsae.serve.line`."""
    import uvicorn

    from hsae.serve.app import make_app
    from hsae.serve.guard import HEAD
    from hsae.serve.line import Line

    config = uvicorn.Config(
        make_app(api, gate),
        loop="asyncio",
        http=Line,
        ws="none",
        lifespan="off",
        log_level="error",  # Our own faults; not every line that somebody sends.
        access_log=False,  # Addresses may hold the token.
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def _socket(settings: ServeConfig) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: it cannot be had.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(512)
    except socket.gaierror:
        raise UserError(f"--host {settings.host}: no such address") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            line = f"port {settings.port} is in use; --port 0 takes a free one"
        elif error.errno == errno.EADDRNOTAVAIL:
            line = f"--host {settings.host} is none of this machine's addresses"
        else:
            line = f"{settings.host}:{settings.port}: cannot listen there ({error.strerror})"
        raise UserError(line) from None
    return made


def _address(settings: ServeConfig, port: int) -> str:
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
