"""What the papers published: accuracies to compare a study's own with, and the claims that a study can test.

Accuracies are those of the SC4001 report, "Chain-of-Thought (CoT) Distillation", section 6, in per cent, of one training run
each. Its two methods that learn the teacher's labels were scored against the teacher's labels of the test examples, not against
gold: those figures measure agreement with the teacher, and compare only loosely with a study's own, which are against gold.
"""

from __future__ import annotations

from dataclasses import dataclass

REPORT = "SC4001"
TASK = "sentiment"  # of both data sets
SCORED_BY_TEACHER = {"cot_unlabelled", "distill"}
DATASETS = {"imdb": "IMDb", "yelp": "Yelp"}
TEACHER = "GPT-3.5, few-shot chain of thought"
TEACHER_ACCURACY = {"imdb": 89.6, "yelp": 94.8}
# What the report trained, by the names of its models on the hub, and what it calls their size.
MODELS = {"google/t5-v1_1-small": "60M", "google/t5-v1_1-base": "220M"}

# Experiment 1 trains T5 60M on shares of the data, experiment 2 both sizes on all of it.
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
FRACTIONS_SIZE = "60M"
SIZES = ("60M", "220M")
# (data set, method) → accuracies at FRACTIONS and at SIZES. Where both have a figure, the report's two differ a little.
ACCURACIES = {
    ("imdb", "finetune"): ((81.0, 80.1, 83.5, 85.0), (85.1, 92.9)),
    ("imdb", "distill"): ((72.7, 72.7, 81.9, 84.2), (84.2, 90.7)),
    ("imdb", "cot_labelled"): ((87.5, 87.6, 87.9, 88.5), (88.5, 93.5)),
    ("imdb", "cot_unlabelled"): ((84.7, 86.3, 86.8, 88.4), (86.3, 91.1)),
    ("yelp", "finetune"): ((91.7, 92.7, 92.6, 92.8), (92.8, 95.9)),
    ("yelp", "distill"): ((90.3, 90.2, 91.3, 92.5), (92.5, 95.0)),
    ("yelp", "cot_labelled"): ((92.9, 93.1, 93.1, 93.2), (93.2, 96.6)),
    ("yelp", "cot_unlabelled"): ((92.6, 92.6, 93.0, 93.4), (92.7, 95.5)),
}
METHODS = {method for _, method in ACCURACIES}
# (data set, method, fraction or size) → accuracy.
BY_FRACTION = {(*key, f): a for key, (first, _) in ACCURACIES.items() for f, a in zip(FRACTIONS, first, strict=True)}
BY_SIZE: dict[tuple[str, str, str | None], float]
BY_SIZE = {(*key, s): a for key, (_, second) in ACCURACIES.items() for s, a in zip(SIZES, second, strict=True)}


@dataclass(frozen=True)
class Claim:
    """One method is better than another, for students of one size.

    Attributes:
        less_data: the better one has the smallest fraction and the other all of the data; otherwise both have the same.
    """

    better: str
    worse: str
    source: str
    less_data: bool = False

    @property
    def title(self) -> str:
        if self.less_data:
            return f"{self.better} with the least data beats {self.worse} with all of it"
        return f"{self.better} beats {self.worse}"


CLAIMS = (
    Claim("cot_labelled", "finetune", "Hsieh et al. 2023, section 4.1; SC4001, figures 4 and 6"),
    Claim("cot_unlabelled", "distill", "Hsieh et al. 2023, section 4.1; SC4001, figures 5 and 7"),
    Claim("cot_labelled", "finetune", "SC4001, section 4.1", less_data=True),
    Claim("cot_unlabelled", "distill", "SC4001, section 4.1", less_data=True),
    Claim("cot_labelled", "cot_joint", "Hsieh et al. 2023, section 4.4"),
    Claim("cot_unlabelled", "cot_joint_unlabelled", "Hsieh et al. 2023, section 4.4"),
)


def published_dataset(source: str) -> list[str]:
    """The published data set that a source is, as a list; an empty one if it is none of them."""
    return [d for d in DATASETS if d in source.lower()]
