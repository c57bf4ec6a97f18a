"""The command line. Commands are plain functions; each imports what it needs when it is called."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cotd import __version__
from cotd.errors import CotdError, full_disk

if TYPE_CHECKING:
    from cotd.config import StudyConfig
    from cotd.trials import TrialFolder

app = typer.Typer(
    name="cotd",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Chain-of-thought distillation: a teacher annotates reviews, small T5 students learn, the best is served.\n\n"
    "Start with: cotd demo",
)
assets_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Embedded models and reviews, from ordinary packages."
)
app.add_typer(assets_app, name="assets")

ENDPOINT = "http://127.0.0.1:8000"
CHAMPION = "models:/cotd-student@champion"

Config = Annotated[str, typer.Argument(help="a study's YAML, for example tune_configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, like training.steps=100 or variant=embedded")
]


def main() -> None:
    """Entry point: bad input ends in a readable message and exit code 2."""
    try:
        app()
    except CotdError as error:
        problems = error.problems
        heading = "error:" if len(problems) == 1 else f"{len(problems)} errors:"
        print(f"{heading} {error}" if len(problems) == 1 else f"{heading}\n{error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not full_disk(error, Path()):
            raise
        where = f" to write {error.filename}" if error.filename else ""
        print(f"error: no space is left on the disk{where}. Free some, and run the same command again.", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130:  # Ctrl-C
            print("\nstopped; what was done is kept, and the same command goes on from there.", file=sys.stderr)
        raise


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(f"cotd {__version__}")
        raise typer.Exit


@assets_app.command("pull")
def assets_pull(names: Annotated[list[str] | None, typer.Argument(help="asset names; all if none is given")] = None) -> None:
    """Fetches and converts the embedded models and reviews, once, into COTD_HOME; later work needs no network.

    Example: cotd assets pull rotten-tomatoes
    """
    from cotd import assets

    assets.pull(names)


@assets_app.command("list")
def assets_list() -> None:
    """Lists the embedded assets, their licences, and whether they are in place."""
    from cotd import assets

    for asset in assets.ASSETS.values():
        state = "ready" if assets.is_ready(asset) else "not pulled"
        print(f"{assets.PREFIX + asset.name:34} {asset.kind:8} {state:11} {asset.title} [{asset.licence}]")


@app.command()
def annotate(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print a few prompts as they are sent, and the price; ask nothing")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="prompts of each kind that --dry-run prints")] = 2,
    yes: Annotated[bool, typer.Option("--yes", help="go on whatever an endpoint's estimated price")] = False,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="ask again about quarantined reviews, also what was refused, and nothing else"),
    ] = False,
) -> None:
    """Has the teacher annotate a study's training reviews; what is known already is not asked again.

    Example: cotd annotate tune_configs/demo.yaml data.train_rows=200
    """
    from cotd.config import load_config
    from cotd.tracking import StudyTracker
    from pipelines.annotate import annotate as run
    from pipelines.annotate import preview
    from pipelines.annotation_files import AnnotationFiles
    from pipelines.annotation_summary import summary_lines

    study = load_config(config, overrides)
    if dry_run:
        for line in preview(study, rows):
            print(line)
        return
    summary = run(study, yes=yes, retry_errors=retry_errors)
    files = AnnotationFiles.of(study)
    for line in summary_lines(summary, files.annotations):
        print(line)
    StudyTracker(study).log_teacher(summary, files.page)


@app.command()
def sweep(
    config: Config,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="go on however many trials the grid has")] = False,
) -> None:
    """Trains the study's grid of students on Ray Tune, each an MLflow run; finished trials are skipped.

    Example: cotd sweep tune_configs/data_efficiency.yaml variant=embedded grid.seed=[0]
    """
    from cotd.config import load_config
    from pipelines.sweep import sweep as run

    outcome = run(load_config(config, overrides), yes)
    pruned = f"{outcome['pruned']} given up, " if outcome["pruned"] else ""
    print(f"{outcome['trials']} trials, {outcome['trained']} trained now, {pruned}{len(outcome['failed'])} failed")
    if best := outcome["best"]:
        print(f"best by validation: {best['title']}, {best['validation_accuracy']:.1%}")
    for trial_id, why in outcome["failed"].items():
        print(f"  {trial_id}: {why}")
    if outcome["failed"]:
        raise typer.Exit(1)


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Trains the first trial of a study's grid in this process, without Ray or MLflow: the code that a sweep runs.

    Whatever `resources` says: this process has all CPUs, and there are no further workers.

    Example: cotd train tune_configs/demo.yaml grid.method=[finetune] grid.fraction=[0.1]
    """
    from cotd.config import load_config
    from cotd.storage import on_storage

    study = load_config(config, overrides)
    folder = on_storage(train_first)(study)
    print(json.dumps(folder.result(), indent=2))
    print(f"student: {folder.student}")


