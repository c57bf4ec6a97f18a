"""The demo: every stage of a small study, from embedded assets to a served champion with a larger student behind it, and a report."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cotd import assets
from cotd.errors import CotdError
from cotd.evaluation.cascade import cascade_predictions, choose_threshold
from cotd.evaluation.metrics import score_predictions
from cotd.progress import say
from cotd.students.base_models import CARD, weights_bytes
from cotd.study.config import StudyConfig
from cotd.training.folder import TrialFolder, rank
from cotd.training.methods import METHODS
from cotd.utils.files import read_json, write_json
from cotd.utils.text import format_percent
from pipelines.annotate.run import annotate
from pipelines.cluster.session import ray_session
from pipelines.prepare import prepare
from pipelines.promote import promote
from pipelines.report.ladder import CASCADE, GOLD, Rung, add_rungs, ladder_rows
from pipelines.report.run import report
from pipelines.report.text import terminal
from pipelines.sweep.plan import Plan, plan_study
from pipelines.sweep.run import sweep

LATENCY_REQUESTS = 100
LARGE = "large"  # the alias of the larger student
SCORES = ("accuracy", "ci_low", "ci_high", "n")  # of a rung
SHOWN = [  # texts whose predictions are printed
    "A warm, funny film with two wonderful leads and an ending that moved me.",
    "Dull and lifeless: I checked my watch every five minutes.",
    "The jokes fall flat, but the music is lovely and I would see it again.",
]


def run_demo(config: StudyConfig, port: int = 0) -> dict[str, Any]:
    """Runs every stage, skipping what is finished, and prints the tables, predictions and where to look next.

    The champion is the best distilled student of the grid's first size. If another size has a student that writes rationales, the
    best such one gets the alias `large`, and is served behind it.

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
    stage(started, 1, "embedded assets: teacher, examples, base models of the students")
    needed = [config.data.source, config.teacher.model, *(config.sizes[s] for s in config.grid.all_values("size"))]
    embedded = [s for s in needed if isinstance(s, str) and assets.is_embedded(s)]
    if not all(assets.is_ready(assets.get_asset(s)) for s in embedded):
        assets.pull(embedded, report=lambda line: say(f"  {line}"))
    with ray_session():
        stage(started, 2, f"annotation: {config.teacher.model} reads {config.data.source}")
        summary = annotate(config)
        teacher = summary["teacher"]
        if teacher["n"]:
            say(f"  teacher alone: {teacher['accuracy']:.1%} of {teacher['n']:,} gold test examples")
        stage(started, 3, f"students: {config.grid.count_all()} trials on Ray Tune, tracked in MLflow")
        if failed := sweep(config)["failed"]:
            trials_folder = config.directory / "trials"
            raise CotdError(*(f"trial {i} failed: {why} (see {trials_folder / i / 'error.txt'})" for i, why in failed.items()))
        stage(started, 4, "champion: the best distilled student by validation accuracy")
        promotion = promote(config, size=config.grid.size[0])
        served = Served.of(config, promotion.champion)
        larger = promote(config, trial_id=served.large.path.name, alias=LARGE).sentences if served.large else []
        for sentence in (*promotion.sentences, *larger):
            say(f"  {sentence}")
        stage(started, 5, "endpoint: Ray Serve")
        predictions = serve_and_measure(config, served, port or free_port())
    content = report(config)
    print_outcome(config, content, predictions, time.monotonic() - started)
    return content


