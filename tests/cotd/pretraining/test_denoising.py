import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.pretraining.denoising import denoise, masked_spans

SENTINELS = list(range(1000, 1032))


@given(length=st.integers(1, 300), share=st.floats(0.05, 0.5), span=st.floats(1, 8), seed=st.integers(0, 2**32))
def test_inputs_and_targets_together_hold_every_piece_once(length: int, share: float, span: float, seed: int) -> None:
    pieces = np.arange(10, 10 + length)
    masked = masked_spans(length, share, span, len(SENTINELS), np.random.default_rng(seed))
    source, target = denoise(pieces, masked, SENTINELS, eos=1, target="spans")
    assert source[-1] == target[-1] == 1
    # Filling each mask of the input with what the target says is behind it gives the text back.
    behind: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in SENTINELS:
            current = behind.setdefault(int(token), [])
        else:
            current.append(int(token))
    filled = [p for t in source[:-1] for p in (behind[int(t)] if t in SENTINELS else [int(t)])]
    assert filled == pieces.tolist()
    assert all(behind.values())
    assert (denoise(pieces, masked, SENTINELS, 1, "text")[1] == np.append(pieces, 1)).all()


@given(length=st.integers(40, 300), seed=st.integers(0, 2**32))
def test_the_wanted_share_is_masked_in_spans_that_do_not_touch(length: int, seed: int) -> None:
    masked = masked_spans(length, 0.15, 3.0, len(SENTINELS), np.random.default_rng(seed))
    assert masked.sum() == round(length * 0.15)
    assert not masked[0]
    starts = (masked & ~np.concatenate([[False], masked[:-1]])).sum()
    assert starts == round(masked.sum() / 3)


@pytest.mark.parametrize("length", [1, 2])
def test_short_texts_are_no_error(length: int) -> None:
    masked = masked_spans(length, 0.15, 3.0, 32, np.random.default_rng(0))
    source, target = denoise(np.arange(10, 10 + length), masked, SENTINELS, 1, "spans")
    assert len(source) >= length
    assert target[-1] == 1
