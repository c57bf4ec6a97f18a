"""Metrics of several replicas of a machine: a scrape of any of them adds up all that are alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cotd.errors import CotdError
from serve.endpoint.metrics import make_private

REPLICA = """
import sys
from serve.endpoint.metrics import Metrics
metrics = Metrics(sys.argv[1])
metrics.predictions.labels("positive", "1").inc(3)
metrics.model_replicas.labels("n", "1", "torch").set(1)
print("ready", flush=True)
sys.stdin.readline()
print(metrics.render()[0].decode(), flush=True)
"""
COUNTED = 'cotd_predictions_total{label="positive",model_version="1"}'
SERVING = 'cotd_model_replicas{name="n",runtime="torch",version="1"}'


class Replica:
    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def scrape(self) -> dict[str, float]:
        """The replica's figures; it ends then."""
        output, _ = self.process.communicate("\n", timeout=60)
        lines = [line.rsplit(" ", 1) for line in output.splitlines() if line.startswith("cotd_")]
        return {name: float(value) for name, value in lines}


def test_replicas_add_up_and_dead_ones_do_not_count_as_serving(tmp_path: Path) -> None:
    first, second, third = (Replica(tmp_path) for _ in range(3))
    third.process.kill()  # not waited for: a zombie
    seen = first.scrape()
    assert (seen[COUNTED], seen[SERVING]) == (9, 2), "predictions of a dead replica stay counted"
    third.process.wait()
    fourth = Replica(tmp_path)
    assert second.scrape()[COUNTED] == 12
    assert fourth.scrape()[SERVING] == 1
    assert Replica(tmp_path).scrape()[COUNTED] == 3, "no replica was alive: it starts from zero"


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """What is recorded there names a student that will be loaded."""
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o777)
    with pytest.raises(CotdError, match="other users can write to"):
        make_private(shared)
    make_private(tmp_path / "own")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
