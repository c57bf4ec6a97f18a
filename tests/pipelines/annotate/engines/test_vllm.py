"""vLLM for real: both ways to ask it answer alike, batches and replicas hardly matter, and no text breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.data.cleaning import replace_surrogates
from cotd.data.config import DataConfig
from cotd.data.sources import load_examples
from cotd.students.base_models import resolve_model
from cotd.study.config import load_config
from cotd.teachers.config import EngineConfig, TeacherConfig
from cotd.teachers.requests import Request
from cotd.teachers.student.model import load_student_teacher
from cotd.teachers.teacher import Shown, load_teacher
from pipelines.annotate.engines.choose import teacher_engine
from pipelines.annotate.files import read_annotations
from pipelines.annotate.run import annotate
from pipelines.cluster.session import ray_session
from tests.hostile import HOSTILE
from tests.pipelines.annotate.test_student_teacher import StudentEngine, make_student
from tests.tasks import QUIZ, SENTIMENT, TICKETS

pytestmark = pytest.mark.slow
TEACHER = "embedded:smollm2-135m-instruct"


def movie_texts() -> pd.Series:
    return load_examples(DataConfig(source="embedded:rotten-tomatoes"), SENTIMENT).split("test")["text"]


def test_both_engines_answer_alike() -> None:
    teacher = load_teacher(TeacherConfig())
    tokens = [teacher.first_token(":", " Positive"), teacher.first_token(":", " Negative")]
    scoring = {"max_tokens": 1, "temperature": 0.0, "allowed_token_ids": tokens, "logprobs": 2}
    texts = ["A warm and funny film.", "Dull and lifeless.", "Not bad at all.", "I want my money back."]
    scores = [Request(TEACHER, "test", f"Movie review: {t}\nSentiment:", scoring) for t in texts]
    writing = {"max_tokens": 24, "temperature": 0.0, "seed": 0, "logprobs": 1}
    structured = {**writing, "structured_outputs": {"regex": r" [^\n]{10,80}\nSentiment: (Positive|Negative)"}}
    written = [Request(TEACHER, "test", f"Review: {t}\nReason:", structured) for t in texts]
    answers = {}
    with ray_session():
        for backend in ("in_process", "ray_data_llm"):
            config = EngineConfig(backend=backend, max_model_len=256)
            with teacher_engine(resolve_model(TEACHER), config) as complete:
                for requests in (scores, written):
                    answers[backend, len(requests[0].sampling)] = {c["key"]: c for batch in complete(requests) for c in batch}
    for keys in (4, 5):
        in_process, ray_data_llm = answers["in_process", keys], answers["ray_data_llm", keys]
        assert set(in_process) == set(ray_data_llm)
        for key, one in in_process.items():
            other = ray_data_llm[key]
            assert one["error"] is None
            assert one["text"] == other["text"]
            assert one["prompt_tokens"] == other["prompt_tokens"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
            if keys == 4:
                assert one["label_logprobs"] == pytest.approx(other["label_logprobs"], abs=1e-3)
            else:
                assert one["text"].endswith(("Positive", "Negative")) or one["finish_reason"] == "length"


def label_probabilities(config: EngineConfig, texts: list[str]) -> list[float]:
    """p(Positive) of each text, from the embedded teacher's label scores; in the texts' order."""
    teacher = load_teacher(TeacherConfig())
    assert teacher.first_token
    tokens = [teacher.first_token(":", " Negative"), teacher.first_token(":", " Positive")]
    scoring = {"max_tokens": 1, "temperature": 0.0, "allowed_token_ids": tokens, "logprobs": 2}
    requests = [Request(TEACHER, "test", f"Movie review: {t}\nSentiment:", scoring) for t in texts]
    with ray_session(num_cpus=4), teacher_engine(resolve_model(TEACHER), config) as complete:
        answers = {c["key"]: c for batch in complete(requests) for c in batch}
    return [math.exp(answers[r.key]["label_logprobs"][1]) for r in requests]


@pytest.mark.parametrize("settings", [{}, {"enable_chunked_prefill": True}], ids=["as it comes", "read in parts"])
def test_seeded_samples_of_more_prompts_than_are_read_at_once(settings: dict[str, bool]) -> None:
    """Read in parts they end vLLM 0.32's step on a processor, and an engine that failed half way must not be asked again."""
    texts = movie_texts()[:32]
    padding = "The reviewer is bored by its slow pace, and says so. " * 16
    sampling = {"max_tokens": 8, "temperature": 0.7, "logprobs": 1}
    requests = [
        Request(TEACHER, "test", f"Review: {text}\n{padding}\nReview: {text}\nReason:", sampling | {"seed": seed})
        for seed in range(2)
        for text in texts
    ]
    config = EngineConfig(backend="in_process", batch_size=32, engine_kwargs=settings)  # each block some 7,000 tokens
    with ray_session(), teacher_engine(resolve_model(TEACHER), config) as complete:
        answers = {c["key"]: c for batch in complete(requests) for c in batch}
    assert len(answers) == 64
    assert all(a["error"] is None for a in answers.values())
    assert len({a["text"] for a in answers.values()}) > 32, "two samples of a text differ"


