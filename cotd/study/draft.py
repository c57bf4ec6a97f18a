"""A first study for a file of one's own: what its columns hold is seen from their cells, and said."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import pandas as pd
import yaml

from cotd.data.config import SPLIT_NAMES, template_columns
from cotd.data.files import BLOCK, LINE, PROBLEM, read_file
from cotd.data.rows import parse_choices
from cotd.errors import CotdError, nearest
from cotd.tasks.base import Task, cell_text
from cotd.tasks.multiple_choice import MultipleChoice
from cotd.tasks.numeric import Numeric
from cotd.tasks.registry import get_task, task_names

ROWS = 100 * BLOCK  # that are looked at
MOSTLY = 0.95  # the share of a column's cells that makes it what they are; the others are bad rows
MANY_LABELS = 200  # more different values are no set of labels
LABEL_CHARACTERS = 60
NUMBERS = 12  # up to so many different numbers are labels, stars say, and more are free answers
TEXT_WORDS = 2.5  # on average, from which a column is text
FEW_ROWS = 500  # fewer leave too few validation examples to calibrate a teacher by
MAX_TEXTS = 3  # columns that make one text
# Names that say what a column holds, the likeliest first.
LABEL_NAMES = ("label", "gold", "gold_label", "target", "answer", "class", "category", "intent", "sentiment", "topic", "stars")
PLAIN_LABEL_NAMES = ("label", "gold", "gold_label", "target", "answer", "class")  # which do not say what the labels are
TEXT_NAMES = ("text", "sentence", "review", "question", "message", "body", "content", "utterance")
NOUNS = ("sentence", "review", "question", "message", "utterance")  # names of text columns that say what a text is
WRITTEN_BY_A_MODEL = re.compile(r"rationale|explanation|reason|gpt|llm|teacher", re.IGNORECASE)
ID_NAME = re.compile(r"(^|_)(id|key|uuid|index)$", re.IGNORECASE)


@dataclass
class Column:
    """A column, by its cells that are not empty.

    Attributes:
        texts: cells as text. values: cells as they are, of the same rows.
    """

    name: str
    texts: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @property
    def words(self) -> float:
        """The mean number of words."""
        return sum(len(text.split()) for text in self.texts) / max(1, len(self.texts))

    def mostly(self, holds: Sequence[bool]) -> bool:
        """Whether something holds for most of the cells."""
        return bool(holds) and sum(holds) >= MOSTLY * len(holds)


@dataclass(frozen=True)
class Draft:
    """A study as YAML.

    Attributes:
        seen: what was seen in the file, as sentences.
    """

    yaml: str
    seen: list[str]


def draft_study(source: str, texts: Sequence[str] = (), label: str | None = None) -> Draft:
    """A study for a file.

    Args:
        source: a file as in `data.source`.
        texts, label: the columns of the text and the label, where their cells do not tell.

    Raises:
        CotdError: the file cannot be read, a named column is missing, or no column holds texts, or labels.
    """
    columns, rows, options = read_columns(source)
    if unknown := [name for name in [*texts, *([label] if label else [])] if name not in columns]:
        raise CotdError(
            *(f"{source}: no column '{name}'; it has: {', '.join(columns)}.{nearest(name, columns)}" for name in unknown)
        )
    split = next((name for name, column in columns.items() if holds_splits(column)), None)
    choices = next(iter(options), None)
    free = {name: c for name, c in columns.items() if name not in (split, *options)}
    labels = [label] if label else find_labels(free, texts, options.get(choices) if choices else None)
    label = next(iter(labels), None)
    if label is None:
        raise CotdError(f"{source}: no column holds labels (it has: {', '.join(columns)}). Name it: --label COLUMN.")
    worded = {} if texts else hold_words({name: c for name, c in free.items() if name != label})
    chosen = list(texts) or find_texts(worded, {name: c for name, c in free.items() if name != label})
    if not chosen:
        raise CotdError(f"{source}: no column holds texts (it has: {', '.join(columns)}). Name it: --text COLUMN.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name.partition(".")[0]).strip("-._") or "mine"
    task, task_seen = see_task(name, columns[label], choices is not None)
    mapped = {"text": chosen[0]} if len(chosen) == 1 else {}
    mapped |= {"choices": choices} if choices else {}
    mapped |= {"label": label} | ({"split": split} if split else {})
    data: dict[str, Any] = {"source": source}
    if len(chosen) > 1:
        data["input"] = " ".join(f"{name}: {{{name}}}" for name in chosen)
    data["columns"] = mapped
    words = input_words(columns, chosen) + (20 if choices else 0)
    few = rows < FEW_ROWS
    seen = [
        f"{source}: {rows:,} rows" + (f", the first {ROWS:,} of which were looked at" if rows >= ROWS else ""),
        f"text: column {' and '.join(chosen)}",
        *([f"options: column {choices}"] if choices else []),
        f"answer: column {label}, {task_seen}",
        *([f"split: column {split}"] if split else []),
    ]
    used = {*chosen, choices, label, split}
    if others := [other for other in columns if other not in used]:
        seen.append(f"not used: column {', '.join(others)}")
    few_values = [name for name in labels if name not in used and not choices and holds_labels(columns[name])]
    seen += [f"if column {other} is the answer: --label {other}" for other in few_values[:3]]
    if further := [name for name in worded if name not in used]:
        flags = " ".join(f"--text {name}" for name in [*chosen, *further][:MAX_TEXTS])
        seen.append(f"if column {' and '.join(further[: MAX_TEXTS - len(chosen)])} is part of the text: {flags}")
    noun = chosen[0].lower() if len(chosen) == 1 and chosen[0].lower() in NOUNS else "text"
    return Draft(as_yaml(name, task, data, few, words, noun), seen)


def read_columns(source: str) -> tuple[dict[str, Column], int, dict[str, list[list[str] | None]]]:
    """The columns of a file's first rows, their number, and each row's options by the column that has them."""
    blocks = itertools.islice(read_file(source), ROWS // BLOCK)
    frame = pd.concat(blocks, ignore_index=True)
    if PROBLEM in frame:
        frame = frame[frame[PROBLEM].isna()].drop(columns=[PROBLEM, LINE])
    columns: dict[str, Column] = {}
    options: dict[str, list[list[str] | None]] = {}
    for name in filter(None, map(str, frame.columns)):  # a study cannot name a column without a name
        cells = list(frame[name])
        parsed = [parse_choices(cell) for cell in cells]
        if Column(name).mostly([choice is not None for choice in parsed]):
            options[name] = parsed
        pairs = [(text, cell) for cell in cells if (text := cell_text(cell))]
        columns[name] = Column(name, [text for text, _ in pairs], [cell for _, cell in pairs])
    if not len(frame):
        raise CotdError(f"{source}: it has no rows.")
    return columns, len(frame), options


def holds_splits(column: Column) -> bool:
    """Whether every cell names a split, and one of them train."""
    values = {text.lower() for text in column.texts}
    return "train" in values and values <= SPLIT_NAMES.keys()


def find_labels(columns: dict[str, Column], texts: Sequence[str], options: list[list[str] | None] | None) -> list[str]:
    """Columns that may hold the answers, the likeliest first: of rows with options, those that name them; else those of few
    values, or of numbers.
    """
    candidates = [
        c
        for name, c in columns.items()
        if name not in texts and not ID_NAME.search(name) and not WRITTEN_BY_A_MODEL.search(name)
    ]
    if options is not None:
        task = MultipleChoice(name="quiz")
        candidates = [
            c
            for c in candidates
            if len(c.values) == len(options)
            and c.mostly([task.parse(v, own) is not None for v, own in zip(c.values, options, strict=True) if own])
        ]
    else:
        candidates = [c for c in candidates if holds_labels(c) or holds_numbers(c)]
    candidates.sort(key=lambda c: (rank(c.name, LABEL_NAMES), holds_numbers(c), len(set(c.texts))))
    return [c.name for c in candidates]


def holds_labels(column: Column) -> bool:
    """Whether the cells are a few short values that repeat."""
    values = {text.casefold() for text in column.texts}
    repeat = 2 * len(values) <= len(column.texts)
    return 2 <= len(values) <= MANY_LABELS and repeat and max(map(len, values)) <= LABEL_CHARACTERS


def holds_numbers(column: Column) -> bool:
    """Whether the cells are numbers, of more values than labels are."""
    task = Numeric(name="numbers")
    numbers = [task.parse(value) for value in column.values]
    return column.mostly([number is not None for number in numbers]) and len(set(numbers)) > NUMBERS


def rank(name: str, names: Sequence[str]) -> int:
    """The place of a column's name among the usual ones, which come first."""
    return names.index(name.lower()) if name.lower() in names else len(names)