def train_first(study: StudyConfig) -> TrialFolder:
    """The folder of a study's first trial, trained unless it is done."""
    from cotd.progress import track
    from cotd.training import train_trial
    from pipelines.annotation_files import read_rationales, read_teacher_test
    from pipelines.study import plan_study

    plan = plan_study(study)
    trial = plan.trials[0]
    folder = plan.folder(trial)
    if not folder.done:
        folder.write_trial(trial, study)
        seen = 0
        with track(trial.title, trial.training.steps, "steps") as advance:

            def on_score(point: dict[str, float]) -> None:
                nonlocal seen
                advance(int(point["step"]) - seen)
                seen = int(point["step"])

            teacher_test, rationales = read_teacher_test(plan.teacher_test), read_rationales(plan.held_out_rationales)
            train_trial(
                trial, folder, plan.reviews, plan.annotations, plan.provenance, on_score, teacher_test, rationales, plan.cache
            )
    return folder


@app.command()
def pretrain(
    config: Annotated[str, typer.Argument(help="a recipe's YAML, for example tune_configs/pretrain/t5_tiny.yaml")],
    overrides: Overrides = None,
    restart: Annotated[bool, typer.Option(help="start over where the folder holds a run of another recipe")] = False,
) -> None:
    """Makes a small T5 from text: tokenizer, embeddings, distilled and denoised; goes on where it was stopped.

    Example: cotd pretrain tune_configs/pretrain/t5_tiny.yaml training.steps=1000 corpus.limit=2000
    """
    from cotd.pretraining.config import load_pretrain_config
    from pipelines.pretrain import pretrain as run

    recipe = load_pretrain_config(config, overrides)
    summary = run(recipe, restart)
    for name, value in summary["last"].items():
        if name.startswith(("held_out", "probe")):
            print(f"{name.replace('_', ' ')}: {value:.3f}")
    print(f"{summary['parameters']:,} parameters: {recipe.directory / 'model'}")


@app.command()
def report(
    config: Config,
    overrides: Overrides = None,
    on: Annotated[
        str | None, typer.Option(help="score the students on another source's reviews instead: as cotd evaluate's SOURCE")
    ] = None,
    split: Annotated[str, typer.Option(help="with --on: train, validation, test or all")] = "test",
    text: Annotated[str, typer.Option(help="with --on: the text column")] = "text",
    label: Annotated[str, typer.Option(help="with --on: the label column")] = "label",
) -> None:
    """Writes a study's report (report.html, report.md, figures, report.json), and prints its tables and findings.

    An unfinished study is reported as far as it is done, with what is missing. With --on the report says how the same
    students do on reviews of another kind, and lies in transfer/ in the study's folder.

    Example: cotd report tune_configs/demo.yaml

    Example: cotd report tune_configs/demo.yaml --on embedded:amazon-sentences
    """
    from cotd.config import load_config
    from cotd.evaluation import gold_reviews
    from pipelines.report import Elsewhere, terminal, transfer_folder
    from pipelines.report import report as run

    study = load_config(config, overrides)
    content = run(study, Elsewhere(on, gold_reviews(on, split, text, label)) if on else None)
    print(terminal(content))
    files = ["report.html", "report.md", "report.json", *(figure["file"] for figure in content["figures"])]
    where = transfer_folder(study, on) if on else study.remote or study.directory
    print(f"written to {where}: {', '.join(files)}")


@app.command()
def promote(
    config: Config,
    overrides: Overrides = None,
    all_methods: Annotated[bool, typer.Option(help="choose among all methods, not only distilled ones")] = False,
) -> None:
    """Registers the best student by validation accuracy, and moves the alias `champion` to it.

    Example: cotd promote tune_configs/demo.yaml --all-methods
    """
    from cotd.config import load_config
    from pipelines.promote import promote as run

    for sentence in run(load_config(config, overrides), all_methods).sentences:
        print(sentence)


Student = Annotated[str, typer.Option(help="models:/NAME@ALIAS, a folder, or a hub id")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store to look the model up in; default: MLFLOW_TRACKING_URI, else runs/mlflow.db")
]


