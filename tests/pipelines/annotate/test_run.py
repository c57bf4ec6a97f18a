"""Annotation end to end but for the engine: sources, strategy, store, files and summary are the real ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cotd.data.examples import build_examples
from cotd.data.rows import example_id
from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.teachers.config import BudgetConfig, TeacherConfig
from cotd.teachers.prompts import load_prompts
from cotd.teachers.requests import Request
from cotd.teachers.store import CompletionStore
from cotd.teachers.strategies import STRATEGIES
from cotd.teachers.teacher import Teacher
from pipelines.annotate.ask import Asker
from pipelines.annotate.budget import Budget
from pipelines.annotate.files import AnnotationFiles, read_annotations, replaced_together
from pipelines.annotate.run import annotate
from pipelines.annotate.summary import summary_lines
from tests.conftest import FakeTeacher, example_text, kind_rows
from tests.hostile import HOSTILE
from tests.pipelines.annotate.doubles import nobody, prompts
from tests.pipelines.annotate.fault_server import KEY, Provider
from tests.tasks import SENTIMENT


def elsewhere(config: StudyConfig, folder: Path) -> StudyConfig:
    return config.model_copy(update={"storage": str(folder)})


def test_a_run_leaves_annotations_and_a_summary(config: StudyConfig, teacher_double: Any) -> None:
    summary = annotate(config, teacher_double.complete)
    files = AnnotationFiles.of(config)
    table, again = read_annotations(config) or (None, None)
    assert table is not None
    assert again == json.loads(files.summary.read_text()) == json.loads(json.dumps(summary))
    assert len(table) == 48
    assert table["error"].isna().all()
    assert summary["examples"] == {
        "rows": 60, "repeats": 0, "quarantined": 0, "kept_train": 24, "kept_validation": 24, "kept_test": 12, "cut": 0
    }  # fmt: skip
    assert summary["annotations"] == {"rows": 48, "examples": 24, "usable": 48, "quarantined": {}}
    assert (summary["teacher"]["accuracy"], summary["teacher"]["n"]) == (1.0, 12)
    assert summary["teacher"]["ci_low"] < 1.0 == summary["teacher"]["ci_high"]
    assert "24 validation examples" in summary["calibration"]["used"]
    # 60 scores and 24 rationales: the teacher agrees with gold, so that a rationale given gold is the same request.
    assert summary["usage"]["requests"] == len(teacher_double.asked) == len({r.key for r in teacher_double.asked}) == 84
    assert summary["usage"]["prompt_tokens"] == 84 * 5
    assert (pd.read_parquet(files.teacher_test)["predicted"] == pd.read_parquet(files.teacher_test)["gold"]).all()
    assert not list(files.directory.glob("*.part"))


def test_rows_of_one_group_widen_the_teacher_s_interval(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any
) -> None:
    rows = example_rows.assign(film=[f"{split} {i // 4}" for i, split in enumerate(example_rows["split"])])
    data, teacher = {"columns": {"split": "split", "group": "film"}}, {"calibration": {"rows": 24}}
    measured = annotate(load_config(write_study(rows, data, teacher=teacher)), teacher_double.complete)["teacher"]
    assert (measured["accuracy"], measured["n"], measured["n_groups"]) == (1.0, 12, 3)
    assert measured["ci_low"] < 0.5, "as of three examples, and not of twelve"


def test_a_second_run_asks_nothing(config: StudyConfig, teacher_double: Any) -> None:
    first = annotate(config, teacher_double.complete)
    before = pd.read_parquet(AnnotationFiles.of(config).annotations)
    second = annotate(config, nobody)
    another_study = annotate(config.model_copy(update={"name": "another"}), nobody)  # the store is the storage folder's
    pd.testing.assert_frame_equal(pd.read_parquet(AnnotationFiles.of(config).annotations), before)
    assert second["digest"] == first["digest"]
    assert another_study["digest"] == first["digest"]
    assert second["usage"] == another_study["usage"] == {"requests": 84, "from_store": 84}


@pytest.mark.parametrize("stage", ["label scores", "rationales"])
def test_a_stopped_run_resumes_where_it_was(config: StudyConfig, teacher_double: Any, tmp_path: Path, stage: str) -> None:
    whole = annotate(elsewhere(config, tmp_path / "whole"), teacher_double.complete)
    every_key = {r.key for r in teacher_double.asked}

    double = type(teacher_double)()
    written = 0

    def stop(request: Request) -> str:
        nonlocal written
        written += 1
        if written > 10:
            raise KeyboardInterrupt
        return teacher_double.write(request)

    if stage == "label scores":
        double.stop_after = 1
    else:
        double.write = stop
    with pytest.raises(KeyboardInterrupt):
        annotate(config, double.complete)
    assert read_annotations(config) is None, "half a table would be taken for a whole one"
    kept = 8 if stage == "label scores" else 60 + 8  # whole batches of 8

    rest = type(teacher_double)()
    summary = annotate(config, rest.complete)
    asked = [r.key for r in rest.asked]
    assert len(asked) == len(set(asked)) == 84 - kept
    assert set(asked) | {r.key for r in double.asked} == every_key
    assert summary["digest"] == whole["digest"]
    assert summary["usage"]["from_store"] == kept


def test_annotations_and_their_summary_are_replaced_together(
    config: StudyConfig, teacher_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run fails at: either all files of the one before are there, or no summary that could be of others."""
    annotate(config, teacher_double.complete)
    files = AnnotationFiles.of(config)
    before = {path: path.read_bytes() for path in files.directory.iterdir() if path.is_file()}

    def fail(*_: Any) -> str:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.annotate.run.annotations_page", fail)
        with pytest.raises(OSError, match="no space"):
            annotate(config, teacher_double.complete)
    assert {path: path.read_bytes() for path in files.directory.iterdir() if path.is_file()} == before

    def killed_while_moving() -> None:
        with monkeypatch.context() as patch, replaced_together(files) as new:
            shutil.copyfile(files.annotations, new.annotations)
            patch.setattr(Path, "replace", fail)

    with pytest.raises(OSError, match="no space"):
        killed_while_moving()
    assert read_annotations(config) is None
    annotate(config, teacher_double.complete)
    assert read_annotations(config) is not None
    assert not list(files.directory.glob(".new-*"))


