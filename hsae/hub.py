"""The Hugging Face hub: one quick question before anything is loaded, so that no network means one clear line."""

from __future__ import annotations

from typing import Literal

from hsae.errors import UserError

# Seconds. The hub's own clients try again for minutes; a user without a network should know at once.
TIMEOUT = 10.0


class HubUnreachable(UserError):
    """There is no network, or `HF_HUB_OFFLINE` is set."""


def commit(kind: Literal["model", "dataset"], name: str, revision: str = "") -> str:
    """The commit that a model or a dataset on the hub stands at.

    Args:
        kind: "model" or "dataset".
        name: its hub id, `owner/name`.
        revision: a branch, a tag or a commit; empty for the main branch.

    Raises:
        HubUnreachable: no answer.
        UserError: the hub has no such thing, or does not let us read it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return str(ask(name, revision=revision or None, timeout=TIMEOUT).sha)
    except HFValidationError:
        raise UserError(f"{kind} {name!r}: neither a file or folder here nor a hub id (owner/name)") from None
    except GatedRepoError:
        raise UserError(f"{kind} {name}: gated; accept its terms on the hub and log in with `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{kind} {name}: the hub has no revision {revision!r} of it") from None
    except RepositoryNotFoundError:
        raise UserError(f"{kind} {name}: not on the hub, or private; check the id, or `hf auth login`") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no status")
        raise HubUnreachable(f"{kind} {name}: the hub answered {status}; try again later") from None
    except Exception as error:  # the HTTP library below the hub client differs between its versions
        raise HubUnreachable(f"{kind} {name}: the hub cannot be reached ({type(error).__name__})") from None
