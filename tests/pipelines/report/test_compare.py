"""Several studies compared by their written reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from cotd.errors import CotdError
from cotd.utils.files import write_json
from pipelines.report import compare
from pipelines.report.compare import FIGURE, TEXT, compare_studies
from pipelines.report.findings import Content
from tests.pipelines.report.studies import METHODS, Make, content, tables


def write_report(report: Content, folder: Path, **fields: Any) -> str:
    folder.mkdir()
    write_json(folder / "report.json", report | fields)
    return str(folder)


def written(folder: str) -> Content:
    return dict(json.loads((Path(folder) / "report.json").read_text()))


@pytest.fixture
def folders(study: Make, tmp_path: Path) -> list[str]:
    """A study of all four methods, where rationales change nothing; what its students did elsewhere, where those with rationales
    were worse with gold labels and better with the teacher's."""
    made = study(method=METHODS, seed=[0, 1, 2])
    here = write_report(content(made.finish_all()), tmp_path / "here", study="films")
    right = {"cot_labelled": 0.5, "finetune": 0.8, "cot_unlabelled": 0.9, "distill": 0.6}
    made.accuracy = lambda method, fraction, size: right[method]
    report = content(made.finish_all())
    there = write_report(report, tmp_path / "there", study="films", source="kettles.csv", trained_on="films.csv")
    return [here, f"{there}/report.json", f"{here}/"]


def test_each_difference_is_listed_with_its_study(folders: list[str], tmp_path: Path) -> None:
    sentences = compare_studies(folders, tmp_path / "out" / "comparison")
    assert len(sentences) == 8, "a report that is named twice counts once"
    assert sentences[-1].startswith("films, on kettles.csv, tiny, 100 %: cot_unlabelled minus distill +30.0 ")
    by_gold, by_teacher = tables((tmp_path / "out" / "comparison" / TEXT).read_text())
    for rows, verdict, without, with_rationales, points in (
        (by_gold, "opposite", "80.0 %", "50.0 %", "−30.0 "),
        (by_teacher, "holds", "60.0 %", "90.0 %", "+30.0 "),
    ):
        header, _, *cells = rows
        assert [r[0] for r in cells] == ["films"] * 2 + ["films, on kettles.csv"] * 2
        assert [r[header.index("data")] for r in cells] == ["10 %", "100 %"] * 2
        assert [r[header.index("examples")] for r in cells] == ["2", "20"] * 2
        assert [r[header.index("verdict")] for r in cells] == ["not shown"] * 2 + [verdict] * 2
        last = dict(zip(header, cells[-1], strict=True))
        assert last["without"].startswith(without)
        assert last["with"].startswith(with_rationales)
        assert last["difference, points"].startswith(points)


def test_panels_have_the_same_rows_also_where_a_study_is_in_one_of_them(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(compare, "draw", lambda differences, draw=compare.draw: drawn.append(draw(differences)) or drawn[-1])
    whole = written(folders[0])
    few = [c for c in whole["comparisons"] if c["a"] == "cot_labelled" and c["fraction"] == 1]
    compare_studies([write_report(whole, tmp_path / "few", study="few", comparisons=few), *folders], tmp_path)
    assert (tmp_path / FIGURE).read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    gold, teacher = figure.axes
    for panel in (gold, teacher):
        assert [t.get_text() for t in panel.texts] == ["few", "films", "films, on kettles.csv"]
    assert [t.get_text() for t in gold.get_yticklabels()] == ["tiny, 100 %", *["tiny, 10 %", "tiny, 100 %"] * 2]
    assert (len(gold.containers), len(teacher.containers)) == (5, 4)
    assert gold.get_title() == "Trained on gold labels: cot_labelled minus finetune"
    plt.close(figure)


def test_studies_of_one_name_are_distinguished_by_their_folders(folders: list[str], tmp_path: Path) -> None:
    again = write_report(written(folders[0]), tmp_path / "again")
    compare_studies([folders[0], again], tmp_path)
    rows, _ = tables((tmp_path / TEXT).read_text())
    assert list(dict.fromkeys(r[0] for r in rows[2:])) == [f"films ({folders[0]})", f"films ({again})"]


def test_all_problems_are_reported_at_once(folders: list[str], tmp_path: Path) -> None:
    for name, text in (("broken", "{"), ("other", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text)
    (tmp_path / "within" / "report.json").mkdir(parents=True)
    whole = written(folders[0])
    write_report({k: v for k, v in whole.items() if k != "trained_on"}, tmp_path / "older")
    plain = write_report(whole, tmp_path / "plain", comparisons=[])
    named = [str(tmp_path / name) for name in ("missing", "broken", "other", "within", "older")]
    output = Path(folders[0]) / "report.json" / "out"
    with pytest.raises(CotdError) as raised:
        compare_studies([*named, plain, "foo://runs/x", folders[0]], output)
    for problem, words in zip(
        raised.value.problems,
        (
            ["no report in", "missing", "cotd report CONFIG"],
            ["broken", "not in the format of this version"],
            ["other", "not in the format of this version"],
            ["within/report.json cannot be read"],
            ["older", "'trained_on'", "Write it again"],
            ["'foo://runs/x' cannot be used"],
            ["compares neither `cot_labelled` with `finetune` nor `cot_unlabelled` with `distill`", "cotd sweep CONFIG"],
            ["--output", "report.json' is a file, not a folder"],
        ),
        strict=True,
    ):
        assert all(word in problem for word in words), problem
    with pytest.raises(CotdError, match="--output 's3://runs/x' is not a local folder"):
        compare_studies(folders, "s3://runs/x")
    with pytest.raises(CotdError, match="no study's folder was given"):
        compare_studies([], tmp_path)
