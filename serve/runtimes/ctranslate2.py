"""CTranslate2: the whole student converted, and its label words scored."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cotd.errors import CotdError
from cotd.students.student import Student
from serve.runtimes.base import BatchedRuntime


class CTranslate2Scorer(BatchedRuntime):
    """Computes `Student.label_logits` by a converted model, with as many threads as PyTorch has here."""

    def __init__(self, student: Student, folder: Path, compute_type: str):
        import ctranslate2

        super().__init__(student)
        self.batch_size = None  # CTranslate2 computes no padding
        self.translator = ctranslate2.Translator(
            str(folder), device=student.model.device.type, compute_type=compute_type, inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )  # fmt: skip

    def score(self, ids: Any, mask: Any) -> Any:
        """(B, T) token ids and their 0/1 mask → (B, labels)."""
        tokens_of = self.student.tokenizer.convert_ids_to_tokens
        rows = [tokens_of(row[real].tolist()) for row, real in zip(ids, mask.bool(), strict=True)]
        results = self.translator.translate_batch(
            rows, beam_size=1, max_decoding_length=1, return_logits_vocab=True, max_input_length=0
        )
        # Of each text's one hypothesis: (1, vocabulary), of the one step.
        return torch.from_numpy(np.stack([np.array(r.logits[0])[0, self.student.first_tokens] for r in results]))


def ctranslate2_scorer(student: Student, compute_type: str = "int8") -> CTranslate2Scorer:
    """A student in CTranslate2; the files are gone when this returns."""
    with tempfile.TemporaryDirectory(prefix="cotd-ctranslate2-") as scratch:
        convert(student, folder := Path(scratch) / "model")
        return CTranslate2Scorer(student, folder, compute_type)


def convert(student: Student, folder: Path) -> None:
    """Writes a student as a CTranslate2 model in float32: `model.bin`, `config.json`, `shared_vocabulary.json`.

    CTranslate2 quantises it while loading, if `compute_type` says so.

    Raises:
        CotdError: CTranslate2 does not know the student's architecture.
    """
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        """Converts the student that is in memory, not a second copy from disk."""

        def load_model(self, *_: Any, **__: Any) -> Any:
            # A copy on the CPU: CTranslate2 takes tensors by their address.
            on_gpu = student.model.device.type != "cpu"
            model = copy.deepcopy(student.model).cpu() if on_gpu else copy.copy(student.model)
            # CTranslate2 scales the decoder's output where the configuration ties the embeddings. transformers 5 says
            # "tied" of every T5, and whether to scale, which T5 1.1 does not, in `scale_decoder_outputs`.
            model.config = copy.deepcopy(model.config)
            model.config.tie_word_embeddings = getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings)
            return model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return student.tokenizer

    with tempfile.TemporaryDirectory(prefix="cotd-ctranslate2-") as scratch:
        student.model.config.save_pretrained(scratch)  # the converter reads the architecture there
        try:
            Converter(scratch).convert(str(folder), force=True)
        except ValueError as error:
            raise CotdError(f"CTranslate2 cannot convert this student: {error}. Use another format or runtime.") from error
