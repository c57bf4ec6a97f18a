"""Annotation by a real server: vLLM's on loopback with the embedded teacher, behind a proxy that injects faults.

`vllm serve` itself cannot start from the CPU wheel, whose name its command line does not find; this is the module that
it runs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cotd.students.base_models import resolve_model
from cotd.study.config import load_config
from cotd.teachers.config import EngineConfig
from cotd.utils.hardware import choose_dtype
from pipelines.annotate.engines.vllm import environment
from pipelines.annotate.files import read_annotations
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import FaultServer

pytestmark = pytest.mark.slow
TEACHER = "embedded:smollm2-135m-instruct"
SHORT = 200  # characters: a scoring prompt is shorter, one with examples longer
FAULTS = ["429", "429_seconds", "429_date", "500", "truncated", "malformed", "no_choices", "empty", "hang"]


@contextlib.contextmanager
def vllm_serve(folder: Path) -> Iterator[str]:
    """The URL of a process of vLLM's server with the embedded teacher; its log is in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model(TEACHER),
        "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", "teacher-1", "--dtype", choose_dtype("auto", use_gpu=False), "--enforce-eager",
        "--max-model-len", "1024", "--block-size", "32",
    ]  # fmt: skip
    variables = os.environ | environment(EngineConfig(), os.cpu_count() or 1)
    url = f"http://127.0.0.1:{port}"
    with open(folder / "vllm.log", "w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                assert process.poll() is None, (folder / "vllm.log").read_text()[-4000:]
                time.sleep(1)
            yield f"{url}/v1"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def test_a_real_server_behind_faults(write_study: Callable[..., Path], tmp_path: Path) -> None:
    with vllm_serve(tmp_path) as upstream, FaultServer(upstream).serving() as clean:
        server = FaultServer(upstream)
        api = {"key_env": None, "concurrency": 16, "backoff_seconds": 0.05, "timeout_seconds": 90}
        common = {"model": "teacher-1", "max_rationale_tokens": 40, "gold_conditioned": False}
        scoring = common | {
            "strategy": "score_then_explain",
            "calibration": {"rows": 24},
            "api": api | {"server": "vllm", "endpoint": "completions", "tokenizer": TEACHER},
        }
        thinking = common | {"strategy": "chain_of_thought", "max_rationale_tokens": 80, "api": api | {"endpoint": "chat"}}
        few = ["data.train_rows=8", "data.test_rows=4"]
        with server.serving() as url:
            sequence = itertools.cycle(FAULTS)

            def fault(prompt: str, tries: int) -> str | None:
                """Every fifth prompt or so fails at its first try, each in another way."""
                if tries or zlib.crc32(prompt.encode()) % 5:
                    return None
                found = next(sequence)
                # Without a text, but with its made-up scores, an answer to a scoring request would be a good one.
                return next(sequence) if found == "empty" and len(prompt) < SHORT else found

            server.fault = fault
            scored = load_config(write_study(teacher=scoring), [f"teacher.api.base_url={url}", "name=scored"])
            summary = annotate(scored, yes=True)
            assert max(server.tries.values()) > 1
            assert summary["usage"]["requests"] == 60 + 24
            assert "failed" not in summary["usage"]
            assert summary["annotations"]["examples"] == 24
            assert summary["teacher"]["accuracy"] >= 0.9  # "warm and funny" against "dull and lifeless"
            refused = "number 5."  # the first of the training examples
            server.fault = lambda prompt, tries: "refusal" if refused in prompt else None
            thought = load_config(write_study(teacher=thinking), [f"teacher.api.base_url={url}", "name=thought", *few])
            summary = annotate(thought, yes=True)
            assert summary["usage"]["requests"] == 12
            # A teacher this small runs on until the limit now and then; whatever came back whole names a label.
            reasons = set(summary["annotations"]["quarantined"])
            assert all("cut off" in r or "shorter than three words" in r or "the teacher refused" in r for r in reasons)
            assert summary["annotations"]["quarantined"]["the teacher refused: I cannot help with that."] == 1
            assert summary["annotations"]["usable"] >= 2
        table = (read_annotations(scored) or (None,))[0]
        assert table is not None
        # Greedy, and no fault in the way: the same answers, so that no row got another's.
        plain = load_config(
            write_study(teacher=scoring), [f"teacher.api.base_url={clean}", "name=plain", "storage=" + str(tmp_path / "b")]
        )
        annotate(plain, yes=True)
        other = (read_annotations(plain) or (None,))[0]
        assert other is not None
        assert table["label"].equals(other["label"])
        assert (table["label_probability"] - other["label_probability"]).abs().max() < 0.02
        assert (table["rationale"] == other["rationale"]).mean() >= 0.9  # sums depend a little on what shares a batch
