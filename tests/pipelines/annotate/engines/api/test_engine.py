"""What is checked of an endpoint before anything is asked: its address, key, model and abilities."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from cotd.cli.app import main
from cotd.errors import CotdError
from pipelines.annotate.engines.api.engine import check_endpoint
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import KEY, MakeStudy, Provider, number_of


@pytest.mark.parametrize("listed", ["models/teacher-1", "owner/teacher-1", "teacher-1:latest"])
def test_a_model_may_be_listed_by_a_longer_name(study: MakeStudy, provider: Provider, listed: str) -> None:
    provider[0].models = ["another", listed]
    config = study()
    assert config.teacher.api is not None
    check_endpoint(config.teacher.model, config.teacher.api, None)


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-1 sk-2", "sk-é", "sk-\x00"])
def test_a_malformed_key_is_not_shown(study: MakeStudy, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "TEACHER_KEY": key})
    with pytest.raises(CotdError, match="TEACHER_KEY does not hold a key: it has a line break, a space") as caught:
        annotate(study(), yes=True)
    assert "sk-" not in str(caught.value)


@pytest.mark.integration
def test_the_key_is_nowhere(
    study: MakeStudy,
    provider: Provider,
    make_store: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither printed, nor in a file, nor in MLflow, after a run by the command line."""
    server = provider[0]
    server.fault = lambda prompt, tries: "400" if number_of(prompt) == "3" else None
    study()  # writes it
    uri = make_store(tmp_path / "mlflow.db")
    command = ["cotd", "annotate", str(tmp_path / "study.yaml"), "--yes", f"tracking.uri={uri}"]
    monkeypatch.setattr("sys.argv", command)
    with contextlib.suppress(SystemExit):
        main()
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert runs
    assert KEY not in json.dumps([r.to_dictionary() for r in runs])
    assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(files) > 5
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file


def test_a_server_without_log_probabilities_is_refused_before_anything_starts(study: MakeStudy, provider: Provider) -> None:
    provider[0].logprobs = False
    config = study("teacher.strategy=score_then_explain", "teacher.api.endpoint=completions")
    with pytest.raises(CotdError, match=r"gives no log-probabilities.*Set strategy: chain_of_thought"):
        annotate(config, yes=True)
    assert len(provider[0].bodies) == 1
    assert not config.directory.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.api.key_env=NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY is not set"),
        (["teacher.api.base_url=http://127.0.0.1:9/v1"], "no response from http://127.0.0.1:9/v1"),
        (["teacher.strategy=score_then_explain"], "score_then_explain needs the log-probabilities"),
        ([f"teacher.api.key_env={KEY}"], "names an environment variable, in capitals, such as OPENAI_API_KEY"),
        (["teacher.api.base_url=http://me:pass@host/v1"], "holds credentials"),
        (["teacher.budget.max_cost=1"], "max_cost needs input_price and output_price"),
        (["teacher.filters=[agrees_with_golds]"], "unknown filter 'agrees_with_golds'.*Did you mean 'agrees_with_gold'"),
        (["teacher.filters=[{length: {max_word: 3}}]"], "length has no setting 'max_word'.*Did you mean 'max_words'"),
        (["teacher.api.timeout=3"], "unknown key 'teacher.api.timeout'. Did you mean 'timeout_seconds'"),
    ],
)
def test_what_cannot_work_is_said_first(study: MakeStudy, provider: Provider, overrides: list[str], message: str) -> None:
    with pytest.raises(CotdError, match=message) as caught:
        annotate(study(*overrides), yes=True)
    assert KEY not in str(caught.value)
    assert "pass@" not in str(caught.value)
    assert not provider[0].bodies
