import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.pretraining.denoising import denoise, masked_ends, masked_spans, span_lengths

SENTINELS = list(range(1000, 1032))


def texts(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose pieces are 10, 11, …, with zeros behind, and their lengths."""
    counts = np.array(lengths)
    places = np.arange(counts.max())
    return np.where(places < counts[:, None], places + 10, 0), counts


def filled(source: np.ndarray, target: np.ndarray) -> list[int]:
    """A text again, from an input and what its target says is behind each mask."""
    behind: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in SENTINELS:
            current = behind.setdefault(int(token), [])
        else:
            current.append(int(token))
    assert all(behind.values())
    return [p for t in source[:-1] for p in (behind[int(t)] if t in SENTINELS else [int(t)])]


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), share=st.floats(0.05, 0.5), span=st.floats(1, 8),
    ends=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_inputs_and_targets_together_hold_every_piece_once(
    lengths: list[int], share: float, span: float, ends: bool, seed: int
) -> None:
    pieces, counts = texts(lengths)
    generator = np.random.default_rng(seed)
    masked = masked_ends(counts, 300, generator) if ends else masked_spans(counts, share, span, len(SENTINELS), generator)
    (sources, read), (targets, written) = denoise(pieces, counts, masked, SENTINELS, eos=1, target="spans")
    whole, whole_lengths = denoise(pieces, counts, masked, SENTINELS, eos=1, target="text")[1]
    for i, length in enumerate(lengths):
        source, target = sources[i, : read[i]], targets[i, : written[i]]
        assert source[-1] == target[-1] == 1
        assert not sources[i, read[i] :].any()
        assert not targets[i, written[i] :].any()
        assert filled(source, target) == pieces[i, :length].tolist() == whole[i, : whole_lengths[i] - 1].tolist()


@given(lengths=st.lists(st.integers(40, 300), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_the_wanted_share_is_masked_in_spans_that_do_not_touch(lengths: list[int], seed: int) -> None:
    masked = masked_spans(np.array(lengths), 0.15, 3.0, len(SENTINELS), np.random.default_rng(seed))
    for row, length in zip(masked, lengths, strict=True):
        assert row.sum() == round(length * 0.15)
        assert not row[0]
        assert not row[length:].any()
        starts = (row & ~np.concatenate([[False], row[:-1]])).sum()
        assert starts == round(row.sum() / 3)


def test_every_division_of_a_row_into_spans_is_as_likely() -> None:
    lengths = span_lengths(np.full(6000, 5), np.full(6000, 3), np.random.default_rng(0))
    divisions, counts = np.unique(lengths, axis=0, return_counts=True)
    assert len(divisions) == 6  # 4 places to cut at, of which 2
    assert counts.min() > 850


@given(lengths=st.lists(st.integers(2, 300), min_size=1, max_size=6), most=st.integers(8, 64), seed=st.integers(0, 2**32))
def test_an_end_to_be_written_begins_late_enough_to_be_written(lengths: list[int], most: int, seed: int) -> None:
    masked = masked_ends(np.array(lengths), most, np.random.default_rng(seed))
    for row, length in zip(masked, lengths, strict=True):
        start = int(row.argmax())
        assert 1 <= start < length
        assert length - start <= 2 * most
        assert row[start:length].all()
        assert not row[length:].any()


@pytest.mark.parametrize("length", [1, 2])
def test_short_texts_are_no_error(length: int) -> None:
    pieces, counts = texts([length])
    masked = masked_spans(counts, 0.15, 3.0, 32, np.random.default_rng(0))
    (_, read), (target, written) = denoise(pieces, counts, masked, SENTINELS, 1, "spans")
    assert read[0] >= length
    assert target[0, written[0] - 1] == 1
