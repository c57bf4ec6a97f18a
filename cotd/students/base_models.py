"""Base models and trained students by any name: finding, fetching, loading, saving and identifying them."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cotd import assets
from cotd.errors import CotdError
from cotd.storage.hub import HUB_TIMEOUT
from cotd.students.backends.kinds import model_class, model_kind
from cotd.utils.files import read_json
from cotd.utils.text import first_line

CARD = "cotd.json"  # describes a trained student; beside its weights
SEEN = "examples_seen.npz"  # what it has seen, see `cotd.students.seen`
VALIDATED = "validation_answers.npz"  # see `cotd.students.validated`
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HUB_ID = re.compile(r"^\w[\w.-]*/[\w.-]+$")
# Files of a student besides its weights: configuration, card, record, and whatever tokenizers are written in.
STUDENT_FILES = ("*.json", "*.npz", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.jinja")
# What says where a model comes from and not what it is. All other files may decide what it does: vocab.txt and chat templates, too.
PROVENANCE = re.compile(
    r"(?i)\.|readme|licen[cs]e|notice|(cotd|asset|pretraining|trainer_state)\.json$|(examples_seen|validation_answers)\.npz$"
)


def resolve_model(source: str) -> str:
    """A folder, or a hub id, for any way of naming a model.

    Raises:
        CotdError: an embedded asset that is not there, a folder that does not exist, an unknown registry version.
    """
    if assets.is_embedded(source):
        return str(assets.require(source))
    if source.startswith("models:/"):
        from cotd.storage.model_cache import download_student

        return str(download_student(source))
    if Path(source).is_dir():
        return str(Path(source).absolute())
    if not HUB_ID.match(source):
        raise CotdError(f"model '{source}' does not exist: it is not a folder, embedded:NAME, models:/… or a hub id.")
    return source


def find_student(source: str) -> tuple[Path, dict[str, Any]]:
    """The local folder of a trained student, fetched if it is on the hub, and the content of its card.

    Raises:
        CotdError: nothing is there, it is a base model, or its weights are not safetensors.
    """
    folder = Path(resolve_model(source))
    if not folder.is_dir():
        folder = fetch_student(str(folder))
    if not (folder / CARD).is_file():
        raise CotdError(
            f"'{source}' is not a trained student: it has no {CARD}. "
            "Train one with `cotd sweep` or `cotd train`; `models:/NAME@champion` names the promoted one."
        )
    if not any((folder / name).is_file() for name in SAFE_WEIGHTS):  # transformers would read others, which can hold code
        raise CotdError(f"'{source}' has no weights in {SAFE_WEIGHTS[0]}. Save it again with `cotd export` or `Student.save`.")
    return folder, read_json(folder / CARD)


def load_base(source: str, labels: Sequence[str] = ()) -> tuple[Any, Any]:
    """A model in float32, of whatever kind its configuration says, and its tokenizer, from a folder or a hub id.

    Args:
        labels: those that an encoder's head tells apart.

    Raises:
        CotdError: it cannot be loaded, or no student can be made of it.
    """
    import torch
    from transformers.utils import logging

    resolved, options = locate(source)
    logging.disable_progress_bar()
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else a thread asks an outside service to convert .bin files
    config, tokenizer = read_base(source)
    kind = model_kind(config)
    head: dict[str, Any] = {}
    if kind == "encoder":
        head = {"num_labels": max(2, len(labels)), "id2label": dict(enumerate(labels))}
        head |= {"label2id": {label: i for i, label in enumerate(labels)}} if labels else {}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a new head has no weights yet is no news
    try:
        written = {k: v for k, v in head.items() if v}
        model = model_class(kind).from_pretrained(resolved, dtype=torch.float32, **options, **written)
    except (OSError, ValueError, RuntimeError) as error:
        raise CotdError(f"cannot load the model '{resolved}': {first_line(error)}.{model_advice(resolved)}") from error
    finally:
        logging.set_verbosity(verbosity)
    return model, tokenizer


def read_base(source: str) -> tuple[Any, Any]:
    """A base model's configuration and tokenizer, without its weights.

    Raises:
        CotdError: they cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    resolved, options = locate(source)
    try:
        return AutoConfig.from_pretrained(resolved, **options), AutoTokenizer.from_pretrained(resolved, **options)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the model '{resolved}': {first_line(error)}.{model_advice(resolved)}") from error


