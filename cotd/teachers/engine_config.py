"""The vLLM engine of a teacher: the `teacher.engine` block of a study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cotd.config.model import Block

# Arguments of vLLM's that say how fast it answers and with how much memory, not what: all others are part of an answer's
# identity.
SPEED_ARGUMENTS = {
    "block_size", "compilation_config", "cpu_offload_gb", "data_parallel_size", "disable_custom_all_reduce",
    "disable_log_stats", "distributed_executor_backend", "download_dir", "enable_chunked_prefill",
    "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len",
    "max_num_batched_tokens", "max_num_seqs", "max_parallel_loading_workers", "num_gpu_blocks_override",
    "pipeline_parallel_size", "seed", "swap_space", "tensor_parallel_size",
}  # fmt: skip


class EngineConfig(Block):
    """The vLLM engine inside Ray Data."""

    backend: Literal["auto", "ray_data_llm", "in_process"] = Field(
        "auto", description="auto: ray_data_llm on GPUs, in_process on CPUs, where it starts three times faster"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on GPUs and on processors that multiply it in hardware, else float32"
    )
    max_model_len: int = Field(1024, ge=64)
    batch_size: int = Field(
        256, ge=1, description="rows a block sent to the engine; the default is as many as vLLM works at together on a CPU"
    )
    replicas: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    kv_cache_gb: int = Field(2, ge=1, description="CPU only: memory for the key-value cache")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to vLLM as they are; part of the answers' identity, but for those that only make it faster",
    )

    def deciding_kwargs(self) -> dict[str, Any]:
        """Those engine_kwargs that may change answers: quantization, say, or an adapter."""
        return {k: v for k, v in self.engine_kwargs.items() if k not in SPEED_ARGUMENTS}
