"""The demo: every stage of a small study, from embedded assets to a served champion and a report."""

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
from pipelines.prepare import prepare
from pipelines.promote import promote
from pipelines.report.run import report
from pipelines.report.text import terminal
from pipelines.sweep.run import sweep

LATENCY_REQUESTS = 100
SHOWN = [  # texts whose predictions are printed
    "A warm, funny film with two wonderful leads and an ending that moved me.",
    "Dull and lifeless: I checked my watch every five minutes.",
    "The jokes fall flat, but the music is lovely and I would see it again.",
]


def run_demo(config: StudyConfig, port: int = 0) -> dict[str, Any]:
    """Runs every stage, skipping what is finished, and prints the table, predictions and where to look next.

    Returns:
        The content of `report.json`.

    Raises:
        CotdError: an asset cannot be fetched, a trial failed, or the port is in use.
    """
    from serve.environment import prefer_haproxy

    prefer_haproxy()  # before Ray starts

    from serve.app import require_port

    if port:
        require_port("127.0.0.1", port)
    started = time.monotonic()
    stage(started, 1, "embedded assets: teacher, examples, base model of the students")
    needed = [config.data.source, config.teacher.model, *(config.sizes[s] for s in config.grid.all_values("size"))]
    embedded = [s for s in needed if isinstance(s, str) and assets.is_embedded(s)]
    if not all(assets.is_ready(assets.get_asset(s)) for s in embedded):
        assets.pull(embedded, report=lambda line: say(f"  {line}"))
    with ray_session():
        stage(started, 2, f"annotation: {config.teacher.model} reads {config.data.source} (3 to 6 minutes on two cores)")
        summary = annotate(config)
        teacher = summary["teacher"]
        if teacher["n"]:
            say(f"  teacher alone: {teacher['accuracy']:.1%} of {teacher['n']:,} gold test examples")
        trials = config.grid.count_all()
        stage(started, 3, f"students: {trials} trials on Ray Tune, tracked in MLflow (about 5 minutes on two cores)")
        if failed := sweep(config)["failed"]:
            trials_folder = config.directory / "trials"
            raise CotdError(*(f"trial {i} failed: {why} (see {trials_folder / i / 'error.txt'})" for i, why in failed.items()))
        stage(started, 4, "champion: the best distilled student by validation accuracy")
        promotion = promote(config)
        for sentence in promotion.sentences:
            say(f"  {sentence}")
        stage(started, 5, "endpoint: Ray Serve")
        predictions = serve_and_measure(config, promotion.champion["model_uri"], port or free_port())
    content = report(config)
    print_outcome(config, content, predictions, time.monotonic() - started)
    return content


def stage(started: float, number: int, title: str) -> None:
    say(f"[{number}/5] {time.monotonic() - started:4.0f} s  {title}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_and_measure(config: StudyConfig, model_uri: str, port: int) -> list[str]:
    """Serves the champion, measures one client's latency on test examples, and returns lines of predictions for SHOWN."""
    from serve.app import serving
    from serve.client import Client
    from serve.settings import Settings

    examples = pd.read_parquet(prepare(config).path)
    texts = list(itertools.islice(itertools.cycle(examples[examples["split"] == "test"]["text"]), LATENCY_REQUESTS))
    settings = Settings(student=model_uri, tracking_uri=config.tracking_uri(), poll_seconds=0)
    with serving(settings, port=port) as url, Client(url) as client:
        writes_rationales = client.http.get("/v1/model").json()["card"]["writes_rationales"]
        client.predict(texts[:5])
        p50, p95 = np.percentile([timed(client, text)[1] for text in texts], [50, 95])
        latency = {"requests": len(texts), "p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}
        write_json(config.directory / "serving.json", latency)
        lines = []
        for text in SHOWN:
            prediction, milliseconds = timed(client, text)
            lines.append(f"{prediction.label:8} {prediction.score:6.1%} {milliseconds:6.1f} ms  {text}")
            if writes_rationales:
                lines.append(f"{'':8} its rationale: {client.predict([text], rationale=True)[0].rationale}")
        return lines


def timed(client: Any, text: str) -> tuple[Any, float]:
    """The prediction for a text, over HTTP, and how many milliseconds it took."""
    started = time.perf_counter()
    prediction = client.predict([text])[0]
    return prediction, (time.perf_counter() - started) * 1000


def print_outcome(config: StudyConfig, content: dict[str, Any], predictions: list[str], seconds: float) -> None:
    latency, champion, folder = content["serving"], content["champion"], os.path.relpath(config.directory)
    print()
    print(terminal(content))
    print(f"Champion: {champion['method']} at {format_percent(champion['fraction'])}, {champion['model_uri']}")
    print(
        f"Served on loopback, {latency['requests']} requests one by one: median {latency['p50_ms']} ms, "
        f"95th percentile {latency['p95_ms']} ms"
    )
    for line in predictions:
        print(f"  {line}")
    print()
    print(f"Done in {seconds / 60:.1f} minutes. Report: {folder}/report.html (also report.md, report.json)")
    print(f"Compare the trials:  make ui   (mlflow ui --backend-store-uri {config.tracking_uri()})")
    print("Serve the champion:  .venv/bin/cotd serve")