def locate(source: str) -> tuple[str, dict[str, Any]]:
    """Where transformers reads a model from, and what it must be told: a hub model's commit."""
    resolved = resolve_model(source)
    local = Path(resolved).is_dir()
    return resolved, {"local_files_only": local, "revision": "main" if local else hub_commit(resolved)}


def write_model(model: Any, folder: str | Path) -> None:
    """Writes a model as transformers does, with its decoder's cache turned on (in `model`, too), which Trainer turns off."""
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None and hasattr(config, "use_cache"):
            config.use_cache = True
    model.save_pretrained(folder)


def model_digest(source: str) -> str:
    """A content digest of a base model: of a folder's files but for PROVENANCE, of id and commit for a hub id.

    Reads no weights from the hub, so that it also serves as the check that the model exists.
    """
    folder = resolve_model(source)
    if not Path(folder).is_dir():
        return hashlib.sha256(f"{folder}@{hub_commit(folder)}".encode()).hexdigest()[:16]
    if not (Path(folder) / "config.json").is_file():
        raise CotdError(f"cannot load the model '{source}': it has no config.json.{model_advice(folder)}")
    total = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and not PROVENANCE.match(path.name):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def weights_bytes(source: str) -> int | None:
    """The size of a base model's weights on disk, or None for one on the hub."""
    folder = Path(resolve_model(source))
    return sum(p.stat().st_size for p in folder.glob("*.safetensors")) or None if folder.is_dir() else None


def count_parameters(source: str) -> int | None:
    """How many numbers a model's weights on disk are, or None for one on the hub, or without safetensors."""
    from safetensors import safe_open

    folder = Path(resolve_model(source))
    total = 0
    for path in folder.glob("*.safetensors") if folder.is_dir() else []:
        with safe_open(path, "np") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total or None


def hub_commit(repo_id: str, revision: str | None = None, advice: str | None = None) -> str:
    """The commit that a hub model's revision stands for; if the hub cannot be reached, the newest one in the cache.

    Args:
        advice: what errors say to do; by default the advice about a base model.

    Raises:
        CotdError: there is no such model, or neither hub nor cache has it.
    """
    from huggingface_hub import HfApi, resolve_revision
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionResolutionError
    from huggingface_hub.utils import httpx

    advice = model_advice(repo_id) if advice is None else advice
    reachable = True
    try:
        try:
            HfApi().model_info(repo_id, revision=revision, timeout=HUB_TIMEOUT)
        except (httpx.TransportError, OfflineModeIsEnabled):
            reachable = False
        return resolve_revision(repo_id, revision=revision, local_files_only=not reachable).resolved
    except RevisionResolutionError as error:
        raise CotdError(
            f"cannot load the model '{repo_id}': the hub cannot be reached and it is not in the local cache.{advice}"
        ) from error
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the model '{repo_id}': {first_line(error)}.{advice}") from error


def fetch_student(repo_id: str) -> Path:
    """The local folder of a student on the hub: its card, record, safetensors and tokenizer; the id itself if it has no card.

    Raises:
        CotdError: there is no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = hub_commit(repo_id)
    try:
        card = Path(hf_hub_download(repo_id, CARD, revision=commit))
        snapshot_download(repo_id, revision=commit, allow_patterns=["*.safetensors", *STUDENT_FILES])
    except RemoteEntryNotFoundError:
        return Path(repo_id)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the student '{repo_id}': {first_line(error)}.{model_advice(repo_id)}") from error
    return card.parent


def has_card(repo_id: str, commit: str) -> bool:
    """Whether a hub model is a trained student, as far as hub or cache can say."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, CARD, revision=commit)).is_file()
    except (OSError, ValueError):
        return False


def model_advice(source: str) -> str:
    """What to do about a model that cannot be loaded."""
    if Path(source).is_dir():
        return " The folder must hold a Hugging Face checkpoint (config.json, model.safetensors, tokenizer files)."
    students = ", ".join(assets.PREFIX + a.name for a in assets.ASSETS.values() if a.kind == "student")
    return f" Check the id and the network (HF_ENDPOINT names another hub), or use {students}, which needs neither."