def test_failed_answers_are_quarantined_and_asked_again(config: StudyConfig, teacher_double: Any) -> None:
    teacher_double.fails = lambda prompt: prompt.endswith("Reason:") and "number 3." in prompt
    summary = annotate(config, teacher_double.complete)
    table = pd.read_parquet(AnnotationFiles.of(config).annotations)
    assert summary["annotations"]["usable"] == 46
    assert summary["annotations"]["quarantined"] == {"the engine ran out of memory": 2}
    assert summary["usage"]["failed"] == 1
    assert table["error"].notna().sum() == 2

    still = annotate(config, teacher_double.complete)
    assert still["annotations"] == summary["annotations"], "one row that always fails does not fail the run"

    again = type(teacher_double)()
    summary = annotate(config, again.complete)
    assert len(again.asked) == 1
    assert "number 3." in prompts(again)[0]
    assert summary["annotations"]["usable"] == 48


def test_unusable_completions_are_asked_for_again_on_demand_only(config: StudyConfig, teacher_double: Any) -> None:
    def write(request: Request) -> str:
        tries.append((request.sampling["seed"], request.sampling["temperature"]))
        good = "number 3." not in request.prompt or request.sampling["seed"] == 128
        return " The reviewer says what the film is like." if good else " No."

    tries: list[tuple[int, float]] = []
    teacher_double.write = write
    short = {"rationale is empty or shorter than three words": 2}
    assert annotate(config, teacher_double.complete)["annotations"]["quarantined"] == short
    assert tries == [(0, 0.0)] * 24
    assert annotate(config, teacher_double.complete, retry_errors=True)["annotations"]["quarantined"] == short
    assert annotate(config, nobody)["annotations"]["quarantined"] == short
    retried = annotate(config, teacher_double.complete, retry_errors=True)
    assert tries[24:] == [(64, 0.7), (128, 0.7)], "the quarantined row, sampled anew each time, and no other"
    assert retried["annotations"]["usable"] == 48
    assert annotate(config, nobody)["digest"] == retried["digest"]


