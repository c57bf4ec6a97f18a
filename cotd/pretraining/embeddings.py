"""First word embeddings for a student, taken from a teacher."""

from __future__ import annotations

from typing import Any

import torch

from cotd.pretraining.batches import BatchedCorpus
from cotd.pretraining.config import ObjectivesConfig
from cotd.pretraining.corpus import Corpus
from cotd.pretraining.model import EncoderTeacher, masked_mean


def project(rows: torch.Tensor, d_model: int) -> torch.Tensor:
    """Rows (V, D) centred, projected onto their `d_model` principal components, and scaled to length sqrt(d_model).

    That length is the one of the N(0, 1) rows that T5 starts from; other lengths trained worse.
    """
    centred = rows - rows.mean(0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)  # (D, D)
    projected = centred @ components[:d_model].T
    if projected.shape[1] < d_model:  # a teacher narrower than the student
        projected = torch.nn.functional.pad(projected, (0, d_model - projected.shape[1]))
    return projected / projected.norm(dim=1, keepdim=True).clamp_min(1e-6) * d_model**0.5


def language_teacher_rows(tokenizer: Any, teacher_tokenizer: Any, teacher_rows: torch.Tensor) -> torch.Tensor:
    """For each piece the mean of the language model's embedding rows of the piece's own text: (V, D)."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    spelled = [p.replace("▁", " ") or " " for p in pieces]
    return torch.stack([teacher_rows[teacher_tokenizer(s, add_special_tokens=False)["input_ids"]].mean(0) for s in spelled])


class TeacherStatistics:
    """What the encoder teacher says of the corpus on average, from a sample of it.

    Attributes:
        piece_means: (V, width), each piece's mean state in context; zeros where the sample lacks the piece.
        piece_counts: (V,).
        hidden_mean, hidden_spread: (width,), over pieces.
        sentence_mean, sentence_spread: (width,), over texts, each the mean of its pieces' states.
    """

    def __init__(self, corpus: Corpus, teacher: EncoderTeacher, batches: BatchedCorpus, vocabulary: int, device: Any):
        sums = torch.zeros(vocabulary, teacher.width, device=device)
        squares = torch.zeros(teacher.width, device=device)
        counts = torch.zeros(vocabulary, device=device)
        texts: list[torch.Tensor] = []
        for index in range(len(batches)):
            batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batches[index].items()}
            states, mask = teacher.states(batch), batch["attention_mask"]
            real = mask.bool()
            ids = batch["input_ids"][real]
            sums.index_add_(0, ids, states[real])
            counts.index_add_(0, ids, torch.ones_like(ids, dtype=counts.dtype))
            squares += states[real].pow(2).sum(0)
            texts.append(masked_mean(states, mask))
        total = counts.sum()
        whole = torch.cat(texts)
        self.piece_counts = counts
        self.piece_means = sums / counts.clamp_min(1)[:, None]
        self.hidden_mean = sums.sum(0) / total
        self.hidden_spread = (squares / total - self.hidden_mean.pow(2)).clamp_min(1e-6).sqrt()
        self.sentence_mean, self.sentence_spread = whole.mean(0), whole.std(0).clamp_min(1e-6)

    def by_head(self) -> dict[str, torch.Tensor]:
        """What the model's heads need, by parameter."""
        names = ("hidden_mean", "hidden_spread", "sentence_mean", "sentence_spread")
        return {name: getattr(self, name) for name in names}

    def embedding_rows(self, d_model: int, generator: torch.Generator) -> torch.Tensor:
        """First embeddings (V, d_model): pieces that the sample lacks stay random."""
        seen = self.piece_counts.cpu() > 0
        standardised = ((self.piece_means - self.hidden_mean) / self.hidden_spread).cpu()
        rows = torch.randn(len(seen), d_model, generator=generator)
        rows[seen] = project(standardised[seen], d_model)
        return rows


def hidden_alone(objectives: ObjectivesConfig) -> ObjectivesConfig:
    """The same with batches of hidden states and no others, to take statistics on."""
    return objectives.model_copy(update=dict.fromkeys(objectives.share_names(), 0.0) | {"hidden_share": 1.0})
