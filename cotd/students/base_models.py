"""Base models: finding, loading, saving and identifying them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cotd import assets
from cotd.errors import CotdError
from cotd.students.hub import hub_commit
from cotd.utils.text import first_line

CARD = "cotd.json"  # what a trained student is: written beside its weights
_HUB_ID = re.compile(r"^\w[\w.-]*/[\w.-]+$")


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
    if not _HUB_ID.match(source):
        raise CotdError(f"model '{source}' does not exist: it is no folder, no embedded:NAME, no models:/… and no hub id.")
    return source


def load_base(source: str) -> tuple[Any, Any]:
    """A sequence-to-sequence model in float32 and its tokenizer, from a folder or a hub id.

    Raises:
        CotdError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    source = resolve_model(source)
    local = Path(source).is_dir()
    commit = None if local else hub_commit(source, advice=model_advice(source))
    where: dict[str, Any] = {"local_files_only": local, "revision": commit or "main"}
    logging.disable_progress_bar()
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else a thread asks an outside service to convert .bin files
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        model = AutoModelForSeq2SeqLM.from_pretrained(source, dtype=torch.float32, **where)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the model '{source}': {first_line(error)}.{model_advice(source)}") from error
    return model, tokenizer


def write_model(model: Any, folder: str | Path) -> None:
    """Writes a model as transformers does, its decoder's cache turned on (in `model`, too), which Trainer leaves off."""
    model.config.use_cache = model.generation_config.use_cache = True
    model.save_pretrained(folder)


def model_advice(source: str) -> str:
    """What to do about a model that cannot be loaded."""
    if Path(source).is_dir():
        return " The folder must hold a Hugging Face checkpoint (config.json, model.safetensors, tokenizer files)."
    students = ", ".join(assets.PREFIX + a.name for a in assets.ASSETS.values() if a.kind == "student")
    return f" Check the id and the network (HF_ENDPOINT names another hub), or use {students}, which needs neither."


def model_digest(source: str) -> str:
    """A content digest of a base model: of its files for a folder, of id and commit for a hub id.

    Reads no weights from the hub, so that it also serves as the check that the model exists.
    """
    import hashlib

    folder = resolve_model(source)
    if not Path(folder).is_dir():
        return hashlib.sha256(f"{folder}@{hub_commit(folder, advice=model_advice(folder))}".encode()).hexdigest()[:16]
    total = hashlib.sha256()
    files = [p for p in sorted(Path(folder).iterdir()) if p.suffix in (".safetensors", ".json", ".bin", ".model")]
    if not any(p.name == "config.json" for p in files):
        raise CotdError(f"cannot load the model '{source}': no config.json in it.{model_advice(folder)}")
    for path in files:
        if path.name in ("asset.json", "pretraining.json", CARD):  # what it came from, not what it is
            continue
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def weights_bytes(source: str) -> int | None:
    """How large a base model's weights are on disk, or None for one on the hub."""
    folder = Path(resolve_model(source))
    return sum(p.stat().st_size for p in folder.glob("*.safetensors")) or None if folder.is_dir() else None
