"""What a language model knows about a text just before it says the label: the targets that the decoder learns.

A small model's own answers are worse than what it knows. On 800 Rotten Tomatoes sentences the embedded teacher's answers,
split at their median, were 81 % accurate; a logistic regression on its state after layer 22, at the place of the
answer, 87 %. So both are learned: the state's principal components, and a label read off the state, by a regression of the
answers or, where there are some, of gold labels.

The folder `answers/` of a corpus holds `asked.parquet` (the texts), `NNNNN.npz` (blocks of states, computed once; a stop
loses the blocks being made) and `targets.npz` (what is learned, made from all blocks).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.config import DataConfig, digest
from cotd.errors import CotdError
from cotd.hardware import choose_dtype
from cotd.pretraining.config import AnswerTeacherConfig, PretrainConfig
from cotd.pretraining.corpus import NO_LABEL, Corpus
from cotd.reviews import unit_interval
from cotd.sources import noun
from cotd.task import get_task

BLOCK = 256
# Lengths, in words, of the phrases that are asked about, one of them drawn for each.
PHRASE_WORDS = (1, 1, 2, 2, 3, 3, 4, 5, 6, 8)
PHRASES_A_CHUNK = 8
PUNCTUATION = " ,;:()[]\"'-–—"
# The readouts' ridge penalties as a share of their rows. That of the answers: from 0.005 to 5 the accuracy of what it reads
# moved by half a point. That of the gold labels: from 0.05 to 1.5 by less than one; at 0.0015 it lost three.
READOUT_PENALTY = 0.5
GOLD_PENALTY = 0.15


def draw_phrase(text: str, round_: int) -> str:
    """A run of 1 to 8 words of `text`, without punctuation around it; the same one each time, another each round."""
    generator = np.random.default_rng(int(unit_interval(f"phrase\n{round_}\n{text}") * 2**32))
    words = text.split()
    count = min(int(generator.choice(PHRASE_WORDS)), len(words))
    start = int(generator.integers(len(words) - count + 1))
    return " ".join(words[start : start + count]).strip(PUNCTUATION)


def choose_texts(config: PretrainConfig, corpus: Corpus, tokenizer: Any) -> pd.DataFrame:
    """The texts to ask about, shortest first: of each source the first `answers` chunks that are short enough, and
    `phrases` of its chunks.

    Returns:
        Columns `text`, `source` (its number in the recipe), `kind` ("passage" or "phrase"), `chunk` (that it is from).
    """
    assert config.answer_teacher is not None
    parts = []
    for number, source in enumerate(config.corpus.sources):
        if not source.answers + source.phrases:
            continue
        (mine,) = np.nonzero(corpus.arrays["source"] == number)
        passages = mine[corpus.lengths[mine] <= config.answer_teacher.max_pieces][: source.answers]
        parents = mine[: source.phrases]
        needed = np.union1d(passages, parents)
        decoded = tokenizer.batch_decode([corpus.chunk(i)["pieces"] for i in needed], skip_special_tokens=True)
        text_of = dict(zip(needed.tolist(), decoded, strict=True))
        phrases: dict[str, int] = {}
        for round_ in range(PHRASES_A_CHUNK):
            for chunk in parents.tolist():
                phrase = draw_phrase(text_of[chunk], round_)
                if len(phrase) > 2 and len(phrases) < source.phrases:
                    phrases.setdefault(phrase, chunk)
        parts += [
            pd.DataFrame(
                {"text": [text_of[i] for i in passages.tolist()], "kind": "passage", "source": number, "chunk": passages}
            ),
            pd.DataFrame(
                {"text": list(phrases), "kind": "phrase", "source": number, "chunk": np.array([*phrases.values()], int)}
            ),
        ]
    asked = pd.concat(parts, ignore_index=True)
    asked = asked[asked["text"].str.strip() != ""].drop_duplicates("text")
    return asked.sort_values("text", key=lambda texts: texts.str.len(), kind="stable").reset_index(drop=True)


class AnswerTeacher:
    """A causal language model that is asked for the label, and stopped at the layer that is learned from."""

    def __init__(self, config: AnswerTeacherConfig, nouns: Iterable[str], threads: int | None = None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from cotd.prompts import load_prompts
        from cotd.student import resolve_model

        if threads:
            torch.set_num_threads(threads)
        source, task = resolve_model(config.model), get_task(config.task)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        self.tokenizer.truncation_side = "left"  # what asks for the label stands at the prompt's end
        dtype = getattr(torch, choose_dtype("auto", self.device == "cuda"))
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval().to(self.device)
        prompts = {noun: load_prompts(task, noun) for noun in nouns}
        self.render = {noun: p.score for noun, p in prompts.items()}
        words = [next(iter(prompts.values())).label_words[label] for label in task.labels] if prompts else []
        first = [self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]
        self.label_rows = model.get_output_embeddings().weight.detach()[first]  # (labels, width)
        self.model = model.get_decoder()
        self.layer, self.layers, self.norm = config.layer, self.model.layers, self.model.norm

    def ask(self, texts: list[tuple[str, str]], in_full: bool = False) -> dict[str, np.ndarray]:
        """The state after the chosen layer at the prompt's last token, and, if `in_full`, the logits of the labels there.

        Args:
            texts: (noun, text) pairs, best of similar length.

        Returns:
            `states` (len(texts), width), float16, and `logits` (len(texts), labels), float32.
        """
        from torch import nn

        self.model.layers = self.layers if in_full else self.layers[: self.layer]
        self.model.norm = self.norm if in_full else nn.Identity()
        size = 32 if self.device == "cpu" else BLOCK
        parts = [self._ask_batch(texts[i : i + size], in_full) for i in range(0, len(texts), size)]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _ask_batch(self, texts: list[tuple[str, str]], in_full: bool) -> dict[str, np.ndarray]:
        import torch

        rendered = [self.render[noun](text) for noun, text in texts]
        batch = self.tokenizer(rendered, padding=True, truncation=True, max_length=512, return_tensors="pt").to(self.device)
        last = batch["attention_mask"].sum(1) - 1
        rows = torch.arange(len(last))
        with torch.inference_mode():
            out = self.model(**batch, use_cache=False, output_hidden_states=in_full)
            states = out.hidden_states[self.layer] if in_full else out.last_hidden_state
            answer = {"states": states[rows, last].clamp(-6e4, 6e4).to(torch.float16).cpu().numpy()}
            if in_full:
                answer["logits"] = (out.last_hidden_state[rows, last] @ self.label_rows.T).float().cpu().numpy()
        return answer


class AnswerBlocks:
    """The blocks of a corpus: which texts are in each, and which are still to be computed.

    Making one discards the blocks of another teacher, or of other texts.
    """

    def __init__(self, config: PretrainConfig, corpus: Corpus, tokenizer: Any):
        assert config.answer_teacher is not None
        self.teacher = config.answer_teacher
        self.nouns = [s.noun or noun(DataConfig(source=s.source)) for s in config.corpus.sources]
        self.folder = corpus.folder / "answers"
        self.asked = choose_texts(config, corpus, tokenizer)
        # A passage's is its document's; a phrase out of it says too little.
        labels = np.asarray(corpus.arrays["label"])[self.asked["chunk"].to_numpy()]
        self.gold = np.where(self.asked["kind"] == "passage", labels, NO_LABEL)
        self.count = -(-len(self.asked) // BLOCK)
        about = digest(
            {
                "teacher": self.teacher.model_dump(exclude={"components", "readout"}), "nouns": self.nouns,
                "texts": self.asked["text"].tolist(),
            }
        )  # fmt: skip
        marker = self.folder / "answers.json"
        if not marker.is_file() or json.loads(marker.read_text())["digest"] != about:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self.asked.to_parquet(self.folder / "asked.parquet")
            marker.write_text(json.dumps({"digest": about}))

    def path(self, block: int) -> Path:
        return self.folder / f"{block:05d}.npz"

    def rows(self, block: int) -> slice:
        return slice(block * BLOCK, min(len(self.asked), (block + 1) * BLOCK))

    def missing(self) -> list[int]:
        """Numbers of the blocks still to be computed."""
        return [n for n in range(self.count) if not self.path(n).is_file()]

    def in_full(self, block: int) -> bool:
        """Whether the teacher is to answer this block's texts: every n-th one, so that texts of all lengths are among them.

        The readout does not matter here, so that the blocks serve both.
        """
        stride = max(1, len(self.asked) // max(1, self.teacher.readout_texts))
        return block % stride == 0

    def texts(self, block: int) -> list[tuple[str, str]]:
        """A block's (noun, text) pairs."""
        part = self.asked.iloc[self.rows(block)]
        return [(self.nouns[source], text) for source, text in zip(part["source"], part["text"], strict=True)]

    def write(self, block: int, answer: dict[str, Any]) -> None:
        """Puts what the teacher said of a block in place."""
        scratch = self.path(block).with_suffix(".part.npz")
        np.savez(scratch, **answer)
        scratch.rename(self.path(block))

    def write_targets(self) -> None:
        """Makes of all blocks what is learned."""
        blocks = [dict(np.load(self.path(n))) for n in range(self.count)]
        states = np.concatenate([b["states"] for b in blocks]).astype(np.float32)
        standardised = (states - states.mean(0)) / states.std(0).clip(1e-3)
        if self.teacher.readout == "gold":
            logits = read_gold(standardised, self.gold, get_task(self.teacher.task).labels)
        else:
            answered = np.concatenate([np.full(len(b["states"]), "logits" in b) for b in blocks])
            logits = read_out(standardised, answered, np.concatenate([b["logits"] for b in blocks if "logits" in b]))
        groups = (self.asked["source"].astype(str) + self.asked["kind"]).to_numpy()
        np.savez(
            self.folder / "targets.npz",
            components=principal_components(standardised, self.teacher.components),
            shares=balanced_shares(logits, groups),
        )


