"""vLLM through `ray.data.llm`: the default on GPUs."""

from __future__ import annotations

import json
from typing import Any

from cotd.teachers.config import EngineConfig
from cotd.teachers.store import Completion, new_completion
from pipelines.annotate.engines.in_process import START_SECONDS
from pipelines.annotate.engines.placement import Placement
from pipelines.annotate.engines.vllm import (
    completion_from_tokens,
    completion_of_prompt,
    environment,
    vllm_prompt,
    vllm_sampling,
)

# Rows a pipeline of ray.data.llm, which starts its engine, in a minute or two, for each: some 400 MB on the driver.
PIPELINE_ROWS = 100_000
# Of an engine, a minute or two each, before its rows are asked `in_process`, which finds the one that engines die of.
RESTARTS = 1


def run_pipeline(blocks: Any, model: str, arguments: dict[str, Any], config: EngineConfig, placement: Placement) -> Any:
    """A dataset with the column `completion`, each row a completion as JSON."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    if not placement.gpus:
        arguments = {"distributed_executor_backend": "mp", **arguments}
    blocks.context.wait_for_min_actors_s = int(START_SECONDS)  # else for ever, where GPUs are taken
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=arguments,
            runtime_env={"env_vars": environment(config, placement.threads)},
            batch_size=config.batch_size,
            concurrency=(config.replicas, config.replicas),  # a number alone is the maximum, and begins with one
            placement_group_config={
                "bundles": placement.bundles, "strategy": "PACK" if placement.spread else "STRICT_PACK",
            },
            should_continue_on_error=True,
            log_engine_metrics=False,
            # Each of these stages is an actor that holds a CPU; with two CPUs the pipeline would wait for ever.
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=lambda row: {
            **prompt_columns(row["prompt"]), "sampling_params": vllm_sampling(json.loads(row["sampling"])),
            "key": row["key"], "sampling": row["sampling"],
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


def prompt_columns(prompt: str) -> dict[str, Any]:
    """The columns that hold a prompt, text or token ids. Args: prompt: as JSON."""
    read = vllm_prompt(prompt)
    return {"prompt": read} if isinstance(read, str) else {"prompt": "", "tokenized_prompt": read["prompt_token_ids"]}


def completion_of_row(row: dict[str, Any]) -> Completion:
    """A completion from a row of the processor's output, which has no finish reason of its own."""
    sampling = json.loads(row["sampling"])
    if scored := sampling.get("scored_tokens"):
        return completion_of_prompt(row["key"], list(row["prompt_token_ids"]), plain_steps(row["prompt_logprobs"][-scored:]))
    steps = plain_steps(row["logprobs"] or [])
    finish_reason = "length" if row["num_generated_tokens"] >= sampling["max_tokens"] else "stop"
    tokens = [int(t) for t in row["generated_tokens"]]
    label_tokens = sampling.get("allowed_token_ids")
    prompt_tokens = row["num_input_tokens"]
    return completion_from_tokens(row["key"], row["generated_text"], tokens, steps, prompt_tokens, finish_reason, label_tokens)


def plain_steps(steps: Any) -> list[dict[int, float]]:
    """Of each step, token id → log-probability, from a row's columns."""
    return [{int(t): a["logprob"] for t, a in step.items() if a} for step in steps]
