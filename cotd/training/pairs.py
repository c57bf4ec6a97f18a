"""Training pairs: how a method turns examples and annotations into inputs and targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from cotd.errors import CotdError
from cotd.students.backends.base import TARGET_KINDS as TARGET_KINDS
from cotd.tasks.base import Task
from cotd.training.methods import Method

PAIR_COLUMNS = ["example_id", "text", "target", "target_kind", "weight"]


def training_pairs(
    method: Method, examples: pd.DataFrame, annotations: pd.DataFrame | None, task: Task, rationale_weight: float
) -> pd.DataFrame:
    """The pairs that a student is trained on.

    Args:
        examples: the Example rows to train on.
        annotations: the Annotation table, or None for methods that need none. Quarantined rows (`error` not null) are
            left out.
        rationale_weight: λ of L = L_label + λ L_rationale; the weight of every rationale pair.

    Returns:
        A frame with PAIR_COLUMNS: at most one `label` pair an example, and one `rationale` pair for each of its sampled
        rationales; or, if rationale and label are one target, one `joint` pair for each. `text` is what is read of the example:
        its text with its own options and, if the rationale is an input, the first sample's before it, as there is one at
        inference; how the target is asked for is the backend's matter. An example without what the method needs (gold label,
        annotation) gives no pair, so that every method's label and rationale pairs are of the same examples.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none for these examples.
    """
    return pd.concat(pairs_in_blocks(method, [examples], annotations, task, rationale_weight), ignore_index=True)


def pairs_in_blocks(
    method: Method,
    blocks: Iterable[pd.DataFrame],
    annotations: pd.DataFrame | None,
    task: Task,
    rationale_weight: float,
) -> Iterator[pd.DataFrame]:
    """What `training_pairs` gives of all blocks of examples, a block at a time; a frame of none is left out.

    Raises:
        CotdError: as `training_pairs`, at the end.
    """
    own = usable(annotations, gold_conditioned=False)
    teacher_labels = own.drop_duplicates("example_id").set_index("example_id")["label"]
    # Samples may differ in their label; a rationale for another label would contradict the one that is learned.
    own = own[own["label"] == own["example_id"].map(teacher_labels)]
    chosen = own if method.rationale == "own" else usable(annotations, gold_conditioned=True)
    chosen = chosen.loc[chosen["rationale"] != "", ["example_id", "rationale"]]  # a teacher may have written only its label
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
            if pd.isna(answer) or (method.rationale and not samples):
                continue
            text = task.render(text, own_choices)
            if method.rationale_before_label:
                pairs += [(example_id, text, task.joint_target(why, answer), "joint", 1.0) for why in samples]
                continue
            read = task.with_rationale(text, samples[0]) if method.rationale_as_input else text
            pairs.append((example_id, read, task.verbalize(answer), "label", 1.0))
            if method.writes_rationales:
                pairs += [(example_id, text, why, "rationale", rationale_weight) for why in samples]
        if pairs:
            found = True
            yield pd.DataFrame(pairs, columns=PAIR_COLUMNS)
    if not found:
        raise CotdError(missing_input(method, count, labelled))


def usable(annotations: pd.DataFrame | None, gold_conditioned: bool) -> pd.DataFrame:
    """The annotations of one kind that are not quarantined, in the order of their samples."""
    if annotations is None:
        return pd.DataFrame({"example_id": [], "label": [], "rationale": []})
    kept = annotations[(annotations["gold_conditioned"] == gold_conditioned) & annotations["error"].isna()]
    return kept.sort_values(["example_id", "sample"])


def missing_input(method: Method, examples: int, labelled: int) -> str:
    """Why a method has nothing to learn from so many examples, of which so many have a gold label."""
    if method.labels == "gold" and not labelled:
        return (
            f"method '{method.name}' trains on gold labels, but none of the {examples} training examples has one. "
            "Name the label column in data.columns.label, or use a method with the teacher's labels: distill, *_unlabelled."
        )
    return (
        f"method '{method.name}' needs annotations, and none is usable for these {examples} training examples. "
        "Run `cotd annotate CONFIG` first (with teacher.gold_conditioned: true for cot_labelled and cot_joint)."
    )
