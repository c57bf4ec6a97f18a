"""What the benchmarks of the endpoint share: students, servers and load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil

from cotd import assets
from cotd.data.config import DataConfig
from cotd.data.sources import load_examples
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.tasks.registry import SENTIMENT

CORES = os.cpu_count() or 1
BATCH = 32
# What the two students of `student_folders` say: whether a runtime that says the same has said anything.
MEANING = {
    "embedded": "the embedded base, which has learned labels of reviews in its pretraining",
    "60m": "random weights, whose labels mean nothing: only speed counts here",
}


@contextlib.contextmanager
def student_folders() -> Iterator[dict[str, Path]]:
    """Two students that have learned nothing, which costs no less: one of T5-small's shape, and the embedded base."""
    assets.pull(["t5-mini", "rotten-tomatoes"], report=lambda _: None)
    with tempfile.TemporaryDirectory(prefix="cotd-bench-") as scratch:
        folders = {"embedded": Path(scratch) / "embedded", "60m": Path(scratch) / "60m"}
        model, tokenizer = load_base("embedded:t5-mini")
        card = {"method": "cot_labelled", "writes_rationales": True, "max_input_tokens": 128, "max_target_tokens": 64}
        Student(model, tokenizer, SENTIMENT, card).save(folders["embedded"])
        Student(t5_small(), tokenizer, SENTIMENT, card).save(folders["60m"])
        yield folders


def t5_small() -> Any:
    """Random weights in the shape of T5-small (Raffel et al. 2020): 60.5M parameters."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
    config = T5Config(vocab_size=32128, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **shape)
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config)


def review_texts(count: int = 500) -> list[str]:
    """Test sentences of Rotten Tomatoes: 18 words each, about 32 tokens."""
    table = load_examples(DataConfig(source="embedded:rotten-tomatoes")).split("test")
    return list(pd.Series(table["text"]).head(count))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], url: str) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, once it answers; ended by Ctrl-C."""
    with tempfile.TemporaryFile("w+") as said:  # not a pipe: it would fill, as nobody reads it meanwhile
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "RAY_ADDRESS": "local"},  # not the Ray of somebody else on this machine
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type, return-value]
        )
        try:
            deadline = time.monotonic() + 180
            while not answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise SystemExit(f"{' '.join(command)} did not come up:\n{said.read()}")
                time.sleep(0.2)
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Ends a server by Ctrl-C; what is left of it and its descendants after a while is killed."""
    family = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    for survivor in left:
        with contextlib.suppress(psutil.Error):
            survivor.kill()


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The processes that a process (this one by default) has started, and those that they have, without the ended ones."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def metrics(url: str) -> dict[str, float]:
    """The endpoint's figures: `name{labels}` → value; none while it cannot be asked."""
    try:
        answer = httpx.get(f"{url}/metrics", trust_env=False, timeout=30)
    except httpx.TransportError:
        return {}
    if answer.status_code != 200:
        return {}
    return {name: float(value) for name, value in re.findall(r"^(cotd_\S+) (\S+)$", answer.text, re.MULTILINE)}


@contextlib.contextmanager
def endpoint(student: str, *options: str) -> Iterator[str]:
    """`cotd serve` with all cores for one replica, unless the options say otherwise; yields its address."""
    port = free_port()
    cpus = [] if "--cpus" in options else ["--cpus", str(CORES)]
    command = ["-m", "cotd.cli", "serve", "--student", student, "--port", str(port), *cpus, *options]
    with running(command, url := f"http://127.0.0.1:{port}"):
        yield url


@contextlib.contextmanager
def usual_alternative(student: Path) -> Iterator[str]:
    port = free_port()
    with running(["-m", "tests.benchmarks.alternative", str(student), str(port)], url := f"http://127.0.0.1:{port}"):
        yield url


def start_load(url: str, texts: list[str], **how: Any) -> subprocess.Popen[str]:
    """The load generator; `finish_load` ends it and returns what it saw."""
    plain = json.dumps({"url": url, "texts": texts, **how})
    command = [sys.executable, "-m", "tests.benchmarks.load", plain]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish_load(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate("", timeout=300)
    return json.loads(output)


def load(url: str, texts: list[str], **how: Any) -> dict[str, Any]:
    """Load for `seconds`, or of `count` requests; what came of it, with what `summarised` adds."""
    return summarised(finish_load(start_load(url, texts, **how)))


def summarised(seen: dict[str, Any]) -> dict[str, Any]:
    """What the load generator saw, with `mean`, `median`, `p99` (ms) and `rate` (answers a second)."""
    milliseconds = np.array(seen["milliseconds"])
    seen["mean"] = float(milliseconds.mean())
    seen["median"], seen["p99"] = (float(np.percentile(milliseconds, q)) for q in (50, 99))
    seen["rate"] = seen["statuses"].get("200", 0) / seen["seconds"]
    return seen


def milliseconds_each(work: Callable[[str], Any], texts: list[str], seconds: float = 60) -> tuple[float, float, int]:
    """Median and 99th percentile of the time `work` takes a text, in this process, in ms, and of how many texts.

    Args:
        seconds: when to stop if the texts are not done; one at least is.
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
    """How many texts a second `work` does in batches of 32, in this process; the first batch does not count."""
    work(texts[:BATCH])
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        start = done % (len(texts) - BATCH)
        work(texts[start : start + BATCH])
        done += BATCH
    return done / took
