import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.config import DataConfig
from cotd.errors import CotdError
from cotd.pretraining.batches import plan_batches
from cotd.pretraining.config import CorpusSource, PretrainConfig
from cotd.pretraining.corpus import NO_LABEL, Corpus, align, chunks_of, id_type, prepare, read_corpus, read_documents
from cotd.pretraining.protection import ProtectedTexts, normalised_words
from cotd.sources import load_reviews

SENTENCE = "the plot of this long film makes no sense at all but its two leads are wonderful in every scene"
WORDS = SENTENCE.split()


@pytest.mark.parametrize(
    ("protected", "document", "expected"),
    [
        (" ".join(WORDS), "Before. " + " ".join(WORDS[3:17]).upper() + "! After.", True),  # 13 words of a long text
        (" ".join(WORDS), " ".join(WORDS[:12]) + " and more", False),  # only 12 of them
        (" ".join(WORDS[:9]), "I say: " + " ".join(WORDS[:9]) + ".", True),  # a short text, inside
        (" ".join(WORDS[:9]), " ".join(WORDS[:7]) + " and more", False),
        ("Great film!", "great FILM", True),  # very short: only as a whole
        ("Great film!", "A great film indeed", False),
    ],
)
def test_documents_that_share_a_run_of_words_with_a_protected_text_are_found(
    protected: str, document: str, expected: bool
) -> None:
    assert ProtectedTexts([protected]).contained_in(document) is expected


def test_no_document_holds_a_protected_review(rotten_tomatoes: Path) -> None:
    source = "embedded:rotten-tomatoes"
    corpus = {"sources": [{"source": source}], "protect": [{"source": source, "splits": ["validation", "test"]}]}
    config = PretrainConfig.model_validate({"name": "t", "corpus": corpus, "embeddings": "random", "training": {"steps": 0}})
    documents, counts = read_corpus(config)
    folded = {t: " ".join(normalised_words(t)) for t in documents}
    protected = [t for s in config.corpus.protect for t in read_documents(s)]
    long = [" ".join(normalised_words(t)) for t in protected if len(normalised_words(t)) >= 8]
    everything = "\n".join(folded.values())
    assert len(protected) > 3000
    assert not [t for t in long if t in everything]
    assert 0 < counts["sources"][0]["left_out"] < 50


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=30), st.data())
def test_every_piece_is_aligned_with_the_tokens_that_overlap_it(gaps: list[tuple[int, int]], data: st.DataObject) -> None:
    def spans(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
        made, position = [], 0
        for gap, length in parts:
            made.append((position + gap, position + gap + length))
            position += gap + length
        return made

    teacher = [(0, 0), *spans(gaps), (0, 0)]
    length = teacher[-2][1]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=10)) | {0, length})
    pieces = [*itertools.pairwise(cuts), (0, 0)]
    first, last = align(pieces, teacher)
    for (start, stop), a, b in zip(pieces[:-1], first, last, strict=False):
        overlapping = [i for i, (s, e) in enumerate(teacher) if s < stop and e > start]
        if overlapping:
            assert (a, b) == (overlapping[0], overlapping[-1])
        assert 0 < a <= b < len(teacher)
    assert first[-1] == last[-1] == len(teacher) - 1, "the end of sequence learns from the teacher's own"


@given(st.lists(st.integers(2, 200), min_size=1, max_size=300), st.integers(200, 2000), st.integers(0, 99))
def test_batches_hold_every_chunk_once_within_the_budget(lengths: list[int], budget: int, seed: int) -> None:
    sizes = np.array(lengths)
    batches = plan_batches(sizes, budget, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(sizes)))
    assert all(sizes[b].max() * len(b) <= budget for b in batches)


@given(st.text(alphabet='ab .!?"', max_size=300))
def test_chunks_lose_no_word(document: str) -> None:
    chunks = list(chunks_of(document.strip(), [4, 8], 4.0))
    assert " ".join(chunks).split() == document.split()


