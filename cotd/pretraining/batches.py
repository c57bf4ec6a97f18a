"""Batches of chunks of similar length, planned from a seed: batch i is the same in every run, so that resuming is exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from cotd.pretraining.answers import Answers
from cotd.pretraining.config import ObjectivesConfig
from cotd.pretraining.corpus import NO_LABEL, Corpus
from cotd.pretraining.denoising import denoise, masked_ends, masked_spans

# Chunks are sorted by length within pools of this many batches: little padding, and batches still differ by epoch.
POOL = 50
# What the batches of each kind are made of.
POOLS = {
    "hidden": "text",
    "answer": "answer",
    "denoise": "text",
    "gold": "labelled",
    "rationale": "explained",
    "continue": "text",
}


def plan_batches(lengths: np.ndarray, batch_tokens: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Divides chunks into batches of at most `batch_tokens` pieces, padding included, in random order.

    Returns:
        Arrays of indices into `lengths`; every chunk is in exactly one.
    """
    order = generator.permutation(len(lengths))
    pool_size = max(1, int(POOL * batch_tokens / max(1.0, float(lengths.mean()))))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        first = 0
        for end in range(1, len(pool) + 1):
            # Sorted, so that the next chunk would be the longest of the batch and set its width.
            if end == len(pool) or lengths[pool[end]] * (end + 1 - first) > batch_tokens:
                batches.append(pool[first:end])
                first = end
    return [batches[i] for i in generator.permutation(len(batches))]


