"""The report as it is written: valid Markdown tables, a page that loads nothing, figures that make sense."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cotd.errors import CotdError
from pipelines.report import run as package
from pipelines.report.figures import figures_of, rendered
from pipelines.report.page import report_page
from pipelines.report.run import report
from pipelines.report.text import markdown, terminal
from tests.pipelines.report.conftest import Study
from tests.pipelines.report.test_claims import METHODS, content

Make = Callable[..., Study]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table of a Markdown text."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line[1:-1].split("|")])
        elif found[-1]:
            found.append([])
    return [t for t in found if t]


def table(text: str, corner: str) -> list[list[str]]:
    (one,) = [t for t in tables(text) if t[0][0] == corner]
    return one


def test_every_table_is_one_that_markdown_readers_can_draw(study: Make) -> None:
    made = study(method=METHODS, size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.6 if (method, fraction) == ("finetune", 0.1) else 0.7
    text = markdown(content(made.finish_all()))
    assert (
        len(tables(text)) == 10
    )  # accuracy of two sizes, two beside the papers', claims, the teacher, costs, three comparisons
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
    assert "Yelp" in markdown(content(made) | {"source": "embedded:rotten-tomatoes"})


def test_a_study_of_one_size_or_fraction_gets_the_figures_that_make_sense(study: Make) -> None:
    found = content(study(method=METHODS, size=["tiny", "small"]).finish_all())
    assert [f.file for f in figures_of(found)] == ["accuracy.png", "accuracy_by_size.png", "differences.png"]
    one_size = found | {"groups": [g for g in found["groups"] if g["size"] == "tiny"], "claims": []}
    assert [f.title for f in figures_of(one_size)] == ["Accuracy against the share of training data"]
    one_fraction = found | {"groups": [g for g in found["groups"] if g["fraction"] == 1.0], "claims": []}
    assert [f.title for f in figures_of(one_fraction)] == ["Accuracy against the student's size"]
    neither = one_size | {"groups": [g for g in one_size["groups"] if g["fraction"] == 1.0]}
    assert [f.title for f in figures_of(neither)] == ["Accuracy by method"]
    for figure in [*figures_of(one_fraction), *figures_of(neither)]:
        png, svg = rendered(figure, found)
        assert png.startswith(b"\x89PNG")
        assert svg.startswith("<svg")
        assert "currentColor" in svg


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
    assert links.addresses == []
    assert links.tags.count("svg") == len(written["figures"]) == 2
    assert "script" not in links.tags
    assert "url(http" not in page


def test_what_is_missing_is_listed_in_full(study: Make) -> None:
    made = study()
    made.finish(made.trials[0])
    made.plan().folder(made.trials[1]).path.mkdir(parents=True)
    made.plan().folder(made.trials[1]).error.write_text("ValueError: <bad> `thing`")
    found = content(made)
    text = markdown(found)
    assert "1 of 8 trials are done." in text
    assert text.index("**Incomplete:**") < text.index("## Accuracy")
    assert f"- {made.trials[1].title}: failed: `ValueError: <bad> 'thing' (see " in text
    (waiting,) = re.findall("- Not started; `cotd sweep CONFIG` trains what is missing: (.*)[.]", text)
    assert set(waiting.split("; ")) == {t.title for t in made.trials[2:]}
    assert all(t.title in terminal(found) for t in made.trials[1:])
    page = report_page("a <study>", text, {f.file: "<svg></svg>" for f in figures_of(found)})
    assert "<title>a &lt;study&gt;</title>" in page
    assert "ValueError: &lt;bad&gt;" in page
    assert 'id="what-is-missing"' in page


def test_a_study_with_a_teacher_and_no_student_yet(study: Make) -> None:
    found = content(study())
    text = markdown(found)
    assert "0 of 8 trials are done." in text
    assert "Teacher: 80.0 % [75.0, 85.0] of 200 test reviews." in text
    assert figures_of(found) == []


def test_a_study_with_nothing_done_says_what_to_do(write_study: Callable[..., Path]) -> None:
    from cotd.study.config import load_config

    with pytest.raises(CotdError, match=r"no finished trial to report\. Run `cotd sweep CONFIG` first"):
        report(load_config(write_study()))
