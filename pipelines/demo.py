"""The whole main job, small: assets, annotations, students, report, champion, endpoint."""

from __future__ import annotations

import itertools
import os
import socket
import time
from typing import Any

import numpy as np
import pandas as pd

from cotd import assets
from cotd.errors import CotdError
from cotd.progress import say
from cotd.study.config import StudyConfig
from cotd.utils.files import write_json
from cotd.utils.text import format_percent
from pipelines.annotate.run import annotate
from pipelines.cluster.session import ray_session
from pipelines.promote import promote
from pipelines.report.run import report
from pipelines.report.text import terminal
from pipelines.sweep.plan import plan_study
from pipelines.sweep.run import sweep

LATENCY_REQUESTS = 100
SHOWN = [
    "A warm, funny film with two wonderful leads and an ending that moved me.",
    "Dull and lifeless: I checked my watch every five minutes.",
    "The jokes fall flat, but the music is lovely and I would see it again.",
]


def run_demo(config: StudyConfig, port: int = 0) -> dict[str, Any]:
    """Runs every stage, skipping what is finished, and prints the table, predictions and where to look next.

    Returns:
        What `report.json` holds.

    Raises:
        CotdError: an asset cannot be fetched, a trial failed, the port is in use.
    """
    from serve.environment import prefer_haproxy

    prefer_haproxy()  # before Ray starts

    from serve.app import require_port

    if port:
        require_port("127.0.0.1", port)
    started = time.monotonic()
    stage(started, 1, "embedded assets: teacher, reviews, base student")
    needed = [config.data.source, config.teacher.model, *(config.sizes[s] for s in config.grid.all_values("size"))]
    embedded = [s for s in needed if isinstance(s, str) and assets.is_embedded(s)]
    if not all(assets.is_ready(assets.get_asset(s)) for s in embedded):
        assets.pull(embedded, report=lambda line: say(f"  {line}"))
    with ray_session():
        stage(started, 2, f"annotation: {config.teacher.model} reads {config.data.source} (about 6 minutes on two cores)")
        summary = annotate(config)
        teacher = summary["teacher"]
        if teacher["n"]:
            say(f"  teacher alone: {teacher['accuracy']:.1%} of {teacher['n']:,} gold test reviews")
        trials = config.grid.count_all()
        stage(started, 3, f"students: {trials} trials on Ray Tune, tracked in MLflow (about 4 minutes on two cores)")
        if failed := sweep(config)["failed"]:
            trials_folder = config.directory / "trials"
            raise CotdError(*(f"trial {i} failed: {why} (see {trials_folder / i / 'error.txt'})" for i, why in failed.items()))
        stage(started, 4, "champion: the best distilled student by validation accuracy")
        promotion = promote(config)
        for sentence in promotion.sentences:
            say(f"  {sentence}")
        stage(started, 5, "endpoint: Ray Serve")
        shown = serve_and_measure(config, promotion.champion["model_uri"], port or free_port())
    content = report(config)
    print_outcome(config, content, shown, time.monotonic() - started)
    return content


def stage(started: float, number: int, title: str) -> None:
    say(f"[{number}/5] {time.monotonic() - started:4.0f} s  {title}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_and_measure(config: StudyConfig, model_uri: str, port: int) -> list[str]:
    """Serves the champion, measures one client's latency on test reviews, and asks the shown ones; returns lines."""
    from serve.app import serving
    from serve.client import Client
    from serve.settings import Settings

    reviews = pd.read_parquet(plan_study(config).reviews)
    test = reviews[reviews["split"] == "test"]["text"]
    texts = list(itertools.islice(itertools.cycle(test), LATENCY_REQUESTS))
    settings = Settings(student=model_uri, tracking_uri=config.tracking_uri(), poll_seconds=0)
    with serving(settings, port=port) as url, Client(url) as client:
        explains = client.http.get("/v1/model").json()["card"]["writes_rationales"]
        client.predict(texts[:5])
        milliseconds = np.array([timed(client, text)[1] for text in texts])
        p50, p95 = np.percentile(milliseconds, [50, 95])
        serving_figures = {"requests": len(texts), "p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}
        write_json(config.directory / "serving.json", serving_figures)
        lines = []
        for text in SHOWN:
            answer, took = timed(client, text)
            lines.append(f"{answer.label:8} {answer.score:6.1%} {took:6.1f} ms  {text}")
            if explains:
                lines.append(f"{'':8} its own words: {client.predict([text], rationale=True)[0].rationale}")
        return lines


def timed(client: Any, text: str) -> tuple[Any, float]:
    """The prediction for a text, over HTTP, and how many milliseconds it took."""
    started = time.perf_counter()
    prediction = client.predict([text])[0]
    return prediction, (time.perf_counter() - started) * 1000


def print_outcome(config: StudyConfig, content: dict[str, Any], shown: list[str], seconds: float) -> None:
    serving_figures, champion = content["serving"], content["champion"]
    print()
    print(terminal(content))
    print(f"Champion: {champion['method']} at {format_percent(champion['fraction'])}, {champion['model_uri']}")
    print(f"Served on loopback, {serving_figures['requests']} requests one by one: ", end="")
    print(f"median {serving_figures['p50_ms']} ms, 95th percentile {serving_figures['p95_ms']} ms")
    for line in shown:
        print(f"  {line}")
    print()
    folder = os.path.relpath(config.directory)
    print(f"Done in {seconds / 60:.1f} minutes. Report: {folder}/report.html (also report.md, report.json)")
    print(f"Compare the trials:  make ui   (mlflow ui --backend-store-uri {config.tracking_uri()})")
    print("Serve the champion:  .venv/bin/cotd serve")
