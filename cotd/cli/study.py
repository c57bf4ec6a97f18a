"""`cotd prepare`, `annotate`, `sweep`, `train`, `report`, `status`, `compare`, `promote` and `demo`: the stages of a study."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cotd.cli.app import STUDY, app, name_study
from cotd.cli.arguments import ChoicesColumn, Config, InputTemplate, Json, LabelColumn, Overrides, TextColumn, show
from cotd.errors import CotdError
from cotd.progress import say


@app.command()
def demo(
    config: Annotated[str, typer.Option(help="the demo's study")] = "",
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of the endpoint; 0 for a free one")] = 0,
) -> None:
    """Runs all stages, small and offline: real examples, a real teacher, a grid of students, the best one served.

    Example: cotd demo
    """
    from cotd.cli.configs import shipped_config
    from cotd.study.config import load_config
    from pipelines.demo import run_demo

    run_demo(load_config(config or shipped_config("demo"), overrides), port)


@app.command()
def prepare(config: Config, overrides: Overrides = None) -> None:
    """Loads, checks and writes a study's examples; the other stages do so themselves if it has not been done.

    Example: cotd prepare tune_configs/demo.yaml data.train_rows=200
    """
    from cotd.study.config import load_stages
    from pipelines.prepare import prepare as run

    for study in load_stages(config, overrides):
        prepared = run(study)
        print(f"examples: {prepared.path}")
        print(", ".join(f"{count:,} {split}" for split, count in prepared.splits.items()))
        rows, repeats = prepared.counts["rows"], prepared.counts["repeats"]
        print(f"{prepared.quarantined:,} of {rows:,} rows quarantined, {repeats:,} repeats dropped")
        for reason, count in prepared.reasons.most_common(10):
            print(f"  {count:,} × {reason}")


@app.command()
def annotate(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print a few prompts as they are sent, and the price; send nothing")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="with --dry-run: how many prompts of each kind, 2 if it is left out")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="continue whatever the estimated price of an endpoint")] = False,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="ask again about quarantined examples, refused ones too, and about nothing else"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Lets the teacher annotate a study's training examples; completions that are stored are not asked for again.

    Of a file with stages: all whose teacher there is; students that are to teach are trained by `cotd sweep`.

    Example: cotd annotate tune_configs/demo.yaml data.train_rows=200
    """
    from cotd.study.config import StudyConfig, load_stages
    from cotd.study.stages import waits_for_teacher
    from cotd.tracking.runs import StudyTracker
    from pipelines.annotate.files import AnnotationFiles
    from pipelines.annotate.preview import preview
    from pipelines.annotate.run import annotate as run
    from pipelines.annotate.summary import summary_lines

    if rows is not None and not dry_run:
        raise CotdError(
            f"--rows is for --dry-run alone: leave it out. To annotate fewer examples, give data.train_rows={rows}."
        )

    def open_store(study: StudyConfig) -> None:
        StudyTracker(study)

    stages = load_stages(config, overrides)
    documents: dict[str, Any] = {}
    for study in stages:
        stage = study.variant or study.name
        if documents and waits_for_teacher(study):
            say(f"  stage {stage} waits for its teacher, {study.teacher.model}, which `cotd sweep` trains")
            break
        if dry_run:
            lines = list(preview(study, 2 if rows is None else rows))
            documents[stage] = {"preview": lines}
        else:
            documents[stage] = run(study, yes=yes, retry_errors=retry_errors, before_asking=partial(open_store, study))
            files = AnnotationFiles.of(study)
            lines = list(summary_lines(documents[stage], files.annotations))
            StudyTracker(study).log_teacher(documents[stage], files.page)
        show(context, False, None, [] if as_json else [f"{stage}:"] * (len(stages) > 1) + lines)
    if as_json:
        show(context, True, documents if len(stages) > 1 else documents[stage], [])


@app.command()
def sweep(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="continue however many trials a grid has, and whatever a stage's endpoint costs")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trains the study's grid of students on Ray Tune, each an MLflow run; finished trials are skipped.

    Of a file with stages: annotates and trains one after another, where a student of one may teach the next.

    Example: cotd sweep tune_configs/data_efficiency.yaml variant=embedded 'grid.seed=[0]'

    Example: cotd sweep tune_configs/ladder.yaml
    """
    from cotd.study.config import load_stages
    from pipelines.stages import run_stages
    from pipelines.sweep.run import sweep as run

    stages = load_stages(config, overrides)
    outcomes = run_stages(stages, yes) if len(stages) > 1 else {"": run(stages[0], yes)}
    lines: list[str] = []
    for stage, outcome in outcomes.items():
        pruned = f"{outcome['pruned']} stopped early, " if outcome["pruned"] else ""
        counts = f"{outcome['trials']} trials, {outcome['trained']} trained now, {pruned}{len(outcome['failed'])} failed"
        lines.append(f"{stage}: {counts}" if stage else counts)
        if best := outcome["best"]:
            lines.append(f"best by validation: {best['title']}, {best['validation_accuracy']:.1%}")
        lines += [f"  {trial_id}: {reason}" for trial_id, reason in outcome["failed"].items()]
    show(context, as_json, outcomes if len(stages) > 1 else outcomes[""], lines)
    if any(outcome["failed"] for outcome in outcomes.values()):
        raise typer.Exit(1)


@app.command()
def train(context: typer.Context, config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Trains the first trial of a study's grid in this process, by the code of a sweep, without Ray or MLflow.

    The process uses all CPUs and no further workers, whatever `resources` says.

    Example: cotd train tune_configs/demo.yaml 'grid.method=[finetune]' 'grid.fraction=[0.1]'
    """
    from cotd.study.config import load_config
    from cotd.training.folder import describe_result
    from pipelines.train import train as run

    folder = run(load_config(config, overrides))
    result = folder.result()
    lines = [f"{folder.trial().title}: {describe_result(result)}", f"student: {folder.student}"]
    show(context, as_json, result | {"student": str(folder.student)}, lines)


