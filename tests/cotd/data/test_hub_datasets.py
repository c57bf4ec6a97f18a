"""Data sets from the hub. What runs in a child process imports what it needs there: see `tests.hub.child`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.child import VIEWER, refusal, run_check
from tests.hub.repositories import IMDB, NOWHERE, YELP, made_up_examples
from tests.hub.server import Hub
from tests.tasks import SENTIMENT

pytestmark = pytest.mark.integration


def load_data() -> dict[str, Any]:
    from cotd.data.config import DataConfig
    from cotd.data.sources import load_examples

    answer: dict[str, Any] = {}
    for source in (IMDB, YELP):
        examples = load_examples(DataConfig(source=source), SENTIMENT)
        table = examples.table.to_dict("records")
        answer[source] = {"table": table, "counts": examples.counts, "digest": examples.digest()}
    answer["again"] = load_examples(DataConfig(source=IMDB), SENTIMENT).digest()
    answer["missing"] = refusal(lambda: load_examples(DataConfig(source=NOWHERE), SENTIMENT))
    return answer


def find_no_hub() -> dict[str, Any]:
    """The pauses between the libraries' retries are counted and not waited for."""
    from cotd.data.config import DataConfig
    from cotd.data.sources import load_examples

    pauses: list[float] = []
    time.sleep, started = pauses.append, time.monotonic()
    refused = refusal(lambda: load_examples(DataConfig(source=IMDB), SENTIMENT))
    return {**refused, "seconds": time.monotonic() - started + sum(pauses)}


@pytest.fixture(scope="module")
def data(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_check(load_data, hub, tmp_path_factory.mktemp("data"))


def clean(rows: list[tuple[str, int]]) -> set[tuple[str, str]]:
    return {(text.replace("<br /><br />", " "), ("negative", "positive")[label]) for text, label in rows}


def kept(table: list[dict[str, Any]], *splits: str) -> set[tuple[str, str]]:
    return {(row["text"], row["label"]) for row in table if row["split"] in splits}


def test_imdb_gives_an_example_table(data: dict[str, Any]) -> None:
    table, counts = data[IMDB]["table"], data[IMDB]["counts"]
    assert kept(table, "test") == clean(made_up_examples(2, 20))
    assert kept(table, "train", "validation") == clean(made_up_examples(1, 60))
    assert counts["rows"] == 80, "the unsupervised split is left out"
    assert counts["quarantined"] == counts["repeats"] == 0
    assert len(kept(table, "validation")) == counts["kept_validation"] > 0, "validation is carved from train"
    assert data["again"] == data[IMDB]["digest"], "the cached copy is the same"


def test_labels_are_read_as_numbers_whatever_their_names(data: dict[str, Any]) -> None:
    assert kept(data[YELP]["table"], "test") == clean(made_up_examples(5, 12))
    assert kept(data[YELP]["table"], "train", "validation") == clean(made_up_examples(4, 30))


def test_a_data_set_that_is_not_there_is_named(data: dict[str, Any]) -> None:
    assert data["missing"]["type"] == "CotdError"
    assert NOWHERE in data["missing"]["message"]
    assert "Check its name" in data["missing"]["message"]
    assert "embedded:rotten-tomatoes" in data["missing"]["message"]


def test_only_the_named_hub_is_asked(data: dict[str, Any]) -> None:
    assert set(data["strangers"]) <= {VIEWER}


def test_an_unreachable_hub_ends_in_an_error(stopped_hub: Hub, tmp_path: Path) -> None:
    refused = run_check(find_no_hub, stopped_hub, tmp_path)
    assert refused["type"] == "CotdError"
    assert IMDB in refused["message"]
    assert "network" in refused["message"]
    assert refused["seconds"] < 120
