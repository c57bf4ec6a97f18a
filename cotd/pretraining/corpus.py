"""The pretraining corpus: documents, cleaned of protected text, cut into chunks, tokenised once, memory-mapped.

A prepared corpus is a folder of NumPy files. Of chunk i, `pieces[piece_starts[i]:piece_starts[i + 1]]` are the
student's token ids, `</s>` included; `teacher[teacher_starts[i]:teacher_starts[i + 1]]` are the encoder teacher's, its
own special tokens included; and `first` and `last`, as long as `pieces`, say which of the chunk's teacher tokens lie
under each piece. `source[i]` is the number of the chunk's source in the recipe, and `label[i]` the number of its document's
gold label, -1 where that is not to be learned.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cotd.config import DataConfig, digest
from cotd.errors import CotdError
from cotd.pretraining.config import CorpusSource, PretrainConfig
from cotd.pretraining.protection import ProtectedTexts
from cotd.pretraining.tokenizer import task_words, train_tokenizer
from cotd.reviews import build_reviews, clean_text, unit_interval
from cotd.sources import dataset_name, read_rows
from cotd.task import get_task

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"')\]]*(?=\s|$)|$)", re.DOTALL)
ARRAYS = ("pieces", "piece_starts", "teacher", "teacher_starts", "first", "last", "source", "label")
NO_LABEL = -1


class Origin(NamedTuple):
    """Where a document is from, and what it is labelled."""

    source: int  # its number in the recipe
    label: int  # its number among the task's, or NO_LABEL


def read_documents(source: CorpusSource) -> dict[str, int]:
    """A source's texts of the wanted splits, cleaned; equal texts once.

    Returns:
        For each text the number of its gold label, NO_LABEL unless the source's labels are to be learned.

    Raises:
        CotdError: the source or a mapped column does not exist, no text is in those splits, or none of them has a label that is
            to be learned.
    """
    data = DataConfig(source=source.source, columns=source.columns)
    rows = read_rows(data, unlabelled="unlabelled" in source.splits)
    if "unlabelled" in source.splits:
        texts = {clean_text(t): NO_LABEL for t in rows["text"] if isinstance(t, str)}
    else:
        task = get_task(data.task)
        table = build_reviews(rows, dataset_name(data), task, source.test_share, source.validation_share).table
        table = table[table["split"].isin(source.splits)]
        numbers = {label: number for number, label in enumerate(task.labels)} if source.labels else {}
        texts = {text: numbers.get(label, NO_LABEL) for text, label in zip(table["text"], table["label"], strict=True)}
    texts.pop("", None)
    if not texts:
        raise CotdError(f"corpus: {source.source} has no text in split {' or '.join(source.splits)}.")
    if source.labels and not any(label != NO_LABEL for label in texts.values()):
        raise CotdError(f"corpus: {source.source} has no gold labels; name their column (columns.label), or leave labels out.")
    # In the order of a hash, so that a limit takes a fixed pseudo-random sample.
    return {text: texts[text] for text in sorted(texts, key=unit_interval)}


def read_corpus(config: PretrainConfig) -> tuple[dict[str, Origin], dict[str, Any]]:
    """The documents to pretrain on, each with its origin, and the counts of what was read and left out.

    The documents are in the order of a hash, all sources mixed.

    Raises:
        CotdError: naming every source that cannot be read.
    """
    problems: list[str] = []

    def read(source: CorpusSource) -> dict[str, int]:
        try:
            return read_documents(source)
        except CotdError as error:
            problems.extend(error.problems)
            return {}

    protected_texts = [t for source in config.corpus.protect for t in read(source)]
    parts = [dict(islice(read(source).items(), config.corpus.limit)) for source in config.corpus.sources]
    if problems:
        raise CotdError(*problems)
    protected = ProtectedTexts(protected_texts)
    documents: dict[str, Origin] = {}
    counts = []
    for number, (source, texts) in enumerate(zip(config.corpus.sources, parts, strict=True)):
        kept = {t: label for t, label in texts.items() if not protected.contained_in(t)}
        documents |= {t: Origin(number, label) for t, label in kept.items() if t not in documents}
        labelled = sum(label != NO_LABEL for label in kept.values())
        counts.append(
            {"source": source.source, "documents": len(texts), "left_out": len(texts) - len(kept), "labelled": labelled}
        )
    ordered = {text: documents[text] for text in sorted(documents, key=unit_interval)}
    return ordered, {"protected_texts": len(protected_texts), "sources": counts}


def sentences(text: str) -> list[str]:
    """The text's sentences, cut after a full stop, exclamation or question mark and white space."""
    return _SENTENCE.findall(text)


