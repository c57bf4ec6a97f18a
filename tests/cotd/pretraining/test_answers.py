"""What is asked, and what is made of the answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.errors import CotdError
from cotd.pretraining.answers import balanced_shares, draw_phrase, principal_components, read_gold, read_out


@given(st.text(min_size=1).filter(lambda t: t.split()), st.integers(0, 7))
def test_a_phrase_is_a_run_of_the_text_s_words_and_always_the_same(text: str, round_: int) -> None:
    phrase = draw_phrase(text, round_)
    assert phrase == draw_phrase(text, round_)
    assert phrase in " ".join(text.split())
    assert len(phrase.split()) <= 8


def test_phrases_differ_by_round() -> None:
    text = "a charming and often affecting journey that never lets its makers off the hook"
    assert len({draw_phrase(text, n) for n in range(8)}) > 4


def test_components_are_uncorrelated_and_of_variance_one() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 10))
    rows = mixed - mixed.mean(0)
    components = principal_components(rows, 3)
    assert components.shape == (500, 3)
    assert np.cov(components.T) == pytest.approx(np.eye(3), abs=1e-4)
    # Three directions hold everything: the rows are a linear map of their components.
    _, residual, *_ = np.linalg.lstsq(components, rows, rcond=None)
    assert residual.sum() < 1e-3 * (rows**2).sum()


def test_answers_are_read_off_the_states_of_texts_that_were_not_answered() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(1000, 20))
    logits = states @ rng.normal(size=(20, 2)) + rng.normal(size=(1000, 2)) * 0.1
    answered = np.arange(1000) % 4 == 0
    read = read_out(states, answered, logits[answered])
    unexplained = ((read - logits) ** 2)[~answered].mean() / logits.var()
    assert unexplained < 0.3, "shrunken by the penalty, but the same answers"
    assert np.corrcoef(read[~answered, 0], logits[~answered, 0])[0, 1] > 0.98


def test_a_label_is_read_off_the_states_as_gold_labels_of_some_texts_say() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(4000, 20))
    truth = (states @ rng.normal(size=20) > 0).astype(int)
    gold = np.where(np.arange(4000) < 2000, truth, -1)
    read = read_gold(states, gold, ("negative", "positive"))
    assert (read.argmax(1) == truth)[2000:].mean() > 0.95
    with pytest.raises(CotdError, match="none of the 2,000 asked passages with a gold label is mixed"):
        read_gold(states, gold, ("negative", "positive", "mixed"))


def test_a_lean_towards_one_label_is_taken_off_in_each_group() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=600)
    groups = np.repeat(["reviews", "phrases"], 300)
    lean = np.where(groups == "reviews", 3.0, -1.0)
    shares = balanced_shares(np.stack([-true, true + lean], axis=1), groups)
    assert shares.sum(1) == pytest.approx(np.ones(600))
    for group in ("reviews", "phrases"):
        mine = groups == group
        assert (shares[mine, 1] > 0.5).mean() == pytest.approx((true[mine] > true[mine].mean()).mean())
        assert np.log(shares[mine, 1] / shares[mine, 0]).mean() == pytest.approx(0, abs=1e-4)
