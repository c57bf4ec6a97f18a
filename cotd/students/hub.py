"""The model hub: which commit of a repository is meant, and errors that a person can act on."""

from __future__ import annotations

from cotd.errors import CotdError
from cotd.utils.text import first_line

# A hub that accepts connections and never answers would otherwise hold a command for minutes.
ANSWER_SECONDS = 15.0


def hub_commit(repo_id: str, revision: str | None = None, advice: str = "") -> str:
    """The commit that a hub model's revision stands for; where the hub cannot be reached, the newest one in the cache.

    Raises:
        CotdError: there is no such model, or neither hub nor cache has it. `advice` is appended.
    """
    from huggingface_hub import HfApi, resolve_revision
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionResolutionError
    from huggingface_hub.utils import httpx

    answers = True
    try:
        try:
            HfApi().model_info(repo_id, revision=revision, timeout=ANSWER_SECONDS)
        except (httpx.TransportError, OfflineModeIsEnabled):
            answers = False
        return resolve_revision(repo_id, revision=revision, local_files_only=not answers).resolved
    except RevisionResolutionError as error:
        raise CotdError(
            f"cannot load the model '{repo_id}': the hub cannot be reached and it is not in the local cache.{advice}"
        ) from error
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the model '{repo_id}': {first_line(error)}.{advice}") from error


def fetch_student(repo_id: str, card: str, advice: str) -> str:
    """The local folder of a student on the hub: its card, safetensors and tokenizer; or the id itself if it has no card.

    Raises:
        CotdError: there is no such repository, or the hub cannot be reached.
    """
    from pathlib import Path

    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = hub_commit(repo_id, advice=advice)
    try:
        found = Path(hf_hub_download(repo_id, card, revision=commit))
        snapshot_download(repo_id, revision=commit, allow_patterns=["*.json", "*.safetensors", "*.model"])
    except RemoteEntryNotFoundError:
        return repo_id
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the student '{repo_id}': {first_line(error)}.{advice}") from error
    return str(found.parent)