def test_a_chain_of_thought_without_a_label_is_asked_for_again(config: StudyConfig, teacher_double: Any) -> None:
    def write(request: Request) -> str:
        doubtful = request.sampling["seed"] < 64 and any(
            f"number {n}." in request.prompt for n in (3, 50)
        )  # 50 is a test example
        return " Hard to say what it is like." + ("" if doubtful else "\nSentiment: Positive")

    teacher_double.write = write
    thinking = TeacherConfig(strategy="chain_of_thought", gold_conditioned=False)
    config = config.model_copy(update={"teacher": thinking})
    first = annotate(config, teacher_double.complete)
    assert first["annotations"]["quarantined"] == {"no label of the task in the completion": 1}
    asked = len(teacher_double.asked)
    summary = annotate(config, teacher_double.complete, retry_errors=True)
    assert {p.rpartition("number ")[2].partition(".")[0] for p in prompts(teacher_double)[asked:]} == {"3", "50"}
    assert summary["annotations"]["usable"] == 24
    assert summary["teacher"]["accuracy"] > first["teacher"]["accuracy"]


def test_more_examples_cost_only_what_is_new(
    config: StudyConfig, teacher_double: Any, write_study: Callable[..., Path]
) -> None:
    small = load_config(write_study(teacher={"calibration": {"rows": 24}}), ["data.train_rows=10"])
    annotate(small, teacher_double.complete)
    asked = len(teacher_double.asked)
    assert asked == (10 + 24 + 12) + 10
    annotate(config, teacher_double.complete)
    assert len(teacher_double.asked) - asked == 2 * 14


def test_a_teacher_that_fails_throughout_is_an_error(config: StudyConfig, teacher_double: Any) -> None:
    teacher_double.fails = lambda prompt: True
    with pytest.raises(CotdError, match="the teacher failed on all 60 requests for label scores: the engine ran out of memory"):
        annotate(config, teacher_double.complete)
    assert read_annotations(config) is None


