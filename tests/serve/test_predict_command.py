"""`cotd predict` as a user types it: arguments, standard input, a file; asking an endpoint, or loading the student."""

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
README = Path(__file__).parent.parent.parent / "README.md"


@pytest.fixture
def url(student_folder: Path, serve_http: Callable[[Settings], str]) -> str:
    return serve_http(Settings(student=str(student_folder), poll_seconds=0, max_texts=8, max_characters=100))


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


def test_reviews_of_standard_input_by_either_way(cotd: Run, url: str, student_folder: Path) -> None:
    reviews = [f"review number {i}" for i in range(40)]
    given = "\n".join([*reviews, "", "  "])
    expected = [(p.label, round(p.score, 4)) for p in Student.load(student_folder).predict(reviews)]
    for where in (["--url", url], ["--local", "--student", str(student_folder)]):
        rows = [json.loads(line) for line in cotd("predict", *where, "--json", given=given)]
        assert [row["text"] for row in rows] == reviews
        assert [(row["label"], round(row["score"], 4)) for row in rows] == expected
        (line, why) = cotd("predict", *where, "--rationale", "A warm and funny film.")
        assert re.fullmatch(r"(positive|negative) +[\d.]+%  A warm and funny film\.", line)
        assert why.strip()


def test_a_file_by_an_endpoint(cotd: Run, url: str, tmp_path: Path) -> None:
    pd.DataFrame({"review": ["fine"] * 20 + ["x" * 200, ""]}).to_csv(tmp_path / "in.csv", index=False)
    cotd(
        "predict",
        "--input",
        str(tmp_path / "in.csv"),
        "--output",
        str(tmp_path / "out.parquet"),
        "--text",
        "review",
        "--url",
        url,
    )
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert list(out) == ["review", "predicted_label", "predicted_score", "predicted_truncated"]
    assert len(out) == 20
    aside = pd.read_parquet(tmp_path / "out.quarantine.parquet")
    assert "the limit is 100" in aside["quarantine_reason"][0]
    gone = ["predict", "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "no.csv"), "--text", "review"]
    assert "Start the endpoint with `cotd serve`" in cotd(*gone, "--url", "http://127.0.0.1:9")[-1]
    assert not (tmp_path / "no.csv").exists()


def test_what_contradicts_itself_is_refused(cotd: Run) -> None:
    for arguments, said in [
        (["x", "--local", "--url", "http://127.0.0.1:9"], "--local uses no endpoint"),
        (["x", "--student", "folder"], "an endpoint predicts with the student that it serves"),
        (["--input", "a.csv", "--output", "b.csv", "--json"], "--json is for predictions that are printed"),
        (["--input", "a.csv", "--output", "b.csv", "--local"], "--input loads the student without --local"),
        (["--input", "a.csv"], "--input and --output go together"),
    ]:
        assert said in "\n".join(cotd("predict", *arguments))


def test_the_readmes_curl_lines_are_answered(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    lines = [
        line for line in README.read_text().replace("\\\n", " ").splitlines() if line.startswith("curl ") and "/v1/" in line
    ]
    assert len(lines) >= 2
    for line in lines:
        command = line.replace("http://127.0.0.1:8000/", url)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout.splitlines()[0])["predictions"][0]["label"] in ("positive", "negative"), line