@app.command("serve")
def serve_command(
    student: Student = CHAMPION,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(min=1)] = 1,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs and threads a replica has")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs a replica has; four of 0.25 share one")] = 0,
    runtime: Annotated[
        str,
        typer.Option(
            help="what computes the label: torch, torch-bf16, transformers, onnxruntime, onnxruntime-int8 or ctranslate2-int8; "
            "auto: onnxruntime for a T5 on CPUs, else torch. Each is checked against the student when it loads"
        ),
    ] = "auto",
    poll_seconds: Annotated[float, typer.Option(min=0, help="how often to look whether the alias has moved; 0: never")] = 10,
    max_queue: Annotated[int, typer.Option(min=1, help="texts that may wait; beyond it 503 with Retry-After")] = 1024,
    token_file: Annotated[
        Path | None, typer.Option(help="clients must send the token in this file; default: COTD_SERVE_TOKEN, else none")
    ] = None,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="write the reviews themselves to the log")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serves a student over HTTP until Ctrl-C: a page at /, POST /v1/predict, GET /v1/model, /metrics, /healthz, /docs.

    Example: cotd serve --port 8080
    """
    import time

    from serve.environment import joins_ray, prefer_haproxy

    prefer_haproxy()  # before Ray is imported

    from cotd.progress import say
    from pipelines.cluster import ray_session
    from serve.app import require_port, serving
    from serve.runtime import require_runtime
    from serve.settings import Settings, token_digest

    uri = tracking_store(tracking_uri)
    require_all(
        lambda: None if joins_ray() else require_port(host, port),
        lambda: require_runtime(runtime),
        lambda: token_digest(token_file),
        lambda: check_student(student, uri),
    )
    digest = token_digest(token_file)
    if digest is None and host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: whoever reaches {host}:{port} may use this endpoint. Set a token: --token-file.")
    settings = Settings(
        student=student, tracking_uri=uri, runtime=runtime, threads=max(1, int(cpus)), poll_seconds=poll_seconds,
        max_texts=min(256, max_queue), max_queued_texts=max_queue, token_sha256=digest, log_texts=log_texts,
    )  # fmt: skip
    with ray_session(), serving(settings, host, port, replicas, cpus, gpus) as url:
        print(f"serving {student} at {url}  (Ctrl-C ends it)", flush=True)
        print(
            f"try: curl {url}/v1/predict -H 'Content-Type: application/json' -d '{{\"texts\": [\"A warm and funny film.\"]}}'",
            flush=True,
        )
        while True:
            time.sleep(1)


@app.command()
def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(help="reviews; from standard input, a line each, if none is given")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"the endpoint to ask; by default {ENDPOINT}")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="load the student in this process instead of asking an endpoint")
    ] = False,
    student: Annotated[
        str | None, typer.Option(help=f"of --local and --input: models:/NAME@ALIAS, a folder, or a hub id; default: {CHAMPION}")
    ] = None,
    rationale: Annotated[bool, typer.Option("--rationale", help="also print the student's own explanation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    input: Annotated[
        str | None,
        typer.Option(help="a .parquet, .csv or .jsonl file to predict: with Ray Data, or with --url by that endpoint"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="the file for --input's rows with their predictions")] = None,
    text: Annotated[str, typer.Option(help="--input's text column")] = "text",
    tracking_uri: TrackingUri = None,
) -> None:
    """Predicts the sentiment of reviews.

    Examples:
      cotd predict "A warm and funny film."
      cotd predict --local --rationale < reviews.txt
      cotd predict --input reviews.parquet --output scored.parquet
      cotd predict --input reviews.parquet --output scored.parquet --url http://127.0.0.1:8000
    """
    of_student = student is not None or tracking_uri is not None
    refuse(
        (bool(input) != bool(output) or bool(input and texts),
         "a file is predicted by --input and --output together, without reviews as arguments."),
        (bool(input and as_json), "--json is of reviews that are printed: the name of --output says what is written into it."),
        (bool(input and local), "--input loads the student without --local already: leave one of them out."),
        (bool(url and local), "--local asks no endpoint: leave out --url, or --local."),
        (of_student and not (local or (input and not url)),
         "--student and --tracking-uri name what --local or --input load: an endpoint answers with the student that it serves."),
    )  # fmt: skip
    model = student or CHAMPION
    if input and output:
        if url:
            predict_file_by_endpoint(input, output, text, url, rationale)
        else:
            predict_file(input, output, text, model, rationale, tracking_uri)
        return
    reviews = iter(texts) if texts else (line.strip() for line in sys.stdin if line.strip())
    with contextlib.ExitStack() as stack:
        answer = local_student(model, rationale, tracking_uri) if local else endpoint_at(url or ENDPOINT, rationale, stack)
        if not print_predictions(reviews, answer, as_json, 4 if rationale else 32):
            raise CotdError("no review given: name some as arguments, or give them on standard input, a line each.")


def refuse(*problems: tuple[bool, str]) -> None:
    """Raises a CotdError of the problems that there are."""
    if found := [message for there, message in problems if there]:
        raise CotdError(*found)


Rows = Callable[[list[str]], list[dict[str, Any]]]


def print_predictions(reviews: Iterator[str], answer: Rows, as_json: bool, size: int) -> int:
    """Prints each review's prediction as soon as the few that it is asked with are answered; returns how many there were."""
    from cotd.completions import batched
    from cotd.progress import say

    count = 0
    for part in batched(reviews, size):
        for review, row in zip(part, answer(part), strict=True):
            if as_json:
                print(json.dumps({"text": review, **row}, ensure_ascii=False))
            else:
                explanation = f"\n          {row['rationale']}" if row.get("rationale") else ""
                print(f"{row['label']:8} {row['score']:6.1%}  {review}{explanation}")
        sys.stdout.flush()
        count += len(part)
        if not sys.stdout.isatty() and count // 1000 > (count - len(part)) // 1000:
            say(f"  {count:,} reviews")
    return count


