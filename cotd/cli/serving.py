"""`cotd serve`: a student behind an HTTP endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cotd.cli.app import app, stopped_with
from cotd.cli.arguments import CHAMPION, Below, Escalate, TrackingUri
from cotd.cli.checks import check_students, require_all
from cotd.errors import CotdError


@app.command("serve")
def serve_command(
    student: Annotated[str, typer.Option(help="models:/NAME@ALIAS, a folder, or a hub id")] = CHAMPION,
    escalate: Escalate = None,
    below: Below = None,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(min=1)] = 1,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs and threads a replica has")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs a replica has; four of 0.25 share one")] = 0,
    runtime: Annotated[
        str,
        typer.Option(
            help="what computes the answer: torch, torch-bf16, transformers, onnxruntime, onnxruntime-int8 or ctranslate2-int8; "
            "auto: onnxruntime for a T5 on CPUs, else torch. Each is checked against the student when it loads"
        ),
    ] = "auto",
    poll_seconds: Annotated[float, typer.Option(min=0, help="how often to look whether the alias has moved; 0: never")] = 10,
    max_queue: Annotated[int, typer.Option(min=1, help="texts that may wait; beyond it 503 with Retry-After")] = 1024,
    token_file: Annotated[
        Path | None, typer.Option(help="clients must send the token in this file; default: COTD_SERVE_TOKEN, else none")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="a name that requests may call the endpoint by; default: any, or localhost on 127.0.0.1 and ::1"),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="an origin whose pages may use the endpoint, such as https://app.example")
    ] = None,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="write the examples themselves to the log")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serves a student over HTTP until Ctrl-C: a page at /, POST /v1/predict, GET /v1/model, /metrics, /healthz, /docs.

    Example: cotd serve --port 8080

    Example: cotd serve --escalate models:/cotd-student@large --below accuracy=0.9
    """
    import time

    from serve.environment import joins_ray, prefer_haproxy

    prefer_haproxy(host)  # before Ray is imported

    from cotd.progress import say
    from cotd.storage.tracking_store import default_tracking_uri
    from pipelines.cluster.session import ray_session
    from serve.app import require_port, serving
    from serve.runtimes.registry import require_runtime
    from serve.settings import OWN_NAMES, Settings, is_loopback, token_digest

    if below and not escalate:
        raise CotdError("--below says what is handed on: name the larger student, --escalate.")
    uri, students = tracking_uri or default_tracking_uri(), (student, escalate, below or "auto")
    require_all(
        lambda: None if joins_ray() else require_port(host, port),
        lambda: require_runtime(runtime),
        lambda: token_digest(token_file),
        lambda: check_students(students, uri),
    )
    digest = token_digest(token_file)
    if digest is None and not is_loopback(host):
        say(f"warning: anyone who reaches {host}:{port} may use this endpoint. Set a token: --token-file.")
    settings = Settings(
        student=student, escalate=escalate, below=below or "auto",
        tracking_uri=uri, runtime=runtime, threads=max(1, int(cpus)), poll_seconds=poll_seconds,
        max_texts=min(256, max_queue), max_queued_texts=max_queue, token_sha256=digest, log_texts=log_texts,
        allowed_hosts=(*OWN_NAMES, *allow_host) if allow_host else None, cors_origins=tuple(cors_origin or ()),
    )  # fmt: skip
    stopped = stopped_with("the endpoint has ended, and no process of it is left")
    with stopped, ray_session(), serving(settings, host, port, replicas, cpus, gpus) as url:
        print(f"serving {student} at {url}  (Ctrl-C ends it)", flush=True)
        print(f"try: {example_request(student, url)}", flush=True)
        while True:
            time.sleep(1)


def example_request(student: str, url: str) -> str:
    """A command that predicts an example of the student's task."""
    import json
    import shlex

    from cotd.students.base_models import find_student
    from cotd.tasks.registry import parse_task
    from cotd.tasks.samples import sample_examples

    _, card = find_student(student)
    sample = sample_examples(parse_task(card["task"]))[0]
    body = {"texts": [sample.text]} | ({"choices": [sample.choices]} if sample.choices else {})
    return f"curl {url}/v1/predict -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
