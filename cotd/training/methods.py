"""The training methods: how examples and annotations become training pairs. A new method is one entry here.

Sources: Hsieh et al. 2023, "Distilling Step-by-Step!", section 3; the SC4001 report, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """One way to train a student.

    Attributes:
        title: the name in the papers.
        labels: whose label is the target: "gold" or the "teacher"'s.
        rationale: which rationale is used: None, the one written "given_gold", or the "own" one that the teacher wrote
            with its own label.
        rationale_as: a "target" of its own, under its own prefix; the first part of a "joint_target" that ends with the
            label; or an "input" beside the example. A rationale written given gold gives the gold label away, so that it
            can be a target and never an input.
    """

    name: str
    title: str
    labels: Literal["gold", "teacher"]
    rationale: Literal["given_gold", "own"] | None
    rationale_as: Literal["target", "joint_target", "input"] = "target"

    def __post_init__(self) -> None:
        if self.rationale_as == "input" and self.rationale != "own":
            raise ValueError(
                f"method '{self.name}': only the teacher's own rationales can be inputs; others give the label away"
            )

    @property
    def needs_annotations(self) -> bool:
        """Whether the teacher's labels or rationales are used."""
        return self.labels == "teacher" or self.rationale is not None

    @property
    def distilled(self) -> bool:
        """Whether the teacher contributes: `cotd promote` chooses among these by default."""
        return self.needs_annotations

    @property
    def rationale_as_input(self) -> bool:
        """Whether a rationale is an input: the student needs the teacher at inference and cannot be served."""
        return self.rationale_as == "input"

    @property
    def rationale_before_label(self) -> bool:
        """Whether the student writes its rationale before its label."""
        return self.rationale_as == "joint_target"

    @property
    def multitask(self) -> bool:
        """Whether λ is part of the loss."""
        return self.rationale is not None and self.rationale_as == "target"

    @property
    def writes_rationales(self) -> bool:
        """Whether the student learns to write rationales."""
        return self.rationale is not None and not self.rationale_as_input


METHODS = {
    method.name: method
    for method in (
        Method("finetune", "standard finetuning", "gold", None),
        Method("distill", "standard task distillation", "teacher", None),
        Method("cot_labelled", "labelled CoT distillation", "gold", "given_gold"),
        Method("cot_unlabelled", "unlabelled CoT distillation", "teacher", "own"),
        # Hsieh et al. 2023, section 4.4; Magister et al. 2022; Ho et al. 2022.
        Method("cot_joint", "single-task CoT distillation", "gold", "given_gold", "joint_target"),
        Method("cot_joint_unlabelled", "unlabelled single-task CoT distillation", "teacher", "own", "joint_target"),
        # Wang et al. 2022, "PINTO".
        Method("rationale_input", "rationale as input", "gold", "own", "input"),
        Method("rationale_input_unlabelled", "rationale as input, teacher's labels", "teacher", "own", "input"),
    )
}
"""The methods by name.

Example:
    >>> cotd.METHODS["cot_labelled"].title
    'labelled CoT distillation'
"""
