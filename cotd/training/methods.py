"""The training methods: how examples and annotations become training pairs. A new method is one entry here."""

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
        rationale_as: a "target" of its own, under its own prefix; part of one target with the label, before it
            ("joint_target") or "after_label"; or an "input" beside the example. A rationale written given gold gives the gold
            label away, so that it can be a target and never an input.
        soft: whether the targets are all answers, each weighted by the teacher's probability of it.
        mutual_information: the weight in the loss of how little an example's rationale, as the student writes it, tells of its label.
        stages: names of methods by which a student is trained one after another, in place of all of the above but `labels`,
            which is the last one's. They share `training.steps` equally; each begins with the best student of the one before.
    """

    name: str
    title: str
    labels: Literal["gold", "teacher"]
    rationale: Literal["given_gold", "own"] | None = None
    rationale_as: Literal["target", "joint_target", "after_label", "input"] = "target"
    soft: bool = False
    mutual_information: float = 0.0
    stages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rationale_as == "input" and self.rationale != "own":
            raise ValueError(
                f"method '{self.name}': only the teacher's own rationales can be inputs; others give the label away"
            )
        if self.soft and (self.labels != "teacher" or self.rationale):
            raise ValueError(f"method '{self.name}': probabilities are the teacher's, and targets without rationales")
        if self.mutual_information and not self.multitask:
            raise ValueError(f"method '{self.name}': label and rationale need targets of their own to tell of each other")

    @property
    def parts(self) -> list[Method]:
        """The methods of its stages; itself if it has none."""
        return [METHODS[name] for name in self.stages] or [self]

    @property
    def needs_annotations(self) -> bool:
        """Whether the teacher's labels or rationales are used."""
        return any(part.labels == "teacher" or part.rationale is not None for part in self.parts)

    @property
    def learns_teacher_labels(self) -> bool:
        """Whether the teacher's labels are targets."""
        return any(part.labels == "teacher" for part in self.parts)

    @property
    def learns_probabilities(self) -> bool:
        """Whether the teacher's probabilities are targets."""
        return any(part.soft for part in self.parts)

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
    def rationale_after_label(self) -> bool:
        """Whether the student writes its rationale after its label, as one target."""
        return self.rationale_as == "after_label"

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
        # Hsieh et al. 2023, "Distilling Step-by-Step!", section 3; the SC4001 report, section 3.
        Method("finetune", "standard finetuning", "gold"),
        Method("distill", "standard task distillation", "teacher"),
        # Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, at the temperature of the calibration.
        Method("distill_soft", "task distillation with the teacher's probabilities", "teacher", soft=True),
        # Csanády et al. 2024, "LlamBERT": labels of much unlabelled text first, then gold.
        Method("distill_then_finetune", "task distillation, then finetuning", "gold", stages=("distill", "finetune")),
        Method("cot_labelled", "labelled CoT distillation", "gold", "given_gold"),
        Method("cot_unlabelled", "unlabelled CoT distillation", "teacher", "own"),
        # Chen et al. 2024, "Learning to Maximize Mutual Information for Chain-of-Thought Distillation", with its code's weight.
        Method("cot_mi", "CoT distillation with mutual information", "gold", "given_gold", mutual_information=0.1),
        # Hsieh et al. 2023, section 4.4; Magister et al. 2022; Ho et al. 2022.
        Method("cot_joint", "single-task CoT distillation", "gold", "given_gold", "joint_target"),
        Method("cot_joint_unlabelled", "unlabelled single-task CoT distillation", "teacher", "own", "joint_target"),
        # Wadhwa et al. 2024, "Investigating Mysteries of CoT-Augmented Distillation": the rationale after the label.
        Method("cot_after", "CoT distillation, label first", "gold", "given_gold", "after_label"),
        Method("cot_after_unlabelled", "unlabelled CoT distillation, label first", "teacher", "own", "after_label"),
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