class BatchedCorpus:
    """A map-style data set whose item i is the i-th batch of the run, ready for the model.

    Args:
        chunks: indices of the corpus' chunks to learn hidden states and gold labels from and to denoise.
        answers: the texts whose label is asked, and what the answer teacher said; None where there are none.
        asked: the pieces of each of those texts, prefix included.
        label_pieces: the first piece of each label's word.
        label_prefix: the pieces that ask for a gold label, to be put before a chunk's.
        explained: the pieces of texts, prefix included, and of what a teacher wrote about each.
        objectives: how many batches of which kind.
        count: how many batches the run takes; the chunks are gone through as often as that needs.
    """

    def __init__(
        self, corpus: Corpus, chunks: np.ndarray, answers: Answers | None, asked: list[np.ndarray], label_pieces: list[int],
        label_prefix: list[int], explained: list[tuple[np.ndarray, np.ndarray]], objectives: ObjectivesConfig, sentinels: list[int],
        batch_tokens: int, count: int, seed: int, eos: int = 1, pad: int = 0,
    ):  # fmt: skip
        self.corpus, self.objectives, self.seed = corpus, objectives, seed
        self.sentinels, self.eos, self.pad, self.batch_tokens = sentinels, eos, pad, batch_tokens
        self.chunks, self.answers, self.asked, self.label_pieces = chunks, answers, asked, label_pieces
        labels = np.asarray(corpus.arrays["label"])[chunks]
        self.labelled, self.labels = chunks[labels != NO_LABEL], labels[labels != NO_LABEL].astype(np.int64)
        self.label_prefix, self.explained = np.array(label_prefix, dtype=np.int64), explained
        self.lengths = {
            "text": corpus.lengths[chunks],
            "answer": np.array([len(row) for row in asked]),
            "labelled": corpus.lengths[self.labelled] + len(label_prefix),
            "explained": np.array([len(text) for text, _ in explained]),
        }
        # In this order, to which new kinds are added at the end: the draws of kinds of recipes without them stay what they were.
        shares = {
            "hidden": objectives.hidden_share, "answer": objectives.answer_share, "denoise": objectives.denoise_share,
            "gold": objectives.gold_share, "rationale": objectives.rationale_share, "continue": objectives.continue_share,
        }  # fmt: skip
        shares |= {kind: 0.0 for kind, pool in POOLS.items() if not len(self.lengths[pool])}
        total = sum(shares.values())
        self.count = count = count if total else 0  # with nothing to learn from there are no batches
        # Which kind each batch is, and how many of its pool's batches went before it.
        weights = [share / (total or 1.0) for share in shares.values()]
        draws = np.random.default_rng([seed, 0]).choice(len(shares), size=count, p=weights if count else None)
        self.kinds = [list(shares)[d] for d in draws]
        pools = np.array([POOLS[kind] for kind in self.kinds])
        self.positions = np.zeros(count, dtype=np.int64)
        for pool in self.lengths:
            of_pool = pools == pool
            self.positions[of_pool] = np.arange(of_pool.sum())
        self.plans: dict[tuple[str, int], list[np.ndarray]] = {}
        self.plan_lengths: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return self.count

    def _plan(self, pool: str, epoch: int) -> list[np.ndarray]:
        """The pool's batches of one epoch; of the others only the one before it is kept."""
        if (pool, epoch) not in self.plans:
            generator = np.random.default_rng([self.seed, 1, epoch, len(pool)])
            self.plans = {k: v for k, v in self.plans.items() if k[0] != pool or k[1] == epoch - 1}
            self.plans[pool, epoch] = plan_batches(self.lengths[pool], self.batch_tokens, generator)
            self.plan_lengths[pool, epoch] = len(self.plans[pool, epoch])
        return self.plans[pool, epoch]

    def _plan_length(self, pool: str, epoch: int) -> int:
        """How many batches an epoch has; epochs differ a little."""
        if (pool, epoch) not in self.plan_lengths:
            self._plan(pool, epoch)
        return self.plan_lengths[pool, epoch]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        kind, position, epoch = self.kinds[index], int(self.positions[index]), 0
        pool = POOLS[kind]
        while position >= (length := self._plan_length(pool, epoch)):
            position -= length
            epoch += 1
        plan = self._plan(pool, epoch)
        if kind == "answer":
            return self.answer_batch(plan[position])
        if kind == "gold":
            return self.gold_batch(plan[position])
        if kind == "rationale":
            return self.rationale_batch(plan[position])
        chunks = self.chunks[plan[position]]
        if kind in ("denoise", "continue"):
            return self.writing_batch(kind, chunks, np.random.default_rng([self.seed, 2, index]))
        return self.hidden_batch(chunks)

    def answer_batch(self, members: np.ndarray) -> dict[str, Any]:
        """`input_ids` (B, S), prefix and text; their attention mask; `components` (B, k); `shares` (B, labels);
        `label_pieces` (labels,)."""
        import torch

        assert self.answers is not None
        rows = [self.asked[i] for i in members]
        return {
            "kind": "answer",
            "input_ids": pad_rows(rows, self.pad),
            "attention_mask": lengths_mask([len(r) for r in rows]),
            "components": torch.from_numpy(self.answers.components[members]),
            "shares": torch.from_numpy(self.answers.shares[members]),
            "label_pieces": torch.tensor(self.label_pieces),
            "tokens": torch.tensor(sum(len(r) for r in rows)),
        }

    def gold_batch(self, members: np.ndarray) -> dict[str, Any]:
        """`input_ids` (B, S), prefix and chunk; their attention mask; `labels` (B,), each a place in `label_pieces` (labels,)."""
        import torch

        rows = [np.concatenate([self.label_prefix, self.corpus.chunk(i)["pieces"]]) for i in self.labelled[members]]
        return {
            "kind": "gold",
            "input_ids": pad_rows(rows, self.pad),
            "attention_mask": lengths_mask([len(r) for r in rows]),
            "labels": torch.from_numpy(self.labels[members]),
            "label_pieces": torch.tensor(self.label_pieces),
            "tokens": torch.tensor(sum(len(r) for r in rows)),
        }

    def rationale_batch(self, members: np.ndarray) -> dict[str, Any]:
        """`input_ids` (B, S), prefix and text; their attention mask; `labels` (B, T), the rationale, padded with -100."""
        import torch

        rows, rationales = zip(*(self.explained[i] for i in members), strict=True)
        return {
            "kind": "rationale",
            "input_ids": pad_rows(list(rows), self.pad),
            "attention_mask": lengths_mask([len(r) for r in rows]),
            "labels": pad_rows([r[: self.objectives.max_target_tokens] for r in rationales], -100),
            "tokens": torch.tensor(sum(len(r) for r in rows)),
        }

    def hidden_batch(self, chunks: np.ndarray) -> dict[str, Any]:
        """`input_ids`, `first` and `last` of shape (B, S); `teacher_ids` (B, T); attention masks of both."""
        import torch

        pieces, lengths = self.corpus.rows("pieces", chunks)
        teacher, teacher_lengths = self.corpus.rows("teacher", chunks)
        return {
            "kind": "hidden",
            "input_ids": torch.from_numpy(pieces),
            "attention_mask": lengths_mask(lengths),
            "teacher_ids": torch.from_numpy(teacher),
            "teacher_mask": lengths_mask(teacher_lengths),
            "first": torch.from_numpy(self.corpus.rows("first", chunks)[0]),
            "last": torch.from_numpy(self.corpus.rows("last", chunks)[0]),
            "tokens": torch.tensor(lengths.sum()),
        }

    def writing_batch(self, kind: str, chunks: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
        """`input_ids` of shape (B, S) with masks, their attention mask, and `labels` (B, T) padded with -100.

        Args:
            kind: "denoise" or "continue".
        """
        import torch

        o = self.objectives
        pieces, lengths = self.corpus.rows("pieces", chunks)
        bodies = lengths - (pieces[np.arange(len(pieces)), lengths - 1] == self.eos)  # long chunks are cut before their </s>
        if kind == "denoise":
            masked = masked_spans(bodies, o.mask_share, o.mask_span, len(self.sentinels), generator)
        else:
            masked = masked_ends(bodies, o.max_target_tokens, generator)
        pieces = pieces[:, : masked.shape[1]]
        (inputs, read), (targets, written) = denoise(
            pieces, bodies, masked, self.sentinels, self.eos, "spans" if kind == "continue" else o.target
        )
        targets[np.arange(targets.shape[1]) >= written[:, None]] = -100
        return {
            "kind": kind,
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": lengths_mask(read),
            "labels": torch.from_numpy(targets[:, : o.max_target_tokens]),
            "tokens": torch.tensor(lengths.sum()),
        }


def pad_rows(rows: list[np.ndarray], value: int) -> Any:
    """A (B, longest) int64 tensor of rows padded with `value`."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(r) for r in rows], batch_first=True, padding_value=value)


def lengths_mask(lengths: Any) -> Any:
    """A (B, longest) int64 tensor of (B,) lengths: 1 where a row has a token."""
    import torch

    counts = torch.as_tensor(lengths)
    return (torch.arange(int(counts.max()) if len(counts) else 0) < counts[:, None]).long()