def test_two_commands_do_not_annotate_one_study_at_once(config: StudyConfig, teacher_double: Any) -> None:
    def meanwhile(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
        with pytest.raises(CotdError, match=r"another process is annotating small .*\.lock"):
            annotate(config, nobody)
        return teacher_double.complete(requests)

    assert annotate(config, meanwhile)["annotations"]["usable"] == 48
    annotate(config, nobody)  # the lock is gone


@pytest.mark.parametrize("strategy", ["score_then_explain", "chain_of_thought"])
def test_examples_without_gold_are_annotated(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any, strategy: str
) -> None:
    said = {True: "Positive", False: "Negative"}
    teacher_double.write = lambda r: f" The words are telling.\nSentiment: {said['warm' in r.prompt.rpartition('eview: ')[2]]}"
    teacher = {"strategy": strategy, "calibration": {"method": "prior", "rows": 24}}
    config = load_config(write_study(example_rows.drop(columns="label"), teacher=teacher))
    summary = annotate(config, teacher_double.complete)
    assert summary["annotations"] == {"rows": 24, "examples": 24, "usable": 24, "quarantined": {}}
    assert [summary["teacher"][k] for k in ("accuracy", "ci_low", "n", "accuracy_on_train")] == [None, None, 0, None]
    assert summary["quality"]["labels"] == {"rows": 0}
    table = (read_annotations(config) or (pd.DataFrame(),))[0]
    gold = {example_id(r.text): r.label for r in example_rows.itertuples()}
    assert (table["label"] == table["example_id"].map(gold)).all()
    assert "teacher: not measured, as no test example has a gold label" in list(summary_lines(summary, Path("a.parquet")))
    assert [w.partition(":")[0] for w in summary["warnings"]] == ["students cannot be trained yet"] * 3
    assert "Annotations" in AnnotationFiles.of(config).page.read_text(encoding="utf-8")


# --- tasks of every kind ---------------------------------------------------------------------------------------------


WRONG = {  # what the teacher says of the last three test examples: nothing that can be read, and two wrong answers
    "labels": {57: None, 58: "sky", 59: "sea"},
    "options": {57: "perhaps", 58: "(a)", 59: "(a)"},
    "numbers": {57: "none", 58: 3, 59: "4.5"},
}
GRID = {"method": ["distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
SHOWN = {"labels": "News 1: about the sea", "options": "Which is it, 1? (a) right 1 (b)", "numbers": "What is 1 and 1000?"}


def right_answer(kind: str, text: str) -> Any:
    if kind == "labels":
        return next(label for label in ("sky", "sea", "land") if text.endswith(label))
    return f"({text.partition(' right')[0][-2]})" if kind == "options" else int(text.split()[3]) + 1000


@pytest.mark.parametrize("kind", ["labels", "options", "numbers"])
def test_an_endpoint_thinks_about_every_kind_of_task(
    write_kind: Callable[..., Path], provider: Provider, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server, url = provider
    key = "label" if kind == "labels" else "answer"

    def write(prompt: str) -> str:
        text = prompt.rpartition("\n\n")[2].splitlines()[0]
        answer = right_answer(kind, text)
        why = {"rationale": f"One can tell that it is {answer:,}." if kind == "numbers" else "One can see that it is right."}
        number = next((n for n in WRONG[kind] if f" {n}" in text), None)
        return json.dumps(why | {key: WRONG[kind].get(number, answer)} if f'"{key}"' in prompt else why)

    server.write = write
    api = {
        "base_url": url, "key_env": "TEACHER_KEY", "json_completions": "object", "backoff_seconds": 0.01, "retries": 1
    }  # fmt: skip
    teacher = {"model": "teacher-1", "strategy": "chain_of_thought", "api": api, "filters": ["agrees_with_gold"]}
    config = load_config(write_kind(kind, teacher=teacher))
    summary = annotate(config, yes=True)
    assert summary["annotations"] == {"rows": 48, "examples": 24, "usable": 48, "quarantined": {}}
    assert (summary["teacher"]["n"], summary["teacher"]["accuracy"]) == (12, 9 / 12)
    assert ("confusion" in summary["quality"]["labels"]) == (kind == "labels")
    assert summary["quality"]["rationales"]["names_its_label"] == (1.0 if kind == "numbers" else 0.0)
    lines = list(summary_lines(summary, AnnotationFiles.of(config).annotations))
    assert any(line.startswith("teacher: 75.0%") for line in lines)
    assert SHOWN[kind] in AnnotationFiles.of(config).page.read_text(encoding="utf-8")
    assert annotate(config, yes=True)["digest"] == summary["digest"]


@pytest.mark.parametrize("kind", ["labels", "options"])
def test_options_of_every_kind_are_scored_and_explained(
    write_kind: Callable[..., Path], embedded_student: Path, teacher_double: Any, kind: str
) -> None:
    """Through the embedded teacher's own tokenizer, its scores read in the order of the labels or letters."""

    def score(request: Request) -> list[float]:
        text = request.prompt.rpartition("\n\n")[2].splitlines()[0].partition(": ")[2]
        answer = right_answer(kind, text)
        position = ("sky", "sea", "land").index(answer) if kind == "labels" else "abcd".index(answer[1])
        scores = np.zeros(request.sampling["logprobs"])
        scores[position] += 2.0
        return list(scores - np.log(np.exp(scores).sum()))

    teacher_double.score = score
    config = load_config(write_kind(kind, teacher={"calibration": {"rows": 24}}))
    summary = annotate(config, teacher_double.complete)
    assert summary["annotations"] == {"rows": 48, "examples": 24, "usable": 48, "quarantined": {}}
    assert summary["teacher"]["accuracy"] == 1.0
    assert len(summary["calibration"]["biases"]) == (3 if kind == "labels" else 4)
    assert summary["usage"]["requests"] == 84, "a rationale given gold is the one given the teacher's equal label"
    assert annotate(config, nobody)["digest"] == summary["digest"]


def test_free_answers_are_not_scored(write_kind: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match="chain_of_thought"):
        annotate(load_config(write_kind("numbers")), nobody)


@pytest.mark.parametrize("kind", ["labels", "options", "numbers"])
def test_completions_of_every_kind_of_task_are_imported(write_kind: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """Joined by text and options; the first row is wrong, the second cannot be read."""
    rows = kind_rows(kind)
    said = list(rows["label"])
    said[0], said[1] = {"labels": ("sea", "the sea or the sky"), "options": ("b", "e"), "numbers": ("7", "seven")}[kind]
    columns = {"label": "said", "rationale": "why"}
    rows.assign(said=said, why="One can see that it is so.").to_json(tmp_path / "imported.jsonl", orient="records", lines=True)
    teacher = {"model": "gpt-x", "imported": {"source": str(tmp_path / "imported.jsonl"), "columns": columns}}
    teacher["filters"] = ["agrees_with_gold"]
    config = load_config(write_kind(kind, teacher=teacher, grid=GRID))
    summary = annotate(config)
    assert (summary["imported"]["rows"], summary["imported"]["matched"], summary["imported"]["examples"]) == (60, 60, 60)
    assert (summary["annotations"]["examples"], summary["annotations"]["usable"]) == (24, 22)
    assert summary["filters"] == {"agrees_with_gold": 1}
    assert sum(summary["imported"]["other_labels"].values()) == 1
    assert summary["teacher"]["accuracy"] == 1.0


# --- what examples may hold ------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    st.lists(
        st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40), st.text(st.characters(), max_size=40)),
        min_size=1,
        max_size=12,
    )
)
@example(HOSTILE)
def test_any_text_is_annotated_or_quarantined_and_shifts_no_other(texts: list[str]) -> None:
    good = [example_text(i, i % 2 == 0) for i in range(60)]
    rows = pd.DataFrame(
        [(t, "positive", "train") for t in texts]
        + [(t, "positive" if i % 2 == 0 else "negative", ["train", "validation", "test"][i % 3]) for i, t in enumerate(good)],
        columns=["text", "label", "split"],
        dtype=object,
    )  # fmt: skip
    examples = build_examples(rows, "hostile", SENTIMENT)
    assert len(examples.table) + len(examples.quarantined) + examples.counts["repeats"] == len(rows)
    double = FakeTeacher()
    config = TeacherConfig()
    teacher = Teacher("double", "1", config)
    with tempfile.TemporaryDirectory() as folder:
        store = CompletionStore(Path(folder))
        ask = Asker(store, lambda: double.complete, Budget(BudgetConfig(), len))
        output = STRATEGIES["score_then_explain"](teacher, examples, load_prompts(SENTIMENT, "example"), ask)
        assert ask.usage["failed"] == 0
    train = examples.split("train")
    assert set(output.annotations.table()["example_id"]) == set(train["id"])
    own = output.annotations.table()[~output.annotations.table()["gold_conditioned"]].set_index("example_id")["label"]
    for row in train[train["text"].isin(good)].itertuples():
        assert own[row.id] == row.label
    for request in double.asked:
        request.prompt.encode()
        assert "\x00" not in request.prompt
        assert "<|im_end|>" not in request.prompt