def hold_words(columns: dict[str, Column]) -> dict[str, Column]:
    """Columns of words, which are no ids and which no model wrote."""
    return {
        name: c
        for name, c in columns.items()
        if c.words >= TEXT_WORDS and not ID_NAME.search(name) and not WRITTEN_BY_A_MODEL.search(name)
    }


def find_texts(worded: dict[str, Column], columns: dict[str, Column]) -> list[str]:
    """The columns of the text: the one that is called so, else all that have words, if they are few, else the longest."""
    found = list(worded.values())
    if not found and len(columns) == 1:  # texts of a word or two
        found = list(columns.values())
    usual = sorted((c for c in found if rank(c.name, TEXT_NAMES) < len(TEXT_NAMES)), key=lambda c: rank(c.name, TEXT_NAMES))
    if usual:
        return [usual[0].name]
    if len(found) <= MAX_TEXTS and (len(found) < 2 or all(fits_template(c.name) for c in found)):
        return [c.name for c in found]
    return [max(found, key=lambda c: c.words).name]


def fits_template(name: str) -> bool:
    """Whether a template can name a column: one with a brace or a colon in its name it cannot."""
    try:
        return template_columns(f"{{{name}}}") == [name]
    except ValueError:
        return False


def see_task(name: str, label: Column, has_choices: bool) -> tuple[dict[str, Any] | str, str]:
    """(the task of a study, what was seen of its answers)."""
    if has_choices:
        return {"name": name, "kind": "multiple_choice"}, "one of the row's options"
    if holds_numbers(label):
        return {"name": name, "kind": "numeric"}, "numbers"
    spellings: dict[str, Counter[str]] = {}
    for text in label.texts:
        spellings.setdefault(text.casefold(), Counter())[text] += 1
    labels = {counts.most_common(1)[0][0]: counts.total() for counts in spellings.values()}
    shown = ", ".join(f"{text} ({count:,})" for text, count in sorted(labels.items(), key=lambda item: -item[1])[:10])
    seen = f"{len(labels)} labels: {shown}" + (" and others" if len(labels) > 10 else "")
    if (known := built_in(list(labels))) is not None:
        return known.name, f"{seen}, the labels of the built-in task {known.name}"
    ordered = sorted(labels, key=lambda text: (math.inf if Numeric(name="n").parse(text) is None else float(text), text))
    return {"name": name, "kind": "classification", "labels": ordered}, seen


