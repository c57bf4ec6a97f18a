"""Denoising examples: spans of a text are masked, and the decoder writes what was behind the masks."""

from __future__ import annotations

import numpy as np


def span_lengths(total: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` positive lengths that sum to `total`, every such division being equally likely."""
    cuts = np.sort(generator.choice(np.arange(1, total), count - 1, replace=False)) if count > 1 else np.array([], dtype=int)
    return np.diff(np.concatenate([[0], cuts, [total]]))


def masked_spans(length: int, share: float, mean_span: float, most: int, generator: np.random.Generator) -> np.ndarray:
    """Which of `length` pieces are masked: a boolean array whose true runs are the spans.

    As in T5 (Raffel et al. 2020, section 3.1.4): about `share` of the pieces are masked, in spans of about
    `mean_span` pieces that never touch, and the text begins unmasked.

    Args:
        most: the largest number of spans.
    """
    masked = np.zeros(length, dtype=bool)
    n_masked = min(max(1, round(length * share)), length - 1)
    spans = min(max(1, round(n_masked / mean_span)), most, n_masked, length - n_masked)
    if spans < 1:
        return masked
    kept = span_lengths(length - n_masked, spans, generator)
    hidden = span_lengths(n_masked, spans, generator)
    position = 0
    for before, span in zip(kept, hidden, strict=True):
        masked[position + before : position + before + span] = True
        position += before + span
    return masked


def denoise(
    pieces: np.ndarray, masked: np.ndarray, sentinels: list[int], eos: int, target: str
) -> tuple[np.ndarray, np.ndarray]:
    """A training pair of one chunk.

    Args:
        pieces: the chunk's token ids without `</s>`, of shape (n,).
        masked: which of them are hidden, of shape (n,).
        sentinels: ids of the masks; the k-th span is replaced by the k-th.
        target: "spans": sentinel, hidden pieces, sentinel, …; "text": the whole chunk.

    Returns:
        Input ids and target ids, both ending in `</s>`.
    """
    starts = masked & ~np.concatenate([[False], masked[:-1]])
    span_of = np.cumsum(starts) - 1  # (n,): the number of the span at or before each piece
    marks = np.array(sentinels)
    replaced = np.where(starts, marks[np.clip(span_of, 0, None)], pieces)
    source = np.append(replaced[~masked | starts], eos)
    if target == "text":
        return source, np.append(pieces, eos)
    parts: list[np.ndarray] = []
    for k in range(int(starts.sum())):
        parts += [marks[k : k + 1], pieces[masked & (span_of == k)]]
    return source, np.concatenate([*parts, [eos]])
