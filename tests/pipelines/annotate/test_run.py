"""Annotation end to end but for the engine: sources, strategy, store, files and summary are the real ones."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cotd.data.examples import build_examples, review_id
from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.tasks.registry import SENTIMENT
from cotd.teachers.config import BudgetConfig, TeacherConfig
from cotd.teachers.prompts import load_prompts
from cotd.teachers.requests import Request
from cotd.teachers.store import CompletionStore
from cotd.teachers.strategies import STRATEGIES
from cotd.teachers.teacher import Teacher
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.utils.parquet import parquet_writer
from pipelines.annotate.ask import Asker
from pipelines.annotate.budget import Budget
from pipelines.annotate.files import QUARANTINE, AnnotationFiles, read_annotations
from pipelines.annotate.job import load_job
from pipelines.annotate.preview import preview
from pipelines.annotate.run import annotate
from pipelines.annotate.summary import summary_lines
from pipelines.prepare import prepare as prepare_examples
from pipelines.sweep.plan import check_annotations
from tests.conftest import FakeTeacher, review_text
from tests.hostile import HOSTILE


@pytest.fixture
def config(write_study: Callable[..., Path], embedded_student: Path) -> StudyConfig:
    """60 reviews: 24 to annotate, 24 to calibrate on, 12 to test the teacher on. The embedded teacher's tokenizer is used."""
    return load_config(write_study(teacher={"calibration": {"rows": 24}}))


def elsewhere(config: StudyConfig, folder: Path) -> StudyConfig:
    return config.model_copy(update={"storage": str(folder)})


