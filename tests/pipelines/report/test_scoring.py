"""What a report computes itself: base models as they are, before any training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.students.student import Student
from pipelines.report.figures import figures_of, rendered
from pipelines.report.findings import findings
from pipelines.report.scoring import base_scores
from pipelines.report.text import markdown
from tests.pipelines.report.conftest import Study
from tests.pipelines.report.test_claims import content

Make = Callable[..., Study]


def test_a_base_that_learned_the_labels_in_pretraining_is_scored_as_it_is(
    study: Make, embedded_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study(size=["tiny", "small"]).finish_all()
    texts = ["A warm and funny film.", "Dull and lifeless.", "I loved it.", "A waste of time."]
    reviews = pd.DataFrame({"id": list("abcd"), "text": texts, "label": ["positive", "negative"] * 2})
    (base,) = base_scores(made.plan(), made.results(), reviews, tmp_path)  # the small one is a bare T5
    predicted = [p.label for p in Student.load(embedded_student).predict(texts)]
    assert (base["size"], base["n"]) == ("tiny", 4)
    assert base["accuracy"] == sum(p == gold for p, gold in zip(predicted, reviews["label"], strict=True)) / 4 >= 0.75
    monkeypatch.setattr(Student, "load", lambda source: pytest.fail("scored again"))
    assert base_scores(made.plan(), made.results(), reviews, tmp_path) == [base]


def test_what_training_adds_to_the_base_is_shown_and_said(study: Make) -> None:
    found = content(study().finish_all())
    base = {"size": "tiny", "model": "embedded:t5-mini", "accuracy": 0.72, "ci_low": 0.65, "ci_high": 0.78, "n": 200}
    told = [s for s in findings(found | {"bases": [base]}) if "before this training" in s]
    assert told == [
        "No student is clearly better than embedded:t5-mini as it is, before this training, 72.0 % [65.0, 78.0]: what it knows "
        "comes from its pretraining."
    ]
    assert not any("as it is" in s for s in findings(found | {"bases": [base | {"accuracy": 0.5}]}))
    assert "| `embedded:t5-mini` before this training |  | 72.0 % [65.0, 78.0] |" in markdown(found | {"bases": [base]})
    for figure in figures_of(found | {"bases": [base]}):
        assert rendered(figure, found | {"bases": [base]})[0].startswith(b"\x89PNG")
