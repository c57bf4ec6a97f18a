"""Random faults while a study is annotated, swept, promoted and served: `python -m tests.chaos --seed N --minutes M --faults K`.

Everything runs on this machine, with a tiny student: an S3 server behind a proxy, an MLflow server, a teacher's API that counts
what it was paid for, and an endpoint with two replicas under load. A command that ends by a fault is given again. At the end
nothing may be lost, doubled, failed or left over. Which faults happen, and when, depends on the seed alone; what they hit also
depends on the machine. Writes runs/bench/chaos.json.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cotd.errors import CotdError
from serve.client import Client
from tests.benchmarks.figures import figure, write
from tests.chaos.faults import FAULTS, WHEN, Fault
from tests.chaos.world import World, world

COUNT = {"annotate": 2, "sweep": 4, "promote": 1, "serve": 3}  # faults a round
TRIES = 8  # of a command after its last fault
SECONDS_A_TRY = 900.0


class Traffic(threading.Thread):
    """Requests to the endpoint, one after the other, for as long as it runs."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url, self.ending, self.answered, self.failures = url, threading.Event(), 0, []  # type: ignore[var-annotated]

    def run(self) -> None:
        with Client(self.url, timeout_seconds=30) as client:
            while not self.ending.wait(0.05):
                try:
                    client.predict([f"A warm and funny film, number {self.answered}."])
                    self.answered += 1
                except CotdError as error:
                    self.failures.append(str(error))
                    say(f"  a request failed: {error}")

    def end(self) -> None:
        self.ending.set()
        self.join(60)


@dataclass
class Outcome:
    """What has happened, and what was found."""

    faults: int = 0
    paid_twice: int = 0
    found: Counter[str] = field(default_factory=Counter)
    orphans: list[str] = field(default_factory=list)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Chaos:
    """A run: its random numbers, and for each stage the faults that are still to come, so that each has its turn."""

    def __init__(self, here: World, seed: int):
        self.here, self.draw, self.outcome = here, random.Random(seed), Outcome()
        self.left: dict[str, list[Fault]] = {}

    def next_fault(self, stage: str) -> Fault:
        if not self.left.get(stage):
            self.left[stage] = self.draw.sample(FAULTS[stage], len(FAULTS[stage]))
        return self.left[stage].pop()

    def happen(self, stage: str, fault: Fault, command: subprocess.Popen[bytes] | None) -> None:
        if said := fault(self.here, self.draw, command):
            self.outcome.faults += 1
            say(f"  {self.outcome.faults}. {said}")
        else:
            say(f"  nothing to hit: {fault.__name__}")

    def stage(self, name: str, *arguments: str) -> None:
        """Gives a command until it is done, through its faults.

        Raises:
            SystemExit: it does not end, or not well, without faults, too.
        """
        say(name)
        plan = [(self.draw.uniform(*WHEN[name]), self.next_fault(name)) for _ in range(COUNT[name])]
        command = self.here.command(*arguments)
        tries = 0
        while True:
            deadline = time.monotonic() + (plan[0][0] if plan else SECONDS_A_TRY)
            while command.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if command.poll() == 0:
                break
            if plan:
                self.happen(name, plan.pop(0)[1], command)
            elif command.poll() is None:
                self.fail(f"{name} has not ended after {SECONDS_A_TRY:.0f} s")
            time.sleep(1)
            if command.poll() not in (None, 0):
                tries = 0 if plan else tries + 1
                if tries > TRIES:
                    self.fail(f"{name} ends with {command.returncode} again and again")
                say(f"  {name} has ended with {command.returncode}, and is given again")
                command = self.here.command(*arguments)
        for _, fault in plan:
            say(f"  done before {fault.__name__}")

    def fail(self, message: str) -> None:
        for log in sorted(self.here.folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise SystemExit(f"error: {message}")

    def serve(self) -> None:
        """Faults of the endpoint."""
        say("serve")
        for _ in range(COUNT["serve"]):
            time.sleep(self.draw.uniform(*WHEN["serve"]))
            self.happen("serve", self.next_fault("serve"), None)
        time.sleep(5)

    def round(self, number: int) -> None:
        """A study from its texts to its champion."""
        name = f"round{number}"
        say(f"{name}")
        path = str(self.here.write_study(name))
        self.stage("annotate", "annotate", path, "--yes")
        self.outcome.paid_twice += sum(count - 1 for count in self.here.paid.values())
        self.here.paid.clear()  # the next study asks the same
        self.stage("sweep", "sweep", path)
        self.stage("promote", "promote", path, "--all-methods")

    def check(self, number: int) -> None:
        """Counts what a round has lost, doubled or left."""
        name = f"round{number}"
        found = self.here.rows(name) | self.here.trials(name)
        orphans = self.here.orphans(name) + self.here.processes_left()
        self.outcome.found.update(found)
        self.outcome.orphans += orphans
        say(f"  {found}, orphans: {orphans or 0}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--faults", type=int, default=100)
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # so that all that was started is ended, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    deadline = time.monotonic() + 60 * arguments.minutes
    say(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="cotd-chaos-", ignore_cleanup_errors=True) as folder, world(Path(folder)) as here:
        chaos, traffic, number = Chaos(here, arguments.seed), None, 0
        while chaos.outcome.faults < arguments.faults and (number == 0 or time.monotonic() < deadline):
            chaos.round(number)
            if traffic is None:
                here.start_endpoint()
                traffic = Traffic(here.serve_url)
                traffic.start()
            chaos.serve()
            chaos.check(number)
            number += 1
        assert traffic is not None
        traffic.end()
        if not here.end_endpoint():
            chaos.outcome.orphans.append("the endpoint did not end")
        outcome = chaos.outcome
        counts = {"rows_lost": 0, "rows_doubled": 0, "trials_lost": 0, "trials_doubled": 0} | outcome.found
        counts |= {"requests_failed": len(traffic.failures), "orphans": len(outcome.orphans)}
    note = f"seed {arguments.seed}, {number} rounds; {outcome.paid_twice} requests were paid twice"
    figures = [figure("faults", outcome.faults, "faults", note=note)]
    figures += [figure(name, count, name.partition("_")[0]) for name, count in counts.items()]
    figures.append(figure("requests_answered", traffic.answered, "requests"))
    write("chaos", figures, small=outcome.faults < 100)
    for line in outcome.orphans + traffic.failures[:10]:
        print(line)
    sys.exit(any(counts.values()))


if __name__ == "__main__":
    main()
