"""Variants: one configuration file that can be run on other data, with another teacher, or at another scale."""

from __future__ import annotations

import copy
from typing import Any

from cotd.errors import CotdError, nearest


def choose_variant(written: dict[str, Any], overrides: list[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """The configuration of the chosen variant, and the overrides that are left to apply.

    `variants` maps names to blocks that are merged into the file's own, key by key; `variant` names the one to use, in the
    file or as an override; of a file with `stages` it is the last of these. The result is called NAME-VARIANT, so that each
    variant has a folder of its own.

    Args:
        written: the file's content; it is not changed.

    Raises:
        CotdError: no variant is chosen, or it does not exist.
    """
    choices = chosen_variants(overrides)
    rest = [o for o in overrides if o not in choices]
    stages = stage_names(written, where)
    plain = copy.deepcopy({key: value for key, value in written.items() if key != "stages"})
    variants = plain.pop("variants", None)
    if variants is None:
        if choices:
            raise CotdError(f"{where}: override '{choices[-1]}': this study has no variants.")
        return plain, rest
    if not isinstance(variants, dict) or not variants or not all(isinstance(v, dict) for v in variants.values()):
        raise CotdError(
            f"{where}: variants: not a mapping of names to blocks, such as {{imdb: {{data: …}}, yelp: {{data: …}}}}"
        )
    chosen = choices[-1].partition("=")[2].strip() if choices else stages[-1] if stages else plain.get("variant")
    name = str(chosen)
    if name not in variants:
        problem = "choose a variant" if chosen is None else f"no variant '{name}'.{nearest(name, variants)} Choose one"
        raise CotdError(f"{where}: {problem}, for example variant={next(iter(variants))}. Available: {', '.join(variants)}.")
    return with_variant(plain, variants[name], name), rest


def chosen_variants(overrides: list[str]) -> list[str]:
    """Those overrides that choose a variant."""
    return [o for o in overrides if o.replace(" ", "").startswith("variant=")]


def stage_names(written: dict[str, Any], where: str) -> list[str]:
    """The variants that are run one after another; none if the file has no `stages`.

    Raises:
        CotdError: they are not variants of the file, each once.
    """
    if "stages" not in written:
        return []
    stages, variants = written["stages"], written.get("variants")
    if not isinstance(variants, dict):
        raise CotdError(f"{where}: stages: they are variants, and this study has none. Write each as a block of `variants`.")
    if not (isinstance(stages, list) and stages and all(isinstance(s, str) for s in stages)):
        raise CotdError(f"{where}: stages: not a list of variants in their order. Available: {', '.join(variants)}.")
    if unknown := [s for s in stages if s not in variants]:
        raise CotdError(
            f"{where}: stages: no variant '{unknown[0]}'.{nearest(unknown[0], variants)} Available: {', '.join(variants)}."
        )
    if len(set(stages)) < len(stages):
        raise CotdError(f"{where}: stages: a variant is named twice. Name each once.")
    if "variant" in written:
        raise CotdError(f"{where}: `variant` and `stages` are mutually exclusive: remove one.")
    return stages


def other_variants(written: dict[str, Any], where: str, chosen: Any) -> dict[str, dict[str, Any]]:
    """The variants that were not chosen: where each is written → its configuration."""
    plain = {k: v for k, v in written.items() if k not in ("variants", "stages")}
    variants = (written.get("variants") or {}).items()
    return {f"{where}: variants.{name}": with_variant(plain, blocks, name) for name, blocks in variants if name != chosen}


def with_variant(plain: dict[str, Any], blocks: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with a variant's blocks merged in, named after both."""
    renamed = {"name": f"{plain.get('name')}-{name}"} if "name" in plain else {}
    return copy.deepcopy({**merge(plain, blocks), **renamed, "variant": name})


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings joined key by key; of anything else, lists included, the value in `over` counts."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged
