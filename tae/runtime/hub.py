"""Files from the hub of models: huggingface_hub fetches them, and what it refuses becomes what the user can do."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from tae.runtime.errors import UserError, first_line
from tae.runtime.files import file_sha256

FILE_ENDINGS = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


def may_be_repository(source: str) -> bool:
    """Whether this may be OWNER/NAME on the hub, versions such as `-1.5` included, rather than a path that is not there."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None and not source.endswith(FILE_ENDINGS)


def download(repo_id: str, places: Sequence[str], ways: str, without_network: str) -> Path:
    """Fetch the first of these files that a repository has into the hub's cache.

    huggingface_hub does the work, so HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and its cache work as they always do.

    Args:
        repo_id: OWNER/NAME.
        places: paths in the repository.
        ways: what else could be given, for messages.
        without_network: what to do where the hub cannot be reached, with {repo_id} and {place}.

    Raises:
        UserError: the hub does not give it, or what lies in the cache is not what the hub has.
    """
    path = Path(_ask(repo_id, places, ways, without_network))
    check_download(path, repo_id)
    return path


def check_reachable(repo_id: str, places: Sequence[str], ways: str, without_network: str) -> None:
    """Refuse early what `download` would refuse: nothing is fetched, the hub is asked whether it would give one.

    Raises:
        UserError: none of the files is in the cache, and the hub does not give one.
    """
    _ask(repo_id, places, ways, without_network, dry_run=True)


def _ask(repo_id: str, places: Sequence[str], ways: str, without_network: str, **options: Any) -> Any:
    """huggingface_hub's answer for the first of these files that the repository has."""
    for place in places:
        try:
            return hf_hub_download(repo_id, place, **options)
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError too, but it speaks of the network
            raise UserError(why_not_downloaded(error, repo_id, place, ways, without_network)) from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # of the hub, or of the HTTP library that it happens to use
            raise UserError(why_not_downloaded(error, repo_id, place, ways, without_network)) from error
    raise UserError(f"The repository {repo_id} holds none of: {', '.join(places)}. {ways}")


def why_not_downloaded(error: Exception, repo_id: str, place: str, ways: str, without_network: str) -> str:
    """What the hub's refusal means, and the next step."""
    page = f"{constants.ENDPOINT}/{repo_id}"
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    elsewhere = without_network.format(repo_id=repo_id, place=place)
    if isinstance(error, GatedRepoError) and status == 401:
        return (
            f"{repo_id} is gated, and you are not logged in: accept its licence at {page}, then log in with `hf auth login` "
            "or set HF_TOKEN."
        )
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated, and your token's account has no access to it: accept the licence at {page} with that "
            "account, and give a fine-grained token the right to read gated repositories."
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return (
            f"{repo_id}: neither a local path nor a repository that you can see on {constants.ENDPOINT}. "
            f"If it is private, log in with `hf auth login`. {ways}"
        )
    if status == 401:
        return f"{constants.ENDPOINT} does not accept your token: log in again with `hf auth login`, or unset HF_TOKEN."
    if status == 403:
        return f"{page}: access is forbidden. Give your token the right to read this repository. {elsewhere}"
    if status is not None:
        return f"{constants.ENDPOINT} answered {status} for {repo_id}: try again later, or a mirror with HF_ENDPOINT."
    not_cached = f"{repo_id} is not in the cache ({constants.HF_HUB_CACHE}), and"
    if constants.HF_HUB_OFFLINE:
        return f"{not_cached} HF_HUB_OFFLINE is set: unset it. {elsewhere}"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{not_cached} {constants.ENDPOINT} cannot be reached. {elsewhere}"
    reason = first_line(error)
    return f"The download of {place} from {page} did not come to its end: {reason} Nothing of it was kept; try again."


def check_download(path: Path, repo_id: str) -> None:
    """Compare a file in the hub's cache with the hash that the hub gave for it.

    huggingface_hub checks sizes alone. In its cache a large file is stored under its SHA-256 (a small one, or one on a
    system without symbolic links, is not, and cannot be checked).

    Raises:
        UserError: they differ.
    """
    stored = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", stored.name) and file_sha256(stored) != stored.name:
        raise UserError(
            f"{path} is not the file that {repo_id} holds: its SHA-256 is not the one that the hub gave. It was damaged on "
            f"the way or on the disk. Remove {stored} and try again."
        )
