"""Studies beside one another, from their written reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from cotd.errors import CotdError
from cotd.trials import write_json
from pipelines.report import compare
from pipelines.report.compare import FIGURE, TEXT, compare_studies
from tests.pipelines.report.conftest import Study
from tests.pipelines.report.test_claims import METHODS, content
from tests.pipelines.report.test_report import tables

Make = Callable[..., Study]


def write_report(made: Study, folder: Path, **fields: str) -> str:
    folder.mkdir()
    write_json(folder / "report.json", content(made.finish_all()) | fields)
    return str(folder)


@pytest.fixture
def folders(study: Make, tmp_path: Path) -> list[str]:
    """A study of all four methods, and what its students did elsewhere, where those with rationales were worse."""
    made = study(method=METHODS, seed=[0, 1, 2])
    here = write_report(made, tmp_path / "here", study="films")
    made.accuracy = lambda method, fraction, size: 0.5 if method.startswith("cot") else 0.8
    return [here, write_report(made, tmp_path / "there", study="films", source="kettles.csv", trained_on="films.csv") + "/"]


def test_each_difference_stands_beside_its_study(folders: list[str], tmp_path: Path) -> None:
    text = compare_studies(folders, tmp_path / "out" / "comparison")
    assert (tmp_path / "out" / "comparison" / TEXT).read_text() == text
    by_gold, by_teacher = tables(text)
    for rows in (by_gold, by_teacher):
        header, _, *found = rows
        assert [r[0] for r in found] == ["films"] * 2 + ["films, on kettles.csv"] * 2
        assert [r[header.index("data")] for r in found] == ["10 %", "100 %"] * 2
        assert [r[header.index("verdict")] for r in found] == ["not shown"] * 2 + ["opposite"] * 2
        assert found[3][header.index("without")].startswith("80.0 %")
        assert found[3][header.index("with")].startswith("50.0 %")
        assert found[3][header.index("difference, points")].startswith("−30.0 ")


def test_the_figure_has_a_panel_for_each_kind_of_labels_and_a_row_for_each_difference(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(compare, "draw", lambda found, draw=compare.draw: drawn.append(draw(found)) or drawn[-1])
    compare_studies(folders, tmp_path)
    (figure,) = drawn
    assert (tmp_path / FIGURE).read_bytes().startswith(b"\x89PNG")
    for panel in figure.axes:
        assert [t.get_text() for t in panel.texts] == ["films", "films, on kettles.csv"]
        assert [t.get_text() for t in panel.get_yticklabels()] == ["tiny, 10 %", "tiny, 100 %"] * 2
    assert [panel.get_title().split(": ")[1] for panel in figure.axes] == [
        "cot_labelled less finetune", "cot_unlabelled less distill",
    ]  # fmt: skip
    plt.close(figure)


def test_all_that_is_wrong_with_the_reports_is_said_at_once(study: Make, tmp_path: Path) -> None:
    for name, written in (("broken", "{"), ("other", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(written)
    plain = write_report(study(), tmp_path / "plain")
    with pytest.raises(CotdError) as raised:
        compare_studies([str(tmp_path / name) for name in ("missing", "broken", "other")] + [plain], tmp_path / "out")
    missing, broken, other, without = raised.value.problems
    assert "no report in" in missing
    assert "cotd report CONFIG" in missing
    assert "broken" in broken
    assert "no report that this version reads" in broken
    assert "'comparisons'" in other
    assert "nothing to compare" in without
    assert not (tmp_path / "out").exists()
