"""The files of a report: a page that loads nothing, and figures that make sense."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config
from cotd.training.methods import METHODS as ALL_METHODS
from cotd.training.methods import Method
from pipelines.report import run as package
from pipelines.report.figures import CURVES_FILE, draw_curves, figures_of, rendered
from pipelines.report.run import report
from tests.pipelines.report.studies import METHODS, Make, content


def test_a_study_of_one_size_or_fraction_gets_the_figures_that_make_sense(study: Make) -> None:
    whole = content(study(method=METHODS, size=["tiny", "small"]).finish_all())
    assert [f.file for f in figures_of(whole)] == ["accuracy.png", "accuracy_by_size.png", "differences.png", "confusion.png"]
    whole["by_label"] = None
    one_size = whole | {"groups": [g for g in whole["groups"] if g["size"] == "tiny"], "claims": []}
    assert [f.title for f in figures_of(one_size)] == ["Accuracy against the share of training data"]
    one_fraction = whole | {"groups": [g for g in whole["groups"] if g["fraction"] == 1.0], "claims": []}
    assert [f.title for f in figures_of(one_fraction)] == ["Accuracy against the student's size"]
    neither = one_size | {"groups": [g for g in one_size["groups"] if g["fraction"] == 1.0]}
    assert [f.title for f in figures_of(neither)] == ["Accuracy by method"]
    for figure in [*figures_of(one_fraction), *figures_of(neither)]:
        png, svg = rendered(figure, whole)
        assert png.startswith(b"\x89PNG")
        assert svg.startswith("<svg")
        assert "currentColor" in svg


def test_a_method_needs_no_more_than_its_entry_to_be_reported(study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    added = Method("cot_mixed", "the teacher's labels, gold-conditioned rationales", "teacher", "given_gold")
    monkeypatch.setitem(ALL_METHODS, added.name, added)
    made = content(study(method=["distill", "cot_mixed"]).finish_all())
    for figure in figures_of(made):
        assert rendered(figure, made)[1].startswith("<svg")
    tokens = {g["method"]: g["teacher_tokens"] for g in made["groups"] if g["fraction"] == 1.0}
    assert tokens["cot_mixed"] == 2 * tokens["distill"], "its own labels, and rationales given gold"


class Links(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "srcset", "xlink:href", "data")
        self.addresses += [v or "" for k, v in attributes if k in names and not (v or "").startswith("#")]


def test_a_finished_study_is_written_as_files(study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(method=["finetune", "cot_labelled"]).finish_all()
    made.teacher = None
    monkeypatch.setattr(package, "plan_so_far", lambda config: (made.plan(), []))
    (made.config.directory / "accuracy_by_size.png").write_bytes(b"of another grid")
    written = report(made.config)
    folder = made.config.directory
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(written))
    assert not list(folder.glob("*.part*"))
    assert not (folder / "accuracy_by_size.png").exists()
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "teacher (" not in text
    for file in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / file).read_bytes().startswith(b"\x89PNG")
    links = Links()
    links.feed(page)
    assert links.addresses == ["examples.html"], "which a reader may open; nothing is loaded"
    assert "Examples of" in (folder / "examples.html").read_text()
    assert links.tags.count("svg") == len(written["figures"]) == 3
    assert "script" not in links.tags
    assert "url(http" not in page


def test_a_report_does_not_replace_a_richer_one(study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the overrides that the sweep had: other settings, and so other trials."""
    made = study(method=["finetune", "distill"], fraction=[1.0]).finish_all()
    monkeypatch.setattr(package, "plan_so_far", lambda config: (made.plan(), []))
    report(made.config)
    written = (made.config.directory / "report.json").read_bytes()
    every = list(made.trials)
    made.trials = every[:1]
    made.config = made.config.model_copy(update={"training": made.config.training.model_copy(update={"steps": 7})})
    message = (
        r"has 4 trials, and with these settings there are 1: it is left as it is\. 3 finished trials .*training\.steps=300"
    )
    with pytest.raises(CotdError, match=message):
        report(made.config)
    assert (made.config.directory / "report.json").read_bytes() == written
    made.trials = []
    with pytest.raises(CotdError, match=r"no finished trial to report(.|\n)*give the overrides that the sweep had"):
        report(made.config)
    made.trials = every
    assert len(report(made.config)["trials"]) == 4


def test_a_study_with_nothing_done_says_what_to_do(write_study: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match=r"no finished trial to report\. Run `cotd sweep CONFIG` first"):
        report(load_config(write_study()))


def test_learning_curves_are_means_over_seeds_at_the_steps_that_all_have(study: Make) -> None:
    made = study(fraction=[1.0]).finish_all()
    for trial in made.trials:
        folder = made.plan().folder(trial)
        for step in (10, 20) if trial.seed else (10, 20, 30):
            folder.add_point({"step": step, "validation_accuracy": 0.5 + step / 100 + 0.1 * trial.seed})
    whole = content(made)
    assert whole["trials"][0]["curve"] == [[10, 0.6], [20, 0.7], [30, 0.8]]
    drawn = draw_curves(whole)
    (panel,) = drawn.axes
    assert {line.get_label(): line.get_ydata() for line in panel.lines} == {
        method: pytest.approx([65, 75]) for method in ("finetune", "distill")
    }
    assert CURVES_FILE in [figure.file for figure in figures_of(whole)]