@app.command()
def report(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    on: Annotated[
        str | None, typer.Option(help="score the students on the examples of another source, named as in cotd evaluate")
    ] = None,
    split: Annotated[str, typer.Option(help="with --on: train, validation, test or all")] = "test",
    text: TextColumn = None,
    label: LabelColumn = None,
    input_template: InputTemplate = None,
    choices: ChoicesColumn = None,
    as_json: Json = False,
) -> None:
    """Writes a study's report (report.html, report.md, examples.html, figures, report.json), and prints its tables and findings.

    An unfinished study is reported as far as it is done, with what is missing. With --on the report scores the same
    students on examples of another kind, and is written to transfer/ in the study's folder.

    Example: cotd report tune_configs/demo.yaml

    Example: cotd report tune_configs/demo.yaml --on embedded:amazon-sentences
    """
    from cotd.evaluation.gold import NamedColumns, gold_examples
    from cotd.study.config import load_config
    from pipelines.report.rescoring import OtherSource, transfer_folder
    from pipelines.report.run import report as run
    from pipelines.report.text import terminal

    study = load_config(config, overrides)
    named = NamedColumns(text, input_template, choices, label)
    if not on and (any(named) or split != "test"):
        raise CotdError("--split, --text, --label, --input-template and --choices are for the source of --on: name one.")
    other = OtherSource(on, gold_examples(on, study.task, split, named, study.data.model_dump())) if on else None
    content = run(study, other)
    files = ["report.html", "examples.html", "report.md", "report.json", *(figure["file"] for figure in content["figures"])]
    where = transfer_folder(study, on) if on else study.remote or study.directory
    show(context, as_json, content, [terminal(content), f"written to {where}: {', '.join(files)}"])


@app.command()
def status(
    context: typer.Context,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="a study's YAML, or its folder, runs/NAME")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Shows what of a study is done, its best student so far, and what to run next, from its files alone.

    Example: cotd status tune_configs/demo.yaml
    """
    from pipelines.status import find_stages, stages_status, status_lines

    if not Path(study).is_dir():
        context.meta[STUDY] = [study, *(overrides or [])]
    statuses = stages_status(find_stages(study, overrides or []))
    for status in statuses:
        status["next"] = "cotd serve" if status["next"] == "serve" else name_study(context, f"cotd {status['next']} CONFIG")
    lines = (line for status in statuses for line in status_lines(status))
    show(context, as_json, statuses if len(statuses) > 1 else statuses[0], lines)


@app.command()
def compare(
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER", help="studies' folders, each with its report")],
    output: Annotated[str, typer.Option(help="the folder to write to")] = "runs/comparison",
) -> None:
    """Compares studies: what rationales changed in each, as a figure and a table.

    Example: cotd compare runs/imdb runs/yelp_gpt35
    """
    from pipelines.report.compare import FIGURE, TEXT, compare_studies

    for sentence in compare_studies(folders, output):
        print(sentence)
    print(f"written to {output}: {FIGURE}, {TEXT}")


@app.command()
def promote(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    all_methods: Annotated[bool, typer.Option(help="choose among all methods, not only distilled ones")] = False,
    size: Annotated[str | None, typer.Option(help="choose among students of this size; default: all")] = None,
    trial: Annotated[
        str | None,
        typer.Option(metavar="ID", help="the student of this trial, of any method and size, instead of the best"),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="move the alias to this version instead, for example to roll back")
    ] = None,
    alias: Annotated[
        str,
        typer.Option(
            "--as", metavar="ALIAS", help="the alias to move; champion moves only to a better student, any other in any case"
        ),
    ] = "champion",
    as_json: Json = False,
) -> None:
    """Registers the best student by validation accuracy, and moves the alias `champion` to it.

    Example: cotd promote tune_configs/demo.yaml --all-methods

    Example: cotd promote tune_configs/demo.yaml --to 3

    Example: cotd promote tune_configs/demo.yaml --size smol --as large
    """
    from cotd.study.config import load_config
    from pipelines.promote import promote as run
    from pipelines.promote import promote_version

    if to is not None and (all_methods or size or trial):
        raise CotdError("--to names the version: leave out --all-methods, --size and --trial.")
    if trial is not None and (all_methods or size):
        raise CotdError("--trial names the student: leave out --all-methods and --size.")
    study = load_config(config, overrides)
    promotion = promote_version(study, to, alias) if to else run(study, all_methods, size, trial, alias)
    show(context, as_json, vars(promotion), promotion.sentences)
