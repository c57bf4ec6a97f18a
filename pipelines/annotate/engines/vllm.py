"""What vLLM is started with and asked, and how its outputs become completions."""

from __future__ import annotations

import os
from typing import Any

import ray

from cotd.progress import is_verbose
from cotd.teachers.config import EngineConfig
from cotd.teachers.store import Completion, new_completion
from cotd.utils.hardware import choose_dtype


def engine_dtype(config: EngineConfig, use_gpu: bool) -> str:
    """The type an engine computes in; a GPU is asked in a task, as this process may be on a machine without one."""
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
        "max_logprobs": -1,  # a task may have more than 20 labels
        "tensor_parallel_size": config.tensor_parallel,
    }
    if not use_gpu:
        # Blocks of 32 tokens, the smallest the CPU attention allows: few-shot prefixes are then shared almost whole
        # (6.2 against 3.9 rationales a second with the default of 128). Prompts are read whole, as a seeded completion of one that
        # is read in parts is more than vLLM 0.32's CPU engine survives ("CPU Generator does not use offset").
        arguments |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
    return arguments | config.engine_kwargs


def environment(config: EngineConfig, threads: int) -> dict[str, str]:
    """Environment variables of an engine's process that may use `threads` CPUs."""
    variables = {
        "VLLM_LOGGING_LEVEL": "INFO" if is_verbose() else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gb),  # without it vLLM takes 92 % of memory
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # else it leaves a core idle while the rest of the pipeline waits for it
        "OMP_NUM_THREADS": str(max(1, threads // config.tensor_parallel)),  # Ray would set 1
    }
    if config.tensor_parallel > 1:  # left alone, vLLM wants a NUMA node for each of a CPU engine's processes
        variables["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return variables


def sampling_parameters(sampling: dict[str, Any]) -> Any:
    """A request's sampling parameters as vLLM's SamplingParams."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    if structured := sampling.get("structured_outputs"):
        sampling = sampling | {"structured_outputs": StructuredOutputsParams(**structured)}
    return SamplingParams(**sampling)


def completion_of(key: str, output: Any, label_tokens: list[int] | None) -> Completion:
    """A completion from vLLM's RequestOutput: log-probabilities reduced to scalars before they leave the actor."""
    written = output.outputs[0]
    steps = [{t: alternative.logprob for t, alternative in step.items()} for step in written.logprobs or []]
    prompt_tokens = len(output.prompt_token_ids)
    return completion_from_tokens(
        key, written.text, list(written.token_ids), steps, prompt_tokens, written.finish_reason, label_tokens
    )


def completion_from_tokens(
    key: str,
    text: str,
    tokens: list[int],
    steps: list[dict[int, float]],
    prompt_tokens: int,
    finish_reason: str,
    label_tokens: list[int] | None,
) -> Completion:
    """A completion from the written tokens and, for each, a map from token id to log-probability."""
    return new_completion(
        key,
        text=text,
        logprob=sum(step[t] for step, t in zip(steps, tokens, strict=True)) if steps else None,
        # All come back unless one underflowed; its probability is then zero.
        label_logprobs=[steps[0].get(t, -100.0) for t in label_tokens] if label_tokens else None,
        finish_reason="stop" if label_tokens else finish_reason,
        prompt_tokens=prompt_tokens,
        output_tokens=len(tokens),
    )
