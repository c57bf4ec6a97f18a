"""Denoising examples: spans of texts are masked, and the decoder writes what was behind the masks.

A whole batch at a time, as rows: a GPU takes batches faster than texts could be masked one by one.
"""

from __future__ import annotations

import numpy as np


def span_lengths(totals: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each row `count` positive lengths that sum to its `total`, every such division being equally likely.

    Args:
        totals: (B,). counts: (B,), at most `totals`.

    Returns:
        (B, counts.max()), zeros after a row's lengths.
    """
    most = int(counts.max(initial=1))
    places = max(int(totals.max(initial=1)) - 1, most - 1)
    keys = generator.random((len(totals), places))
    keys[np.arange(places) >= totals[:, None] - 1] = np.inf  # a row is cut after 1 to total - 1
    cuts = np.argsort(keys, axis=1)[:, : most - 1] + 1
    cuts = np.where(np.arange(most - 1) < counts[:, None] - 1, cuts, totals[:, None])
    edges = np.sort(np.column_stack([np.zeros_like(totals), cuts, totals]), axis=1)
    return np.diff(edges, axis=1)


def masked_spans(lengths: np.ndarray, share: float, mean_span: float, most: int, generator: np.random.Generator) -> np.ndarray:
    """Which pieces are masked: (B, lengths.max()), whose true runs are the spans.

    As in T5 (Raffel et al. 2020, section 3.1.4): about `share` of a row's pieces are masked, in spans of about `mean_span`
    pieces that never touch, and a row begins unmasked. A row of one piece has none.

    Args:
        lengths: (B,), pieces of each row.
        most: the largest number of spans in a row.
    """
    n_masked = np.minimum(np.maximum(1, np.round(lengths * share)), lengths - 1).astype(int)
    counts = np.maximum(1, np.round(n_masked / mean_span)).astype(int)
    counts = np.minimum.reduce([counts, np.full_like(counts, most), n_masked, lengths - n_masked])
    masked = np.zeros((len(lengths), int(lengths.max(initial=1)) + 1), dtype=np.int64)
    (some,) = np.nonzero(counts > 0)
    kept = span_lengths((lengths - n_masked)[some], counts[some], generator)
    hidden = span_lengths(n_masked[some], counts[some], generator)
    ends = np.cumsum(kept + hidden, axis=1)
    np.add.at(masked, (some[:, None], ends - hidden), 1)
    np.add.at(masked, (some[:, None], ends), -1)
    return np.asarray(np.cumsum(masked, axis=1)[:, :-1] > 0)


def masked_ends(lengths: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """As `masked_spans`, but one span that reaches each row's end: what is masked goes on from what is not (UL2's
    S-denoiser, Tay et al. 2023).

    Args:
        most: pieces of the longest target. At least a fifth of a row is left to go on from, and of a row of more than twice as
            many pieces all but the last twice as many; of those a target may still be cut off, without its `</s>`.
    """
    earliest = np.maximum.reduce([np.ones_like(lengths), lengths // 5, lengths - 2 * most])
    starts = generator.integers(earliest, np.maximum(earliest + 1, lengths))
    places = np.arange(int(lengths.max(initial=1)))
    return np.asarray((places >= starts[:, None]) & (places < lengths[:, None]))


def denoise(
    pieces: np.ndarray, lengths: np.ndarray, masked: np.ndarray, sentinels: list[int], eos: int, target: str
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training pairs of chunks.

    Args:
        pieces: (B, W), the chunks' token ids without `</s>`. lengths: (B,).
        masked: (B, W), which of them are hidden.
        sentinels: ids of the masks; a row's k-th span is replaced by the k-th.
        target: "spans": sentinel, hidden pieces, sentinel, …; "text": the whole chunk.

    Returns:
        Inputs and targets, each as rows (B, S) of ids that end in `</s>`, with zeros behind, and their lengths (B,).
    """
    real = np.arange(pieces.shape[1]) < lengths[:, None]
    starts = masked & ~np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
    span_of = np.cumsum(starts, axis=1) - 1  # (B, W): the number of the span at or before each piece
    marks = np.array(sentinels)[np.clip(span_of, 0, None)]
    source = compact(np.where(starts, marks, pieces), real & (~masked | starts), eos)
    if target == "text":
        return source, compact(pieces, real, eos)
    # Each hidden piece, and before a span's first one its sentinel.
    pairs = np.stack([marks, pieces], axis=2).reshape(len(pieces), -1)
    return source, compact(pairs, np.stack([starts, masked], axis=2).reshape(len(pieces), -1), eos)


def compact(rows: np.ndarray, wanted: np.ndarray, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """The wanted places of rows (B, W), moved to the left, `eos` after the last, and zeros; and their number (B,)."""
    counts = wanted.sum(1)
    moved = np.zeros((len(rows), int(counts.max(initial=0)) + 1), dtype=np.int64)
    which, _ = np.nonzero(wanted)
    moved[which, (np.cumsum(wanted, axis=1) - 1)[wanted]] = rows[wanted]
    moved[np.arange(len(rows)), counts] = eos
    return moved, counts + 1
