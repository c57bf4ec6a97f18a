"""`cotd predict` as a user types it: arguments, standard input or a file; by an endpoint, or by a student that is loaded."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.cli.app import main
from cotd.students.student import Student
from serve.settings import Settings

Run = Callable[..., list[str]]
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture
def url(settings: Settings, serve_http: Callable[[Settings], str]) -> str:
    return serve_http(settings.model_copy(update={"max_texts": 8, "max_characters": 100}))


@pytest.fixture
def cotd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; returns the lines of its output, or what it refused to do."""

    def run(*arguments: str, given: str = "") -> list[str]:
        monkeypatch.setattr("sys.argv", ["cotd", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                return capsys.readouterr().err.splitlines()
        return capsys.readouterr().out.splitlines()

    return run


def test_standard_input_by_an_endpoint_and_by_a_student(cotd: Run, url: str, student_folder: Path) -> None:
    examples = [f"example number {i}" for i in range(40)]
    given = "\n".join([*examples, "", "  "])
    expected = [(p.label, round(p.score, 4)) for p in Student.load(student_folder).predict(examples)]
    for where in (["--url", url], ["--local", "--student", str(student_folder)]):
        rows = json.loads("\n".join(cotd("predict", *where, "--json", given=given)))
        assert [row["text"] for row in rows] == examples
        assert [(row["label"], round(row["score"], 4)) for row in rows] == expected
        (line, why) = cotd("predict", *where, "--rationale", "A warm and funny film.")
        assert re.fullmatch(r"(positive|negative) +[\d.]+%  A warm and funny film\.", line)
        assert why.strip()


def test_a_file_by_an_endpoint(cotd: Run, url: str, tmp_path: Path) -> None:
    pd.DataFrame({"example": ["fine"] * 20 + ["x" * 200, ""]}).to_csv(tmp_path / "in.csv", index=False)
    files = ["--input", str(tmp_path / "in.csv"), "--text", "example"]
    cotd("predict", *files, "--output", str(tmp_path / "out.parquet"), "--url", url)
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert list(out) == ["example", "predicted_label", "predicted_score", "predicted_truncated"]
    assert len(out) == 20
    quarantined = pd.read_parquet(tmp_path / "out.quarantine.parquet")
    assert "the limit is 100" in quarantined["quarantine_reason"][0]
    error = cotd("predict", *files, "--output", str(tmp_path / "no.csv"), "--url", "http://127.0.0.1:9")[-1]
    assert "Start the endpoint with `cotd serve`" in error
    assert not (tmp_path / "no.csv").exists()


def test_contradictory_options_are_refused(cotd: Run) -> None:
    for arguments, message in [
        (["x", "--local", "--url", "http://127.0.0.1:9"], "--local uses no endpoint"),
        (["x", "--student", "folder"], "an endpoint predicts with the student that it serves"),
        (["--input", "a.csv", "--output", "b.csv", "--json"], "--json is for predictions that are printed"),
        (["--input", "a.csv", "--output", "b.csv", "--local"], "--input loads the student without --local"),
        (["--input", "a.csv"], "--input and --output go together"),
    ]:
        assert message in "\n".join(cotd("predict", *arguments))


def test_the_documented_curl_commands_work(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    text = DOCS.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("curl ") and "/v1/" in line]
    assert len(lines) >= 2
    for line in lines:
        command = line.replace("http://127.0.0.1:8000/", url)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout.splitlines()[0])["predictions"][0]["label"] in ("positive", "negative"), line
