"""Annotation through a Batch API: nothing is lost or paid for twice, whatever breaks in between."""

from __future__ import annotations

import json

import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import MakeStudy, Provider, number_of


@pytest.fixture
def batched(study: MakeStudy) -> MakeStudy:
    def make(*overrides: str) -> StudyConfig:
        return study("teacher.api.mode=batch", "teacher.api.poll_seconds=0.01", "teacher.api.retries=2", *overrides)

    return make


def test_a_batch_annotates(batched: MakeStudy, provider: Provider, study: MakeStudy) -> None:
    server = provider[0]
    summary = annotate(batched(), yes=True)
    assert summary["annotations"] == {"rows": 48, "examples": 24, "usable": 48, "quarantined": {}}
    assert summary["teacher"]["accuracy"] == summary["teacher"]["accuracy_on_train"] == 1.0
    assert (summary["spent"]["prompt_tokens"], summary["spent"]["output_tokens"]) == (60 * 50, 60 * 10)
    (batch,) = server.batches.values()
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")
    line = json.loads(server.files[batch["input_file_id"]].split(b"\n")[0])
    assert (line["method"], line["url"], line["body"]["model"]) == ("POST", "/v1/chat/completions", "teacher-1")
    assert not list(AnnotationFiles.of(batched()).batches.iterdir()), "what is done is forgotten"
    assert annotate(study(), yes=True)["usage"]["from_store"] == 60, "a completion is the same however it was asked for"


@pytest.mark.parametrize("moment", ["POST files", "POST batches", "GET batches", "GET files"])
@pytest.mark.parametrize("fault", ["500", "429_seconds", "drop", "page"])
def test_what_passes_is_tried_again(batched: MakeStudy, provider: Provider, moment: str, fault: str) -> None:
    """Also a batch of which nobody heard that it was made."""
    server = provider[0]
    server.batch_fault = lambda call, number: fault if call == moment and number == 0 else None
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48
    assert len(server.batches) == 1
    assert set(server.tries.values()) == {1}


@pytest.mark.parametrize("moment", ["POST batches", "GET batches", "GET files"])
def test_a_killed_run_finds_its_batch_again(
    batched: MakeStudy, provider: Provider, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the server had made it, while waited for, and before its files were read."""
    server = provider[0]
    real = server.batch_fault

    def kill(call: str, number: int) -> str | None:
        return "drop" if call == moment else None

    class Killed(BaseException):
        pass

    def die(seconds: float) -> None:
        raise Killed

    server.batch_fault = kill
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.annotate.engines.api.batch.time.sleep", die)
        with pytest.raises(Killed):
            annotate(batched(), yes=True)
    assert read_annotations(batched()) is None
    (kept,) = AnnotationFiles.of(batched()).batches.iterdir()
    assert len(json.loads(kept.read_text())["keys"]) == 60
    server.batch_fault = real
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48
    assert len(server.batches) == 1, "nothing is paid for twice"


def test_a_batch_is_found_among_however_many(batched: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.batches = {f"old-{n}": {"id": f"old-{n}", "status": "completed", "metadata": None} for n in range(7)}
    server.listed = 3
    server.batch_fault = lambda call, number: "drop" if call == "POST batches" and number == 0 else None
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48
    assert len(server.batches) == 8, "no second one is made"


def test_a_batch_that_was_never_made_is_sent_again(batched: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.batch_fault = lambda call, number: "500" if call == "POST batches" else None
    with pytest.raises(CotdError, match=r"/v1/batches fails: HTTP 500.*the same command resumes there"):
        annotate(batched(), yes=True)
    server.batch_fault = lambda call, number: None
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48
    assert len(server.batches) == 1


def test_rows_that_fail_are_quarantined_and_expired_ones_asked_again(batched: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: (
        {"3": "403", "4": "filtered", "5": "500"}.get(number_of(prompt)) if tries == 0 else None
    )
    summary = annotate(batched(), yes=True)
    assert summary["annotations"]["quarantined"] == {
        "HTTP 403: flagged by a filter": 2, "the endpoint's content filter refused": 2, "HTTP 500: <html>out of order</html>": 2
    }  # fmt: skip
    asked = len(server.bodies)
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 44
    assert {number_of(p) for p in server.prompts[asked:]} == {"5"}, "what may do better another time"
    server.batch_fault = lambda call, number: "expire" if call == "POST batches" else None
    late = batched("teacher.seed=7")
    summary = annotate(late, yes=True)
    assert 0 < summary["annotations"]["quarantined"]["it was too late for this one"] < 48
    server.batch_fault = lambda call, number: None
    assert annotate(late, yes=True)["annotations"]["usable"] == 48


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fail", r"does not take the batch batch-0: the file is too large"),
        ("404", r"/v1/batches does not exist \(404\): has it a Batch API\? Set teacher\.api\.mode: requests"),
        ("402", r"has no credit left \(HTTP 402"),
        ("403", r"refuses a batch \(HTTP 403: flagged"),
    ],
)
def test_a_batch_that_is_not_taken_ends_the_run(batched: MakeStudy, provider: Provider, fault: str, message: str) -> None:
    server = provider[0]
    server.batch_fault = lambda call, number: fault if call == "POST batches" else None
    with pytest.raises(CotdError, match=message):
        annotate(batched(), yes=True)
    server.batch_fault = lambda call, number: None
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48


def test_a_setting_that_every_row_fails_for_ends_the_run(batched: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "half_pair" if tries == 0 else None
    with pytest.raises(CotdError, match=r"refuses all requests of this kind"):
        annotate(batched(), yes=True)
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48, "nothing is taken for refused"


def test_batches_are_as_large_as_the_provider_allows(
    batched: MakeStudy, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.annotate.engines.api.batch.MOST_ROWS", 25)
    assert annotate(batched(), yes=True)["annotations"]["usable"] == 48
    assert len(provider[0].batches) == 3


def test_a_budget_limits_what_is_sent(batched: MakeStudy, provider: Provider) -> None:
    summary = annotate(batched("teacher.budget.max_tokens=2500"), yes=True)
    assert 0 < summary["annotations"]["usable"] < 48
    assert summary["spent"]["prompt_tokens"] + summary["spent"]["output_tokens"] <= 2500
