"""What the hub answers, as one line: each of its refusals says what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hsae.errors import UserError, one_line
from hsae.hub import TIMEOUT, HubUnreachable

__all__ = ["TIMEOUT", "asking", "token"]


def token() -> str:
    """The user's token.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    found = get_token()
    if found is None:
        raise UserError("no token for the hub: log in with `hf auth login`, or set HF_TOKEN")
    return found


@contextmanager
def asking(repository: str, revision: str = "") -> Iterator[None]:
    """Around calls of the hub's client. A fault of the disk passes through.

    Args:
        repository: OWNER/NAME, for the line.
        revision: the branch, tag or commit asked for.

    Raises:
        UserError: the hub refused; the line says what to do.
        HubUnreachable: no answer.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except errors.GatedRepoError:
        raise UserError(f"{repository}: gated; accept its terms on the hub and log in with `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository}: the hub has no revision {revision!r} of it") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{repository}: not on the hub, or private; check the name, or `hf auth login`") from None
    except errors.HfHubHTTPError as error:
        raise _refused(repository, error.response.status_code, error.server_message or one_line(error)) from None
    except OSError as error:
        # The client's own faults, such as being offline on purpose, have no number.
        if error.errno is not None:
            raise
        raise _unreachable(repository, error) from None
    except ValueError as error:
        raise UserError(f"{repository}: the hub does not accept it: {one_line(error)}") from None
    except Exception as error:  # the HTTP library below the hub's client differs between its versions
        raise _unreachable(repository, error.__cause__ or error) from None


def _refused(repository: str, status: int, said: str) -> UserError:
    said = " ".join(said.split())[:200]
    if status == 401:
        return UserError("the hub does not know your token: log in anew with `hf auth login`")
    if status == 403:
        return UserError(f"{repository}: your token may not do this ({said}); it needs the right to write there")
    if status < 500 and status != 429:
        return UserError(f"{repository}: the hub refused ({status}: {said})")
    return HubUnreachable(f"{repository}: the hub answered {status}; try again later")


def _unreachable(repository: str, error: BaseException) -> HubUnreachable:
    return HubUnreachable(
        f"{repository}: the hub cannot be reached ({type(error).__name__}); check the network, "
        "or set HF_ENDPOINT to a mirror"
    )