def principal_components(rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` principal components of rows (n, width), each of variance 1: (n, count), float32."""
    count = min(count, *rows.shape)
    variances, directions = np.linalg.eigh(np.cov(rows.T))
    largest = slice(None, -count - 1, -1)
    return (rows @ directions[:, largest] / np.sqrt(variances[largest].clip(1e-6))).astype(np.float32)


def read_out(states: np.ndarray, answered: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The labels' logits of all texts, (n, labels): a ridge regression of the answers on the states.

    Args:
        states: (n, width), standardised.
        answered: (n,), which texts the teacher answered in full.
        logits: (answered.sum(), labels).

    The regression is used for the answered texts, too: it left out what the later layers add, which was noise (AUC 0.899
    against 0.896 on Rotten Tomatoes).
    """
    from sklearn.linear_model import Ridge

    return np.asarray(Ridge(alpha=READOUT_PENALTY * len(logits)).fit(states[answered], logits).predict(states))


def read_gold(states: np.ndarray, gold: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The labels' logits of all texts, (n, labels): a logistic regression of gold labels on the states.

    What a small model knows of a label and what it says when asked differ: read off the same states by gold labels of other
    reviews, 84 % of Rotten Tomatoes' training sentences come out right, by its own answers 79 %.

    Args:
        states: (n, width), standardised.
        gold: (n,), each text's number in `labels`, NO_LABEL where it has none.

    Raises:
        CotdError: a label that no text has.
    """
    from sklearn.linear_model import LogisticRegression

    known = gold != NO_LABEL
    missing = [label for number, label in enumerate(labels) if number not in gold]
    if missing:
        raise CotdError(
            f"answer_teacher.readout: gold: none of the {known.sum():,} asked passages with a gold label is {' or '.join(missing)}. "
            "Raise the source's `answers`, or set readout to answers."
        )
    fitted = LogisticRegression(C=1 / (GOLD_PENALTY * known.sum()), max_iter=1000).fit(states[known], gold[known])
    return np.asarray(fitted.predict_log_proba(states))


def balanced_shares(logits: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Label probabilities (n, labels) whose log-odds average to zero in each group, float32.

    A small teacher leans towards one label; that the labels are about equally frequent among many texts of one kind is
    all that is assumed (batch calibration, Zhou et al. 2024).
    """
    centred = logits - logits.mean(1, keepdims=True)
    for group in np.unique(groups):
        centred[groups == group] -= centred[groups == group].mean(0)
    odds = np.exp(centred - centred.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Answers:
    """Texts with what the answer teacher says of each.

    Attributes:
        texts: n texts.
        chunks: (n,), the chunk of the corpus that each is from.
        components: (n, k), the state's principal components.
        shares: (n, labels), the probability of each label.
    """

    texts: list[str]
    chunks: np.ndarray
    components: np.ndarray
    shares: np.ndarray

    @classmethod
    def read(cls, corpus: Corpus) -> Answers:
        """Reads what `AnswerBlocks` wrote."""
        folder = corpus.folder / "answers"
        asked, targets = pd.read_parquet(folder / "asked.parquet"), np.load(folder / "targets.npz")
        return cls(asked["text"].tolist(), asked["chunk"].to_numpy(), targets["components"], targets["shares"])

    def of(self, chunks: np.ndarray) -> Answers:
        """Only the texts that are from some of the corpus' chunks."""
        (rows,) = np.nonzero(np.isin(self.chunks, chunks))
        return Answers([self.texts[i] for i in rows], self.chunks[rows], self.components[rows], self.shares[rows])
