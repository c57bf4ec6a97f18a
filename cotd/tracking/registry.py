"""MLflow's model registry: students logged as models, their versions, and the aliases that point at them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.tasks.samples import sample_examples

CHAMPION = "champion"  # the version that is served
CHALLENGER = "challenger"  # a newer version that was not better on validation
# What a logged student imports besides cotd.
PYFUNC_PACKAGES = ("torch", "transformers", "pandas", "scipy", "sentencepiece")
COTD = Path(__file__).parent.parent
CODE = (".py", ".yaml", ".typed")


class Registry:
    """The versions of one registered model, `tracking.registered_model`."""

    def __init__(self, client: Any, name: str):
        self.client = client
        self.name = name

    def champion(self) -> Any | None:
        """The model version that the alias `champion` names, or None."""
        return self.alias(CHAMPION)

    def alias(self, alias: str) -> Any | None:
        """The model version that an alias names, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, or no such alias
                return None
            raise

    def version(self, number: str) -> Any:
        """A version of the model.

        Raises:
            CotdError: there is no such version.
        """
        versions = {str(v.version): v for v in self.client.search_model_versions(f"name = '{self.name}'")}
        if number not in versions:
            known = ", ".join(sorted(versions, key=int)) or "none; run `cotd promote CONFIG` first"
            raise CotdError(f"models:/{self.name} has no version '{number}'. Versions: {known}.")
        return versions[number]

    def register(self, run_id: str, tags: dict[str, str]) -> Any:
        """Registers the student of a run as a new version, or finds the version that it is already, with tags."""
        import mlflow

        versions = self.client.search_model_versions(f"name = '{self.name}'")
        number = next((v.version for v in versions if v.run_id == run_id), None)
        if number is None:
            source = logged_student(self.client, run_id)
            if source is None:
                raise CotdError(f"run {run_id} has no student in MLflow. Run `cotd sweep` again to log it.")
            with contextlib.redirect_stderr(io.StringIO()):  # MLflow announces what `cotd promote` prints itself
                number = mlflow.register_model(source, self.name).version
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, number, key, value)
        return self.client.get_model_version(self.name, number)  # with its tags

    def describe(self, version: str, text: str) -> None:
        """Sets the description that MLflow shows of a version, in Markdown."""
        self.client.update_model_version(self.name, version, text)

    def promote(self, version: str) -> None:
        """Moves the alias `champion` to a version, which is no longer the challenger."""
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        challenger = self.alias(CHALLENGER)
        if challenger is not None and str(challenger.version) == str(version):
            self.client.delete_registered_model_alias(self.name, CHALLENGER)

    def set_alias(self, alias: str, version: str) -> None:
        """Moves an alias to a version; `promote` does so for `champion`."""
        self.client.set_registered_model_alias(self.name, alias, version)


def require_alias(alias: str) -> None:
    """Raises a CotdError unless MLflow takes an alias, and it is not one that `cotd promote` gives by itself."""
    if not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"(?i)latest|v\d+", alias) or alias == CHALLENGER:
        raise CotdError(
            f"'{alias}' cannot be an alias: letters, digits, dashes and underscores, and not latest, v1 and the like, or "
            f"{CHALLENGER}, which `cotd promote` gives by itself. Name another, such as --as large."
        )


def logged_student(client: Any, run_id: str) -> str | None:
    """The URI of the student logged with a run, or None."""
    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs else []
    return f"models:/{models[-1].model_id}" if models else None


@contextlib.contextmanager
def own_code() -> Iterator[Path]:
    """A copy of this package without what it embeds: models, examples and what else is not code."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n in ("embedded", "__pycache__") or not (Path(folder, n).is_dir() or n.endswith(CODE))]

    with tempfile.TemporaryDirectory(prefix="cotd-code-") as temporary:
        yield Path(shutil.copytree(COTD, Path(temporary) / COTD.name, ignore=left_out))


def log_student(run_id: str, directory: Path, params: dict[str, Any], task: Task, reads: Sequence[str] = ()) -> None:
    """Logs a student's folder as a pyfunc model of a run, as code and safetensors: nothing is pickled.

    Args:
        params: what the student was trained with.
        reads: what it takes with each text: "rationale" (the teacher's), "choices" (the text's own options).
    """
    import mlflow
    import pandas as pd

    sample = sample_examples(task)[0]
    given = {"rationale": "It says so.", "choices": list(sample.choices or ())}
    example = pd.DataFrame([{"text": sample.text, **{name: given[name] for name in reads}}])
    with own_code() as code, mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"student": str(directory)},
            code_paths=[str(code)],  # cotd itself: it is on no package index
            pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in PYFUNC_PACKAGES],
            signature=student_signature(reads),
            input_example=example,
            params=params,
            model_type="student",
        )
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")


def student_signature(reads: Sequence[str] = ()) -> Any:
    """MLflow's signature of a student: texts in; `label`, `score` in [0, 1] and `truncated` out.

    Texts have no column name unless something comes with them: MLflow refuses a list of texts if one is named.

    Args:
        reads: see `log_student`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    kinds = {"text": DataType.string, "rationale": DataType.string, "choices": Array(DataType.string)}
    named = [ColSpec(kinds[name], name) for name in ("text", *reads)]
    outputs = {"label": DataType.string, "score": DataType.double, "truncated": DataType.boolean}
    return ModelSignature(
        inputs=Schema(named if reads else [ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
    )