def built_in(labels: list[str]) -> Task | None:
    """The built-in task of these labels; which one numbers stand for would be a guess."""
    if any(text.lstrip("-").isdecimal() for text in labels):
        return None
    for task in map(get_task, task_names()):
        parsed = [task.parse(text) for text in labels]
        if task.labels and None not in parsed and sorted(map(str, parsed)) == sorted(task.labels):
            return task
    return None


def input_words(columns: dict[str, Column], texts: list[str]) -> int:
    """The number of words that 19 of 20 texts have at most."""
    longest = [quantiles(([len(text.split()) for text in columns[name].texts] or [0]) * 2, n=20)[-1] for name in texts]
    return math.ceil(sum(longest)) + 2 * len(texts)


def as_yaml(name: str, task: dict[str, Any] | str, data: dict[str, Any], few: bool, words: int, noun: str) -> str:
    """The study, as a person would write it."""
    tokens = min(512, max(64, 32 * math.ceil(words * 1.5 / 32)))
    kind = task if isinstance(task, str) else task["kind"]
    teacher = "teacher: {model: embedded:smollm2-135m-instruct}"
    alike = isinstance(task, dict) and begin_alike(task.get("labels", []))
    if kind == "numeric":
        teacher = (
            "teacher:\n  model: embedded:smollm2-135m-instruct\n  strategy: chain_of_thought # there are no options to score"
        )
    elif alike:
        teacher = (
            "teacher:\n  model: embedded:smollm2-135m-instruct\n"
            "  strategy: chain_of_thought # labels that begin alike cannot be scored by their first token"
        )
    elif few:
        teacher = (
            "teacher:\n  model: embedded:smollm2-135m-instruct\n"
            "  calibration: {method: prior} # platt, the default, needs more validation examples"
        )
    words_of_it = []
    if isinstance(task, dict):
        words_of_it = [f"  noun: {noun} # what prompts and reports call one: review, question, support ticket"]
        words_of_it += ['  instruction: "" # what a teacher is asked, as a sentence']
        if (column := data["columns"]["label"]).lower() not in PLAIN_LABEL_NAMES and kind == "classification":
            label_name = flow({"label_name": " ".join(re.split(r"[\W_]+", column)).strip().capitalize() or "Label"})[0]
            words_of_it += [f"  {label_name} # what prompts call a label"]
    return "\n".join(
        [
            f"# Written by cotd init for {data['source']!r}. All keys: docs/configuration.md.",
            *flow({"name": name}),
            "",
            dump({"task": task}),
            *words_of_it,
            "",
            dump({"data": data}),
            "",
            f"{teacher} # small; name a larger one, or an endpoint" if "\n" not in teacher else teacher,
            "",
            "grid:",
            "  method: [finetune, distill, cot_labelled] # finetune alone asks no teacher",
            "  fraction: [1.0] # of the training examples",
            "  size: [tiny]",
            "  seed: [0]",
            "",
            "training:",
            f"  max_input_tokens: {tokens}",
            "",
        ]
    )


def begin_alike(labels: Sequence[str]) -> bool:
    """Whether two labels begin with the same word, or with the same digit of a number."""
    starts = [re.match(r"\d|[^\W_]*", label.casefold()) for label in labels]
    return len({start and start[0] for start in starts}) < len(labels)


def dump(block: dict[str, Any]) -> str:
    """A block of YAML whose values are in flow style."""
    (key, content), *_ = block.items()
    if not isinstance(content, dict):
        return f"{key}: {content}"
    lines = [f"  {line}" for name, value in content.items() for line in flow({name: value})]
    return "\n".join([f"{key}:", *lines])


def flow(entry: dict[str, Any]) -> list[str]:
    """The lines of one key with its value."""
    ((key, value),) = entry.items()
    written = yaml.safe_dump(value, default_flow_style=True, width=110, allow_unicode=True, sort_keys=False).strip()
    first, *rest = written.removesuffix("...").strip().splitlines()
    return [f"{key}: {first}", *(f"  {line.strip()}" for line in rest)]
