"""Training pairs: how a method turns examples and annotations into inputs and targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from cotd.errors import CotdError
from cotd.students.backends.base import TARGET_KINDS as TARGET_KINDS
from cotd.tasks.base import Task
from cotd.teachers.filters import label_stands
from cotd.training.methods import Method

PAIR_COLUMNS = ["example_id", "text", "target", "target_kind", "weight"]
AFTER_LABEL = "\n"  # stands between label and rationale in a target that has both, in this order; neither has one
LEAST_PROBABILITY = 0.001  # answers that a teacher thinks less likely are not worth a target


def training_pairs(method: Method, examples: pd.DataFrame, annotations: pd.DataFrame | None, task: Task) -> pd.DataFrame:
    """The pairs that a student is trained on.

    Args:
        examples: the Example rows to train on.
        annotations: the Annotation table, or None for methods that need none. Quarantined rows (`error` not null) are
            left out.

    Returns:
        A frame with PAIR_COLUMNS: at most one `label` pair an example, and one `rationale` pair for each of its sampled
        rationales; or, if rationale and label are one target, one `joint` or `after_label` pair for each; or, of a teacher's
        probabilities, a `label` pair for each answer. `weight` is the answer's probability, else 1. `text` is what is read of
        the example: its text with its own options and, if the rationale is an input, the first sample's before it, as there is
        one at inference; how the target is asked for is the backend's matter. An example without what the method needs (gold
        label, annotation) gives no pair; where all its rationales were filtered, its label is learned alone.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none for these examples.
    """
    return pd.concat(pairs_in_blocks(method, [examples], annotations, task), ignore_index=True)


def pairs_in_blocks(
    method: Method, blocks: Iterable[pd.DataFrame], annotations: pd.DataFrame | None, task: Task
) -> Iterator[pd.DataFrame]:
    """What `training_pairs` gives of all blocks of examples, a block at a time; a frame of none is left out.

    Raises:
        CotdError: as `training_pairs`, at the end.
    """
    own = usable(annotations, gold_conditioned=False)
    first = own.drop_duplicates("example_id").set_index("example_id")
    teacher_labels, probabilities = first["label"], first["probabilities"].dropna().to_dict() if method.soft else {}
    # Samples may differ in their label; a rationale for another label would contradict the one that is learned.
    own = own[own["label"] == own["example_id"].map(teacher_labels)]
    chosen = own if method.rationale == "own" else usable(annotations, gold_conditioned=True)
    filtered = chosen["error"].notna()
    label_alone = set(chosen.loc[filtered, "example_id"]) if method.multitask else set()
    chosen = chosen.loc[
        ~filtered & (chosen["rationale"] != ""), ["example_id", "rationale"]
    ]  # some teachers write labels alone
    count, labelled, found = 0, 0, False
    for examples in blocks:
        count, labelled = count + len(examples), labelled + int(examples["label"].notna().sum())
        here = chosen[chosen["example_id"].isin(examples["id"])] if method.rationale else chosen[:0]
        rationales = here.groupby("example_id")["rationale"].apply(list).to_dict()
        answers = examples["label"] if method.labels == "gold" else examples["id"].map(teacher_labels)
        choices = examples["choices"] if "choices" in examples else [None] * len(examples)
        pairs = []
        for example_id, text, own_choices, answer in zip(examples["id"], examples["text"], choices, answers, strict=True):
            samples = rationales.get(example_id, [])
            if pd.isna(answer) or (method.rationale and not samples and example_id not in label_alone):
                continue
            text = task.render(text, own_choices)
            if method.soft:
                weighted = likely_answers(task.options(own_choices) or (), probabilities.get(example_id, ()))
                pairs += [(example_id, text, task.verbalize(option), "label", p) for option, p in weighted]
                continue
            if method.rationale_before_label:
                pairs += [(example_id, text, task.joint_target(why, answer), "joint", 1.0) for why in samples]
                continue
            if method.rationale_after_label:
                said = task.verbalize(answer) + AFTER_LABEL
                pairs += [(example_id, text, said + why, "after_label", 1.0) for why in samples]
                continue
            read = task.with_rationale(text, samples[0]) if method.rationale_as_input else text
            pairs.append((example_id, read, task.verbalize(answer), "label", 1.0))
            if method.writes_rationales:
                pairs += [(example_id, text, why, "rationale", 1.0) for why in samples]
        if pairs:
            found = found or bool(rationales) or not method.rationale
            yield pd.DataFrame(pairs, columns=PAIR_COLUMNS)
    if not found:
        raise CotdError(missing_input(method, count, labelled))


def likely_answers(options: Sequence[str], probabilities: Sequence[float]) -> list[tuple[str, float]]:
    """The options that a teacher thinks possible, and their probabilities, which sum to 1; nothing if it gave none."""
    kept = [(option, float(p)) for option, p in zip(options, probabilities, strict=False) if p >= LEAST_PROBABILITY]
    total = sum(p for _, p in kept)
    return [(option, p / total) for option, p in kept]


def usable(annotations: pd.DataFrame | None, gold_conditioned: bool) -> pd.DataFrame:
    """The annotations of one kind whose label may be learned, see `label_stands`, in the order of their samples."""
    if annotations is None:
        return pd.DataFrame({"example_id": [], "label": [], "probabilities": [], "rationale": [], "error": []})
    kept = annotations[(annotations["gold_conditioned"] == gold_conditioned) & label_stands(annotations["error"])]
    return kept.sort_values(["example_id", "sample"])


def missing_input(method: Method, examples: int, labelled: int) -> str:
    """Why a method has nothing to learn from so many examples, of which so many have a gold label."""
    if method.labels == "gold" and not labelled:
        return (
            f"method '{method.name}' trains on gold labels, but none of the {examples} training examples has one. "
            "Name the label column in data.columns.label, or use a method with the teacher's labels: distill, *_unlabelled."
        )
    if method.soft:
        return (
            f"method '{method.name}' learns the teacher's probabilities, and no usable annotation of these {examples} training "
            "examples has them. Run `cotd annotate CONFIG` with teacher.strategy: score_then_explain first, or use distill."
        )
    return (
        f"method '{method.name}' needs annotations, and none is usable for these {examples} training examples. "
        "Run `cotd annotate CONFIG` first (with teacher.gold_conditioned: true for cot_labelled, cot_joint and cot_after)."
    )
