"""Bad input ends in one readable message that names the fix, and exit code 2, before any worker starts."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from cotd.cli.app import main
from cotd.cli.checks import check_student
from cotd.errors import CotdError

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs a command in an empty folder, checks that it is refused as it should be, and returns the message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr("sys.argv", ["cotd", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert "Traceback" not in printed.err
        assert printed.out == ""
        written = [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and p.parent.name != "data"]
        assert written == [], "a study that cannot start leaves its prepared examples at most"
        return printed.err

    return run


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("training.stepz=5", ["error: ", "unknown key 'training.stepz'. Did you mean 'steps'?"]),
        ("grid.method=[distil]", ["unknown method 'distil'", "Did you mean 'distill'?"]),
        ("grid.fraction=[0]", ["grid.fraction.0: fraction 0.0 is outside (0, 1]", "write 10 % as 0.1"]),
        ("grid.fraction=[1.5]", ["grid.fraction.0: fraction 1.5 is outside (0, 1]", "write 10 % as 0.1"]),
        ("steps", ["override 'steps' is not of the form key=value, for example training.steps=100"]),
        ("data.columns.text=body", ["reviews.csv: no column 'body' (data.columns.text); it has: text, label, split."]),
        ("data.source=nowhere.csv", ["no file 'nowhere.csv' (looked in "]),
        ("data.source=embedded:rotten", ["unknown embedded asset 'rotten'; known: "]),
        ("sizes.tiny=./nowhere", ["'./nowhere'", "embedded:"]),
        ("sizes.tiny=nowhere", ["model 'nowhere' does not exist"]),
        ("grid.method=[distill]", ["has no annotations, which distill need", "study.yaml 'grid.method=[distill]'` first."]),
    ],
)
def test_studies_that_cannot_train(
    refused: Refused, write_study: Callable[..., Path], override: str, messages: list[str]
) -> None:
    error = refused("train", write_study(), override)
    for message in messages:
        assert message in error


@pytest.mark.parametrize("model", ["./nowhere", "nowhere"])
def test_a_teacher_that_does_not_exist(refused: Refused, write_study: Callable[..., Path], model: str) -> None:
    assert f"'{model}'" in refused("annotate", write_study(), f"teacher.model={model}")


def test_several_problems_are_numbered(refused: Refused, write_study: Callable[..., Path]) -> None:
    error = refused("annotate", write_study(), "training.stepz=5", "grid.fraction=[1.5]", "nam=x")
    assert error.startswith("3 errors:\n  1. ")
    assert "\n  3. " in error


def test_yaml_that_is_not_a_mapping(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- finetune\n- distill\n")
    assert "is not a mapping of keys to values but a list. Start with `name: …`." in refused("sweep", tmp_path / "list.yaml")


@pytest.mark.parametrize("command", ["annotate", "sweep", "train", "report", "promote"])
def test_a_study_that_is_not_there(refused: Refused, command: str) -> None:
    assert refused(command, "nowhere.yaml").startswith("error: no configuration file 'nowhere.yaml'.")


def test_rows_without_a_dry_run(refused: Refused, write_study: Callable[..., Path]) -> None:
    error = refused("annotate", write_study(), "--rows", "4")
    assert error == (
        "error: --rows is for --dry-run alone: leave it out. To annotate fewer examples, give data.train_rows=4.\n"
    )


def test_studies_without_a_report_to_compare(refused: Refused) -> None:
    error = refused("compare", "nowhere", "here/nor", "--output", "s3://runs/comparison")
    assert error.startswith(
        "3 errors:\n  1. no report in 'nowhere'. Give a study's folder, runs/NAME, after `cotd report CONFIG`."
    )


def test_an_empty_data_set(refused: Refused, write_study: Callable[..., Path], example_rows: pd.DataFrame) -> None:
    error = refused("annotate", write_study(example_rows[:0]))
    assert "reviews.csv: no usable example among 0 rows" in error
    assert "Check the file and the column mapping (data.columns)." in error


def test_training_examples_without_labels_for_finetune(
    refused: Refused, write_study: Callable[..., Path], example_rows: pd.DataFrame
) -> None:
    rows = example_rows.assign(label=example_rows["label"].where(example_rows["split"] != "train", None))
    error = refused("train", write_study(rows))
    assert "method 'finetune' trains on gold labels, and no training example has one." in error
    assert "data.columns.label, or take it out of grid.method." in error


def test_a_data_set_without_any_label(refused: Refused, write_study: Callable[..., Path], example_rows: pd.DataFrame) -> None:
    path = write_study(example_rows.drop(columns="label"))
    error = refused("annotate", path)
    assert "method platt needs validation examples with gold labels of at least two kinds. Use method: prior" in error
    error = refused("train", path)
    assert error.startswith("3 errors:")
    for message in ("the validation split has no gold label", "the test split has no gold label", "method 'finetune'"):
        assert message in error


def test_a_split_of_one_label(refused: Refused, write_study: Callable[..., Path], example_rows: pd.DataFrame) -> None:
    rows = example_rows[(example_rows["split"] == "test") | (example_rows["label"] == "negative")]
    error = refused("train", write_study(rows))
    assert error.startswith("2 errors:")
    for split in ("train", "validation"):
        assert f"the {split} split has gold labels of one kind only: 12 × negative." in error


def test_an_unknown_asset(refused: Refused) -> None:
    error = refused("assets", "pull", "rotten-tomato")
    assert "unknown embedded asset 'rotten-tomato'; known: " in error
    assert "Did you mean 'rotten-tomatoes'?" in error


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken


def test_a_port_in_use(refused: Refused, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    error = refused("serve", "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)." in error
    assert "choose another with --port" in error


def test_serving_with_several_mistakes_names_them_all(refused: Refused, listener: socket.socket) -> None:
    port = str(listener.getsockname()[1])
    error = refused("serve", "--port", port, "--runtime", "torsh", "--token-file", "nowhere")
    assert error.startswith("4 errors:")
    for problem in ("cannot listen on", "Did you mean 'torch'?", "cannot read the token", "no MLflow database"):
        assert problem in error


def test_serving_before_anything_was_promoted(refused: Refused, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    error = refused("serve", "--port", str(port))
    assert "no MLflow database" in error
    assert "Run `cotd promote CONFIG` first, or name the store: --tracking-uri." in error


@pytest.mark.parametrize("student", ["nowhere", "./nowhere"])
def test_serving_a_student_that_does_not_exist(student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that `cotd serve` makes before it starts Ray."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CotdError, match=f"'{student}'"):
        check_student(student, f"sqlite:///{tmp_path}/mlflow.db")


def test_predicting_without_an_endpoint(refused: Refused, listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    error = refused("predict", "A warm and funny film.", "--url", url)
    assert f"the endpoint at {url} does not respond" in error
    assert "Start the endpoint with `cotd serve`, or give its address: --url." in error


def test_predicting_nothing(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n  \n"))
    assert "no example given: name some as arguments, or give them on standard input" in refused("predict")


@pytest.mark.parametrize(
    "arguments", [["annotat", "demo.yaml"], ["train"], ["serve", "--port", "70000"], ["predict", "--locl", "x"]]
)
def test_usage_errors(refused: Refused, arguments: list[str]) -> None:
    error = refused(*arguments)
    assert error.startswith("Usage: ")
    assert "\nError: " in error


def test_an_unknown_split_to_evaluate(refused: Refused) -> None:
    assert "--split 'dev' is not train, validation, test or all." in refused(
        "evaluate", "x", "embedded:rotten-tomatoes", "--split", "dev"
    )
