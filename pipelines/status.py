"""How far a study is, from its files alone: without Ray, MLflow or a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cotd.config.digest import digest
from cotd.errors import CotdError
from cotd.storage.sync import sync_study
from cotd.study.config import StudyConfig, check_config, load_stages
from cotd.study.stages import waits_for_teacher
from cotd.study.trials import plan_trials
from cotd.training.folder import TrialFolder, rank
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from cotd.utils.files import read_json
from pipelines.annotate.files import AnnotationFiles, read_rationales
from pipelines.annotate.job import annotation_inputs
from pipelines.other_settings import describe_others, finished_elsewhere
from pipelines.prepare import Prepared, inputs_digest, read_prepared
from pipelines.sweep.search import METRIC, draw_settings
from pipelines.sweep.settled import kept

Status = dict[str, Any]


def find_stages(source: str, overrides: list[str]) -> list[StudyConfig]:
    """A study, or the stages of one, by its YAML; or a study by its folder: as the trial that was written last was configured.

    Raises:
        CotdError: the YAML is bad, or the folder has no trial yet.
    """
    folder = Path(source).absolute()
    if not folder.is_dir():
        return load_stages(source, overrides)
    if overrides:
        raise CotdError(f"overrides are for a study's YAML, and '{source}' is a folder: leave out {' '.join(overrides)}.")
    written = sorted(folder.glob("trials/*/trial.json"), key=lambda path: path.stat().st_mtime)
    if not written:
        raise CotdError(f"'{source}' has no trials, which say what its study is. Name the study's YAML instead.")
    plain = TrialFolder(written[-1].parent).config()
    return [check_config(plain | {"storage": str(folder.parent), "name": folder.name}, source)]


def stages_status(stages: list[StudyConfig]) -> list[Status]:
    """The status of each stage. What is next of all but the last is to sweep, which also annotates."""
    statuses = [study_status(stage) for stage in stages]
    for status in statuses if len(stages) > 1 else []:
        if status is not statuses[-1] or status["next"] in ("prepare", "annotate"):
            status["next"] = "sweep"
    return statuses


@sync_study
def study_status(config: StudyConfig) -> Status:
    """What is done of each stage; what was made with other settings counts as not done.

    Returns:
        `other_settings` (a sentence on finished trials of other settings, where none of these is done), `prepared` (split →
        examples), `annotated`, `best`, `report` and `champion`, each None if it is not done; `trials` (state → number); `next` (the
        command to run).
    """
    prepared = read_prepared(config.directory / "data", inputs_digest(config))
    summary = current_annotations(config, prepared)
    trials = [(t, TrialFolder(config.directory / "trials" / t.id)) for t in planned(config, prepared, summary)]
    counts = Counter(state_of(config, folder) for _, folder in trials)
    done = [(t, folder) for t, folder in trials if folder.done]
    best, best_folder = max(done, key=lambda entry: rank((entry[0], entry[1].result())), default=(None, None))
    others = finished_elsewhere(config, (t.id for t, _ in trials))
    last_end = max((folder.period()[1] or 0 for _, folder in done), default=0)
    report, champion = (newer(config.directory / name, last_end) for name in ("report.json", "champion.json"))
    needs_annotations = any(METHODS[m].needs_annotations for m in config.grid.all_values("method"))
    stages = {
        "prepare": prepared or summary,
        "annotate": summary or not needs_annotations,
        "sweep": not (counts["pending"] or counts["failed"]),
        "report": report,
        "promote": champion,
    }
    return {
        "study": config.name, "folder": config.remote or str(config.directory),
        "prepared": prepared.splits if prepared else None,
        "annotated": summary["annotations"] | {"teacher_accuracy": summary["teacher"]["accuracy"]} if summary else None,
        "trials": {state: counts[state] for state in ("done", "failed", "pending", "stopped early")},
        "best": {"trial_id": best.id, "title": best.title, METRIC: best_folder.result()["validation"]["accuracy"]}
        if best and best_folder else None,
        "report": str(report) if report else None, "champion": read_json(champion) if champion else None,
        "other_settings": describe_others(config, others) if others and not done else None,
        "next": next((stage for stage, is_done in stages.items() if not is_done), "serve"),
    }  # fmt: skip


def current_annotations(config: StudyConfig, prepared: Prepared | None) -> dict[str, Any] | None:
    """The summary of the study's annotations, if they were made of these examples with these settings.

    Where no other stage has prepared the examples, which annotating does not, nothing is known of them, and any will do.
    """
    path = AnnotationFiles.of(config).summary
    if not path.is_file() or waits_for_teacher(config):
        return None
    summary = read_json(path)
    if prepared is None:
        return None if (config.directory / "data" / "prepared.json").is_file() else summary
    return summary if summary.get("inputs") == annotation_inputs(config, prepared.digest) else None


def planned(config: StudyConfig, prepared: Prepared | None, summary: dict[str, Any] | None) -> list[Trial]:
    """The study's trials, with the base models that its last sweep found: looking for them may need the network."""
    written = sorted(config.directory.glob("trials/*/trial.json"), key=lambda path: path.stat().st_mtime)
    trained = [read_json(path)["trial"] for path in written]
    bases = {t["size"]: t["base_digest"] for t in trained if t["model"] == config.sizes.get(t["size"])}
    rationales = AnnotationFiles.of(config).held_out_rationales
    rationales_digest = digest(read_rationales(rationales)) if summary and rationales.is_file() else None
    settings = draw_settings(config.search) if config.search else [{}]
    annotations_digest = summary["digest"] if summary else None
    bases = dict.fromkeys(config.sizes, "") | bases
    digests = bases, prepared.digest if prepared else "", annotations_digest, rationales_digest
    return plan_trials(config, *digests, settings, None, *kept(config))


def state_of(config: StudyConfig, folder: TrialFolder) -> str:
    if folder.done:
        return "done"
    if config.search and config.search.asha and folder.pruned:
        return "stopped early"
    return "failed" if folder.error.is_file() else "pending"


def newer(path: Path, milliseconds: int) -> Path | None:
    """A file, if it was written after a time."""
    return path if path.is_file() and path.stat().st_mtime * 1000 >= milliseconds else None


def status_lines(status: Status) -> Iterator[str]:
    """A status for the terminal: a line a stage."""
    yield f"{status['study']}: {status['folder']}"
    splits, annotated, best, champion = (status[key] for key in ("prepared", "annotated", "best", "champion"))
    undone = "not done with these settings" if Path(status["folder"]).is_dir() else "not done"
    yield "prepared   " + (", ".join(f"{n:,} {split}" for split, n in splits.items()) if splits else undone)
    accuracy = annotated and annotated["teacher_accuracy"]
    teacher = f"teacher {accuracy:.1%} on test" if accuracy is not None else "teacher not measured"
    yield "annotated  " + (f"{annotated['rows']:,} rows, {teacher}" if annotated else undone)
    trials = ", ".join(f"{n:,} {state}" for state, n in status["trials"].items() if n)
    if status["other_settings"]:
        yield f"note: {status['other_settings']}"
    yield f"trials     {trials}" + (f"; best by validation: {best['title']}, {best[METRIC]:.1%}" if best else "")
    since = " since the last trial" if best else ""
    yield "report     " + (status["report"] or f"not written{since}")
    yield "champion   " + (f"{champion['model_uri']} ({champion['method']})" if champion else f"not chosen{since}")
    yield f"next: {status['next']}"
