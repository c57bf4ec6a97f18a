"""The MLflow model of a student, logged as code (`mlflow.models.set_model` runs when MLflow loads this file)."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd


class StudentModel(mlflow.pyfunc.PythonModel):
    """Texts in, a frame with `label`, `score` and `truncated` out, all null for a text that is missing.

    The options of a text are in `choices`, and the rationale, for a student that reads one, in `rationale`.
    """

    def load_context(self, context: Any) -> None:
        from cotd.students.student import Student

        self.student = Student.load(context.artifacts["student"])

    # A list of texts counts, too. Of a frame MLflow derives no signature; without a hint it writes a warning at each load.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame({"text": list(model_input)})
        # MLflow makes a frame with a column 0 of a list; any other column might be ids.
        column = "text" if "text" in frame else 0
        if column not in frame:
            raise ValueError(f"no column 'text' in {list(frame.columns)}; give a list of texts or a frame with that column.")
        if any(pd.api.types.is_list_like(cell) for cell in frame[column]):  # MLflow makes one row of {"text": ["…", "…"]}
            raise ValueError(f"a list in a cell of column '{column}': give each text a row of its own.")
        texts = dict(enumerate(frame[column]))
        texts = {i: text for i, text in texts.items() if isinstance(text, str) and text.strip()}  # MLflow fills in None and NaN
        given = frame.iloc[list(texts)]
        wanted = {
            "rationales": ("rationale", self.student.rationale_as_input),
            "choices": ("choices", self.student.task.needs_choices),
        }
        inputs: dict[str, Any] = {key: list(given[name]) for key, (name, read) in wanted.items() if read and name in given}
        predicted = dict(zip(texts, self.student.predict(list(texts.values()), **inputs), strict=True))
        nothing = {"label": None, "score": None, "truncated": None}
        rows = [{k: getattr(predicted[i], k) for k in nothing} if i in predicted else nothing for i in range(len(frame))]
        return pd.DataFrame(rows, columns=list(nothing), dtype=object if len(texts) < len(frame) else None)


mlflow.models.set_model(StudentModel())