def local_student(student: str, rationale: bool, tracking_uri: str | None) -> Rows:
    """The student, loaded into this process."""
    from dataclasses import asdict

    from cotd.student import Student as Model

    check_student(student, tracking_store(tracking_uri))
    model = Model.load(student)
    if rationale and not model.can_explain:
        raise CotdError(f"this student was trained by '{model.card.get('method')}' and has learned no rationales.")

    def answer(reviews: list[str]) -> list[dict[str, Any]]:
        rows = [asdict(p) for p in model.predict(reviews)]
        for row, why in zip(rows, model.explain(reviews) if rationale else [None] * len(rows), strict=True):
            row["rationale"] = why
        return rows

    return answer


def endpoint_at(url: str, rationale: bool, stack: contextlib.ExitStack) -> Rows:
    """The endpoint at an address, for as long as the stack is open."""
    from serve.client import Client

    client = stack.enter_context(Client(url))
    return lambda reviews: [p.model_dump() for p in client.predict(reviews, rationale)]


def predict_file(source: str, target: str, text: str, student: str, rationale: bool, tracking_uri: str | None) -> None:
    from cotd.progress import say
    from pipelines.cluster import ray_session
    from pipelines.score import require_columns, require_output, score_file

    uri = tracking_store(tracking_uri)
    require_all(
        lambda: require_columns(source, text),
        lambda: require_output(target),
        lambda: check_student(student, uri),
    )
    with ray_session():
        summary = score_file(source, target, student, uri, text, rationale)
    for sentence in summary.sentences:
        say(sentence)


def predict_file_by_endpoint(source: str, target: str, text: str, url: str, rationale: bool) -> None:
    from cotd.progress import say
    from pipelines.score import RowRefused, require_columns, require_output, score_file_by
    from serve.client import Rejected

    require_all(lambda: require_columns(source, text), lambda: require_output(target))
    with contextlib.ExitStack() as stack:
        answer = endpoint_at(url, rationale, stack)

        def predict(texts: list[str]) -> list[dict[str, Any]]:
            try:
                return answer(texts)
            except Rejected as error:
                if error.code == "no_rationales":
                    raise
                raise RowRefused(str(error)) from error

        summary = score_file_by(source, target, predict, text, rationale)
    for sentence in summary.sentences:
        say(sentence)


