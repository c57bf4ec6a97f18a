"""Training pairs: how a method turns examples and annotations into inputs and targets."""

from __future__ import annotations

import pandas as pd

from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.training.methods import Method

PAIR_COLUMNS = ["example_id", "input", "target", "target_kind", "weight"]
TARGET_KINDS = ("label", "rationale", "joint")  # joint: a rationale, and its label after it


def training_pairs(
    method: Method,
    examples: pd.DataFrame,
    annotations: pd.DataFrame | None,
    task: Task,
    rationale_weight: float,
    shared_encoder: bool = False,
) -> pd.DataFrame:
    """The pairs that a student is trained on.

    Args:
        examples: the Example rows to train on.
        annotations: the Annotation table, or None for methods that need none. Quarantined rows (`error` not null) are
            left out.
        rationale_weight: λ of L = L_label + λ L_rationale; the weight of every rationale pair.
        shared_encoder: a rationale's input is that of the label; the decoder is told which to write.

    Returns:
        A frame with PAIR_COLUMNS: at most one `label` pair an example, and one `rationale` pair for each of its sampled
        rationales; or, if rationale and label are one target, one `joint` pair for each. A rationale as input is that of
        the first sample, as there is one at inference. Each input has the task's prefix for its kind of target. An example
        without what the method needs (gold label, annotation) gives no pair, so that every method's label and rationale
        pairs are of the same examples.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none for these examples.
    """
    own = usable(annotations, gold_conditioned=False)
    teacher_labels = own.drop_duplicates("example_id").set_index("example_id")["label"].to_dict()
    # Samples may differ in their label; a rationale for another label would contradict the one that is learned.
    own = own[own["label"] == own["example_id"].map(teacher_labels)]
    chosen = own if method.rationale == "own" else usable(annotations, gold_conditioned=True)
    chosen = chosen[chosen["rationale"] != ""]  # a teacher may have written only its label
    rationales = chosen.groupby("example_id")["rationale"].apply(list).to_dict() if method.rationale else {}

    pairs = []
    for example in examples.itertuples():
        label = example.label if method.labels == "gold" else teacher_labels.get(example.id)
        samples = rationales.get(example.id, [])
        if pd.isna(label) or (method.rationale and not samples):
            continue
        if method.rationale_before_label:
            source = task.rationale_prefix + example.text
            pairs += [(example.id, source, task.joint_target(rationale, label), "joint", 1.0) for rationale in samples]
            continue
        text = task.with_rationale(example.text, samples[0]) if method.rationale_as_input else example.text
        pairs.append((example.id, task.label_prefix + text, task.verbalize(label), "label", 1.0))
        if method.writes_rationales:
            source = (task.label_prefix if shared_encoder else task.rationale_prefix) + example.text
            pairs += [(example.id, source, rationale, "rationale", rationale_weight) for rationale in samples]
    if not pairs:
        raise CotdError(missing_input(method, examples))
    return pd.DataFrame(pairs, columns=PAIR_COLUMNS)


def usable(annotations: pd.DataFrame | None, gold_conditioned: bool) -> pd.DataFrame:
    """The annotations of one kind that are not quarantined, in the order of their samples."""
    if annotations is None:
        return pd.DataFrame({"example_id": [], "label": [], "rationale": []})
    kept = annotations[(annotations["gold_conditioned"] == gold_conditioned) & annotations["error"].isna()]
    return kept.sort_values(["example_id", "sample"])


def missing_input(method: Method, examples: pd.DataFrame) -> str:
    """Why a method has nothing to learn from these examples."""
    if method.labels == "gold" and examples["label"].isna().all():
        return (
            f"method '{method.name}' trains on gold labels, but none of the {len(examples)} training examples has one. "
            "Name the label column in data.columns.label, or use a method with the teacher's labels: distill, *_unlabelled."
        )
    return (
        f"method '{method.name}' needs annotations, and none is usable for these {len(examples)} training examples. "
        "Run `cotd annotate CONFIG` first (with teacher.gold_conditioned: true for cot_labelled and cot_joint)."
    )
