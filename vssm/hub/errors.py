"""What goes wrong between this machine and the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

__all__ = ["HubError", "explained"]


class HubError(RuntimeError):
    """The Hub cannot be reached, or refuses; the message says what to do."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever huggingface_hub raises within becomes one HubError: `cannot WHAT: reason; remedy`."""
    try:
        yield
    except RepositoryNotFoundError as error:
        raise HubError(
            f"cannot {what}: no such repository, or no access to it with this login; check the name, or `hf auth login`"
        ) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"cannot {what}: HF_HUB_OFFLINE is set; unset it") from error
    except HfHubHTTPError as error:
        raise HubError(f"cannot {what}: {_status(error)}") from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"cannot {what}: it is not in the cache, and the Hub is not reached; {_NETWORK}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, HubError):
            raise
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        remedy = "" if isinstance(error, ValueError) else f"; {_NETWORK}"
        raise HubError(f"cannot {what}: {reason}{remedy}") from error


_NETWORK = "check the network and HF_ENDPOINT, and try again"


def _status(error: HfHubHTTPError) -> str:
    code = getattr(error.response, "status_code", None)
    said = " ".join((error.server_message or str(error)).split())[:300]
    if code in (401, 403):
        return f"the Hub answers {code} ({said}); log in with a token that may write: `hf auth login`, or HF_TOKEN"
    return f"the Hub answers {code} ({said})"
