"""A model to share: weights, config and a card that says how good it is, in a folder and on the hub.

python -m tae.export ckpt=PATH output=DIR
python -m tae.export ckpt=PATH output=DIR format=onnx
python -m tae.export ckpt=PATH output=DIR push=true repo=OWNER/NAME
"""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from tae.latents.stats import LatentStats
from tae.model.pretrained import LoadedModel
from tae.runtime.errors import UserError, first_line


def check_stats(loaded: LoadedModel, stats: LatentStats | None, folder: str | None) -> None:
    """Refuse statistics of another encoder's latents."""
    if stats is not None and not loaded.encoded(stats.checkpoint):
        raise UserError(
            f"latents={folder} were made by {stats.checkpoint['path']}, which is not ckpt={loaded.source} and has another "
            "encoder."
        )


def prepare_repository(repo: str | None, private: bool) -> None:
    """Make sure that there is a repository to upload to.

    Raises:
        UserError: no or an impossible name, no token, or the hub refuses.
    """
    if repo is None:
        raise UserError("push=true needs repo=OWNER/NAME.")
    try:
        validate_repo_id(repo)
        HfApi().create_repo(repo, private=private, exist_ok=True)
    except HFValidationError as error:
        raise UserError(f"repo={repo} is no name of a repository: {error}") from error
    except Exception as error:  # of the hub, or of the HTTP library that it happens to use
        raise UserError(why_not_pushed(error, repo)) from error


def upload(folder: Path, repo: str) -> None:
    """Upload a folder in one commit.

    Raises:
        UserError: the hub refuses or cannot be reached; the folder stays.
    """
    try:
        commit = HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload model")
    except Exception as error:
        raise UserError(f"{why_not_pushed(error, repo)} What was exported is in {folder}.") from error
    print(f"uploaded: {commit.commit_url}")


def why_not_pushed(error: Exception, repo: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return (
            f"{constants.ENDPOINT} does not let you write to {repo}: log in with `hf auth login` or set HF_TOKEN, with a "
            f"token that may write to repositories of {repo.partition('/')[0]}."
        )
    reason = f"it answered {status}" if status else first_line(error).rstrip(".")
    return f"{repo} could not be written to {constants.ENDPOINT}: {reason}. Try again later."
