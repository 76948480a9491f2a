"""Settings of generation: which engine, how it is started, what it costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lance_dagster.settings.section import Section, Text


class VllmSettings(Section):
    """What vLLM is given when it loads a model; its own names are in brackets."""

    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs that share each layer (tensor_parallel_size)")
    memory_share: float = Field(
        0.9, gt=0.0, lt=1.0, description="share of a GPU's memory that vLLM takes (gpu_memory_utilization)"
    )
    cache_gb: float | None = Field(
        None,
        gt=0.0,
        description="GiB for keys and values (kv_cache_memory_bytes); if unset, what memory_share leaves on a GPU, and "
        "1 on a CPU",
    )
    max_context: int | None = Field(
        None, ge=8, description="longest prompt and answer in tokens (max_model_len); the model's own if unset"
    )
    max_sequences: int = Field(256, ge=1, description="requests that are answered at the same time (max_num_seqs)")
    quantization: str | None = Field(
        None, min_length=1, description="such as fp8 or awq; the checkpoint's own if unset", examples=["fp8"]
    )
    lora: str | None = Field(
        None, min_length=1, description="folder of a LoRA adapter that every model is run with", examples=["adapters/a"]
    )
    eager: bool | None = Field(
        None, description="no compilation: loads faster, runs slower (enforce_eager); if unset, on a CPU only"
    )


class OpenAISettings(Section):
    """A server with the OpenAI chat completions interface: vLLM, SGLang, llama.cpp, or a hosted one."""

    base_url: str | None = Field(
        None,
        pattern=r"^https?://.+",
        description="of a server that runs already; if unset, a vLLM server is started for each model",
        examples=["http://127.0.0.1:8000/v1"],
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="what the server calls its model; if unset, it has to be the digest of M_t, so that no other model "
        "can answer",
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        min_length=1,
        description="environment variable that holds the key; none is sent if it is unset",
    )
    concurrency: int = Field(64, ge=1, le=4096, description="requests that are open at the same time")
    timeout_s: float = Field(300.0, gt=0.0, description="seconds that one attempt may take")
    attempts: int = Field(
        5, ge=1, le=20, description="tries of a request that meets 429, 5xx, a cut connection or a time-out"
    )
    backoff_s: float = Field(1.0, ge=0.0, description="seconds before the second try; doubled for each one after it")
    start_timeout_s: float = Field(600.0, gt=0.0, description="seconds until a server of its own has to answer")


class RaySettings(Section):
    """A Ray cluster: workers that generate, with an engine each, and the comparison of rows."""

    inner: Literal["transformers", "vllm"] = Field("transformers", description="the engine that every worker runs")
    address: str | None = Field(
        None,
        min_length=1,
        description="of a cluster that runs already ('auto' on one of its nodes, host:6379, ray://host:10001); if "
        "unset, one is started on this machine",
        examples=["auto"],
    )
    workers: int = Field(1, ge=1, le=1024, description="workers, each with the whole model")
    cpus_per_worker: float = Field(1.0, ge=0.0, description="CPUs that a worker reserves")
    gpus_per_worker: float = Field(
        0.0, ge=0.0, description="GPUs that a worker reserves: for vLLM, as many as engine.vllm.tensor_parallel"
    )
    shared_folder: bool = Field(
        False, description="every node reads checkpoints at the same path; if not, each worker is sent the files"
    )
    restarts: int = Field(
        3, ge=0, le=100, description="times that a worker which died is started again, and its requests are asked again"
    )
    start_timeout_s: float = Field(
        600.0, gt=0.0, description="seconds until all workers have loaded the model; of comparing, without a result"
    )
    rouge_join: bool = Field(
        False,
        description="compare rows by ROUGE-L on all CPUs of this cluster, whatever engine generates; for many rows and "
        "construction.filters.rouge_scope iteration or all",
    )


class PriceSettings(Section):
    """What generation costs, for the accounts and the budget. The default costs nothing."""

    input_per_million: float = Field(0.0, ge=0.0, description="price of a million prompt tokens")
    output_per_million: float = Field(0.0, ge=0.0, description="price of a million generated tokens")
    per_hour: float = Field(0.0, ge=0.0, description="price of an hour of the machine while the engine works")
    currency: Text = Field("USD", description="what the prices are in")


class EngineSettings(Section):
    """How text is generated."""

    kind: Literal["auto", "transformers", "vllm", "openai", "ray"] = Field(
        "auto",
        description="the library that runs the model; auto: vllm where there is a GPU and vLLM is installed, else "
        "transformers",
    )
    shard_rows: int = Field(1024, ge=1, description="requests that are generated, then kept on disk, at a time")
    max_failed_share: float = Field(
        0.05, ge=0.0, le=1.0, description="share of a stage's requests that may fail before the stage does"
    )
    price: PriceSettings = PriceSettings()
    max_stage_cost: float | None = Field(
        None, ge=0.0, description="a stage stops before its generation costs more; no limit if unset", examples=[20.0]
    )
    cache: str | None = Field(
        None,
        description="folder of cached completions, which several experiments may share; if unset, a folder of the "
        "experiment's own, or of the one that it branches from",
    )
    cache_gb: float | None = Field(
        None,
        gt=0.0,
        description="GiB of completions that are kept in that folder, the last used first; all if unset "
        "(`lance-dagster cache`)",
    )
    max_batch_rows: int = Field(256, ge=1, description="transformers: prompts in one forward pass")
    max_batch_tokens: int = Field(
        65_536, ge=1, description="transformers: padded prompt and new tokens in one forward pass"
    )
    vllm: VllmSettings = VllmSettings()
    openai: OpenAISettings = OpenAISettings()
    ray: RaySettings = RaySettings()
