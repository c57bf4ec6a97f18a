"""The answer teacher's hidden states: what a language model knows about a text just before it says the label.

A small model's own answers are worse than what it knows: a linear probe of a middle layer's state at the place of the
answer was 84 % accurate where the calibrated answers were 79 %. So the state is what is learned, not the answer.
States are computed once, in blocks that are files: a stop loses the blocks being made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cotd.config import DataConfig, digest
from cotd.pretraining.config import AnswerTeacherConfig, PretrainConfig
from cotd.pretraining.corpus import Corpus
from cotd.sources import noun

BLOCK = 256


def answer_chunks(config: PretrainConfig, corpus: Corpus) -> np.ndarray:
    """Indices of the chunks to ask about, sorted by length: of each source the first `answers` that are short enough."""
    assert config.answer_teacher is not None
    short = corpus.lengths <= config.answer_teacher.max_pieces
    chosen = [
        np.flatnonzero(short & (corpus.arrays["source"] == number))[: source.answers]
        for number, source in enumerate(config.corpus.sources)
    ]
    indices = np.concatenate(chosen)
    return indices[np.argsort(corpus.lengths[indices], kind="stable")]


class AnswerTeacher:
    """A causal language model cut off above the layer that is learned from."""

    def __init__(self, config: AnswerTeacherConfig, nouns: Iterable[str], threads: int | None = None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from cotd.prompts import load_prompts
        from cotd.student import resolve_model
        from cotd.task import get_task

        if threads:
            torch.set_num_threads(threads)
        source = resolve_model(config.model)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).get_decoder().eval().to(self.device)
        model.layers = model.layers[: config.layer]
        model.norm = torch.nn.Identity()
        self.model = model
        self.width: int = model.config.hidden_size
        self.render = {noun: load_prompts(get_task(config.task), noun).score for noun in nouns}

    def states(self, texts: list[tuple[str, str]]) -> np.ndarray:
        """The state at the prompt's last token, (len(texts), width), float16.

        Args:
            texts: (noun, text) pairs, best of similar length.
        """
        size = 16 if self.device == "cpu" else BLOCK
        return np.concatenate([self._batch_states(texts[i : i + size]) for i in range(0, len(texts), size)])

    def _batch_states(self, texts: list[tuple[str, str]]) -> np.ndarray:
        import torch

        rendered = [self.render[noun](text) for noun, text in texts]
        batch = self.tokenizer(rendered, padding=True, truncation=True, max_length=512, return_tensors="pt").to(self.device)
        last = batch["attention_mask"].sum(1) - 1
        with torch.inference_mode():
            hidden = self.model(**batch, use_cache=False).last_hidden_state
        return hidden[torch.arange(len(hidden)), last].clamp(-6e4, 6e4).to(torch.float16).cpu().numpy()


def block_path(folder: Path, block: int) -> Path:
    return folder / "answers" / f"{block:05d}.npy"


class AnswerBlocks:
    """The blocks of a corpus: which texts are in each, and which are still to be computed.

    Making one discards the blocks of another teacher, or of other texts.
    """

    def __init__(self, config: PretrainConfig, corpus: Corpus):
        assert config.answer_teacher is not None
        self.corpus, self.teacher = corpus, config.answer_teacher
        self.nouns = [s.noun or noun(DataConfig(source=s.source)) for s in config.corpus.sources]
        indices = answer_chunks(config, corpus)
        self.blocks = [indices[i : i + BLOCK] for i in range(0, len(indices), BLOCK)]
        folder = corpus.folder / "answers"
        about = digest({"teacher": self.teacher.model_dump(), "nouns": self.nouns, "chunks": indices.tolist()})
        marker = folder / "answers.json"
        if not marker.is_file() or json.loads(marker.read_text())["digest"] != about:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            np.save(folder / "chunks.npy", indices)
            marker.write_text(json.dumps({"digest": about}))

    def missing(self) -> list[int]:
        """Numbers of the blocks still to be computed."""
        return [n for n in range(len(self.blocks)) if not block_path(self.corpus.folder, n).is_file()]

    def texts(self, block: int, tokenizer: Any) -> list[tuple[str, str]]:
        """A block's (noun, text) pairs."""
        indices = self.blocks[block]
        texts = tokenizer.batch_decode([self.corpus.chunk(i)["pieces"] for i in indices], skip_special_tokens=True)
        return [(self.nouns[self.corpus.arrays["source"][i]], t) for i, t in zip(indices, texts, strict=True)]

    def write(self, block: int, states: np.ndarray) -> None:
        """Puts a block's states, (texts, width), in place."""
        target = block_path(self.corpus.folder, block)
        scratch = target.with_suffix(".part.npy")
        np.save(scratch, states)
        scratch.rename(target)


def read_answers(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the chunks asked about, (n,), and the teacher's states, (n, width), float16."""
    folder = corpus.folder / "answers"
    chunks = np.load(folder / "chunks.npy")
    count = -(-len(chunks) // BLOCK)
    return chunks, np.concatenate([np.load(block_path(corpus.folder, n)) for n in range(count)])
