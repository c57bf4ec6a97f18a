"""vLLM through `ray.data.llm`: the default on GPUs."""

from __future__ import annotations

import json
from typing import Any

import ray

from cotd.teachers.config import EngineConfig
from cotd.teachers.store import Completion, new_completion
from pipelines.annotate.engines.vllm import completion_from_tokens, environment
from pipelines.cluster.session import has_gpus

# Rows a pipeline of ray.data.llm, which starts its engine, in a minute or two, for each: some 400 MB on the driver.
PIPELINE_ROWS = 100_000
# Of an engine, a minute or two each. A row that an engine dies of is not searched for, as `in_process` does.
RESTARTS = 3


def run_pipeline(blocks: Any, model: str, arguments: dict[str, Any], config: EngineConfig) -> Any:
    """A dataset with the column `completion`, each row a completion as JSON."""
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
            concurrency=(config.replicas, config.replicas),  # a number alone is the maximum, and begins with one
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
        postprocess=lambda row: {"completion": json.dumps(completion_of_row(row)), "key": row["key"]},
    )  # fmt: skip

    # For what was not the engine's own fault; by default without end, and in silence.
    stage = processor.get_stage_by_name("vLLMEngineStage")
    stage.map_batches_kwargs |= {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}

    def fill_errors(row: dict[str, Any]) -> dict[str, Any]:
        """Rows that the engine refused skip `postprocess`."""
        error = row.get("__inference_error__")
        return {"completion": json.dumps(new_completion(row["key"], error=error)) if error else row["completion"]}

    return processor(blocks).map(fill_errors)


def completion_of_row(row: dict[str, Any]) -> Completion:
    """A completion from a row of the processor's output, which has no finish reason of its own."""
    sampling = json.loads(row["sampling"])
    steps = [{int(t): a["logprob"] for t, a in step.items() if a} for step in (row["logprobs"] or [])]
    finish_reason = "length" if row["num_generated_tokens"] >= sampling["max_tokens"] else "stop"
    tokens = [int(t) for t in row["generated_tokens"]]
    label_tokens = sampling.get("allowed_token_ids")
    prompt_tokens = row["num_input_tokens"]
    return completion_from_tokens(row["key"], row["generated_text"], tokens, steps, prompt_tokens, finish_reason, label_tokens)
