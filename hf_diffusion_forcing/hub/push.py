"""Uploads a checkpoint's folder to the Hugging Face Hub."""

import os
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

PICKLE_SUFFIXES = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}


def files_to_push(folder: str | os.PathLike) -> dict[str, int]:
    """Sizes in bytes of the files that a push uploads, by path in the folder.

    Raises:
        ValueError: the folder is missing or not a checkpoint, or holds a file that may be a pickle, which runs code.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json. `hf-diffusion-forcing export` writes one.")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    names = list(filter_repo_objects(files, ignore_patterns=DEFAULT_IGNORE_PATTERNS))
    pickles = [name for name in names if files[name].suffix.lower() in PICKLE_SUFFIXES]
    if pickles:
        raise ValueError(
            f"{folder} holds {', '.join(pickles)}, which may be pickled, and a pickle can run code when it is loaded: "
            "remove it. `hf-diffusion-forcing export` writes weights as safetensors."
        )
    return {name: files[name].stat().st_size for name in names}


def push_folder(repo_id: str, folder: str | os.PathLike, private: bool = False) -> str:
    """Create the repository if necessary, and upload the folder.

    Other files in the repository are kept.

    Args:
        repo_id: "user/name", or a name in your own account.
        folder: see `files_to_push`.
        private: require a private repository; by default the account's settings decide for a new one.

    Returns:
        The repository's address.

    Raises:
        ValueError: as `files_to_push`; or `repo_id` is invalid; or `private` is set but the repository is public.
        LocalTokenNotFoundError: there is no token (an OSError).
        ConnectionError: the Hub cannot be reached or refuses.
    """
    files_to_push(folder)
    if get_token() is None:
        raise LocalTokenNotFoundError("There is no Hugging Face token: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(library_name="hf-diffusion-forcing")
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise ValueError(
                f"{url.repo_id} exists and is public: make it private on the Hub, or push without private."
            )
        api.upload_folder(
            repo_id=url.repo_id, folder_path=Path(folder).expanduser(), commit_message="Upload checkpoint"
        )
    except HTTPError as error:
        raise ConnectionError(f"{repo_id} was not pushed: {error}") from error
    return str(url)