def chunks_of(document: str, limits: list[int], characters_a_piece: float) -> Iterator[str]:
    """Cuts a document at sentence ends into chunks of about at most one of `limits` pieces, the limit drawn for each."""
    current: list[str] = []
    room = 0.0
    for number, sentence in enumerate(sentences(document)):
        if current and len(sentence) > room:
            yield " ".join(current)
            current = []
        if not current:
            room = limits[int(unit_interval(f"chunk\n{number}\n{document}") * len(limits))] * characters_a_piece
        current.append(sentence)
        room -= len(sentence) + 1
    if current:
        yield " ".join(current)


def align(pieces: Sequence[tuple[int, int]], teacher: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Which teacher tokens lie under each piece of the same text.

    Args:
        pieces, teacher: (start, end) characters of each token in the text; (0, 0) for special tokens.

    Returns:
        For each piece the index of the first and of the last teacher token under it. A piece over none of them (white
        space, a character the teacher dropped) gets the next one; `</s>`, and what comes after the last one, get the
        teacher's last token.
    """
    spans, seen = np.array(pieces).reshape(-1, 2), np.array(teacher).reshape(-1, 2)
    (real,) = np.nonzero(seen[:, 1] > seen[:, 0])
    end = len(seen) - 1
    numbers = np.append(real, end)
    first = numbers[np.searchsorted(seen[real, 1], spans[:, 0], side="right")]
    last = numbers[np.searchsorted(seen[real, 0], spans[:, 1], side="left") - 1]  # of an empty `real`, the end
    special = spans[:, 1] <= spans[:, 0]
    first[special] = end
    last[special] = end
    return first, np.maximum(first, last)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus; see the module's docstring for the arrays."""

    folder: Path
    arrays: dict[str, np.ndarray]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Opens a prepared corpus; nothing is read into memory until it is used."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return cls(folder, arrays, json.loads((folder / "corpus.json").read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self.arrays["piece_starts"]) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Pieces of each chunk."""
        return np.diff(self.arrays["piece_starts"])

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """One chunk: `pieces`, `first` and `last`, each of its length in pieces, and `teacher`."""
        a, b = self.arrays["piece_starts"][index : index + 2]
        c, d = self.arrays["teacher_starts"][index : index + 2]
        cut = {name: np.asarray(self.arrays[name][a:b]).astype(np.int64) for name in ("pieces", "first", "last")}
        return cut | {"teacher": np.asarray(self.arrays["teacher"][c:d]).astype(np.int64)}

    def rows(self, name: str, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An array's parts of some chunks, as rows (B, longest) of int64 with zeros behind, and their lengths (B,).

        Args:
            name: "pieces", "teacher", "first" or "last".
            chunks: (B,), the chunks' numbers.
        """
        bounds = self.arrays["teacher_starts" if name == "teacher" else "piece_starts"]
        starts = np.asarray(bounds[chunks])
        lengths = np.asarray(bounds[chunks + 1]) - starts
        real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
        padded = np.zeros(real.shape, dtype=np.int64)
        padded[real] = self.arrays[name][(starts[:, None] + np.arange(real.shape[1]))[real]]
        return padded, lengths


def what_is_read(source: CorpusSource) -> dict[str, Any]:
    """What of a source's description decides its documents."""
    plain = source.model_dump(exclude={"answers", "phrases", "noun", "rationales"})
    for share in ("test_share", "validation_share"):
        if plain[share] == CorpusSource.model_fields[share].default:
            del plain[share]  # as it was before there was a choice: corpora prepared then are found
    return plain


def corpus_digest(config: PretrainConfig) -> str:
    """What a prepared corpus depends on; a folder of another digest is made anew."""
    teacher = config.encoder_teacher.model if config.encoder_teacher else None
    corpus = config.corpus.model_dump(exclude={"held_out"})
    corpus["sources"] = [what_is_read(s) for s in config.corpus.sources]
    corpus["protect"] = [what_is_read(s) | s.model_dump(include={"answers", "phrases", "noun"}) for s in config.corpus.protect]
    tokenizer = config.tokenizer.model_dump() if config.start is None else {"start": config.start}
    return digest({"corpus": corpus, "tokenizer": tokenizer, "teacher": teacher})


def prepare(config: PretrainConfig, report: Callable[[str], None] = print) -> Corpus:
    """Reads, cleans, chunks and tokenises the corpus into the run's folder; does nothing where that is done.

    Args:
        report: called with one line for each step.

    Raises:
        CotdError: a source cannot be read.
    """
    target = config.directory / "corpus"
    wanted = corpus_digest(config)
    if (target / "corpus.json").is_file() and json.loads((target / "corpus.json").read_text())["digest"] == wanted:
        corpus = Corpus.open(target)
        report(f"corpus: in place, {corpus.manifest['tokens']:,} tokens in {len(corpus):,} chunks")
        return corpus
    report("corpus: reading and leaving out protected text")
    documents, counts = read_corpus(config)
    left_out = sum(c["left_out"] for c in counts["sources"])
    report(f"corpus: {len(documents):,} documents; {left_out:,} left out for text they share with protected ones")
    tokenizer = make_tokenizer(config, documents, report)
    scratch = target.with_name("corpus.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    tokenizer.save_pretrained(scratch / "tokenizer")
    report("corpus: tokenising")
    write_arrays(scratch, documents, tokenizer, load_teacher_tokenizer(config), config.corpus.chunk_tokens)
    sizes = {name: len(np.load(scratch / f"{name}.npy", mmap_mode="r")) for name in ("pieces", "piece_starts")}
    manifest = counts | {"digest": wanted, "tokens": sizes["pieces"], "chunks": sizes["piece_starts"] - 1}
    (scratch / "corpus.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    corpus = Corpus.open(target)
    report(f"corpus: {manifest['tokens']:,} tokens in {len(corpus):,} chunks")
    return corpus


def make_tokenizer(config: PretrainConfig, documents: dict[str, Origin], report: Callable[[str], None]) -> Any:
    """The tokenizer of the T5 that the run goes on from, or a new one trained on the first documents."""
    from transformers import AutoTokenizer

    from cotd.student import resolve_model

    if config.start is not None:
        return AutoTokenizer.from_pretrained(resolve_model(config.start))
    report(f"tokenizer: training {config.tokenizer.vocabulary:,} pieces")
    sample = list(documents)[: config.tokenizer.train_documents]
    return train_tokenizer(sample, config.tokenizer.vocabulary, task_words())


def load_teacher_tokenizer(config: PretrainConfig) -> Any | None:
    """The encoder teacher's tokenizer, or None where there is no such teacher."""
    from transformers import AutoTokenizer

    from cotd.student import resolve_model

    if config.encoder_teacher is None:
        return None
    return AutoTokenizer.from_pretrained(resolve_model(config.encoder_teacher.model))


def id_type(tokenizer: Any | None) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds a tokenizer's ids; those of many languages have hundreds of thousands."""
    return np.uint16 if tokenizer is None or len(tokenizer) <= 2**16 else np.uint32


def write_arrays(folder: Path, documents: dict[str, Origin], tokenizer: Any, teacher: Any | None, limits: list[int]) -> None:
    """Tokenises documents with both tokenizers and writes the corpus' arrays."""
    texts_and_origins = list(documents.items())
    sample = [t for t, _ in texts_and_origins[:500]]
    pieces_in_sample = sum(len(ids) for ids in tokenizer(sample, verbose=False)["input_ids"])
    characters_a_piece = sum(map(len, sample)) / pieces_in_sample
    longest = max(limits)
    piece_type, teacher_type = id_type(tokenizer), id_type(teacher)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("pieces", "teacher", "first", "last")}
    piece_lengths, teacher_lengths = [], []
    origins: list[Origin] = []
    for start in range(0, len(texts_and_origins), 256):
        cut = [(c, o) for d, o in texts_and_origins[start : start + 256] for c in chunks_of(d, limits, characters_a_piece)]
        texts = [c for c, _ in cut]
        origins += [o for _, o in cut]
        coded = tokenizer(texts, return_offsets_mapping=True, max_length=longest, truncation=True)
        seen: dict[str, Any] = (
            teacher(texts, return_offsets_mapping=True, max_length=512, truncation=True)
            if teacher
            else {"input_ids": [[0]] * len(texts), "offset_mapping": [[(0, 0)]] * len(texts)}
        )
        for i in range(len(texts)):
            first, last = align(coded["offset_mapping"][i], seen["offset_mapping"][i])
            columns["pieces"].append(np.array(coded["input_ids"][i], dtype=piece_type))
            columns["teacher"].append(np.array(seen["input_ids"][i], dtype=teacher_type))
            columns["first"].append(first.astype(np.uint16))
            columns["last"].append(last.astype(np.uint16))
            piece_lengths.append(len(first))
            teacher_lengths.append(len(seen["input_ids"][i]))
    for name, parts in columns.items():
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    np.save(folder / "source.npy", np.array([o.source for o in origins], dtype=np.uint8))
    np.save(folder / "label.npy", np.array([o.label for o in origins], dtype=np.int8))
    np.save(folder / "piece_starts.npy", np.cumsum([0, *piece_lengths], dtype=np.int64))
    np.save(folder / "teacher_starts.npy", np.cumsum([0, *teacher_lengths], dtype=np.int64))