# The tolerances that the README states.
@pytest.mark.parametrize(("dtype", "rows", "tolerance"), [("float32", 100, 0.001), ("bfloat16", 12, 0.05)])
def test_batches_and_replicas_hardly_change_label_probabilities(dtype: str, rows: int, tolerance: float) -> None:
    texts = list(movie_texts()[:rows])
    plain = EngineConfig(backend="in_process", dtype=dtype, max_model_len=256, kv_cache_gb=1, batch_size=rows)  # type: ignore[arg-type]
    alone = label_probabilities(plain, texts)
    apart = label_probabilities(plain.model_copy(update={"batch_size": 5, "replicas": 2}), texts)
    worst = max(abs(a - b) for a, b in zip(alone, apart, strict=True))
    print(f"{dtype}: label probabilities are up to {worst:.2g} apart")
    assert worst <= tolerance
    assert max(alone) - min(alone) > 0.1, "they differ from text to text"


def test_tensor_parallelism_hardly_changes_label_probabilities() -> None:
    texts = list(movie_texts()[:12])
    whole = EngineConfig(backend="in_process", dtype="float32", max_model_len=256, kv_cache_gb=1)
    in_three = whole.model_copy(update={"tensor_parallel": 3})  # the teacher's heads for keys are three
    assert label_probabilities(in_three, texts) == pytest.approx(label_probabilities(whole, texts), abs=0.001)


def test_hostile_texts_do_not_break_a_batch_or_shift_completions(
    write_study: Callable[..., Path], example_rows: pd.DataFrame
) -> None:
    """The real engine, once with hostile examples among the others and once without: these get the same labels."""
    hostile = pd.DataFrame([(t, "positive", "train") for t in HOSTILE], columns=["text", "label", "split"], dtype=object)
    teacher = {"calibration": {"rows": 24}, "max_rationale_tokens": 16, "engine": {"batch_size": 32}}
    probabilities = []
    for rows in (example_rows, pd.concat([example_rows, hostile])):
        rows = rows.assign(text=rows["text"].map(replace_surrogates))  # no file holds half a character
        path = write_study(rows, teacher=teacher)
        source = path.with_name("reviews.parquet")
        rows.to_parquet(source)
        config = load_config(path, [f"data.source={source}", f"storage={path.parent / str(len(rows))}"])
        summary = annotate(config)
        table = (read_annotations(config) or (pd.DataFrame(),))[0]
        probabilities.append(table[~table["gold_conditioned"]].set_index("example_id")["label_probability"])
        assert not [e for e in table["error"].dropna() if not e.startswith("rationale ")], (
            "short rationales are all that is wrong"
        )
    alone, among = probabilities
    assert summary["examples"]["quarantined"] == len(HOSTILE) - (len(among) - len(alone)) > 0
    assert summary["examples"]["cut"] == 1
    assert (among[alone.index] - alone).abs().max() < 0.03


@pytest.mark.parametrize("backend", ["in_process", "ray_data_llm"])
def test_a_student_is_asked_in_its_own_tokens(tmp_path: Path, backend: str) -> None:
    """Scores by one token and of whole options, and what it writes, are those of its own weights in PyTorch."""
    requests, engine = [], None
    for number, (task, method) in enumerate([(SENTIMENT, "finetune"), (TICKETS, "cot_after"), (QUIZ, "cot_labelled")]):
        student = make_student(tmp_path / str(number), task, method, "llama_vllm")
        engine = engine or StudentEngine(student)  # all have the same weights
        teacher = load_student_teacher(TeacherConfig(strategy="student"), tmp_path / str(number) / "student", task)
        choices = ["right 1", "wrong"] if task is QUIZ else None
        shown = Shown("1", "A warm and funny film.", choices)
        requests.append(teacher.score_requests(shown))
        if student.can_explain:
            requests.append([teacher.rationale_request(shown, "refund" if task is TICKETS else None)])
    assert [len(of_kind) for of_kind in requests] == [1, 3, 1, 2, 1]
    assert engine is not None
    config = teacher.engine.model_copy(update={"backend": backend, "dtype": "float32", "kv_cache_gb": 1})
    with ray_session(), teacher_engine(teacher.source, config) as complete:
        for of_kind in requests:
            completions = {c["key"]: c for batch in complete(of_kind) for c in batch}
            for request in of_kind:
                ours, theirs = completions[request.key], engine.completion(request)
                assert ours["error"] is None
                assert ours["prompt_tokens"] == len(request.tokens or ())
                if theirs["label_logprobs"]:
                    assert ours["label_logprobs"] == pytest.approx(theirs["label_logprobs"], abs=1e-3)
                elif "scored_tokens" in request.sampling:
                    assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)
                else:
                    # Random weights write half a character, which vLLM leaves out at the end.
                    assert ours["text"].strip() == theirs["text"].strip().rstrip("\N{REPLACEMENT CHARACTER}")