@app.command()
def evaluate(
    student: Annotated[str, typer.Argument(help="a folder, a hub id, or models:/NAME@ALIAS")],
    source: Annotated[str, typer.Argument(help="embedded:NAME, a .parquet, .jsonl or .csv file, or a hub id")],
    split: Annotated[str, typer.Option(help="train, validation, test or all")] = "test",
    text: Annotated[str, typer.Option(help="the text column")] = "text",
    label: Annotated[str, typer.Option(help="the label column")] = "label",
    tracking_uri: TrackingUri = None,
) -> None:
    """Scores a student against the gold labels of any source; prints JSON.

    Example: cotd evaluate models:/cotd-student@champion embedded:amazon-sentences
    """
    from cotd.evaluation import gold_reviews, predictions_table, require_split, score_predictions
    from cotd.student import Student as Model

    require_all(lambda: require_split(split), lambda: check_student(student, tracking_store(tracking_uri)))
    reviews = gold_reviews(source, split, text, label)
    model = Model.load(student)
    print(json.dumps(score_predictions(predictions_table(model, reviews), model.task.positive), indent=2))


@app.command()
def check(
    student: Annotated[str, typer.Argument(help="a folder, a hub id, or models:/NAME@ALIAS")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a test")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Behavioural tests of a student: names, typos, negation and the like; prints pass rates, and asserts nothing.

    Example: cotd check models:/cotd-student@champion
    """
    from dataclasses import asdict

    from cotd.behaviour import behaviour_table, check_behaviour
    from cotd.student import Student as Model

    check_student(student, tracking_store(tracking_uri))
    outcomes = check_behaviour(Model.load(student))
    for line in (
        [json.dumps({**asdict(o), "pass_rate": o.pass_rate}) for o in outcomes] if as_json else behaviour_table(outcomes)
    ):
        print(line)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, a folder, or a hub id")],
    folder: Annotated[Path, typer.Argument(help="where to; must not exist yet, or be empty")],
    format: Annotated[str, typer.Option(help="hf, onnx (labels only) or ctranslate2")] = "hf",
    tracking_uri: TrackingUri = None,
) -> None:
    """Writes a student for use elsewhere, checked against the original, with a README.md that says how.

    Example: cotd export models:/cotd-student@champion exported --format onnx
    """
    from cotd.student import Student as Model
    from serve.export import export_student, require_format, require_free

    require_all(
        lambda: require_format(format),
        lambda: require_free(folder),
        lambda: check_student(source, tracking_store(tracking_uri)),
    )
    export_student(Model.load(source, device="cpu"), folder, format)
    print(f"{source} is in {folder}; its README.md says how to use it.")


@app.command()
def doctor() -> None:
    """Checks, one by one, what cotd needs: versions, processor, Ray, engine, assets, MLflow, disk."""
    from cotd.doctor import run_checks

    if not run_checks():
        raise typer.Exit(1)


@app.command()
def demo(
    config: Annotated[str, typer.Option(help="the demo's study")] = "",
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of the endpoint; 0 for a free one")] = 0,
) -> None:
    """All of it, small and offline: real reviews, a real teacher, a grid of students, the best one served.

    Example: cotd demo
    """
    from cotd.config import load_config
    from pipelines.demo import run_demo

    path = config or str(Path(__file__).parent.parent / "tune_configs" / "demo.yaml")
    run_demo(load_config(path, overrides), port)


def require_all(*checks: Callable[[], Any]) -> None:
    """Makes every check, and raises what they found as one CotdError."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except CotdError as error:
            problems += error.problems
    if problems:
        raise CotdError(*problems)


def tracking_store(given: str | None) -> str:
    """The MLflow store that commands without a study use."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('runs').absolute() / 'mlflow.db'}"


def check_student(student: str, tracking_uri: str) -> None:
    """Raises a CotdError if there is no such student, before any worker starts."""
    from cotd.hub import fetch_student
    from cotd.student import CARD, model_advice, resolve_model
    from cotd.tracking import use_tracking

    if tracking_uri.startswith("sqlite:///") and student.startswith("models:/"):
        database = Path(tracking_uri.removeprefix("sqlite:///"))
        if not database.is_file():
            raise CotdError(
                f"no MLflow database '{database}'. Run `cotd promote CONFIG` first, or name the store: --tracking-uri."
            )
    use_tracking(tracking_uri)
    folder = Path(resolve_model(student))
    if not folder.is_dir():
        folder = Path(fetch_student(str(folder), CARD, model_advice(str(folder))))
    if not (folder / CARD).is_file():
        raise CotdError(f"'{student}' is not a trained student: it has no {CARD}. Train one with `cotd sweep`.")
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if card.get("reads_rationales"):
        raise CotdError(
            f"'{student}' was trained by '{card.get('method')}': it reads the teacher's rationale beside each review, and "
            "answers nothing without one. Name a student of another method."
        )


if __name__ == "__main__":
    main()
