"""What the papers published: accuracies to set a study's own beside, and the claims that a study can test.

Accuracies are those of the SC4001 report, "Chain-of-Thought (CoT) Distillation", section 6, in per cent, one training each.
Its two methods with the teacher's labels were scored against the teacher's labels of the test reviews, not against gold:
those figures are agreement with the teacher, and compare with a study's own, which are all against gold, only loosely.
"""

from __future__ import annotations

from dataclasses import dataclass

REPORT = "SC4001"
SCORED_BY_TEACHER = ("cot_unlabelled", "distill")
DATASETS = {"imdb": "IMDb", "yelp": "Yelp"}
TEACHER = "GPT-3.5, few-shot chain of thought"
TEACHER_ACCURACY = {"imdb": 89.6, "yelp": 94.8}

# Experiment 1: T5 60M; dataset → method → accuracy at each of FRACTIONS.
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
FRACTIONS_SIZE = "60M"
BY_FRACTION = {
    "imdb": {
        "finetune": (81.0, 80.1, 83.5, 85.0),
        "distill": (72.7, 72.7, 81.9, 84.2),
        "cot_labelled": (87.5, 87.6, 87.9, 88.5),
        "cot_unlabelled": (84.7, 86.3, 86.8, 88.4),
    },
    "yelp": {
        "finetune": (91.7, 92.7, 92.6, 92.8),
        "distill": (90.3, 90.2, 91.3, 92.5),
        "cot_labelled": (92.9, 93.1, 93.1, 93.2),
        "cot_unlabelled": (92.6, 92.6, 93.0, 93.4),
    },
}

# Experiment 2: all of the data; dataset → method → accuracy at each of SIZES. Where both experiments have a figure, the
# report gives two that differ a little.
SIZES = ("60M", "220M")
BY_SIZE = {
    "imdb": {
        "finetune": (85.1, 92.9),
        "distill": (84.2, 90.7),
        "cot_labelled": (88.5, 93.5),
        "cot_unlabelled": (86.3, 91.1),
    },
    "yelp": {
        "finetune": (92.8, 95.9),
        "distill": (92.5, 95.0),
        "cot_labelled": (93.2, 96.6),
        "cot_unlabelled": (92.7, 95.5),
    },
}

# What the report trained, by the names of its models on the hub, and what it calls their size.
MODELS = {"google/t5-v1_1-small": "60M", "google/t5-v1_1-base": "220M"}


def datasets_like(source: str) -> list[str]:
    """The published data sets to set a source beside: the one it is, or all."""
    return [d for d in DATASETS if d in source.lower()] or list(DATASETS)


def by_fraction(dataset: str, method: str, fraction: float) -> float | None:
    """Published accuracy of Experiment 1, in per cent, or None."""
    accuracies = BY_FRACTION[dataset].get(method)
    return accuracies[FRACTIONS.index(fraction)] if accuracies and fraction in FRACTIONS else None


def by_size(dataset: str, method: str, size: str | None) -> float | None:
    """Published accuracy of Experiment 2, in per cent, or None. `size` is one of SIZES."""
    accuracies = BY_SIZE[dataset].get(method)
    return accuracies[SIZES.index(size)] if accuracies and size in SIZES else None


@dataclass(frozen=True)
class Claim:
    """One method is better than another.

    Attributes:
        less_data: the better one is said to be so with the smallest fraction, against the other on all of the data;
            otherwise the two are compared at the same fraction. They are of the same size either way.
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
