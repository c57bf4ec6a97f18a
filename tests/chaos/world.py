"""What chaos happens to: commands, an endpoint, and the servers they need, on this machine; and what is found afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pandas as pd
import psutil
import yaml

from tests.object_store import ObjectStore, object_store
from tests.pipelines.annotate.fault_server import KEY, FaultServer
from tests.processes import command_line, free_port, marked_processes, wait_for

COTD = [sys.executable, "-m", "cotd.cli"]
SECONDS_AN_ANSWER = 0.15  # of the teacher: a run must last long enough to be killed in
DISK = 256 * 2**20  # bytes of the machine's disk
ROWS = {"train": 60, "validation": 24, "test": 12}
TRIALS = 4
TRAINING = {"optimizer": "adamw", "steps": 12, "batch_size": 8, "eval_every": 2, "dropout": 0.0}


@dataclass
class World:
    """Everything a study needs, and its processes.

    Attributes:
        folder: of logs and of what survives; disk: a small one, with the commands' own files.
        commands, servers: the marks of the processes of commands, and of servers.
        paid: prompt → good answers of the teacher.
        disk_can_fill: whether the disk is one of its own.
    """

    folder: Path
    store: ObjectStore
    teacher: FaultServer
    teacher_url: str
    base: Path
    disk_can_fill: bool
    mlflow_port: int = field(default_factory=free_port)
    serve_port: int = field(default_factory=free_port)
    commands: str = field(default_factory=lambda: uuid.uuid4().hex)
    servers: str = field(default_factory=lambda: uuid.uuid4().hex)
    mlflow: subprocess.Popen[bytes] | None = None
    endpoint: subprocess.Popen[bytes] | None = None
    paid: Counter[str] = field(default_factory=Counter)
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def serve_url(self) -> str:
        return f"http://127.0.0.1:{self.serve_port}"

    def environment(self, mark: str) -> dict[str, str]:
        """That of a process; servers have another disk than commands."""
        disk = self.disk if mark == self.commands else self.folder / "servers"
        kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH") and not k.startswith("MLFLOW_")}
        return {
            **kept, **self.store.environment, "COTD_TEST_MARK": mark, "COTD_HOME": str(disk / "home"),
            "TMPDIR": str(disk / "tmp"), "RAY_TMPDIR": "/tmp", "TEACHER_KEY": KEY, "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self, arguments: list[str], mark: str, log: str) -> subprocess.Popen[bytes]:
        """A program in a session of its own."""
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                arguments, env=self.environment(mark), cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start([*COTD, *arguments], self.commands, arguments[0])

    def start_mlflow(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.mlflow_port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.mlflow = self.start(command, self.servers, "mlflow")
        wait_for(self.mlflow_url, self.folder / "mlflow.log", 480)

    def stop_mlflow(self) -> None:
        if self.mlflow:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.mlflow.pid, signal.SIGKILL)
            self.mlflow.wait()

    def start_endpoint(self) -> None:
        options = ["--port", str(self.serve_port), "--replicas", "2", "--cpus", "0.5", "--poll-seconds", "1"]
        self.endpoint = self.start([*COTD, "serve", *options], self.servers, "serve")
        wait_for(f"{self.serve_url}/healthz", self.folder / "serve.log", 480)

    def replicas(self) -> int:
        """How many replicas of the endpoint serve a student."""
        with contextlib.suppress(httpx.HTTPError):
            metrics = httpx.get(f"{self.serve_url}/metrics", trust_env=False, timeout=10).text
            return int(sum(float(n) for n in re.findall(r"^cotd_model_replicas\{.*\} (\S+)$", metrics, re.MULTILINE)))
        return 0

    def end_endpoint(self) -> bool:
        """Ends it as Kubernetes does; whether it ended by itself."""
        if self.endpoint is None:
            return True
        self.endpoint.send_signal(signal.SIGTERM)
        try:
            self.endpoint.wait(120)
            return True
        except subprocess.TimeoutExpired:
            return False

    def processes(self, mark: str, *names: str) -> list[psutil.Process]:
        """Processes of a mark, by the beginnings of their command lines; any, if none are given."""
        alive = [p for p in marked_processes({"COTD_TEST_MARK": mark}) if command_line(p)]
        return sorted((p for p in alive if command_line(p).startswith(names or "")), key=lambda p: p.pid)

    def answer_well(self) -> None:
        """The teacher answers, after a while, and is paid for it."""

        def answer(prompt: str, tries: int) -> None:
            time.sleep(SECONDS_AN_ANSWER)
            self.paid[prompt] += 1

        self.teacher.fault = answer

    def write_study(self, name: str) -> Path:
        """A study of generated examples, on the object store."""
        splits = [split for split, count in ROWS.items() for _ in range(count)]
        words = ["A warm and funny", "A dull and lifeless"]
        rows = [(f"{words[i % 2]} film, number {i}.", ["positive", "negative"][i % 2], s) for i, s in enumerate(splits)]
        pd.DataFrame(rows, columns=["text", "label", "split"]).to_csv(self.folder / "reviews.csv", index=False)
        api = {"base_url": self.teacher_url, "key_env": "TEACHER_KEY", "concurrency": 2}
        study = {
            "name": name,
            "data": {"source": str(self.folder / "reviews.csv"), "columns": {"split": "split"}},
            "teacher": {"model": "teacher-1", "strategy": "chain_of_thought", "api": api, "gold_conditioned": False},
            "sizes": {"tiny": str(self.base)},
            "grid": {"method": ["finetune", "distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0, 1]},
            "training": TRAINING,
            "resources": {"max_failures": 20},  # chance may hit one trial again and again
            "storage": self.store.url,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(study))
        return path

    # What is found afterwards.

    def rows(self, name: str) -> dict[str, int]:
        """Annotated rows that are missing, or there twice."""
        table = pd.read_parquet(f"{self.store.url}/{name}/annotations/annotations.parquet")
        good = table[table["error"].isna()]
        key = ["example_id", "gold_conditioned", "sample"]
        return {
            "rows_lost": ROWS["train"] - int(good["example_id"].nunique()),
            "rows_doubled": int(table.duplicated(key).sum()),
        }

    def trials(self, name: str) -> dict[str, int]:
        """Trials without a result, and results or runs beyond one a trial."""
        results = Counter(p for p in self.store.written("/result.json") if f"/{name}/trials/" in p)
        runs = [r for r in self.runs(name) if r.data.tags.get("cotd.kind") == "trial"]
        ids = {r.data.tags["cotd.trial_id"] for r in runs}
        doubled = sum(results.values()) - len(results) + len(runs) - len(ids)
        return {"trials_lost": TRIALS - len(results) + TRIALS - len(ids), "trials_doubled": doubled}

    def runs(self, name: str) -> list[Any]:
        """A study's runs in MLflow."""
        import mlflow

        client = mlflow.MlflowClient(self.mlflow_url, self.mlflow_url)
        experiment = client.get_experiment_by_name(name)
        return list(client.search_runs([experiment.experiment_id], max_results=1000)) if experiment else []

    def orphans(self, name: str) -> list[str]:
        """Runs left RUNNING, and files that are of use to nobody, of a study that is finished."""
        left = [f"run {r.info.run_name} RUNNING" for r in self.runs(name) if r.info.status == "RUNNING"]
        files, root = fsspec.core.url_to_fs(self.store.url)
        files.invalidate_cache()
        kept = [p.removeprefix(f"{root}/") for p in files.find(f"{root}/{name}")]
        left += [p for p in kept if any(part in p for part in ("checkpoint-", "/tune", "/leases/", ".part", ".tmp"))]
        return left + [str(p) for p in (self.disk / "home").rglob("*.part")]

    def processes_left(self, seconds: float = 30) -> list[str]:
        """Processes of commands that have ended, which have so long to end, too."""
        deadline = time.monotonic() + seconds
        while (left := self.processes(self.commands)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return [f"process {command_line(p)[:80]}" for p in left]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A small file system of its own at `folder`, where one may be mounted; yields whether it is."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "cotd-chaos", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """All servers but the endpoint; at the end every process that was started is ended."""
    teacher = FaultServer()
    (folder / "servers" / "tmp").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        filled = stack.enter_context(small_disk(folder / "disk"))
        store = stack.enter_context(object_store(folder))
        here = World(folder, store, teacher, stack.enter_context(teacher.serving()), write_base(folder / "base"), filled)
        here.answer_well()
        stack.callback(end_all, here)
        here.start_mlflow()
        yield here


def end_all(here: World) -> None:
    here.ending.set()
    for mark in (here.commands, here.servers):
        for process in here.processes(mark):
            with contextlib.suppress(psutil.Error):
                process.kill()


def write_base(folder: Path) -> Path:
    """A base model of random weights, with the embedded student's tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from cotd import assets

    source = assets.pull(["t5-mini"], report=lambda _: None)[-1]
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    shape = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **shape)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
