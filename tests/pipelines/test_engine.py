"""The other engine: `ray.data.llm`, the default on GPUs, gives the answers that the in-process engine gives."""

from __future__ import annotations

import pytest

from cotd.completions import Request
from cotd.config import EngineConfig
from cotd.student import resolve_model

pytestmark = pytest.mark.slow
TEACHER = "embedded:smollm2-135m-instruct"


def test_both_engines_answer_alike() -> None:
    from cotd.config import TeacherConfig
    from cotd.teacher import load_teacher
    from pipelines.cluster import ray_session
    from pipelines.engine import teacher_engine

    teacher = load_teacher(TeacherConfig())
    tokens = [teacher.first_token(" Positive"), teacher.first_token(" Negative")]
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
        ours, theirs = answers["in_process", keys], answers["ray_data_llm", keys]
        assert set(ours) == set(theirs)
        for key, one in ours.items():
            other = theirs[key]
            assert one["error"] is None
            assert one["text"] == other["text"]
            assert one["prompt_tokens"] == other["prompt_tokens"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
            if keys == 4:
                assert one["label_logprobs"] == pytest.approx(other["label_logprobs"], abs=1e-3)
            else:
                assert one["text"].endswith(("Positive", "Negative")) or one["finish_reason"] == "length"
