"""What commands print: documents for scripts, errors and their tracebacks, colours, completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cotd.cli.app import app, main
from cotd.progress import VERBOSE
from cotd.students.student import Student
from tests.conftest import FakeTeacher

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture
def cotd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str, Any]]:
    """Runs a command in this process: its output, its errors and its exit code."""
    monkeypatch.setenv(VERBOSE, "")  # what a test sets is undone

    def run(*arguments: object) -> tuple[str, str, Any]:
        monkeypatch.setattr("sys.argv", ["cotd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return printed.out, printed.err, ended.value.code

    return run


def test_json_is_one_document_whatever_a_library_prints(
    cotd: Callable[..., Any],
    write_study: Callable[..., Path],
    teacher_double: FakeTeacher,
    embedded_student: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pipelines.annotate.run as pipeline

    annotate = pipeline.annotate

    def chatty(*arguments: Any, **options: Any) -> dict[str, Any]:
        print("a library greets")
        return annotate(*arguments, complete=teacher_double.complete, **options) | {"nothing": float("nan")}

    monkeypatch.setattr(pipeline, "annotate", chatty)
    monkeypatch.setattr("cotd.tracking.runs.StudyTracker.log_teacher", lambda *arguments: print("and MLflow"))
    study = write_study(teacher={"calibration": {"rows": 24}}, tracking={"uri": f"sqlite:///{write_study().parent}/mlflow.db"})
    out, errors, code = cotd("annotate", study, "--json")
    assert code == 0
    assert json.loads(out)["annotations"]["rows"] == 48
    assert json.loads(out)["nothing"] is None, "JSON has no NaN"
    assert "NaN" not in out
    assert "a library greets" in errors
    out, _, _ = cotd("status", study, "--json")
    assert json.loads(out)["next"] == f"cotd sweep {study}"
    out, _, _ = cotd("status", study)
    assert out.splitlines()[-1] == f"next: cotd sweep {study}"
    out, _, _ = cotd("status", study, "grid.seed=[5]")
    assert out.splitlines()[-1].endswith(f"{study} 'grid.seed=[5]'"), "quoted, as shells read brackets"


def test_the_commands_that_scripts_use_have_json() -> None:
    with_json = {name for name, command in COMMANDS.items() if any("--json" in p.opts for p in command.params)}
    assert with_json == {"annotate", "sweep", "report", "status", "promote", "predict", "evaluate", "check", "train"}


def test_an_unexpected_error_is_one_line_and_its_traceback_a_file_or_on_request(
    cotd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("cotd.cli.configs.shipped_configs", lambda: 1 / 0)
    out, errors, code = cotd("configs")
    (file,) = tmp_path.iterdir()
    assert (out, code) == ("", 1)
    assert errors.startswith("unexpected error: ZeroDivisionError: division by zero\n")
    assert str(file) in errors
    assert "in test_an_unexpected" not in errors
    assert "shipped_configs" in file.read_text()
    monkeypatch.setattr("sys.argv", ["cotd", "--verbose", "configs"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_verbose_shows_where_bad_input_was_noticed(cotd: Callable[..., Any]) -> None:
    assert cotd("report", "nowhere.yaml")[1].startswith("error: no configuration file")
    errors = cotd("--verbose", "report", "nowhere.yaml")[1]
    assert errors.startswith("Traceback")
    assert "\nerror: no configuration file 'nowhere.yaml'." in errors


@pytest.mark.integration
@pytest.mark.parametrize("verbose", ["", "1"])
def test_verbose_shows_what_ray_logs(verbose: str) -> None:
    code = (
        "import ray, time; from pipelines.cluster.session import ray_session\n"
        "with ray_session(num_cpus=1): ray.get(ray.remote(lambda: print('from a worker')).remote()); time.sleep(1)"
    )
    environment = os.environ | {VERBOSE: verbose}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert ("from a worker" in ran.stdout, "Started a local Ray instance" in ran.stderr) == (bool(verbose), bool(verbose))


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured(no_color: str, coloured: bool) -> None:
    code = "from cotd.progress import console; from rich.progress_bar import ProgressBar; console.print(ProgressBar(2, 1))"
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": no_color}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ("\x1b[" in ran.stderr) == coloured


def test_the_shell_completes_commands() -> None:
    environment = os.environ | {"_COTD_COMPLETE": "complete_bash", "COMP_WORDS": "cotd pro", "COMP_CWORD": "1"}
    program = [str(Path(sys.executable).with_name("cotd"))]
    ran = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == ["promote"]


def test_evaluate_prints_json_either_way(cotd: Callable[..., Any], tiny_t5: Path, tmp_path: Path, example_rows: Any) -> None:
    from cotd.students.base_models import load_base
    from tests.tasks import SENTIMENT

    model, tokenizer = load_base(str(tiny_t5))
    Student(model, tokenizer, SENTIMENT, {"method": "finetune", "max_input_tokens": 64}).save(tmp_path / "student")
    example_rows.to_csv(tmp_path / "reviews.csv", index=False)
    arguments = ["evaluate", tmp_path / "student", tmp_path / "reviews.csv", "--split", "all"]
    plain, as_json = (cotd(*arguments, *options)[0] for options in ([], ["--json"]))
    assert json.loads(plain) == json.loads(as_json)
    assert json.loads(as_json)["n"] == 60
