"""What the benchmarks of training share: students, the teacher's own rationales, and how the papers' code trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from cotd.data.examples import Examples
from cotd.data.sources import load_examples
from cotd.students.backends.base import Backend
from cotd.students.backends.t5.dropout import set_dropout
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.study.config import StudyConfig, check_config
from cotd.training.config import TrainingConfig
from cotd.training.encoding import EncodedPairs
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.training.trial import Trial
from tests.benchmarks.students import EMBEDDED, t5_small
from tests.cotd.training.helpers import encode_pairs
from tests.tasks import SENTIMENT

METHOD = "cot_unlabelled"
# Read again by the next run, so that the teacher is asked once.
STUDY = Path("runs") / "bench" / "training"


def study(small: bool) -> StudyConfig:
    """384 training examples with the embedded teacher's label and rationale of each."""
    train, validation, test = (48, 40, 20) if small else (384, 128, 20)
    plain = {
        "name": "small" if small else "bench",
        "data": {"source": "embedded:rotten-tomatoes", "train_rows": train, "validation_rows": validation, "test_rows": test},
        "teacher": {"gold_conditioned": False, "calibration": {"rows": validation}},
        "grid": {"method": [METHOD], "fraction": [1.0], "size": ["tiny"], "seed": [0]},
        "storage": str(STUDY),
    }  # fmt: skip
    return check_config(plain, "benchmark")


def annotated(small: bool) -> tuple[Examples, pd.DataFrame]:
    """The examples, and what the teacher says of the training examples; asks what it has not been asked."""
    from pipelines.annotate.files import read_annotations
    from pipelines.annotate.run import annotate

    config = study(small)
    annotate(config)
    found = read_annotations(config)
    assert found is not None
    return load_examples(config.data, config.task), found[0]


def base(which: str) -> tuple[Any, Any]:
    """A model and its tokenizer: "embedded", the base that students are made of, or "60m", random weights of T5-small's shape."""
    model, tokenizer = load_base(EMBEDDED)
    return (model if which == "embedded" else t5_small()), tokenizer


def student(which: str, shared_encoder: bool = False) -> Student:
    model, tokenizer = base(which)
    card = {"method": METHOD, "max_input_tokens": 128, "max_target_tokens": 64, "shared_encoder": shared_encoder}
    return Student(model, tokenizer, SENTIMENT, card)


def trial(batch_size: int, steps: int, seed: int = 0, **training: Any) -> Trial:
    """A trial trained as both codes of the papers do: AdamW, dropout 0.1, both losses alike."""
    settings = {"preset": "hsieh2023", "batch_size": batch_size, "steps": steps, "eval_every": steps, "precision": "float32"}
    settings |= {"max_input_tokens": 128, "max_target_tokens": 64} | training
    return Trial(METHOD, 1.0, "tiny", seed, EMBEDDED, TrainingConfig(**settings), SENTIMENT.to_dict(), "b", "r", "a")


def encoded(examples: pd.DataFrame, annotations: pd.DataFrame, backend: Backend) -> EncodedPairs:
    return encode_pairs(training_pairs(METHODS[METHOD], examples, annotations, SENTIMENT), backend, 128, 64)


def padded(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """A batch as the papers' code makes it: labels and rationales apart, each padded to its longest."""
    batch = {}
    for task in ("label", "rationale"):
        pairs = [row[task][0] for row in rows]
        inputs = [torch.tensor(source) for source, _, _ in pairs]
        batch[task] = {
            "input_ids": pad_sequence(inputs, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(i) for i in inputs], batch_first=True),
            "labels": pad_sequence([torch.tensor(t) for _, t, _ in pairs], batch_first=True, padding_value=-100),
        }
    return batch


def papers_trainer(model: Any, tokenizer: Any, rows: EncodedPairs, settings: TrainingConfig, folder: Path, seed: int) -> Any:
    """Seq2SeqTrainer with a forward pass for the labels and another for the rationales, over random padded batches in float32.

    So do the codes of both papers; the rest is what Seq2SeqTrainer does unless told otherwise.
    """
    from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments

    class TwoPassTrainer(Seq2SeqTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return model(**inputs["label"]).loss + settings.rationale_weight * model(**inputs["rationale"]).loss

    set_dropout(model, settings.dropout)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, use_cpu=not torch.cuda.is_available(), remove_unused_columns=False,
        report_to="none", disable_tqdm=True, save_strategy="no", seed=seed, log_level="error", logging_strategy="no",
    )  # fmt: skip
    pad = tokenizer.pad_token_id
    trainer = TwoPassTrainer(model=model, args=arguments, train_dataset=rows, data_collator=lambda b: padded(b, pad))
    trainer.remove_callback(PrinterCallback)
    return trainer
