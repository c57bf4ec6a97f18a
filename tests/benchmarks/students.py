"""What benchmarks measure with: students, texts, and the time that work on these takes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cotd import assets
from cotd.data.config import DataConfig
from cotd.data.sources import load_examples
from cotd.students.base_models import load_base
from cotd.students.student import Student
from tests.benchmarks.figures import scratch_folder
from tests.tasks import SENTIMENT

EMBEDDED = "embedded:t5-mini"
CAUSAL = "embedded:smollm2-135m-instruct"
CORES = os.cpu_count() or 1
BATCH = 32
# What the labels of the students of `student_folders` are worth, for comparisons of runtimes by their labels.
MEANING = {
    "embedded": "the embedded base, which has learned labels of examples in its pretraining",
    "60m": "random weights, whose labels mean nothing: only speed counts here",
    "smollm2": "SmolLM2-135M as it was pretrained",
}
ENCODER_DECODERS = ("embedded", "60m")


@contextlib.contextmanager
def student_folders(names: Iterable[str] = ENCODER_DECODERS) -> Iterator[dict[str, Path]]:
    """Untrained students, which are as fast as trained ones. Args: names: of MEANING."""
    assets.pull(["t5-mini", "rotten-tomatoes"], report=lambda _: None)
    card = {"method": "cot_labelled", "writes_rationales": True, "max_input_tokens": 128, "max_target_tokens": 64}
    with scratch_folder() as scratch:
        for name in names:
            if name == "smollm2":
                assets.pull(["smollm2-135m-instruct"], report=lambda _: None)
            model, tokenizer = load_base(CAUSAL if name == "smollm2" else EMBEDDED)
            Student(t5_small() if name == "60m" else model, tokenizer, SENTIMENT, card).save(scratch / name)
        yield {name: scratch / name for name in names}


def t5_small() -> Any:
    """Random weights in the shape of T5-small (Raffel et al. 2020): 60.5M parameters."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
    config = T5Config(vocab_size=32128, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **shape)
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config)


def example_texts(count: int = 500) -> list[str]:
    """Test sentences of Rotten Tomatoes: 18 words each, about 32 tokens."""
    return list(load_examples(DataConfig(source="embedded:rotten-tomatoes"), SENTIMENT).split("test")["text"].head(count))


def milliseconds_each(work: Callable[[str], Any], texts: list[str], seconds: float = 60) -> tuple[float, float, int]:
    """(median, 99th percentile) of the milliseconds that `work` takes for a text, and the number of texts.

    Args:
        seconds: when to stop, if not all texts are done; at least one is.
    """
    taken: list[float] = []
    began = time.perf_counter()
    for text in texts:
        started = time.perf_counter()
        work(text)
        taken.append((time.perf_counter() - started) * 1000)
        if time.perf_counter() - began > seconds:
            break
    median, p99 = np.percentile(taken, [50, 99])
    return float(median), float(p99), len(taken)


def texts_per_second(work: Callable[[list[str]], Any], texts: list[str], seconds: float) -> float:
    """Texts a second that `work` does in batches of 32; the first batch does not count."""
    work(texts[:BATCH])
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        start = done % (len(texts) - BATCH)
        work(texts[start : start + BATCH])
        done += BATCH
    return done / took
