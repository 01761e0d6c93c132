"""Folders on the Hub."""

from pathlib import Path

from .run_folder import RUN_FILE


__all__ = ["check_repository", "push_folder_to_hub"]


def check_repository(argument: str, name: str | None) -> None:
    """Check that a repository can have a name, before any work of which the result is uploaded.

    Args:
        argument: What the error calls the name.
        name: `owner/name`; None uploads nothing.

    Raises:
        ValueError: If the Hub takes no such name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`{argument}` must be owner/name on the Hub, got {name!r}: {error}") from error


def push_folder_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload with diffusers-ucgm",
) -> str:
    """Upload a folder with weights; gives the address of the commit.

    Args:
        folder: The folder of a pipeline, a network or a LoRA.
        repo_id: `owner/name`, made if it is missing.
        private: Whether a new repository is private; None is the owner's default.
        token: None takes the one of `hf auth login`.
        commit_message: The message of the one commit.

    Raises:
        ValueError: If the folder holds no weights.
    """
    from huggingface_hub import HfApi

    if not any(Path(folder).rglob("*.safetensors")):
        raise ValueError(f"`folder` must hold safetensors files, got {str(folder)!r} without any.")
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    # The identity of the run that wrote the folder names files of this machine.
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=commit_message, ignore_patterns=[RUN_FILE]
    )
    return str(commit)
