"""A trained student on a hub: its folder, and a model card that says what it is, how it was trained and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.evaluation.metrics import accuracy_table
from cotd.storage.hub import cell, push, without_places
from cotd.students.base_models import HUB_ID, find_student
from cotd.students.student import Student
from cotd.tasks.samples import sample_examples
from cotd.teachers.student.model import whose_student
from cotd.training.methods import METHODS
from cotd.utils.files import write_text
from cotd.utils.text import format_percent

# What a hub calls a kind of task.
HUB_TASKS = {"classification": "text-classification", "multiple_choice": "multiple-choice", "numeric": "text-generation"}
METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "roc_auc": "roc_auc"}  # the card's name → the hub's
LIBRARY_USE = """
With `transformers` alone:

```python
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{name}"), AutoModelForSeq2SeqLM.from_pretrained("{name}")
ids = tokenizer({text!r}{limit})["input_ids"]{cut}
logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[{start}]])).logits[0, 0]
first_tokens = {first_tokens}  # of each label's word
print(max(first_tokens, key=lambda label: logits[first_tokens[label]].item()))
```
"""


def require_trained(source: str) -> None:
    """Raises a CotdError unless `source` is a student that one of the methods trained."""
    _, card = find_student(source)
    if card.get("method") not in METHODS:
        raise CotdError(
            f"'{source}' is a base model, which cotd has not trained. Name a trained student: a folder or models:/NAME@champion."
        )


def push_student(source: str, name: str, private: bool = False, dry_run: bool = False) -> str:
    """Pushes a student; returns a sentence that says what happened.

    Args:
        source: as of `Student.load`.
        name: ORG/NAME on the hub.

    Raises:
        CotdError: it is not a trained student, or the push failed: see `cotd.storage.hub.push`.
    """
    require_trained(source)
    student = Student.load(source, device="cpu")
    base = student.card.get("base", "")
    hub_base = base if HUB_ID.match(base) and not Path(base).exists() else None
    student.card |= {key: without_places(student.card[key]) for key in ("base", "data", "teacher") if key in student.card}

    def write(folder: Path) -> None:
        student.save(folder)
        write_text(folder / "README.md", model_card(student, name, hub_base))

    return push(name, "model", write, private, dry_run)


def model_card(student: Student, name: str, hub_base: str | None) -> str:
    """The model card. Args: hub_base: the hub id of the base model, if it has one."""
    card, task = student.card, student.task
    does = " and writes rationales" if student.can_explain else ""
    parameters = sum(p.numel() for p in student.model.parameters())
    lines = [
        "---", front_matter(student, name, hub_base), "---", "", f"# {name.partition('/')[2]}", "",
        f"A {student.model.config.model_type.upper()} of {parameters:,} parameters that answers the task '{task.name}': "
        f"{task.noun} → {task.expected()}{does}. It was trained with cotd; `cotd.json` holds every setting.", "",
        "## Training", "", "| | |", "|---|---|", *(f"| {key} | {cell(value)} |" for key, value in training_rows(card)), "",
    ]  # fmt: skip
    if metrics := card.get("metrics"):
        lines += ["## Metrics", "", *accuracy_table(metrics), ""]
    return "\n".join([*lines, "## Use", "", *use_lines(student, name), "## Limits", "", *limits(student), ""])


def front_matter(student: Student, name: str, hub_base: str | None) -> str:
    """The card's YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    card, task = student.card, student.task
    test = card.get("metrics", {}).get("test", {})
    source = source_name(card)
    results = [
        EvalResult(HUB_TASKS[task.kind], source, source, metric, round(test[key], 4), dataset_split="test", task_name=task.name)
        for key, metric in METRICS.items()
        if key in test
    ]
    return ModelCardData(
        license="apache-2.0", base_model=hub_base, library_name="transformers", metrics=[r.metric_type for r in results] or None,
        tags=["cotd", HUB_TASKS[task.kind], task.name, card["method"], *["distillation"] * METHODS[card["method"]].distilled],
        model_name=name.partition("/")[2], eval_results=results or None,
    ).to_yaml()  # fmt: skip


def source_name(card: dict[str, Any]) -> str:
    """Where the student's examples came from, as one string."""
    source = card.get("data", {}).get("source", "unknown")
    return source if isinstance(source, str) else ", ".join(source.values())


def training_rows(card: dict[str, Any]) -> list[tuple[str, Any]]:
    """How the student was trained, as far as its card says."""
    rows: list[tuple[str, Any]] = [("method", f"`{card['method']}`: {METHODS[card['method']].title}")]
    rows += [(key.replace("base", "base model"), card[key]) for key in ("base", "seed") if key in card]
    rows.append(("examples", source_name(card)))
    if "fraction" in card:
        rows.append(("fraction of the training examples", format_percent(card["fraction"])))
    teacher = card.get("teacher")
    if teacher and METHODS[card["method"]].needs_annotations:
        accuracy = teacher.get("accuracy")
        measured = f", {accuracy:.1%} of {teacher['n']:,} test examples right" if accuracy is not None else ""
        strategy = f" ({teacher['strategy']})" if "strategy" in teacher else ""
        own = f", {whose_student(teacher['student'])}" if "student" in teacher else ""
        rows.append(("teacher", f"{teacher['model']}{own or strategy}{measured}"))
    return rows


def use_lines(student: Student, name: str) -> list[str]:
    """How to use the student, with cotd and without."""
    sample = sample_examples(student.task)[0]
    given = f"[{sample.text!r}]" + (f", choices=[{list(sample.choices)!r}]" if sample.choices else "")
    lines = [
        "```python",
        "import cotd",
        "",
        f'student = cotd.Student.load("{name}")',
        f"print(student.predict({given})[0].label)",
    ]
    lines += [f"print(student.explain({given})[0])"] * student.can_explain + ["```"]
    if student.rationale_before_label:
        return [
            *lines,
            "",
            "It writes a rationale before each label, so the label takes more than a few lines without cotd.",
            "",
        ]
    if student.backend.kind not in ("t5", "seq2seq") or student.first_tokens is None:
        return lines
    longest, tail = student.max_input_tokens, student.tail_tokens
    limit = f", truncation=True, max_length={longest}" if tail == 1 else ""
    cut = "" if tail == 1 else f"\nids = ids if len(ids) <= {longest} else ids[: {longest - tail}] + ids[-{tail}:]"
    library_use = LIBRARY_USE.format(
        name=name, text=student.task.label_prefix + sample.text, limit=limit, cut=cut, start=student.model.config.decoder_start_token_id,
        first_tokens=dict(zip(student.task.labels, student.first_tokens, strict=True)),
    )  # fmt: skip
    return [*lines, library_use]


def limits(student: Student) -> list[str]:
    """What a user must not expect."""
    head, tail = student.max_input_tokens - student.tail_tokens, student.tail_tokens
    cut = f"the first {head} and the last {tail} tokens are read" if tail > 1 else "their end is not read"
    lines = [
        f"- Of texts of more than {student.max_input_tokens} tokens {cut}.",
        "- Its metrics hold for examples like those that it was tested on; expect less of texts of another kind or language.",
        "- It has learned the mistakes and biases of its base model, its examples and its teacher, if it had one.",
        "- The terms of these may restrict its use beyond the license above.",
    ]
    if not student.free_answers:
        lines.append(
            f"- Probabilities are logits divided by {student.temperature:.4g}, a temperature fitted on validation examples."
        )
    return (
        lines
        + ["- Its rationales are text that goes with the label, not an account of how it was found."] * student.can_explain
    )
