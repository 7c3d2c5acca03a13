"""The upload, one commit, by huggingface_hub: its login, its endpoint, its retries."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vssm._version import __version__
from vssm.hub.errors import HubError, explained
from vssm.hub.folder import CARD, CONFIG, WEIGHTS, check_folder

__all__ = ["check_login", "check_repo_id", "push_folder"]


def check_repo_id(repo_id: str) -> None:
    """Raises HubError unless it is OWNER/NAME as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository on the Hub: {error}") from error
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} is no name of a repository on the Hub; expected OWNER/NAME")


def check_login() -> None:
    """Raises HubError where huggingface_hub is offline or has no token: before anything is written or sent."""
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it, or write the folder with --dry-run")
    if get_token() is None:
        raise HubError("not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write")


def push_folder(
    folder: str | Path, repo_id: str, *, private: bool = False, replace_card: bool = False, message: str | None = None
) -> str:
    """Upload a folder of `write_folder` in one commit, into a new or an existing repository; returns its address.

    A card that the repository has already stays, unless `replace_card`: someone may have edited it there.
    Raises HubError for a folder with gaps, without a login, without a network, or where the Hub refuses.
    """
    check_repo_id(repo_id)
    folder = check_folder(folder)
    check_login()
    api = HfApi(library_name="vssm", library_version=__version__)
    with explained(f"upload to {repo_id}"):
        found = api.create_repo(repo_id, private=private, exist_ok=True)
        names = [CONFIG, WEIGHTS]
        if replace_card or not api.file_exists(found.repo_id, CARD):
            names.append(CARD)
        api.upload_folder(
            repo_id=found.repo_id,
            folder_path=folder,
            allow_patterns=names,
            commit_message=message or "Upload model with vssm",
        )
    return str(found)
