"""vLLM engines in Ray actors of our own: the default on CPUs, where they start three times faster."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from typing import Any

import ray

from cotd.errors import CotdError
from cotd.teachers.config import EngineConfig
from cotd.teachers.store import REFUSED_REASON, Completion, new_completion
from cotd.utils.memory import collect_seldom
from pipelines.annotate.engines.placement import Placement
from pipelines.annotate.engines.vllm import completion_of, environment, sampling_parameters, vllm_prompt

# Batches that a pipeline has for each of the in-process engines, which outlive it, and rows that it has at most, unless that would
# be fewer than LEAST_BATCHES for each: the driver holds so many prompts at once.
PIPELINE_BATCHES, PIPELINE_ROWS, LEAST_BATCHES = 32, 100_000, 4
# Of an engine, in a run. Finding the row in a batch of 256 that an engine dies of takes ten; what is broken itself must end.
RESTARTS = 32
START_SECONDS = 3600.0  # of an engine: a model of a hundred gigabytes may come over a network, and others may have the GPUs
FAILED_STARTS = 5  # of an engine that is dead, before it counts as gone for good
RESPONSE_SECONDS = 60.0  # of an engine that lives
GONE = "gone"  # in place of completions: why there is no engine any more. Ray Data keeps nothing of an error but its trace.

Rows = dict[str, list[Any]]  # columns `key`, `prompt` (text or token ids) and `sampling`; the last two are JSON


def start_engines(
    engine_class: type, model: str, arguments: dict[str, Any], config: EngineConfig, placement: Placement
) -> list[Any]:
    """Actors with an engine each. They start in the background; the first request waits for them."""
    variables = {**environment(config, placement.threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    actor = ray.remote(engine_class).options(
        num_cpus=placement.cpus, num_gpus=placement.gpus, runtime_env={"env_vars": variables}, scheduling_strategy="SPREAD",
        max_restarts=RESTARTS,
    )  # fmt: skip
    return [actor.remote({"model": model, **arguments}) for _ in range(config.replicas)]


def pipeline_rows(config: EngineConfig) -> int:
    """Rows a pipeline: enough that all engines have work, and that little of their time is between pipelines."""
    a_batch = config.replicas * config.batch_size
    return max(LEAST_BATCHES * a_batch, min(PIPELINE_BATCHES * a_batch, PIPELINE_ROWS))


def run_pipeline(blocks: Any, engines: list[Any], tasks: int) -> Any:
    """A dataset with the column `completion`, each row a completion as JSON. A block is a batch; `tasks` are asked at once.

    One process asks in as many threads: a task each would be a Python process each, which takes seconds to start on
    every node. The engines take turns, so that each has one batch to work on and one waiting.
    """
    pool = ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=tasks, enable_true_multi_threading=True)
    with warnings.catch_warnings():
        # max_concurrency has no name of its own in Ray 2.60, whose other remote arguments have; that is warned of.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        return blocks.map_batches(
            AskEngines, fn_constructor_args=(engines,), batch_size=None, compute=pool, num_cpus=0, max_concurrency=tasks
        )


class AskEngines:
    """Hands batches to engines, and waits: each to the one that has the fewest.

    Of a batch that an engine dies of, or fails at in a way that leaves it in no known state, halves are asked, each of a
    new engine, until the row is found; it is quarantined for good, as the next run's engine would die of it too. What an engine
    leaves that does not start, or not again, others are asked.
    """

    def __init__(self, engines: list[Any]):
        self.engines = engines
        self.choosing = threading.Lock()
        self.batches = [0] * len(engines)  # that an engine has
        self.started: set[int] = set()
        self.gone: dict[int, str] = {}  # engine → why there is none any more
        # While a row is searched for nobody else asks that engine, or would be taken for the culprit.
        self.searching = [threading.Lock() for _ in engines]
        self.searches = [0] * len(engines)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = {column: list(batch[column]) for column in ("key", "prompt", "sampling")}
        while (number := self._choose()) is not None:
            try:
                return {"completion": self._ask(number, rows)}
            except CotdError as gone:
                self.gone[number] = str(gone)
            finally:
                with self.choosing:
                    self.batches[number] -= 1
        return {"completion": [json.dumps({GONE: next(iter(self.gone.values()))})]}

    def _choose(self) -> int | None:
        """An engine that has no more batches than others, which then has one more; None if there is none any more."""
        with self.choosing:
            left = [number for number in range(len(self.engines)) if number not in self.gone]
            number = min(left, key=self.batches.__getitem__, default=None)
            if number is not None:
                self.batches[number] += 1
            return number

    def _ask(self, number: int, rows: Rows) -> list[str]:
        """The completions of rows.

        Raises:
            CotdError: there is no such engine any more.
        """
        engine = self.engines[number]
        if number not in self.started:
            with contextlib.suppress(ray.exceptions.RayActorError):  # asked for completions it says so again
                require_start(engine)
            self.started.add(number)
        with self.searching[number]:
            searches = self.searches[number]
            completions = engine.complete.remote(rows)
        try:
            return ray.get(completions)["completion"]
        except ray.exceptions.RayError as error:
            with self.searching[number]:
                others = searches < self.searches[number]  # it may have failed with another batch's row
                self.searches[number] += 1
                revive(engine, error)
                if others or may_be_innocent(error, rows):
                    return self._completions(engine, rows, again=not others)
                return self._halves(engine, rows, error)

    def _completions(self, engine: Any, rows: Rows, again: bool = False) -> list[str]:
        try:
            return ray.get(engine.complete.remote(rows))["completion"]
        except ray.exceptions.RayError as error:
            revive(engine, error)
            if may_be_innocent(error, rows) and not again:
                return self._completions(engine, rows, again=True)
            return self._halves(engine, rows, error)

    def _halves(self, engine: Any, rows: Rows, error: Exception) -> list[str]:
        """The completions of rows that have just failed together."""
        n = len(rows["key"])
        if n == 1:
            reason = f"the engine failed at it: {reason_of(error)}"
            return [json.dumps(new_completion(rows["key"][0], error=reason, finish_reason=REFUSED_REASON))]
        parts = ({column: values[part] for column, values in rows.items()} for part in (slice(n // 2), slice(n // 2, n)))
        return [row for half in parts for row in self._completions(engine, half)]


def may_be_innocent(error: Exception, rows: Rows) -> bool:
    """Whether a single row is to be asked about once more: an engine that is gone may have gone for another reason.

    A machine short of memory, say, or a network that broke. A row that an engine fails at without dying is the culprit.
    """
    return len(rows["key"]) == 1 and isinstance(error, ray.exceptions.RayActorError)


def require_start(engine: Any) -> None:
    """Waits until an engine has started.

    Raises:
        CotdError: it has not in time. RayActorError: it cannot.
    """
    try:
        ray.get(engine.__ray_ready__.remote(), timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise CotdError(
            f"has not started within {START_SECONDS / 60:.0f} minutes: what it takes of Ray's nodes is taken, or its node is gone"
        ) from error


def process_of(engine: Any) -> str | None:
    """Which process an engine is in, while that lives; None where it does not respond."""
    try:
        call = engine.__ray_call__.remote(lambda self: ray.get_runtime_context().get_worker_id())
        return ray.get(call, timeout=RESPONSE_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None


def revive(engine: Any, error: Exception) -> None:
    """Waits until an engine that failed with `error` has started anew.

    Raises:
        CotdError: it does not.
    """
    if not isinstance(error, ray.exceptions.RayActorError):  # it lives, with requests half done
        gone = process_of(engine)
        ray.kill(engine, no_restart=False)
        while gone and process_of(engine) == gone:  # a kill takes a moment, in which it would still take requests
            time.sleep(0.05)
    deadline, tries = time.monotonic() + START_SECONDS, 0
    while True:
        try:
            require_start(engine)
            return
        except ray.exceptions.RayActorError as problem:
            last = problem
            # While it restarts, which takes a busy machine long, it is unavailable. At first it may not be known yet that it is gone.
            tries += not isinstance(problem, ray.exceptions.ActorUnavailableError)
            if problem.actor_init_failed or tries > FAILED_STARTS or time.monotonic() > deadline:
                break
            time.sleep(min(0.2 * 2**tries, 4))
    again = "" if last is error or reason_of(last) == reason_of(error) else f" again, after {reason_of(error)}"
    raise CotdError(f"does not start{again}: {reason_of(last)}")


def reason_of(error: BaseException) -> str:
    """The cause of an error of Ray's, in a line."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    lines = [line.strip()[:200].rstrip(".") for line in str(error).splitlines() if line.strip()] or ["no message"]
    if getattr(error, "actor_init_failed", False):
        return lines[-1]  # of a traceback, the error
    return f"{type(error).__name__}: {lines[0]}"