def stage(started: float, number: int, title: str) -> None:
    say(f"[{number}/5] {time.monotonic() - started:4.0f} s  {title}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Served:
    """What is served: the champion, and the larger student behind it.

    Attributes:
        model_uri: of the champion. small: its trial's folder; None if the champion is of another study.
        large: the larger student's trial; None without one.
    """

    model_uri: str
    small: TrialFolder | None
    large: TrialFolder | None

    @classmethod
    def of(cls, config: StudyConfig, champion: dict[str, Any]) -> Served:
        plan = plan_study(config)
        return cls(champion["model_uri"], champion_trial(plan, champion), larger_trial(plan))


def champion_trial(plan: Plan, champion: dict[str, Any]) -> TrialFolder | None:
    """The trial that trained the champion, if it is one of the study's."""
    keys = ("method", "size", "fraction")
    same = [t for t in plan.trials if champion["study"] == plan.config.name and all(getattr(t, k) == champion[k] for k in keys)]
    return next((plan.folder(t) for t in same if str(t.seed) == champion["seed"]), None)


def larger_trial(plan: Plan) -> TrialFolder | None:
    """The best trial by validation among those of other sizes than the first one whose students write rationales."""
    others = [(t, plan.folder(t)) for t in plan.trials if t.size != plan.config.grid.size[0]]
    writing = [((t, folder.result()), folder) for t, folder in others if read_json(folder.student / CARD)["writes_rationales"]]
    return max(writing, key=lambda entry: rank(entry[0]))[1] if writing else None


def serve_and_measure(config: StudyConfig, served: Served, port: int) -> list[str]:
    """Serves the champion, and with the larger student behind it; measures one client's latencies on test examples.

    Returns:
        Lines with the predictions for SHOWN.
    """
    from serve.app import serving
    from serve.client import Client
    from serve.settings import Settings

    examples = pd.read_parquet(prepare(config).path)
    texts = list(itertools.islice(itertools.cycle(examples[examples["split"] == "test"]["text"]), LATENCY_REQUESTS))
    settings = Settings(student=served.model_uri, tracking_uri=config.tracking_uri(), poll_seconds=0)
    with serving(settings, port=port) as url, Client(url) as client:
        alone = latency(client, texts)
        known = {"requests": len(texts), "p50_ms": alone["median_ms"], "p95_ms": alone["p95_ms"]}
        write_json(config.directory / "serving.json", known)
        lines = [] if served.large else shown_predictions(client)
    rungs = [trial_rung(config, served.small) | alone] if served.small else []
    if served.small and served.large:
        large = str(served.large.student)
        with serving(settings.model_copy(update={"student": large}), port=port) as url, Client(url) as client:
            rungs.append(trial_rung(config, served.large) | latency(client, texts))
        with serving(settings.model_copy(update={"escalate": large}), port=port) as url, Client(url) as client:
            rungs.append(cascade_rung(config, served.small, served.large) | latency(client, texts))
            lines = shown_predictions(client)
    add_rungs(config, rungs)
    return lines


def latency(client: Any, texts: Sequence[str]) -> Rung:
    """Median and 95th percentile of a client's requests of one text each, in milliseconds."""
    client.predict(list(texts[:5]))
    p50, p95 = np.percentile([timed(client, text)[1] for text in texts], [50, 95])
    return {"median_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}


def trial_rung(config: StudyConfig, trial: TrialFolder) -> Rung:
    """A student on the test examples."""
    result = trial.result()
    return {
        "name": f"{result['size']}, {result['method']}",
        "taught_by": config.teacher.model if METHODS[result["method"]].needs_annotations else GOLD,
        "parameters": result["parameters"],
        **{key: result["test"][key] for key in SCORES},
        "weights_bytes": weights_bytes(str(trial.student)),
    }


def cascade_rung(config: StudyConfig, small: TrialFolder, large: TrialFolder) -> Rung:
    """A student on the test examples, and a larger one where that is not sure enough."""
    threshold = choose_threshold("auto", small.student, large.student)
    table = cascade_predictions(pd.read_parquet(small.predictions), pd.read_parquet(large.predictions), threshold)
    share = format_percent((table["answered_by"] == "escalated").mean())
    say(f"  cascade: {share} of the test examples go to the larger student")
    scores, parameters = score_predictions(table, config.task), sum(trial.result()["parameters"] for trial in (small, large))
    return {"name": CASCADE, "parameters": parameters} | {key: scores[key] for key in SCORES}


def shown_predictions(client: Any) -> list[str]:
    """Lines with the predictions for SHOWN, and the reasons for them if there is a student that writes some."""
    explains = client.http.get("/v1/model").json()["can_explain"]
    lines = []
    for text in SHOWN:
        prediction, milliseconds = timed(client, text)
        by = " by the larger student" if prediction.answered_by == "escalated" else ""
        lines.append(f"{prediction.label:8} {prediction.score:6.1%} {milliseconds:6.1f} ms{by}  {text}")
        if explains:
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
    if len(content["ladder"]) > 1:
        print_table(ladder_rows(content["ladder"]))
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
    larger = (
        f" --escalate models:/{config.tracking.registered_model}@{LARGE}"
        if CASCADE in {r["name"] for r in content["ladder"]}
        else ""
    )
    print(f"Serve the champion:  .venv/bin/cotd serve{larger}")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns of their own widths, and an empty line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
