"""Why a label is right, in a teacher's words: texts for the decoder to write (as in Hsieh et al. 2023, before any finetuning)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.config import DataConfig
from cotd.errors import CotdError
from cotd.pretraining.config import CorpusSource, PretrainConfig
from cotd.pretraining.corpus import Corpus, read_documents
from cotd.reviews import review_id
from cotd.sources import dataset_name

COLUMNS = ["review_id", "rationale", "error"]


@dataclass(frozen=True)
class Rationales:
    """Texts of the corpus, and for each what a teacher wrote about it.

    Attributes:
        texts, rationales: n of each; a text stands as often as it has rationales.
        chunks: (n,), the chunk of the corpus that each text is.
    """

    texts: list[str]
    rationales: list[str]
    chunks: np.ndarray

    @classmethod
    def read(cls, config: PretrainConfig, corpus: Corpus, tokenizer: Any) -> Rationales:
        """The rationales of all documents of the corpus that were not cut into several chunks: of a part of a review the
        reasons may lie elsewhere.

        Raises:
            CotdError: none of a source's rationales is about such a document.
        """
        texts: list[str] = []
        rationales: list[str] = []
        chunks: list[int] = []
        for number, source in enumerate(config.corpus.sources):
            if source.rationales is None:
                continue
            # What protection left out is in no chunk.
            (mine,) = np.nonzero(corpus.arrays["source"] == number)
            chunk_of = {corpus.chunk(i)["pieces"].tobytes(): int(i) for i in mine}
            before = len(texts)
            written = read_rationales(source)
            documents = {text: review_id(dataset(source), text) for text in read_documents(source)}
            explained = {text: written[id_] for text, id_ in documents.items() if id_ in written}
            for text, reasons in explained.items():
                chunk = chunk_of.get(np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64).tobytes())
                if chunk is not None:
                    texts += [text] * len(reasons)
                    rationales += reasons
                    chunks += [chunk] * len(reasons)
            if len(texts) == before:
                raise CotdError(
                    f"corpus: none of the {len(written):,} reviews in {source.rationales} is a document of {source.source} in one "
                    "chunk. Name the annotations of this very source, and chunk_tokens as long as its reviews."
                )
        return cls(texts, rationales, np.array(chunks, dtype=np.int64))

    def of(self, chunks: np.ndarray) -> Rationales:
        """Only those of some of the corpus' chunks."""
        (rows,) = np.nonzero(np.isin(self.chunks, chunks))
        return Rationales([self.texts[i] for i in rows], [self.rationales[i] for i in rows], self.chunks[rows])


def dataset(source: CorpusSource) -> str:
    """The name that the ids of a source's reviews are made with."""
    return dataset_name(DataConfig(source=source.source, columns=source.columns))


def read_rationales(source: CorpusSource) -> dict[str, list[str]]:
    """Review id → its rationales, of an annotations file.

    Raises:
        CotdError: there is no such file, or it is not one that `cotd annotate` wrote.
    """
    assert source.rationales is not None
    path = Path(source.rationales).expanduser()
    advice = "Name the annotations.parquet that `cotd annotate` wrote in runs/NAME/annotations."
    if not path.is_file():
        raise CotdError(f"corpus: {path}, the rationales of {source.source}, does not exist. {advice}")
    try:
        table = pd.read_parquet(path, columns=COLUMNS)
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these two kinds
        raise CotdError(f"corpus: {path}, the rationales of {source.source}, cannot be read: {error}. {advice}") from error
    whole = table[table["error"].isna() & table["rationale"].notna() & (table["rationale"] != "")]
    grouped: dict[str, list[str]] = (
        whole.drop_duplicates(["review_id", "rationale"]).groupby("review_id")["rationale"].agg(list)
    )
    return dict(grouped)
