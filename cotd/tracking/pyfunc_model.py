"""The MLflow model of a student, logged as code (`mlflow.models.set_model` runs when MLflow loads this file)."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd


class StudentModel(mlflow.pyfunc.PythonModel):
    """Texts in, a frame with `label`, `score` and `truncated` out; a student that reads rationales has them in `rationale`."""

    def load_context(self, context: Any) -> None:
        from cotd.students.student import Student

        self.student = Student.load(context.artifacts["student"])

    # Without type hints: MLflow would derive a signature from them, and a frame or a list of texts both count.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame({"text": list(model_input)})
        # MLflow makes a frame with a column 0 of a list; any other column might be ids.
        column = "text" if "text" in frame else 0
        if column not in frame:
            raise ValueError(f"no column 'text' in {list(frame.columns)}; give a list of texts or a frame with that column.")
        read = self.student.rationale_as_input and "rationale" in frame
        predictions = self.student.predict([str(t) for t in frame[column]], list(frame["rationale"]) if read else None)
        return pd.DataFrame([{"label": p.label, "score": p.score, "truncated": p.truncated} for p in predictions])


mlflow.models.set_model(StudentModel())
