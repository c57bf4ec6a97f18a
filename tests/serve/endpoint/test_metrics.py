"""Metrics of several replicas of a machine: added up at a scrape of any, without those that have ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPLICA = """
import sys
from serve.endpoint.metrics import Metrics
metrics = Metrics(sys.argv[1])
metrics.predictions.labels("positive", "1").inc(3)
metrics.model_replicas.labels("n", "1", "torch").set(1)
print("there", flush=True)
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
        assert self.process.stdout.readline() == "there\n"

    def scrape(self) -> dict[str, float]:
        """Asks for the figures; the replica ends then."""
        output, _ = self.process.communicate("\n", timeout=60)
        lines = [line.rsplit(" ", 1) for line in output.splitlines() if line.startswith("cotd_")]
        return {name: float(value) for name, value in lines}


def test_replicas_add_up_and_the_dead_do_not_serve(tmp_path: Path) -> None:
    first, second, third = (Replica(tmp_path) for _ in range(3))
    third.process.kill()  # and not waited for: a zombie, which has ended all the same
    seen = first.scrape()
    assert (seen[COUNTED], seen[SERVING]) == (9, 2), "what a replica answered stays counted when it is gone"
    third.process.wait()
    fourth = Replica(tmp_path)
    assert second.scrape()[COUNTED] == 12
    assert fourth.scrape()[SERVING] == 1
    assert Replica(tmp_path).scrape()[COUNTED] == 3, "nobody was left: it begins anew"
