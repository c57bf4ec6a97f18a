"""What a student's model does, whatever its architecture: read, learn, score answers and write.

A *source* is the token ids of an input that asks for a target of some kind; a *target* those of what is to be written, which
end in the end-of-sequence token and have none at the beginning.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from cotd.data.truncation import Truncation
from cotd.errors import CotdError
from cotd.tasks.base import Task

# joint: a rationale, and its answer after it; after_label: an answer, and its rationale after it, each with its end of sequence
TARGET_KINDS = ("label", "rationale", "joint", "after_label")
ASK_LABEL = ("label", "after_label")  # kinds that are asked for as an answer alone is
IGNORED = -100  # the label of a token that is not learned


class Pair(NamedTuple):
    """What is learned of one source."""

    kind: int  # position in TARGET_KINDS
    source: Sequence[int]
    target: Sequence[int]
    weight: float = 1.0


class Backend(ABC):
    """A model with its tokenizer, for one task.

    Args:
        card: the student's card, of which `shared_encoder`, `rationale_before_label` and `chat` are read.

    Attributes:
        kind: "t5", "seq2seq", "causal" or "encoder".
        writes: whether it can write text: rationales, and free answers.

    Raises:
        CotdError: the tokenizer has no end-of-sequence token.
    """

    kind: ClassVar[str]
    writes: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any, task: Task, card: dict[str, Any]):
        self.model, self.tokenizer, self.task, self.card = model, tokenizer, task, card
        vocabulary = model.get_input_embeddings().num_embeddings
        if problem := tokenizer_problem(self.kind, tokenizer, vocabulary):
            raise CotdError(problem)
        if not has_token(tokenizer.pad_token_id, vocabulary):
            tokenizer.pad_token = tokenizer.eos_token

    @abstractmethod
    def sources(
        self, texts: Sequence[str], kind: str, limit: int, truncation: Truncation = "head"
    ) -> tuple[list[list[int]], list[bool]]:
        """The inputs that ask for targets of a kind about rendered texts, and whether each was cut to `limit` tokens.

        Only texts are cut; the words that ask stay.
        """

    @abstractmethod
    def words(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        """The tokens of texts as parts of a target, without special tokens.

        Args:
            begins: whether they begin the target, or follow other words.
        """

    @abstractmethod
    def pack(self, examples: Sequence[Sequence[Pair]]) -> dict[str, Any]:
        """The pairs of some examples, as tensors that `loss` reads.

        Among them are `labels` (M,), with IGNORED where nothing is learned, and of each token's pair `target_kinds` (M,), positions
        in TARGET_KINDS, `target_weights` (M,) and, if it writes, `target_examples` (M,), the position of its example.
        """

    @abstractmethod
    def loss(self, part: dict[str, Any], weights: Any, label_smoothing: float = 0.0) -> Any:
        """Σ weights · cross-entropy of the learned tokens of a part, a scalar.

        Args:
            part: what `pack` gave. weights: (L,) of the tokens that are learned, in their order.
        """

    def logits(self, part: dict[str, Any], chosen: Any) -> Any:
        """The logits at chosen tokens of a part, (M,) booleans: (L, V), float32."""
        raise CotdError(f"a student of kind '{self.kind}' labels and writes nothing. Use a causal or encoder-decoder student.")

    @abstractmethod
    def label_scores(self, sources: Sequence[list[int]], written: Sequence[list[int]] | None = None) -> Any:
        """Scores of the task's fixed labels, whose softmax are their probabilities: (B, labels), float32 on the CPU.

        Args:
            written: tokens that the student has written before its answer.
        """

    def score(
        self,
        sources: Sequence[list[int]],
        candidates: Sequence[Sequence[list[int]]],
        written: Sequence[list[int]] | None = None,
    ) -> Any:
        """log P(candidate | source), of whole candidates: (B, most candidates), -inf where a source has fewer."""
        raise NotImplementedError(f"a student of kind '{self.kind}' scores a fixed set of labels, not answers in words")

    def generate(
        self,
        sources: Sequence[list[int]],
        kind: str,
        limit: int,
        streamer: Any = None,
        written: Sequence[list[int]] | None = None,
    ) -> list[list[int]]:
        """What the student writes, greedily, of at most `limit` tokens each, without special tokens.

        Args:
            written: tokens that it has written before, as many for each source.
        """
        raise CotdError(f"a student of kind '{self.kind}' labels and writes nothing. Use a causal or encoder-decoder student.")

    def targets(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        """Targets of these words."""
        return [[*ids, self.tokenizer.eos_token_id] for ids in self.words(texts, begins)]

    @cached_property
    def answer_mark(self) -> list[int]:
        """The tokens between rationale and answer of a joint target."""
        return self.words([self.task.answer_mark], begins=False)[0]

    @cached_property
    def answers(self) -> list[list[int]]:
        """The targets of the task's fixed labels, in their order."""
        begins = not self.card.get("rationale_before_label")
        return self.targets([self.task.verbalize(label) for label in self.task.labels], begins)

    @cached_property
    def first_tokens(self) -> list[int] | None:
        """The first token of each fixed label, if they differ: one step then tells the labels apart. Else None."""
        first = [ids[0] for ids in self.answers]
        return first if self.writes and len(first) > 1 and len(set(first)) == len(first) else None

    @property
    def prompt_form(self) -> dict[str, Any]:
        """What decides how inputs and targets are made beside the task and the tokenizer, for digests."""
        return {"kind": self.kind}

    def token_ids(self, texts: Sequence[str], space: str = "") -> list[list[int]]:
        """The tokens of texts with a space before each, without special tokens."""
        if not len(texts):
            return []
        return self.tokenizer([space + text for text in texts], add_special_tokens=False, verbose=False)["input_ids"]

    @cached_property
    def space(self) -> str:
        """What must precede words that follow others: byte-level tokenizers have a token for a word with its space."""
        good, film, both = self.token_ids(["good", "film", "good film"])
        return "" if good + film == both else " "

    @property
    def reduced(self) -> bool:
        """Whether answers are computed in bfloat16 although the weights are in float32."""
        return False

    def without_special(self, ids: Sequence[int]) -> list[int]:
        """Token ids without special tokens."""
        return [i for i in ids if i not in self._special]

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)


