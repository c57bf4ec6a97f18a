"""The report as Markdown."""

from __future__ import annotations

import re

import numpy as np

from pipelines.report.figures import figures_of, rendered
from pipelines.report.page import report_page
from pipelines.report.text import markdown, terminal
from tests.pipelines.report.studies import METHODS, Make, content, tables


def table(text: str, corner: str) -> list[list[str]]:
    (one,) = [t for t in tables(text) if t[0][0] == corner]
    return one


def test_every_table_is_one_that_markdown_readers_can_draw(study: Make) -> None:
    made = study(method=METHODS, size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.6 if (method, fraction) == ("finetune", 0.1) else 0.7
    text = markdown(content(made.finish_all()))
    # the ladder, accuracy of two sizes, labels, claims, the teacher, costs, three comparisons
    assert len(tables(text)) == 10
    for one in tables(text):
        assert len({len(row) for row in one}) == 1, one[0]
    rows = table(text, "tiny")
    assert rows[0] == ["tiny", "10 % of the data", "100 % of the data"]
    assert rows[2][0] == "`finetune`"
    assert rows[2][1].startswith("60.0 % [")
    assert rows[-2] == ["always *negative*", "", "50.0 % [43.1, 56.9]"]
    assert rows[-1] == ["teacher (embedded:teacher)", "", "80.0 % [75.0, 85.0]"]


def test_our_figures_are_compared_with_the_papers(study: Make) -> None:
    made = study(method=METHODS, size=["small", "base"], fraction=[0.1, 1.0]).finish_all()
    text = markdown(content(made) | {"source": "stanfordnlp/imdb"})
    by_fraction = [row for row in table(text, "Experiment 1: data") if "SC4001" in row[0]]
    assert by_fraction[0] == ["SC4001, IMDb, 60M", "81.0 %", "85.0 %"]
    assert by_fraction[3] == ["SC4001, IMDb, 60M†", "84.7 %", "88.4 %"]
    by_size = table(text, "Experiment 2: size")
    assert by_size[0] == ["Experiment 2: size", "small (60 M)", "base (220 M)", "teacher"]
    assert ["SC4001, IMDb", "85.1 %", "92.9 %", ""] in by_size
    assert by_size[-1][-1] == "89.6 %"
    assert "Yelp" not in text
    claimed = [row for row in table(text, "claim") if row[:1] + row[2:4] == ["cot_labelled beats finetune", "base", "100 %"]]
    assert [row[-1] for row in claimed] == ["+0.6"], "the difference of their 220M students"
    other = content(made)
    elsewhere = markdown(other | {"source": "embedded:rotten-tomatoes"})
    assert "Compared with the papers" not in elsewhere, "not their data"
    assert "SC4001, Yelp" not in elsewhere
    stars = other["task"] | {"name": "stars"}
    assert "Compared with the papers" not in markdown(other | {"source": "yelp", "task": stars}), "not their task"


def test_the_first_lines_say_what_won_and_by_how_much(study: Make) -> None:
    made = study(method=["finetune", "cot_labelled"], fraction=[1.0])
    made.accuracy = lambda method, fraction, size: 0.6 if method == "finetune" else 0.75
    first, with_gold, with_teacher, simple, data = (
        line for line in markdown(content(made.finish_all())).splitlines()[2:12] if line
    )
    assert first.startswith("**75.0 %** of 200 test examples are right, the mean of 2 trainings (95 % interval ")
    assert "the best student on validation, `cot_labelled` (labelled CoT distillation)" in first
    assert with_gold.startswith(
        "Compared with the best student without a teacher, `finetune`, at the same size and data: 15.0 points more"
    )
    assert with_gold.endswith("which is beyond chance.")
    assert with_teacher.startswith("Compared with the teacher, embedded:teacher: 5.0 points fewer (95 % interval ")
    assert simple.startswith("What needs no such training: always answering *negative* 50.0 %")
    assert data.startswith("Task `sentiment`: review → one of negative, positive. Data: `")


def test_twenty_labels_have_a_table_and_a_figure_that_can_be_read(study: Make) -> None:
    labels = [f"intent number {i:02}" for i in range(20)]
    rows = [{"label": label, "examples": 10, "recall": i / 20, "predicted": 10.0, "precision": 0.5, "confidence": 0.6}
            for i, label in enumerate(labels)]  # fmt: skip
    rows[19] |= {"examples": 0, "recall": None, "predicted": 0.0, "precision": None, "confidence": None}
    made = content(study().finish_all())
    made["by_label"] |= {"labels": labels, "rows": rows, "confusion": np.eye(20, dtype=int).tolist(), "calibration_error": [0.05],
                         "temperature": [1.5]}  # fmt: skip
    made["figures"] = [{"file": f.file, "title": f.title} for f in figures_of(made)]
    text = markdown(made)
    shown = table(text, "label")
    assert shown[2] == ["`intent number 00`", "10", "0.0 %", "50.0 %", "60.0 %"]
    assert shown[-1] == ["`intent number 19`", "0", "", "", ""]
    assert "Expected calibration error: 0.050, after division of its scores by a temperature of 1.50." in text
    png, svg = rendered(figures_of(made)[-1], made)
    height, width = (int.from_bytes(png[at : at + 4]) for at in (20, 16))
    assert min(height, width) > 1000, "a row has room for its label"
    assert svg.count("<image") == 0


def test_examples_in_groups_are_said(study: Make) -> None:
    made = content(study().finish_all()) | {"test_groups": 12}
    text = markdown(made)
    assert "200 test examples in 12 groups" in text
    assert "12 groups are few" in text


def test_what_is_missing_is_listed_in_full(study: Make) -> None:
    made = study()
    made.finish(made.trials[0])
    made.plan().folder(made.trials[1]).path.mkdir(parents=True)
    made.plan().folder(made.trials[1]).error.write_text("ValueError: <bad> `thing`")
    report = content(made)
    text = markdown(report)
    assert "1 of 8 trials are done." in text
    assert text.index("**Incomplete:**") < text.index("## Accuracy")
    assert f"- {made.trials[1].title}: failed: `ValueError: <bad> 'thing' (see " in text
    (waiting,) = re.findall("- Not started; `cotd sweep CONFIG` trains what is missing: (.*)[.]", text)
    assert set(waiting.split("; ")) == {t.title for t in made.trials[2:]}
    assert all(t.title in terminal(report) for t in made.trials[1:])
    page = report_page("a <study>", text, {f.file: "<svg></svg>" for f in figures_of(report)})
    assert "<title>a &lt;study&gt;</title>" in page
    assert "ValueError: &lt;bad&gt;" in page
    assert 'id="what-is-missing"' in page
    assert "<img" not in report_page("a", "a name with ![an](image)", {})


def test_a_study_with_a_teacher_and_no_student_yet(study: Make) -> None:
    report = content(study())
    text = markdown(report)
    assert "0 of 8 trials are done." in text
    assert "Teacher: 80.0 % [75.0, 85.0] of 200 test examples." in text
    assert figures_of(report) == []