def nobody(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
    raise AssertionError(f"asked again: {next(iter(requests)).prompt}")


def prompts(double: Any) -> list[str]:
    return [r.prompt for r in double.asked]


def test_a_run_leaves_annotations_and_a_summary(config: StudyConfig, teacher_double: Any) -> None:
    summary = annotate(config, teacher_double.complete)
    files = AnnotationFiles.of(config)
    table, again = read_annotations(config) or (None, None)
    assert table is not None
    assert again == json.loads(files.summary.read_text()) == json.loads(json.dumps(summary))
    assert len(table) == 48
    assert table["error"].isna().all()
    assert summary["reviews"] == {
        "rows": 60, "repeats": 0, "quarantined": 0, "kept_train": 24, "kept_validation": 24, "kept_test": 12, "cut": 0
    }  # fmt: skip
    assert summary["annotations"] == {"rows": 48, "reviews": 24, "usable": 48, "quarantined": {}}
    assert (summary["teacher"]["accuracy"], summary["teacher"]["n"]) == (1.0, 12)
    assert summary["teacher"]["ci_low"] < 1.0 == summary["teacher"]["ci_high"]
    assert "24 validation reviews" in summary["calibration"]["used"]
    # 60 scores and 24 rationales: the teacher agrees with gold, so that a rationale given gold is the same request.
    assert summary["usage"]["requests"] == len(teacher_double.asked) == len({r.key for r in teacher_double.asked}) == 84
    assert summary["usage"]["prompt_tokens"] == 84 * 5
    assert (pd.read_parquet(files.teacher_test)["predicted"] == pd.read_parquet(files.teacher_test)["gold"]).all()
    assert not list(files.directory.glob("*.part"))


def test_a_second_run_asks_nothing(config: StudyConfig, teacher_double: Any) -> None:
    first = annotate(config, teacher_double.complete)
    before = pd.read_parquet(AnnotationFiles.of(config).annotations)
    second = annotate(config, nobody)
    another_study = annotate(config.model_copy(update={"name": "another"}), nobody)  # the store is the storage folder's
    pd.testing.assert_frame_equal(pd.read_parquet(AnnotationFiles.of(config).annotations), before)
    assert second["digest"] == first["digest"]
    assert another_study["digest"] == first["digest"]
    assert second["usage"] == another_study["usage"] == {"requests": 84, "from_store": 84}


def test_of_a_file_that_was_not_finished_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), parquet_writer(tmp_path / "rows.parquet", QUARANTINE):
        raise OSError("No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["label scores", "rationales"])
def test_a_stopped_run_goes_on_where_it_was(config: StudyConfig, teacher_double: Any, tmp_path: Path, stage: str) -> None:
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


def test_answers_of_no_use_are_asked_for_anew_on_demand_only(config: StudyConfig, teacher_double: Any) -> None:
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
    mended = annotate(config, teacher_double.complete, retry_errors=True)
    assert tries[24:] == [(64, 0.7), (128, 0.7)], "the quarantined row, sampled anew each time, and no other"
    assert mended["annotations"]["usable"] == 48
    assert annotate(config, nobody)["digest"] == mended["digest"]


def test_a_chain_of_thought_without_a_label_is_asked_for_anew(config: StudyConfig, teacher_double: Any) -> None:
    def write(request: Request) -> str:
        doubtful = request.sampling["seed"] < 64 and any(
            f"number {n}." in request.prompt for n in (3, 50)
        )  # 50 is a test review
        return " Hard to say what it is like." + ("" if doubtful else "\nSentiment: Positive")

    teacher_double.write = write
    thinking = TeacherConfig(strategy="chain_of_thought", gold_conditioned=False)
    config = config.model_copy(update={"teacher": thinking})
    first = annotate(config, teacher_double.complete)
    assert first["annotations"]["quarantined"] == {"no label of the task in the answer": 1}
    asked = len(teacher_double.asked)
    summary = annotate(config, teacher_double.complete, retry_errors=True)
    assert {p.rpartition("number ")[2].partition(".")[0] for p in prompts(teacher_double)[asked:]} == {"3", "50"}
    assert summary["annotations"]["usable"] == 24
    assert summary["teacher"]["accuracy"] > first["teacher"]["accuracy"]


def test_more_reviews_cost_only_what_is_new(config: StudyConfig, teacher_double: Any, write_study: Callable[..., Path]) -> None:
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


def test_bad_rows_are_named_in_the_summary(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any
) -> None:
    bad = pd.DataFrame(
        [("So-so.", "mixed", "train"), (review_rows["text"][0], "negative", "train"), (review_rows["text"][2], "1", "train")],
        columns=["text", "label", "split"],
    )
    config = load_config(write_study(pd.concat([review_rows, bad]), teacher={"calibration": {"rows": 24}}))
    summary = annotate(config, teacher_double.complete)
    assert (summary["reviews"]["rows"], summary["reviews"]["repeats"], summary["reviews"]["quarantined"]) == (63, 1, 3)
    quarantine = pd.read_parquet(AnnotationFiles.of(config).quarantine)
    assert sorted(quarantine["reason"]) == [
        "label 'mixed' is not one of negative, positive", "repeated with different labels", "repeated with different labels"
    ]  # fmt: skip
    assert summary["annotations"]["reviews"] == 23


@pytest.mark.parametrize("truncation", ["head", "head_tail"])
def test_a_long_review_is_cut_to_the_teachers_limit(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any, truncation: str
) -> None:
    long = pd.DataFrame([("warm " * 500 + "THE END", "positive", "train")], columns=["text", "label", "split"])
    settings = {"calibration": {"rows": 24}, "max_review_tokens": 50, "truncation": truncation}
    annotate(load_config(write_study(pd.concat([review_rows, long]), teacher=settings)), teacher_double.complete)
    (shown,) = {p for p in prompts(teacher_double) if p.count("warm") > 20 and p.endswith("Sentiment:")}
    assert 40 <= shown.count("warm") <= 50
    assert ("THE END" in shown) == (truncation == "head_tail")


def test_cut_reviews_are_counted(write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any) -> None:
    long = pd.DataFrame(
        [(f"{'A warm film. ' * 8000} {i}", "positive", "train") for i in range(3)], columns=["text", "label", "split"]
    )
    config = load_config(write_study(pd.concat([review_rows, long]), teacher={"calibration": {"rows": 24}}))
    assert annotate(config, teacher_double.complete)["reviews"]["cut"] == 3


def test_a_prompt_too_long_for_the_context_is_refused_before_anything_starts(write_study: Callable[..., Path]) -> None:
    engine = {"max_model_len": 256}
    path = write_study(teacher={"calibration": {"rows": 24}, "max_review_tokens": 200, "engine": engine})
    with pytest.raises(
        CotdError, match=r"a review of teacher.max_review_tokens \(200\) does not fit .*\(256\).* at least (\d+)"
    ) as error:
        annotate(load_config(path), nobody)
    enough = str(error.value).rpartition("at least ")[2].rstrip(".")
    load_job(load_config(path, [f"teacher.engine.max_model_len={enough}"]))


def test_two_commands_do_not_annotate_one_study_at_once(config: StudyConfig, teacher_double: Any) -> None:
    def meanwhile(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
        with pytest.raises(CotdError, match=r"another process is annotating small .*\.lock"):
            annotate(config, nobody)
        return teacher_double.complete(requests)

    assert annotate(config, meanwhile)["annotations"]["usable"] == 48
    annotate(config, nobody)  # the lock is gone


def test_the_store_may_be_elsewhere(config: StudyConfig, teacher_double: Any, tmp_path: Path) -> None:
    elsewhere = config.model_copy(update={"teacher": config.teacher.model_copy(update={"store": "memory://completions"})})
    annotate(elsewhere, teacher_double.complete)
    assert not (config.directory.parent / "completions").exists()
    summary = annotate(elsewhere.model_copy(update={"storage": str(tmp_path / "other")}), nobody)
    assert summary["usage"] == {"requests": 84, "from_store": 84}


@pytest.mark.parametrize("store", ["nowhere://bucket/x", "gs://bucket/x"])
def test_a_store_that_cannot_be_used(write_study: Callable[..., Path], store: str) -> None:
    with pytest.raises(CotdError, match=f"teacher.store '{store}' cannot be used"):
        annotate(load_config(write_study(teacher={"store": store})), nobody)


def test_a_store_that_cannot_be_written_is_noticed_before_anything_is_asked(
    config: StudyConfig, teacher_double: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    store = str(tmp_path / "file" / "completions")
    unwritable = config.model_copy(update={"teacher": config.teacher.model_copy(update={"store": store})})
    with pytest.raises(CotdError, match=r"cannot be written: .*name another folder or URL"):
        annotate(unwritable, teacher_double.complete)
    assert not teacher_double.asked


def test_a_damaged_shard_is_named_in_the_summary(config: StudyConfig, teacher_double: Any) -> None:
    annotate(config, teacher_double.complete)
    asked = len(teacher_double.asked)
    shard = min((config.directory.parent / "completions").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    summary = annotate(config, teacher_double.complete)
    assert len(teacher_double.asked) == asked + 8, "what was in it"
    assert summary["annotations"]["usable"] == 48
    (warning,) = summary["warnings"]
    assert warning.startswith("1 shards of ")
    assert shard.name in warning


def test_a_column_of_stars_is_warned_of(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any
) -> None:
    stars = review_rows.assign(
        label=[
            str(1 + i % 5) if s == "train" else label
            for i, (label, s) in enumerate(zip(review_rows["label"], review_rows["split"], strict=True))
        ]
    )
    config = load_config(write_study(stars, teacher={"calibration": {"rows": 24}}))
    with pytest.raises(CotdError, match=r"the train split has gold labels of one kind only: 5 × positive.* Stars or scores"):
        prepare_examples(config)
    config = load_config(write_study(stars, teacher={"calibration": {"rows": 24}}), ["grid.method=[distill]"])
    summary = annotate(config, teacher_double.complete)
    (warning,) = summary["warnings"]
    assert warning.startswith("19 of 60 rows are quarantined: ")
    assert "label '5' is not one of negative, positive" in warning
    assert "Stars or scores have to be mapped to labels first" in warning


@pytest.mark.parametrize("strategy", ["score_then_explain", "chain_of_thought"])
def test_reviews_without_gold_are_annotated(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any, strategy: str
) -> None:
    said = {True: "Positive", False: "Negative"}
    teacher_double.write = lambda r: f" The words are telling.\nSentiment: {said['warm' in r.prompt.rpartition('eview: ')[2]]}"
    teacher = {"strategy": strategy, "calibration": {"method": "prior", "rows": 24}}
    config = load_config(write_study(review_rows.drop(columns="label"), teacher=teacher))
    summary = annotate(config, teacher_double.complete)
    assert summary["annotations"] == {"rows": 24, "reviews": 24, "usable": 24, "quarantined": {}}
    assert [summary["teacher"][k] for k in ("accuracy", "ci_low", "n", "accuracy_on_train")] == [None, None, 0, None]
    assert summary["quality"]["labels"] == {"rows": 0}
    table = (read_annotations(config) or (pd.DataFrame(),))[0]
    gold = {review_id("reviews.csv", r.text): r.label for r in review_rows.itertuples()}
    assert (table["label"] == table["review_id"].map(gold)).all()
    assert "teacher: not measured, as no test review has a gold label" in list(summary_lines(summary, Path("a.parquet")))
    assert [w.partition(":")[0] for w in summary["warnings"]] == ["students cannot be trained yet"] * 3
    assert "Annotations" in AnnotationFiles.of(config).page.read_text(encoding="utf-8")


def test_weights_loaded_otherwise_are_another_teacher(
    config: StudyConfig, teacher_double: Any, write_study: Callable[..., Path]
) -> None:
    """But for what only makes the engine faster."""
    plain = annotate(config, teacher_double.complete)
    path = write_study(teacher={"calibration": {"rows": 24}})
    faster = load_config(path, ["teacher.engine.engine_kwargs={gpu_memory_utilization: 0.5}"])
    assert annotate(faster, nobody)["inputs"] == plain["inputs"]
    quantised = load_config(path, ["teacher.engine.engine_kwargs={quantization: fp8}"])
    again = annotate(quantised, teacher_double.complete)
    assert again["usage"]["from_store"] == 0
    assert again["inputs"] != plain["inputs"]


def test_how_reviews_are_cut_makes_other_annotations(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any
) -> None:
    rows = pd.DataFrame([("A warm film. " * 200, "positive", "train")], columns=["text", "label", "split"])
    path = write_study(pd.concat([review_rows, rows]), teacher={"calibration": {"rows": 24}})
    assert annotate(load_config(path), teacher_double.complete)["reviews"]["cut"] == 1
    head = load_config(path, ["teacher.truncation=head", "grid.method=[distill]"])
    with pytest.raises(CotdError, match="made for other"):
        check_annotations(head, load_job(head).reviews.digest())


def test_a_dry_run_shows_the_prompts_that_are_sent(config: StudyConfig, teacher_double: Any) -> None:
    shown = list(preview(config, 2))
    assert not config.directory.parent.exists()
    # 60 scores, 24 rationales given gold, and as many where the teacher's label turns out to be another.
    assert shown[-1].startswith("at most 108 requests to make (0 completions are in the store): about ")
    annotate(config, teacher_double.complete)
    sent = set(prompts(teacher_double))
    assert len([line for line in shown if line in sent]) == 4
    assert list(preview(config, 1))[-1].startswith("0 requests to make (84 completions are in the store)")


@pytest.mark.parametrize("gold_conditioned", [True, False])
def test_an_estimate_goes_by_the_labels_that_the_scores_give(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any, gold_conditioned: bool
) -> None:
    """Three training reviews' gold is not what the teacher says; once the scores are known so is what it will explain."""
    wrong = review_rows["text"].str.contains("number [135]\\.")
    rows = review_rows.assign(label=review_rows["label"].mask(wrong, "positive"))
    config = load_config(
        write_study(rows, teacher={"calibration": {"rows": 24}, "gold_conditioned": gold_conditioned}),
        ["grid.method=[distill]"],
    )
    teacher_double.stop_after = 8
    with pytest.raises(KeyboardInterrupt):
        annotate(config, teacher_double.complete)
    rationales = 24 + 3 if gold_conditioned else 24
    last = list(preview(config, 1))[-1]
    assert last.startswith(f"{rationales} requests to make (60 completions are in the store)")
    teacher_double.stop_after = None
    assert annotate(config, teacher_double.complete)["usage"]["requests"] == 60 + rationales
    assert len(teacher_double.asked) == 60 + rationales
    assert list(preview(config, 1))[-1].startswith(f"0 requests to make ({60 + rationales} completions are in the store)")


def test_a_budget_holds_for_an_engine_too(config: StudyConfig, teacher_double: Any) -> None:
    limited = config.model_copy(update={"teacher": config.teacher.model_copy(update={"budget": BudgetConfig(max_tokens=600)})})
    summary = annotate(limited, teacher_double.complete)
    assert summary["spent"]["prompt_tokens"] + summary["spent"]["output_tokens"] <= 600
    assert 0 < summary["annotations"]["usable"] < 48
    assert annotate(config, teacher_double.complete)["annotations"]["usable"] == 48
    assert len(teacher_double.asked) == 84


def test_samples_for_another_label_than_the_majoritys_are_filtered(config: StudyConfig, teacher_double: Any) -> None:
    """Of three samples two say positive: students get these two rationales, and that label."""
    said = {0: "Negative", 1: "Positive", 2: "Positive"}
    teacher_double.write = lambda r: f" Seed {r.sampling['seed']} says so, in words.\nSentiment: {said[r.sampling['seed']]}"
    settings = {"strategy": "chain_of_thought", "samples": 3, "temperature": 0.7, "gold_conditioned": False}
    for filters in (["agrees_with_majority"], []):
        sampled = config.model_copy(update={"teacher": TeacherConfig(**settings, filters=filters)})
        summary = annotate(sampled, teacher_double.complete)
        assert summary["filters"] == ({"agrees_with_majority": 24} if filters else {})
        # Two thirds of the samples say positive of each review, and half of the reviews are.
        assert summary["quality"]["labels"]["reliability"] == [
            {"confidence": pytest.approx(2 / 3), "accuracy": 0.5, "rows": 24}
        ]
        assert "of the shares of samples that agree, of 24 training reviews" in "".join(
            summary_lines(summary, Path("a.parquet"))
        )
        reviews = pd.read_csv(config.data.source).assign(id=lambda t: [review_id("reviews.csv", x) for x in t["text"]])
        table = (read_annotations(sampled) or (None,))[0]
        pairs = training_pairs(METHODS["cot_unlabelled"], reviews[reviews["split"] == "train"], table, SENTIMENT, 0.5)
        seeds = {t.split()[1] for t in pairs[pairs["target_kind"] == "rationale"]["target"]}
        assert set(pairs[pairs["target_kind"] == "label"]["target"]) == ({"positive"} if filters else {"negative"})
        assert seeds == ({"1", "2"} if filters else {"0"})


def test_the_summary_says_how_good_the_annotations_are(config: StudyConfig, teacher_double: Any) -> None:
    teacher_double.write = lambda r: " A positive review, says " + "abcdefgh"[hash(r.key) % 8] + " whom it moved."
    quality = annotate(config, teacher_double.complete)["quality"]
    assert quality["labels"]["confusion"] == {
        "negative": {"negative": 6, "positive": 0},
        "positive": {"negative": 0, "positive": 6},
    }
    assert quality["labels"]["kappa"] == 1.0
    assert quality["rationales"]["names_its_label"] == 0.5
    assert quality["rationales"]["words"]["p50"] == 8


def test_the_page_shows_the_doubtful_first_and_cannot_be_broken(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any
) -> None:
    evil = "</script><script>alert(1)</script> <!-- A warm film"
    rows = pd.DataFrame([(evil, "negative", "train")], columns=["text", "label", "split"])
    teacher_double.fails = lambda prompt: prompt.endswith("Reason:") and "number 3." in prompt
    config = load_config(write_study(pd.concat([review_rows, rows]), teacher={"calibration": {"rows": 24}}))
    annotate(config, teacher_double.complete)
    page = AnnotationFiles.of(config).page.read_text(encoding="utf-8")
    before, _, after = page.partition('<script type="application/json" id="data">')
    data = json.loads(after.partition("</script>")[0])
    assert "alert(1)" not in before + after.partition("</script>")[2]
    assert len(data["rows"]) == 25 + 25
    assert [bool(r["error"]) for r in data["rows"][:3]] == [True, True, False]
    doubtful = data["rows"][2]
    assert (doubtful["label"], doubtful["gold"], doubtful["text"]) == ("positive", "negative", evil)
    assert data["reliability"]
    assert "http" not in page, "self-contained"


# --- what reviews may hold ------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    st.lists(
        st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40), st.text(st.characters(), max_size=40)),
        min_size=1,
        max_size=12,
    )
)
@example(HOSTILE)
def test_any_text_is_annotated_or_set_aside_and_shifts_no_other(texts: list[str]) -> None:
    good = [review_text(i, i % 2 == 0) for i in range(60)]
    rows = pd.DataFrame(
        [(t, "positive", "train") for t in texts]
        + [(t, "positive" if i % 2 == 0 else "negative", ["train", "validation", "test"][i % 3]) for i, t in enumerate(good)],
        columns=["text", "label", "split"],
        dtype=object,
    )  # fmt: skip
    reviews = build_examples(rows, "hostile", SENTIMENT)
    assert len(reviews.table) + len(reviews.quarantined) + reviews.counts["repeats"] == len(rows)
    double = FakeTeacher()
    config = TeacherConfig()
    teacher = Teacher("double", "1", config)
    with tempfile.TemporaryDirectory() as folder:
        store = CompletionStore(Path(folder))
        ask = Asker(store, lambda: double.complete, Budget(BudgetConfig(), len))
        output = STRATEGIES["score_then_explain"](teacher, reviews, SENTIMENT, load_prompts(SENTIMENT, "review"), ask)
        assert ask.usage["failed"] == 0
    train = reviews.split("train")
    assert set(output.annotations["review_id"]) == set(train["id"])
    own = output.annotations[~output.annotations["gold_conditioned"]].set_index("review_id")["label"]
    for review in train[train["text"].isin(good)].itertuples():
        assert own[review.id] == review.label
    for request in double.asked:
        request.prompt.encode()
        assert "\x00" not in request.prompt
        assert "<|im_end|>" not in request.prompt