def tokenizer_problem(kind: str, tokenizer: Any, vocabulary: int) -> str | None:
    """Why a tokenizer cannot be a student's, or None. A causal model does without a padding token: it looks back only."""
    if kind != "encoder" and not has_token(tokenizer.eos_token_id, vocabulary):
        return (
            "the base model's tokenizer has no end-of-sequence token: what a student writes would never end. Use another base."
        )
    if kind != "causal" and not has_token(tokenizer.pad_token_id, vocabulary):
        return "the base model's tokenizer has no padding token. Use another base model, or add one to its tokenizer."
    return None


def has_token(token: int | None, vocabulary: int) -> bool:
    """Whether a model has an embedding for a special token: tokenizers may have more tokens than their model."""
    return token is not None and token < vocabulary


def padded(rows: Sequence[Any], pad: int, device: Any = None, left: bool = False) -> tuple[Any, Any]:
    """Token ids as rows of one width, and their mask of ones and zeros: both (B, W).

    Args:
        rows: lists or tensors. device: of the result; None leaves tensors where they are.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.as_tensor(row, dtype=torch.long, device=device) for row in rows]
    side = "left" if left else "right"
    mask = [torch.ones_like(row) for row in ids]
    return pad_sequence(ids, True, pad, side), pad_sequence(mask, True, 0, side)


def weighted_loss(logits: Any, labels: Any, weights: Any, label_smoothing: float) -> Any:
    """Σ weights · cross-entropy, a scalar. Args: logits: (L, V), float32. labels, weights: (L,)."""
    from torch.nn import functional

    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).sum()


def in_columns(scores: Any, counts: Sequence[int]) -> Any:
    """Scores one after another, so many of each row, as (B, most), -inf where a row has fewer."""
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(scores.split(list(counts)), batch_first=True, padding_value=-math.inf)
