"""What vLLM is started with and asked, and how its outputs become completions."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import ray

from cotd.errors import CotdError
from cotd.progress import is_verbose
from cotd.teachers.config import EngineConfig
from cotd.teachers.store import Completion, new_completion
from cotd.utils.hardware import choose_dtype

FREE_GPU_SECONDS = 300.0


def engine_dtype(config: EngineConfig, use_gpu: bool) -> str:
    """The type an engine computes in; a GPU is asked in a task, as this process may be on a machine without one.

    Raises:
        CotdError: no GPU is free.
    """
    if not use_gpu or config.dtype != "auto":
        return choose_dtype(config.dtype, use_gpu)
    asked = ray.remote(num_cpus=0, num_gpus=0.01)(choose_dtype).remote("auto", True)
    try:
        return ray.get(asked, timeout=FREE_GPU_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(asked)
        raise CotdError(
            f"none of Ray's GPUs has become free within {FREE_GPU_SECONDS / 60:.0f} minutes, and the engine needs one. End what "
            "else runs on them, or run again later."
        ) from error


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
        "pipeline_parallel_size": config.pipeline_parallel,
    }
    if config.shards > 1:
        # Left alone, an engine of several GPUs is spread by Ray over a placement group that nothing removes: the next
        # pipeline's engine would wait for those GPUs for ever.
        arguments["distributed_executor_backend"] = "mp"
    if not use_gpu:
        # Blocks of 32 tokens, the smallest the CPU attention allows: few-shot prefixes are then shared almost whole
        # (6.2 against 3.9 rationales a second with the default of 128). Prompts are read whole, as a seeded completion of one that
        # is read in parts is more than vLLM 0.32's CPU engine survives ("CPU Generator does not use offset").
        arguments |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
    return arguments | config.engine_kwargs


def environment(config: EngineConfig, threads: int) -> dict[str, str]:
    """Environment variables of an engine, each of whose processes may use `threads` CPUs."""
    variables = {
        "VLLM_LOGGING_LEVEL": "INFO" if is_verbose() else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gb),  # without it vLLM takes 92 % of memory
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # else it leaves a core idle while the rest of the pipeline waits for it
        "OMP_NUM_THREADS": str(threads),  # Ray would set 1
    }
    if config.shards > 1:  # left alone, vLLM wants a NUMA node for each of a CPU engine's processes
        variables["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return variables


def vllm_prompt(prompt: str) -> str | dict[str, list[int]]:
    """A prompt as vLLM takes it: text, or token ids. Args: prompt: as JSON."""
    read = json.loads(prompt)
    return read if isinstance(read, str) else {"prompt_token_ids": read}


def vllm_sampling(sampling: dict[str, Any]) -> dict[str, Any]:
    """A request's sampling parameters under vLLM's names."""
    if "scored_tokens" not in sampling:
        return sampling
    return {key: value for key, value in sampling.items() if key != "scored_tokens"} | {"prompt_logprobs": 0}


def sampling_parameters(sampling: dict[str, Any]) -> Any:
    """A request's sampling parameters as vLLM's SamplingParams."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = vllm_sampling(sampling)
    if structured := sampling.get("structured_outputs"):
        sampling = sampling | {"structured_outputs": StructuredOutputsParams(**structured)}
    return SamplingParams(**sampling)


def completion_of(key: str, output: Any, sampling: dict[str, Any]) -> Completion:
    """A completion from vLLM's RequestOutput: log-probabilities reduced to scalars before they leave the actor."""
    written = output.outputs[0]
    prompt, prompt_steps = output.prompt_token_ids, output.prompt_logprobs
    if scored := sampling.get("scored_tokens"):
        return completion_of_prompt(key, prompt, [plain_step(step) for step in prompt_steps[-scored:]])
    steps = [plain_step(step) for step in written.logprobs or []]
    tokens, label_tokens = list(written.token_ids), sampling.get("allowed_token_ids")
    return completion_from_tokens(key, written.text, tokens, steps, len(prompt), written.finish_reason, label_tokens)


def plain_step(step: dict[int, Any]) -> dict[int, float]:
    """Token id → log-probability, from vLLM's Logprob objects."""
    return {token: alternative.logprob for token, alternative in step.items()}


def completion_of_prompt(key: str, prompt: Sequence[int], steps: Sequence[dict[int, float]]) -> Completion:
    """The log-probability of a prompt's last tokens, as a completion. Args: steps: of each of these, as vLLM gives them."""
    logprob = sum(step[token] for step, token in zip(steps, prompt[-len(steps) :], strict=True))
    return new_completion(key, text="", logprob=logprob, finish_reason="stop", prompt_tokens=len(prompt), output_tokens=1)


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
