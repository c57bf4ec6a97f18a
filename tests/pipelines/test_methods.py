"""Students of methods beyond labels and rationales, from annotation to their answers; engine and Ray apart, the real path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.students.student import Student
from cotd.study.config import StudyConfig, load_config
from cotd.training.train import train_trial
from pipelines.annotate.files import read_annotations
from pipelines.annotate.run import annotate
from pipelines.prepare import prepare
from pipelines.sweep.plan import plan_study

pytestmark = pytest.mark.thorough
METHODS = ["finetune", "distill", "distill_soft", "distill_then_finetune", "cot_after"]


@pytest.fixture
def config(write_study: Callable[..., Path], tiny_t5: Path, tmp_path: Path) -> StudyConfig:
    """With ten texts more than have gold labels."""
    texts = [f"A {'warm and funny' if n % 2 else 'dull and lifeless'} one, number {n}." for n in range(200, 210)]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "more.csv", index=False)
    path = write_study(
        grid={"method": METHODS, "fraction": [1.0], "size": ["tiny"], "seed": [0]}, sizes={"tiny": str(tiny_t5)},
        training={"steps": 4, "eval_every": 2, "batch_size": 8, "max_target_tokens": 16}, teacher={"calibration": {"rows": 24}},
    )  # fmt: skip
    return load_config(path, [f"data.unlabelled={tmp_path}/more.csv"])


def test_texts_without_gold_are_annotated_and_learned_by_what_needs_none(config: StudyConfig, teacher_double: Any) -> None:
    prepared = prepare(config)
    assert (prepared.counts["unlabelled"], prepared.splits["train"]) == (10, 34)
    assert sum(prepared.labels["train"].values()) == 24
    plain = config.model_copy(update={"data": config.data.model_copy(update={"unlabelled": None})})
    assert prepare(plain).digest != prepared.digest

    summary = annotate(config, teacher_double.complete)
    assert summary["annotations"]["examples"] == 34
    annotated = read_annotations(config)
    assert annotated is not None
    own = annotated[0][~annotated[0]["gold_conditioned"]]
    assert (len(own), int(annotated[0]["gold_conditioned"].sum())) == (34, 24)
    for label, probability, each in zip(own["label"], own["label_probability"], own["probabilities"], strict=True):
        assert sum(each) == pytest.approx(1)
        assert each[config.task.labels.index(label)] == pytest.approx(probability)

    plan = plan_study(config)
    results = {}
    for trial in plan.trials:
        folder = plan.folder(trial)
        folder.write_trial(trial, config.model_dump())
        results[trial.method] = train_trial(trial, folder, plan.examples, plan.annotations, cache=plan.cache)
    assert {m: (r["train_examples"], r["train_pairs"], r["steps"]) for m, r in results.items()} == {
        "finetune": (24, 24, 4), "distill": (34, 34, 4), "distill_soft": (34, 68, 4), "distill_then_finetune": (34, 34 + 24, 4),
        "cot_after": (24, 24, 4),
    }  # fmt: skip
    assert len(list(plan.cache.glob("pairs-*"))) <= 6

    (trial,) = (t for t in plan.trials if t.method == "cot_after")
    student, heard = Student.load(plan.folder(trial).student, device="cpu"), []
    assert student.can_explain
    assert [p.label in config.task.labels for p in student.predict(["Warm.", "Dull."])] == [True, True]
    (written,) = student.explain(["Warm."])
    student.stream_rationale("Warm.", heard.append)
    assert "".join(heard).strip() == written


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ({"teacher": {"strategy": "chain_of_thought"}}, "a chain of thought does not give"),
        ({"task": "svamp", "teacher": {"strategy": "chain_of_thought"}}, "are free"),
        (
            {"teacher": {"model": "gpt", "imported": {"columns": {"label": "said"}}}},
            "teacher.imported.columns.label_probability",
        ),
        (
            {
                "teacher": {"model": "gpt", "imported": {"columns": {"label": "said", "label_probability": "p"}}},
                "task": {"name": "tickets", "kind": "classification", "labels": ["refund", "bug", "other"]},
            },
            "of two labels only",
        ),
    ],
    ids=["chain of thought", "free answers", "imported labels alone", "three labels"],
)
def test_probabilities_that_no_teacher_gives_are_refused(
    write_study: Callable[..., Path], blocks: dict[str, Any], problem: str
) -> None:
    grid = {"method": ["distill_soft"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
    with pytest.raises(CotdError, match=rf"method 'distill_soft' learns the probability of every answer.*{problem}"):
        load_config(write_study(grid=grid, **blocks))
