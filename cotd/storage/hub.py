"""Pushing a folder to a hub of models and data sets: the one that HF_ENDPOINT names, with the token of HF_TOKEN."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cotd.errors import CotdError
from cotd.progress import say
from cotd.utils.files import replacing
from cotd.utils.text import first_line

HUB_TIMEOUT = 15.0  # seconds: a hub that accepts connections and never responds would hold a command for minutes
DRY_RUNS = Path("runs/push")  # what would be pushed is written here
URL = re.compile(r"\w+://\S+")


def require_hub_name(name: str) -> None:
    """Raises a CotdError unless a name has the form ORG/NAME that hubs accept."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        problem = "" if "/" in name else "it has no organization or user."
    except HFValidationError as error:
        problem = f"{first_line(error)}."
    if problem:
        raise CotdError(f"'{name}' is not a name on a hub: {problem} Name it ORG/NAME, for example my-org/my-student.")


def require_token(name: str) -> None:
    """Raises a CotdError if there is no token to push with."""
    from huggingface_hub import get_token

    if not get_token():
        raise CotdError(
            f"no token to push to '{name}' with. Set HF_TOKEN to one that may write there, or run `hf auth login`; "
            "--dry-run needs none."
        )


def push(name: str, kind: Literal["model", "dataset"], write: Callable[[Path], None], private: bool, dry_run: bool) -> str:
    """Pushes what `write` puts into an empty folder; returns a sentence that says what happened.

    The repository is made if it does not exist. What it holds already is not uploaded, and makes no commit.

    Args:
        private: make a new repository private, and refuse to push to a public one.
        dry_run: write to `runs/push/ORG/NAME`, in place of an earlier dry run, and push nothing.

    Raises:
        CotdError: the hub cannot be reached, or refuses the token or the content; the repository is public and must not be.
    """
    if dry_run:
        folder = DRY_RUNS / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as temporary:
            temporary.mkdir()
            write(temporary)
        return f"dry run: nothing was pushed. What would be pushed to {name} is in {folder}."
    from huggingface_hub.utils import httpx

    with tempfile.TemporaryDirectory(prefix="cotd-push-") as place:
        folder = Path(place) / "content"
        folder.mkdir()
        write(folder)
        try:
            url, changed = upload(folder, name, kind, private)
        except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
            raise explain(error, name) from error
    return f"pushed to {url}" if changed else f"nothing changed: {name} holds the same already ({url})"


def upload(folder: Path, name: str, kind: str, private: bool) -> tuple[str, bool]:
    """Makes one commit of a folder's files; returns its URL, and whether anything changed."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        # Loading a model turns them off; in a log they would be lines of bars.
        (enable_progress_bars if sys.stderr.isatty() else disable_progress_bars)()
    api = HfApi()
    try:
        info: Any = api.repo_info(name, repo_type=kind, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError:
        api.create_repo(name, repo_type=kind, private=private or None)
        info = api.repo_info(name, repo_type=kind, timeout=HUB_TIMEOUT)
    if private and not info.private:
        raise CotdError(f"'{name}' exists and is public. Make it private on the hub, push to another name, or omit --private.")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    size = sum(path.stat().st_size for path in files.values())
    say(f"  pushing {len(files)} files, {size / 1e6:,.1f} MB, to {name}")
    # Weights in other files than before would be read instead of these.
    old = [s.rfilename for s in info.siblings or [] if ".safetensors" in s.rfilename and s.rfilename not in files]
    operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
    commit = api.create_commit(
        name, [*operations, *map(CommitOperationDelete, old)], commit_message="Push from cotd", repo_type=kind
    )
    return commit.commit_url, commit.oid != info.sha


def explain(error: Exception, name: str) -> CotdError:
    """What a failed push means to the user."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, (httpx.TransportError, OfflineModeIsEnabled)):
        problem = "the hub cannot be reached. Check the network (HF_ENDPOINT names another hub), or use --dry-run."
    elif status in (401, 403):
        reason = getattr(error, "server_message", None)
        problem = f"the hub refuses the token ({reason or status}). Set HF_TOKEN to one that may write there."
    else:
        problem = f"{first_line(error)}. What was uploaded is not uploaded again."
    return CotdError(f"cannot push to '{name}': {problem}")


def without_places(value: Any) -> Any:
    """A value without what only this machine or network knows: paths become names, URLs the word URL."""
    if isinstance(value, dict):
        return {key: without_places(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_places(v) for v in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if value.startswith(("/", "~", "./", "../")) else URL.sub("URL", value)


def cell(value: Any) -> str:
    """A value as the cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
