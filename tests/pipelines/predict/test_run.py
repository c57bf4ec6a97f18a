"""A file of examples to a file of predictions: Ray once, for real; the rest on tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cotd.cli.app import main
from cotd.data.inputs import InputColumns
from cotd.errors import CotdError
from cotd.students.student import Student
from cotd.tasks.registry import parse_task
from pipelines.cluster.session import ray_session
from pipelines.predict.files import scan
from pipelines.predict.run import RowRefused, predict_file, predict_file_with, require_columns, require_output, with_predictions
from tests.tasks import SENTIMENT


@pytest.mark.integration
def test_files_keep_their_rows_and_columns(student_folder: Path, tmp_path: Path) -> None:
    """Parquet with columns of many kinds, and lines of JSON of which some are bad; through Ray, each as it was, in order."""
    count = 700  # more than two batches
    frame = pd.DataFrame(
        {
            "id": range(count),
            "example": [f"number {i} of a warm and funny film" for i in range(count)],
            "stars": [{"of": 5, "given": i % 5} for i in range(count)],
            "when": pd.Timestamp("2024-02-29", tz="UTC"),
        }
    )
    frame.loc[[3, 300], "example"] = [None, "  "]
    folder = tmp_path / "kind=film"  # no column, whatever it looks like
    folder.mkdir()
    frame.to_parquet(folder / "in.parquet")
    lines = [
        '{"text": "fine\u2028", "code": "007", "when": "2024-02-29"}',
        "{broken",
        '{"text": 5}',
        '{"text": "dull", "new": [1]}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with ray_session(num_cpus=1):
        summary = predict_file(
            str(folder / "in.parquet"), str(tmp_path / "out.parquet"), str(student_folder), None, InputColumns("example")
        )
        second = predict_file(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), str(student_folder), None)

    out, aside = pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(tmp_path / "out.quarantine.parquet")
    kept = frame.drop([3, 300]).reset_index(drop=True)
    pd.testing.assert_frame_equal(out[list(frame)], kept, check_dtype=False)
    assert list(out) == [*frame, "predicted_label", "predicted_score", "predicted_truncated"]
    expected = Student.load(student_folder, device="cpu").predict(list(kept["example"]))
    assert out["predicted_score"].tolist() == pytest.approx([p.score for p in expected], abs=1e-4)
    assert aside[["id", "quarantine_reason"]].values.tolist() == [[3, "no text"], [300, "empty text"]]
    assert sum(summary.labels.values()) == summary.rows == count - 2
    assert summary.reasons == {"no text": 1, "empty text": 1}

    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().strip().split("\n")]
    first, last = json.loads(lines[0]), json.loads(lines[3])
    assert [{k: row[k] for k in was} for row, was in zip(rows, (first, last), strict=True)] == [first, last]
    assert rows[0]["predicted_label"] in SENTIMENT.labels
    reasons = [json.loads(line) for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert reasons == [
        {"line": "{broken", "quarantine_reason": "the line is not a JSON object"},
        {"text": 5, "quarantine_reason": "the text is a int, not a string"},
    ]
    assert sum(second.reasons.values()) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_bad_row_does_not_affect_other_rows() -> None:
    def predict(texts: list[str], choices: Any) -> list[dict[str, Any]]:
        if "poison" in texts:
            raise MemoryError
        return [{"label": "positive", "score": 0.9, "truncated": False} for _ in texts]

    table = with_predictions(pa.table({"text": ["good", "poison", "fine"]}), InputColumns(), predict)
    assert table["predicted_label"].to_pylist() == ["positive", None, "positive"]
    assert table["quarantine_reason"].to_pylist() == [None, "prediction failed: MemoryError", None]


def test_a_student_that_fails_at_every_row_ends_the_run() -> None:
    """A GPU whose process has failed once fails for good: its rows would all be quarantined, and the command succeed."""

    def predict(texts: list[str], choices: Any) -> list[dict[str, Any]]:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(CotdError, match="illegal memory access"):
        with_predictions(pa.table({"text": [f"text {i}" for i in range(20)]}), InputColumns(), predict)


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_a_file_is_predicted_by_whatever_answers(tmp_path: Path, kind: str) -> None:
    """As `predict_file` does, without Ray: an endpoint that refuses a text costs that row, one that is gone ends the run."""
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    frame = pd.DataFrame({"id": [f"{i:03}" for i in range(600)], "example": [f"example {i}" for i in range(600)]})
    frame.loc[300, "example"] = "poison"
    {"parquet": frame.to_parquet, "csv": lambda p: frame.to_csv(p, index=False), "tsv": lambda p: frame.to_csv(p, index=False, sep="\t"),
     "jsonl": lambda p: frame.to_json(p, orient="records", lines=True)}[kind](source)  # fmt: skip
    asked = []

    def predict(texts: list[str], choices: Any) -> list[dict[str, Any]]:
        asked.append(len(texts))
        if "poison" in texts:
            raise RowRefused("too long for the endpoint")
        return [{"label": "positive", "score": 0.9, "truncated": False, "rationale": None} for _ in texts]

    summary = predict_file_with(predict, str(source), str(target), InputColumns("example"), SENTIMENT.labels)
    read = {"parquet": pd.read_parquet, "csv": lambda p: pd.read_csv(p, dtype=str), "tsv": lambda p: pd.read_csv(p, dtype=str, sep="\t"),
            "jsonl": lambda p: pd.read_json(p, lines=True, dtype=False)}[kind]  # fmt: skip
    out, aside = read(target), read(tmp_path / f"out.quarantine.{kind}")
    assert out["id"].tolist() == [i for i in frame["id"] if i != "300"]
    assert aside[["id", "quarantine_reason"]].values.tolist() == [["300", "too long for the endpoint"]]
    assert summary.labels == {"positive": 599}
    assert max(asked) <= 256

    def gone(texts: list[str], choices: Any) -> list[dict[str, Any]]:
        raise CotdError("no answer")

    with pytest.raises(CotdError, match="no answer"):
        predict_file_with(gone, str(source), str(target), InputColumns("example"))
    assert len(read(target)) == 599, "the file that was there stays"


def answer(texts: list[str], choices: Any = None) -> list[dict[str, Any]]:
    return [{"label": "positive", "score": 0.9, "truncated": False} for _ in texts]


def test_columns_that_few_lines_have_are_kept(tmp_path: Path) -> None:
    """Of what kind they are depends on all lines: 1 and 2.5 are numbers, 1 and "a" are strings."""
    lines = [
        {"text": "fine", "size": 1, "kind": 1},
        {"text": "dull", "size": 2.5},
        {"text": "warm", "kind": "a", "shop": "north"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for name in ("out.csv", "out.parquet"):
        predict_file_with(answer, str(tmp_path / "in.jsonl"), str(tmp_path / name), InputColumns())
    rows = pd.read_parquet(tmp_path / "out.parquet")
    assert rows["size"].tolist()[:2] == [1, 2.5]
    assert rows["kind"].fillna("none").tolist() == ["1", "none", "a"]
    assert pd.read_csv(tmp_path / "out.csv")["shop"].tolist()[2] == "north"


def test_csv_has_what_is_nested_as_json(tmp_path: Path) -> None:
    """Whatever it was read from."""
    table = {"text": ["fine", "dull"], "size": [{"w": 1}, {}], "tags": [["a", "é"], []]}
    (tmp_path / "in.jsonl").write_text(
        "\n".join(json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True))
    )
    more = {"kind": pa.array(["x", "y"]).dictionary_encode(), "mark": [b"\xff", "é".encode()]}
    pq.write_table(pa.table(table | more), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.parquet"):
        predict_file_with(answer, str(tmp_path / name), str(tmp_path / "out.csv"), InputColumns())
        rows = pd.read_csv(tmp_path / "out.csv")
        assert json.loads(rows["size"][0])["w"] == 1
        assert rows["tags"].tolist() == ['["a", "é"]', "[]"]
    assert rows["mark"].tolist() == ["\\xff", "é"]


def test_damage_costs_the_damaged_row_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell too many, a byte that is not UTF-8, a quote that nothing closes; a byte order mark, an empty line, no text."""
    rows = [b"\xef\xbb\xbftext;note", b"Fine tea;a", b"Too;many;cells", b"Caf\xe9;b", b'"Open;c', b"Warm tea;d", b"", b";e"]
    (tmp_path / "in.csv").write_bytes(b"\n".join(rows))
    summary = predict_file_with(answer, str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), InputColumns())
    out, aside = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "out.quarantine.csv")
    assert out["text"].tolist() == ["Fine tea", "Caf\ufffd", '"Open', "Warm tea"]
    assert aside["line"].tolist()[0] == "Too;many;cells"
    assert summary.reasons == {"3 cells, but the header has 2": 1, "no text": 1}
    assert capsys.readouterr().err.count("not UTF-8") == 1

    lines = ["\ufeff", '{"note": 1}', "", '{"text": "Fine tea"}', "[1]"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    summary = predict_file_with(answer, str(tmp_path / "in.jsonl"), str(tmp_path / "lines.csv"), InputColumns())
    assert pd.read_csv(tmp_path / "lines.csv")["text"].tolist() == ["Fine tea"]
    assert sum(summary.reasons.values()) == 2


def test_what_training_reads_is_predicted(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    """A folder of compressed files; one of JSON that is a list."""
    folder = tmp_path / "parts"
    folder.mkdir()
    example_rows.iloc[:20].to_csv(folder / "a.csv.gz", index=False)
    example_rows.iloc[20:40].to_json(folder / "b.json", orient="records")
    example_rows.iloc[40:].to_parquet(folder / "c.parquet")
    for source in (folder, folder / "[a-c].*"):
        summary = predict_file_with(answer, str(source), str(tmp_path / "out.jsonl"), InputColumns())
        assert summary.rows == 60
    rows = pd.read_json(tmp_path / "out.jsonl", lines=True)
    assert rows["text"].tolist() == example_rows["text"].tolist()


def test_what_cannot_be_done_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("reviw,predicted_label\nfine,\n")
    with pytest.raises(CotdError, match=r"no column 'review' \(--text\); it has: reviw, predicted_label.*Did you mean 'reviw'"):
        require_columns(scan(str(tmp_path / "in.csv")), InputColumns("review"))
    with pytest.raises(CotdError, match="has the column 'predicted_label' already"):
        require_columns(scan(str(tmp_path / "in.csv")), InputColumns("reviw"))
    with pytest.raises(CotdError, match="no file"):
        scan("nowhere.csv")
    with pytest.raises(CotdError, match=r"is not a .parquet, .jsonl, .csv, .tsv file"):
        require_output("out.xlsx")
    with pytest.raises(CotdError, match="there is no folder"):
        require_output(str(tmp_path / "nowhere" / "out.csv"))


def test_an_input_needs_an_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["cotd", "predict", "--input", "reviews.csv"])
    with pytest.raises(SystemExit):
        main()
    assert "--input and --output go together" in capsys.readouterr().err


QUESTIONS = parse_task({"name": "quiz", "kind": "multiple_choice"})
PAIRS = parse_task({"name": "pairs", "labels": ["yes", "no", "perhaps"]})


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_options_and_templates_over_columns(tmp_path: Path, kind: str) -> None:
    """As the card says that the study read its rows, or as the options of the command say."""
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    options = [["a wall", "the sea"], ["one"], None]
    frame = pd.DataFrame({"a": ["Where?", "What?", "Who?"], "b": ["a shelf", 7, "you"], "of": options}, dtype=object)
    if kind == "parquet":
        frame.assign(b=frame["b"].astype(str)).to_parquet(source)
    elif kind == "jsonl":
        frame.to_json(source, orient="records", lines=True)
    else:
        frame.assign(of=[json.dumps(o) if o else None for o in options]).to_csv(source, index=False)
    seen: list[Any] = []

    def predict(texts: list[str], choices: Any) -> list[dict[str, Any]]:
        seen.append((texts, choices))
        return [{"label": "a wall", "score": None, "truncated": False} for _ in texts]

    columns = InputColumns.make({"data": {"input": "{a} of {b}", "columns": {"choices": "of"}}}, QUESTIONS)
    summary = predict_file_with(predict, str(source), str(target), columns)
    assert seen == [(["Where? of a shelf"], [["a wall", "the sea"]])]
    assert summary.reasons == {"its options are not a list of at least two different ones": 1, "no options": 1}
    assert (summary.rows, summary.labels) == (1, {})
    assert str(target) in summary.sentences[0]


def test_options_of_the_command_go_before_the_card() -> None:
    card = {"data": {"input": "{a} {b}", "columns": {"text": "text"}}}
    assert InputColumns.make(card, PAIRS) == InputColumns("text", "{a} {b}")
    assert InputColumns.make(card, PAIRS, text="c") == InputColumns("c")
    assert InputColumns.make(card, PAIRS, template="{c}") == InputColumns("text", "{c}")
    assert InputColumns.make({}, QUESTIONS).choices == "choices"
    with pytest.raises(CotdError, match="--text and --input-template are mutually exclusive") as refused:
        InputColumns.make(card, PAIRS, "c", "{", "d")
    assert len(refused.value.problems) == 3