class InProcessEngine:
    """One vLLM engine in an actor of its own, which outlives the pipelines that ask it."""

    def __init__(self, arguments: dict[str, Any]):
        collect_seldom()
        from vllm import LLM

        self.llm = LLM(**arguments)

    def complete(self, batch: Rows) -> dict[str, list[str]]:
        """Completes a batch; the column `completion` is JSON.

        Raises:
            Exception: whatever vLLM fails with half way; from then on nothing but an error, until the actor is started anew.
        """
        from vllm.exceptions import VLLMClientError

        if self._left_off():
            raise RuntimeError("the engine failed at another batch")
        columns = zip(batch["key"], batch["prompt"], batch["sampling"], strict=True)
        rows = [(str(key), vllm_prompt(prompt), json.loads(sampling)) for key, prompt, sampling in columns]
        try:
            completions = self._generate(rows)
        except (ValueError, VLLMClientError):
            if self._left_off():
                raise
            completions = [self._generate_one(row) for row in rows]  # refused for one bad request: the others are completed
        return {"completion": [json.dumps(c) for c in completions]}

    def _generate(self, rows: list[tuple[str, Any, dict[str, Any]]]) -> list[Completion]:
        outputs = self.llm.generate([p for _, p, _ in rows], [sampling_parameters(s) for _, _, s in rows], use_tqdm=False)
        return [completion_of(key, output, sampling) for (key, _, sampling), output in zip(rows, outputs, strict=True)]

    def _generate_one(self, row: tuple[str, Any, dict[str, Any]]) -> Completion:
        from vllm.exceptions import VLLMClientError

        try:
            return self._generate([row])[0]
        except (ValueError, VLLMClientError) as error:
            if self._left_off():
                raise
            return new_completion(row[0], error=f"{type(error).__name__}: {error}")

    def _left_off(self) -> bool:
        """Whether vLLM still holds requests of a batch that it failed at: it would go round for ever, waiting for those."""
        return bool(self.llm.llm_engine.has_unfinished_requests())
