"""Which engine a teacher is asked through, and its start: an endpoint, or vLLM inside Ray Data in one of two ways.

Both have one engine an actor:

- `ray_data_llm`, the default on GPUs: `ray.data.llm`'s vLLMEngineProcessor, with continuous batching across blocks and
  tensor parallelism.
- `in_process`, the default on CPUs: vLLM's offline LLM in a Ray actor that a `map_batches` stage asks. The former starts
  three processes that import vLLM one after another, and starts them for each pipeline, of which a strategy has two:
  two times 95 s on two cores, where this starts once, in 35 s (measured). Two cores are saturated either way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from cotd.errors import CotdError
from cotd.progress import say
from cotd.students.base_models import resolve_model
from cotd.teachers.config import EngineConfig, TeacherConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
from cotd.teachers.teacher import Teacher
from cotd.utils.iteration import batched
from pipelines.annotate.ask import Complete
from pipelines.annotate.engines import in_process, ray_data_llm
from pipelines.annotate.engines.api.batch import batch_engine
from pipelines.annotate.engines.api.engine import api_engine
from pipelines.annotate.engines.placement import place_engines
from pipelines.annotate.engines.vllm import engine_arguments, engine_dtype
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.journal import Journal
from pipelines.cluster.resources import has_gpus
from pipelines.cluster.session import ray_session

KEPT = "What is done is kept; the same command resumes there."


def start_engine(
    config: TeacherConfig,
    teacher: Teacher,
    may_pay_again: Callable[[Request], bool],
    files: AnnotationFiles,
    stack: contextlib.ExitStack,
) -> Complete:
    """Starts Ray, if it does not run, and the engine; or the client of an endpoint. `stack` ends them.

    Args:
        may_pay_again: whether a budget has room for another try of a request that may have been paid for.
        files: where the batches of `api.mode: batch` are that are not done, and completions that are not in the store yet.
    """
    if config.api and config.api.mode == "batch":
        return stack.enter_context(batch_engine(config.model, config.api, teacher.count, files.batches))
    if config.api:
        journal = stack.enter_context(contextlib.closing(Journal(files.journal)))
        return stack.enter_context(api_engine(config.model, config.api, teacher.count, may_pay_again, journal))
    if importlib.util.find_spec("vllm") is None:
        raise CotdError("the teacher's engine is not installed. Run `make install`, or pip install -e '.[cpu]' ('.[gpu]').")
    stack.enter_context(ray_session())
    return stack.enter_context(teacher_engine(resolve_model(teacher.source), teacher.engine, teacher.commit))


@contextlib.contextmanager
def teacher_engine(
    model: str, config: EngineConfig, revision: str | None = None, engine_class: type | None = None
) -> Iterator[Complete]:
    """vLLM engines, `config.replicas` of them, for the duration of a block.

    Args:
        model: a folder or a hub id. revision: of a hub id, a commit.
        engine_class: what completes in process in place of InProcessEngine, for measuring all but the engine.

    Yields:
        A function that completes requests, all with the same keys in their sampling parameters, a batch at a time as they
        get done, in no particular order; each batch is a list of completions with the columns of
        `cotd.teachers.store.SCHEMA`. A request that the engine refuses, or dies of, comes back with its `error`. It raises a
        CotdError when there is no engine any more.
    """
    use_gpu = has_gpus()
    backend = config.backend if config.backend != "auto" else "ray_data_llm" if use_gpu else "in_process"
    if engine_class is not None:
        backend = "in_process"
    placement = place_engines(config, backend, use_gpu)
    config = config.model_copy(update={"dtype": engine_dtype(config, use_gpu)})
    arguments = engine_arguments(config, use_gpu) | ({"revision": revision, "tokenizer_revision": revision} if revision else {})
    engines: list[Any] = []

    def start_in_process() -> None:
        there = place_engines(config, "in_process", use_gpu)
        engines.extend(in_process.start_engines(engine_class or in_process.InProcessEngine, model, arguments, config, there))

    def asked(rows: list[dict[str, Any]]) -> Iterator[list[Completion]]:
        """The completions of rows of a pipeline."""
        n_blocks = math.ceil(len(rows) / config.batch_size)
        # Not from_arrow, which counts rows in tasks that want a CPU each, and waits for ever where engines have them all.
        blocks = ray.data.from_items(rows, override_num_blocks=n_blocks)
        if engines:
            results = in_process.run_pipeline(blocks, engines, tasks=min(2 * len(engines), n_blocks))
        else:
            results = ray_data_llm.run_pipeline(blocks, model, arguments, config, placement)
        # Nothing is fetched ahead: completions would be kept only once the next batch's are there.
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            completions = [json.loads(row) for row in batch["completion"].to_pylist()]
            yield [c for c in completions if in_process.GONE not in c]
            if gone := [c[in_process.GONE] for c in completions if in_process.GONE in c]:
                raise CotdError(f"the teacher's engine {gone[0]}. {KEPT}")

    def complete(requests: Iterable[Request]) -> Iterator[list[Completion]]:
        if backend == "in_process" and not engines:
            start_in_process()
        for part in batched(requests, in_process.pipeline_rows(config) if engines else ray_data_llm.PIPELINE_ROWS):
            left = {
                r.key: {"key": r.key, "prompt": json.dumps(r.tokens or r.prompt), "sampling": json.dumps(r.sampling)}
                for r in part
            }
            while left:
                try:
                    for completions in asked(list(left.values())):
                        for completion in completions:
                            del left[completion["key"]]
                        yield completions
                    break
                except ray.exceptions.RayError as error:
                    reason = in_process.reason_of(error)
                    if engines:
                        raise CotdError(f"the teacher's engine failed: {reason}. {KEPT}") from error
                    say(f"  the engine failed ({reason}); the row that it fails at is looked for among {len(left):,} rows")
                    start_in_process()

    try:
        yield complete
    finally:
        for engine in engines:
            ray.kill(engine)
