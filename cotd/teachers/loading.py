"""Loading a teacher: its tokenizer, its revision, and what requests need of both. Its weights are the engine's to load."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from cotd import assets
from cotd.config.digest import digest
from cotd.data.truncation import cut_beginning, cut_text, fit_by_length, tokens_by_length
from cotd.errors import CotdError
from cotd.students.base_models import model_digest, resolve_model
from cotd.students.hub import hub_commit
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.config import TeacherConfig
from cotd.teachers.requests import Teacher
from cotd.utils.text import first_line


def load_teacher(config: TeacherConfig) -> Teacher:
    """The teacher's name, revision and tokenizer.

    Raises:
        CotdError: there is no such model.
    """
    commit = None
    if config.api is None:
        tokenizer, revision = load_tokenizer(config.model, config.revision)
        commit = None if Path(resolve_model(config.model)).is_dir() else revision
        if kwargs := config.engine.output_kwargs():
            revision += f", engine_kwargs {digest(kwargs)}"
    else:
        tokenizer = load_tokenizer(config.api.tokenizer, None)[0] if config.api.tokenizer else None
        revision = api_revision(config.revision, config.api)
    if tokenizer is None:
        return Teacher(config.model, revision, None, fit_by_length, config, tokens_by_length)

    def offsets(text: str) -> list[tuple[int, int]]:
        return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    # Texts of megabytes take long, and few tokens have 64 characters, none of them in a sentence. A token has at least one byte;
    # an emoji may be four tokens, and a character that the limit falls into is left out.
    def fit(text: str, limit: int) -> str:
        if len(text.encode()) <= limit:
            return text
        beginning = text[: 64 * limit]
        found = offsets(beginning)
        return beginning if len(found) <= limit else cut_text(beginning, min(found[limit - 1][1], found[limit][0]))

    def fit_end(text: str, limit: int) -> str:
        if len(text.encode()) <= limit:
            return text
        end = text[-64 * limit :]
        found = offsets(end)
        return end if len(found) <= limit else cut_beginning(end, max(found[-limit][0], found[-limit - 1][1]))

    @functools.cache  # a few words, and every request asks
    def first_token(word: str) -> int:
        return tokenizer(word, add_special_tokens=False)["input_ids"][0]

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    special = tuple(tokenizer.all_special_tokens)
    return Teacher(config.model, revision, first_token, fit, config, count, special, commit=commit, fit_end=fit_end)


def api_revision(revision: str | None, api: ApiConfig) -> str:
    """What an endpoint's answers depend on besides model and request: its weights, as far as named, and what it is sent."""
    parts = [f"{revision or api.base_url} {api.endpoint}"]
    # Defaults are left out: what is in stores already stays there under its key.
    parts += [
        f"{name} {getattr(api, name)}"
        for name in ("json_answers", "max_tokens_field")
        if getattr(api, name) != ApiConfig.model_fields[name].default
    ]
    if api.extra_body:
        parts.append(f"extra_body {digest(api.extra_body)}")
    return ", ".join(parts)


def load_tokenizer(model: str, revision: str | None) -> tuple[Any, str]:
    """A model's tokenizer, and its revision."""
    from transformers import AutoTokenizer

    advice = " Check teacher.model and the network, or use embedded:smollm2-135m-instruct, which needs none."
    source = resolve_model(model)
    local = Path(source).is_dir()
    if assets.is_embedded(model):
        asset = assets.get_asset(model)
        revision = f"{asset.package.name} {asset.package.version}, conversion {asset.version}" if asset.package else "built"
    else:
        revision = model_digest(source) if local else hub_commit(source, revision, advice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if local else revision, local_files_only=local)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the teacher '{model}': {first_line(error)}.{advice}") from error
    return tokenizer, revision
