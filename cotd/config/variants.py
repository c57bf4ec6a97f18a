"""Variants of a study: one file that can be run on other reviews, with another teacher, or at another scale."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from cotd.errors import CotdError, nearest

KEY = "variant="


def choose_variant(written: dict[str, Any], overrides: list[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """A study as its chosen variant has it, and the overrides that are left to apply.

    `variants` maps names to blocks that are laid over the study's own, key by key; `variant` names the one to use, in the
    file or as an override. The study is then called NAME-VARIANT, so that each variant has a folder of its own.

    Args:
        written: the file's content; it is not changed.

    Raises:
        CotdError: there is no such variant.
    """
    given = [o.partition("=")[2] for o in overrides if o.replace(" ", "").startswith(KEY)]
    rest = [o for o in overrides if not o.replace(" ", "").startswith(KEY)]
    plain = copy.deepcopy(written)
    variants = plain.pop("variants", None)
    if variants is None:
        if given:
            raise CotdError(f"{where}: override 'variant={given[-1]}': this study has no variants.")
        return plain, rest
    if not isinstance(variants, dict) or not variants or not all(isinstance(v, dict) for v in variants.values()):
        raise CotdError(
            f"{where}: variants: not a mapping of names to blocks, such as {{imdb: {{data: …}}, yelp: {{data: …}}}}"
        )
    name = str(yaml.safe_load(given[-1]) if given else plain.get("variant"))
    if name not in variants:
        known = ", ".join(variants)
        asked = f"no variant '{name}'.{nearest(name, list(variants))} There" if name != "None" else "variant is missing. There"
        raise CotdError(f"{where}: {asked} are: {known}; as in variant={next(iter(variants))}")
    return lay_over(plain, variants[name], name), rest


def all_variants(written: dict[str, Any], where: str, chosen: Any) -> dict[str, dict[str, Any]]:
    """The other variants of a study: where each is written → the study as it has it."""
    plain = {k: v for k, v in written.items() if k != "variants"}
    variants = written.get("variants") or {}
    return {
        f"{where}: variants.{name}": lay_over(copy.deepcopy(plain), copy.deepcopy(v), name)
        for name, v in variants.items()
        if name != chosen
    }


def lay_over(plain: dict[str, Any], blocks: dict[str, Any], name: str) -> dict[str, Any]:
    """A study with a variant's blocks merged in, and named after both."""
    named = {"name": f"{plain.get('name')}-{name}"} if "name" in plain else {}
    return {**merged(plain, blocks), **named, "variant": name}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings joined key by key; of anything else, lists included, the one in `over` stays."""
    joined = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        joined[key] = merged(base[key], value) if both else value
    return joined
