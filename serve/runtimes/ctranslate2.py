"""CTranslate2: the whole student converted, and its label words scored."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cotd.errors import CotdError
from cotd.students.student import Student


def convert(student: Student, folder: Path) -> None:
    """Writes a student as a CTranslate2 model in float32: `model.bin`, `config.json`, `shared_vocabulary.json`.

    Its loader quantises, if asked to by `compute_type`.

    Raises:
        CotdError: CTranslate2 does not know the student's architecture.
    """
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        """Converts the student that is in memory, not a second copy from disk."""

        def load_model(self, *_: Any, **__: Any) -> Any:
            # CTranslate2 scales the decoder's output where the configuration ties the embeddings. transformers 5 says
            # "tied" of every T5, and keeps what was meant, which T5 1.1 does not do, in `scale_decoder_outputs`.
            # From memory that CTranslate2 can read: it takes tensors by their address.
            on_gpu = student.model.device.type != "cpu"
            model = copy.deepcopy(student.model).cpu() if on_gpu else copy.copy(student.model)
            model.config = copy.deepcopy(model.config)
            model.config.tie_word_embeddings = getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings)
            return model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return student.tokenizer

    with tempfile.TemporaryDirectory(prefix="cotd-ctranslate2-") as scratch:
        student.model.config.save_pretrained(scratch)  # the converter looks there for the architecture
        try:
            Converter(scratch).convert(str(folder), force=True)
        except ValueError as error:
            raise CotdError(f"CTranslate2 cannot convert this student: {error}. Use another format or runtime.") from error


class CTranslate2Scorer:
    """Computes `Student.label_logits` by a converted model, with as many threads as PyTorch has here."""

    def __init__(self, student: Student, folder: Path, compute_type: str):
        import ctranslate2

        self.student = student
        self.translator = ctranslate2.Translator(
            str(folder), device=student.model.device.type, compute_type=compute_type, inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )  # fmt: skip

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Scores of the label words, on the CPU: (len(texts), labels), and whether each text was truncated."""
        scores = torch.empty(len(texts), len(self.student.task.labels))
        truncated = [False] * len(texts)
        words, tokens_of = self.student.first_tokens, self.student.tokenizer.convert_ids_to_tokens
        for indices, batch, cut in self.student.batches(texts, self.student.task.label_prefix, max(1, len(texts))):
            rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
            results = self.translator.translate_batch(
                [tokens_of(row) for row in rows],
                beam_size=1,
                max_decoding_length=1,
                return_logits_vocab=True,
                max_input_length=0,
            )
            # Of each text's one hypothesis: (1, vocabulary), of the one step.
            scores[indices] = torch.from_numpy(np.stack([np.array(r.logits[0])[0, words] for r in results]))
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return scores, truncated


def ctranslate2_runtime(student: Student, compute_type: str = "int8") -> CTranslate2Scorer:
    """A student in CTranslate2; the files are gone when this returns."""
    with tempfile.TemporaryDirectory(prefix="cotd-ctranslate2-") as scratch:
        convert(student, folder := Path(scratch) / "model")
        return CTranslate2Scorer(student, folder, compute_type)