def labelled_file(folder: Path, label: str) -> dict[str, object]:
    """A source of forty long reviews; the even ones are positive, and have a word to know them by."""
    path = folder / f"{label}.csv"
    words = {0: ("positive", "sunshine"), 1: ("negative", "drizzle")}
    rows = [f"{words[n % 2][0]},{words[n % 2][1]} number {n} is here. It goes on and on. And so it ends." for n in range(40)]
    path.write_text(f"{label},text\n" + "\n".join(rows))
    return {"source": str(path), "splits": ["train", "validation", "test"], "labels": True}


def test_every_chunk_has_its_document_s_gold_label(tmp_path: Path) -> None:
    sources = [labelled_file(tmp_path, "label"), {"source": "embedded:amazon-sentences"}]
    plain = {
        "name": "t", "corpus": {"sources": sources, "limit": 40, "chunk_tokens": [8]}, "embeddings": "random",
        "tokenizer": {"vocabulary": 700}, "training": {"steps": 0}, "storage": str(tmp_path),
    }  # fmt: skip
    prepare(PretrainConfig.model_validate(plain), lambda _: None)
    corpus = Corpus.open(tmp_path / "t" / "corpus")
    labels, source = corpus.arrays["label"], corpus.arrays["source"]
    assert (labels[source == 1] == NO_LABEL).all(), "labels that nobody asked for are not learned"
    assert (source == 0).sum() > 60, "documents are cut"
    assert np.bincount(labels[source == 0]).tolist() == [(source == 0).sum() / 2] * 2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus.folder / "tokenizer")
    texts = [
        (tokenizer.decode(corpus.chunk(i)["pieces"]).replace(" ", ""), int(labels[i])) for i in np.flatnonzero(source == 0)
    ]
    assert {label for text, label in texts if "sunshine" in text} == {1}
    assert {label for text, label in texts if "drizzle" in text} == {0}
    some = np.array([5, 0, len(corpus) - 1])
    for name in ("pieces", "teacher", "first", "last"):
        rows, lengths = corpus.rows(name, some)
        for chunk, row, length in zip(some, rows, lengths, strict=True):
            assert row.tolist() == [*corpus.chunk(chunk)[name], *[0] * (rows.shape[1] - length)]


def test_gold_labels_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    plain = labelled_file(tmp_path, "stars")
    with pytest.raises(CotdError, match=r"no gold labels; name their column \(columns.label\)"):
        read_documents(CorpusSource.model_validate(plain))
    named = CorpusSource.model_validate(plain | {"columns": {"label": "stars"}})
    assert sorted(read_documents(named).values()) == [0] * 20 + [1] * 20


def test_the_held_out_texts_are_those_of_a_study_with_the_same_shares(tmp_path: Path) -> None:
    plain = labelled_file(tmp_path, "label") | {"labels": False, "test_share": 0.5}
    study = load_reviews(DataConfig(source=str(plain["source"]), test_share=0.5)).table
    read = read_documents(CorpusSource.model_validate(plain | {"splits": ["train"]}))
    assert set(read) == set(study[study["split"] == "train"]["text"])


def test_ids_beyond_sixteen_bits_are_kept() -> None:
    few, many = range(2**16), range(2**16 + 1)
    assert np.iinfo(id_type(few)).max == few[-1]
    assert np.iinfo(id_type(many)).max >= many[-1]


def test_a_missing_source_is_named_before_anything_starts(tmp_path: Path) -> None:
    corpus = {"sources": [{"source": str(tmp_path / "a.csv")}], "protect": [{"source": "embedded:rotten-tomatos"}]}
    plain = {"name": "t", "corpus": corpus, "embeddings": "random", "training": {"steps": 0}, "storage": str(tmp_path)}
    config = PretrainConfig.model_validate(plain)
    with pytest.raises(CotdError) as raised:
        prepare(config, lambda _: None)
    assert len(raised.value.problems) == 2
    assert "rotten-tomatoes" in str(raised.value)
