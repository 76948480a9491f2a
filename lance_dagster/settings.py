"""Typed settings of one experiment. Every switch has a name, a range and a source.

Sections refer to arXiv 2412.15151 ("the paper"); "reference code" is the code that its authors released.
Where the two disagree, the switch is here and the default is named; docs/settings.md lists them in one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lance_dagster.errors import SettingsError

MAX_ITERATIONS = 99  # Dagster stops tracking staleness over 100 upstream partitions


class Section(BaseModel):
    """A group of settings. Unknown names are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1; in a settings file it is a slip."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("Input should not be true or false")
        return value


def _ordered(words: tuple[int, int]) -> tuple[int, int]:
    if words[0] > words[1]:
        raise ValueError("the first number should not exceed the second")
    return words


Text = Annotated[str, Field(min_length=1)]
Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Score = Annotated[float, Field(ge=0.0, le=10.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Phrase = Annotated[str, Field(min_length=1, pattern=r"\S")]
WordCount = Annotated[int, Field(ge=0, strict=True)]
WordRange = Annotated[tuple[WordCount, WordCount], AfterValidator(_ordered)]


class ModelSettings(Section):
    """The untouched model M that the experiment starts from."""

    path: Text = Field(
        description="a hub name (Qwen/Qwen2-7B), a local folder, or package://lance_dagster/... for shipped weights",
        examples=["Qwen/Qwen2-7B"],
    )
    revision: str | None = Field(None, description="commit or tag of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="weights are saved and loaded as this (auto: as the base model's); training keeps them in 32 bits",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    threads: int | None = Field(None, ge=1, le=256, description="CPU threads of torch; the machine's count if unset")
    trust_remote_code: bool = Field(False, description="run model code that ships with a hub model")


class SeedSettings(Section):
    """Seed_0: the instruction seed and the review seed (section 3.2 of the paper)."""

    instructions: Text = Field(
        description="(instruction, response) rows: JSONL, JSON or Parquet file, or hf://owner/name[@split] for a hub "
        "data set",
        examples=["data/seed_instructions.jsonl"],
    )
    reviews: Text = Field(
        description="the same for (instruction, response, rationale, score) rows", examples=["data/seed_reviews.jsonl"]
    )
    max_words: int = Field(4096, ge=1, description="longer instructions or responses are quarantined")
    control_tokens: tuple[str, ...] = Field(
        (r"<\|[^|<>\s]{1,40}\|>", r"\[/?INST\]", r"<</?SYS>>", r"</?s>", r"<(start|end)_of_turn>"),
        description="patterns of chat-template control tokens; rows that contain one are quarantined",
    )
    growth: Literal["original", "merge", "merge_latest"] = Field(
        "original",
        description="Seed_t: Seed_0 only (Algorithm 2), with all accepted rows so far (figure 2 of the paper), or with "
        "those of the last iteration only (reference code)",
    )
    flawed_rows_reenter: bool = Field(False, description="with merge: rejected flawed rows too (reference code: yes)")
    max_rows: int | None = Field(None, ge=1, description="cap on Seed_t; original rows are kept first")


class PromptSettings(Section):
    """Which versioned prompt set is used."""

    set: Text = Field("lance_v1", description="shipped set by name, or the path of a YAML file")
    system_in_preferences: bool = Field(
        True, description="DPO rows carry the system prompt that generation uses (reference code: no)"
    )


class SamplingSettings(Section):
    """How one kind of text is sampled."""

    temperature: float = Field(0.7, ge=0.0, le=5.0, description="0 is greedy")
    top_p: Probability = Field(0.9, description="the most probable tokens that add up to this are sampled; 1.0: all")
    max_new_tokens: int = Field(512, ge=1, le=131_072, description="longer texts are cut, flagged and not trained on")


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
    """A Ray cluster that generates: workers with an engine each."""

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
    start_timeout_s: float = Field(600.0, gt=0.0, description="seconds until all workers have loaded the model")


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


class FilterSettings(Section):
    """Filters before the reward (section 3.3, data filtering); null switches one off."""

    instruction_words: WordRange = Field((5, 4096), description="fewest and most words of a new instruction")
    response_words: WordRange = Field((10, 4096), description="fewest and most words of a new response")
    instruction_tokens: WordRange | None = Field(None, description="the same in tokens that the model wrote for it")
    response_tokens: WordRange | None = Field(None, description="the same in tokens that the model wrote for it")
    keywords: tuple[Phrase, ...] = Field(
        (), description="texts with one of these words or phrases are dropped", examples=[["image", "write a program"]]
    )
    refusals: Literal["keep", "drop"] = Field("keep", description="English responses that begin by declining")
    echoes: Literal["keep", "drop"] = Field("drop", description="responses that only say their instruction again")
    repeated_share: Share | None = Field(
        0.5, description="drop where a larger share of the four-word runs of a text occurred in it before"
    )
    longest_character_run: int | None = Field(200, ge=1, description="drop where one character is repeated more often")
    other_script_share: Share | None = Field(
        None, description="drop where a larger share of the letters is of scripts that the prompt does not use"
    )
    duplicates: Literal["exact", "normalised"] = Field(
        "exact", description="what is a repetition: the same up to white space, or also up to case and punctuation"
    )
    contamination: Literal["drop", "flag", "off"] = Field(
        "drop", description="rows that overlap with what the evaluation tasks ask or answer, seeds included"
    )
    contamination_words: int = Field(
        13, ge=2, description="words in a row that make an overlap; questions with fewer words must match as a whole"
    )
    rouge_threshold: float = Field(0.7, gt=0.0, le=1.0, description="drop above this similarity; 1.0 keeps all")
    rouge_statistic: Literal["f", "any", "union_lcs"] = Field(
        "f",
        description="ROUGE-L F of the rouge-score package, any of its recall, precision and F, or any of those of the "
        "rouge package (reference code: union of subsequences over unique words)",
    )
    rouge_words: Literal["rouge_score", "unicode"] = Field(
        "rouge_score",
        description="what a word is: runs of a-z and 0-9 as in the rouge-score package, or words of any language "
        "(letters of scripts without spaces, such as Chinese and Thai, one by one)",
    )
    rouge_scope: Literal["seed", "iteration", "all"] = Field(
        "seed",
        description="compare within one seed's rows (reference code), with all of this iteration, or with all "
        "seeds and the rows of this and all earlier iterations",
    )
    rouge_responses: bool = Field(
        True, description="compare responses too; turn off where right answers are short and alike by nature"
    )
    rouge_recorded_above: Share = Field(
        0.5, description="lower similarities are not looked for, so the ledger does not name them"
    )


class ConstructionSettings(Section):
    """Algorithm 1 of the paper."""

    threshold: Score = Field(7.0, description="branch threshold V")
    branch_at_threshold: Literal["preference", "instruction"] = Field(
        "preference",
        description="a score equal to V: flawed responses (paper, >=) or new instructions (reference code, >)",
    )
    samples: int = Field(4, ge=1, le=64, description="K: new instructions or flawed responses per seed")
    responses_per_instruction: int | None = Field(None, ge=1, le=64, description="K if unset, as in the paper")
    reviews_per_item: int = Field(
        3, ge=1, le=64, description="the score is the mean of those that parse (paper 1, reference code 3)"
    )
    reviews_needed: int = Field(1, ge=1, le=64, description="with fewer reviews that parse the score is missing")
    rereview_seeds: bool = Field(True, description="review Seed_t with M_t each iteration (reference code: only once)")
    unreviewed_seeds: Literal["skip", "instruction"] = Field(
        "skip",
        description="seeds none of whose reviews parse: left out, or sent to the low branch (reference code: a score "
        "of 0)",
    )
    review: SamplingSettings = SamplingSettings()
    new_instruction: SamplingSettings = SamplingSettings()
    response: SamplingSettings = SamplingSettings()
    flawed_response: SamplingSettings = SamplingSettings()
    filters: FilterSettings = FilterSettings()
    acceptance: Literal["reward", "all"] = Field(
        "reward",
        description="what becomes training data: rows by the reward of M_t, or, as a control, everything that passed "
        "the filters, the original being preferred to every flawed response",
    )
    acceptance_judge: Literal["policy", "initial"] = Field(
        "policy", description="the model that rewards generated rows: M_t (paper), or the frozen M_0"
    )
    pairs: Literal["flawed", "own_responses"] = Field(
        "flawed",
        description="what preference pairs are made of: a seed's response and flawed ones (paper), or the best and the "
        "worst rewarded of the K responses to a new instruction",
    )
    original_in_pairs: bool = Field(True, description="with flawed: the seed's response is a candidate too (paper)")
    pair_direction: Literal["reward", "construction"] = Field(
        "reward",
        description="which side is chosen: the higher reward, whoever wrote it (paper), or only ever the seed's "
        "response, where it has the higher reward",
    )
    pairs_per_prompt: Literal["all", "best"] = Field(
        "all",
        description="the lowest reward against each that exceeds it by more than the gap (paper), or against the "
        "highest only",
    )
    rejected_ties: Literal["first", "last"] = Field(
        "first",
        description="which of several lowest rewards is rejected: the first candidate (the original) or the last",
    )
    at_limit: Literal["reject", "accept"] = Field(
        "reject",
        description="a reward equal to accept_above, or a difference equal to preference_gap: too little, as in "
        "the paper, or enough",
    )
    accept_above: Score = Field(8.0, description="SFT rows need a higher reward (reference code 8.0; paper V)")
    preference_gap: float = Field(2.0, ge=0.0, le=10.0, description="a pair needs a larger difference of rewards")
    max_rows_per_seed: int | None = Field(None, ge=1, description="cap on kept rows per seed, best rewards first")
    max_rows_per_iteration: int | None = Field(None, ge=1, description="cap on kept rows of each kind, likewise")
    seed: int = Field(0, ge=0, description="random seed of all sampling")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reviews_needed > self.reviews_per_item:
            raise ValueError("reviews_needed should not exceed reviews_per_item")
        if self.pair_direction == "construction" and not self.original_in_pairs:
            raise ValueError(
                "pair_direction 'construction' always chooses the original: original_in_pairs must be true"
            )
        return self


class OptimiserSettings(Section):
    """One training stage."""

    epochs: float = Field(1.0, gt=0.0, le=100.0, description="passes over the training set")
    learning_rate: float = Field(gt=0.0, le=1.0, description="highest learning rate of the schedule", examples=[1e-5])
    batch_size: int = Field(8, ge=1, description="rows (or pairs) per device and step")
    gradient_accumulation: int = Field(1, ge=1, description="batches whose gradients make one step")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate changes after the warm-up"
    )
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0, description="share of the steps in which the learning rate rises")
    optimiser: Literal["adamw_torch_fused", "adafactor", "paged_adamw_8bit"] = Field(
        "adamw_torch_fused",
        description="AdamW holds 8 bytes per trained weight, Adafactor almost none, paged 8-bit AdamW 2, moving them "
        "to the CPU's memory when the GPU's is full (needs a GPU and the bitsandbytes package)",
    )
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="of the optimiser")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradients are scaled down to this L2 norm")
    max_tokens: int = Field(2048, ge=8, description="longer rows are left out and counted, never cut")
    gradient_checkpointing: bool = Field(True, description="less memory, about a third more time")
    lora_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="train LoRA adapters of this rank on all linear layers and merge them into the weights that are "
        "saved; all weights are trained if unset",
    )
    lora_alpha: int = Field(16, ge=1, description="adapters are scaled by this number divided by lora_rank")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout in front of the adapters")
    min_weights_changed: float = Field(
        0.001,
        ge=0.0,
        le=1.0,
        description="a stage is refused that changes a smaller share of the weights, rounded to the type in which they "
        "are saved: its steps were too few or too small; 0 allows it",
    )


class SFTSettings(OptimiserSettings):
    """Equation 1: negative log-likelihood of the response."""

    learning_rate: float = Field(1e-5, gt=0.0, le=1.0, description="highest learning rate of the schedule")


class DPOSettings(OptimiserSettings):
    """Equations 2 to 4: sigmoid loss, reference M_t^S."""

    learning_rate: float = Field(5e-7, gt=0.0, le=1.0, description="highest learning rate of the schedule")
    beta: float = Field(0.1, gt=0.0, le=10.0, description="weight of the KL term: how closely the reference is kept")
    reference: Literal["precomputed", "live"] = Field(
        "precomputed",
        description="log-probabilities of the reference: computed once, before training, or in every step by a second "
        "model in memory (with LoRA by the same one, its adapters switched off)",
    )


class TrainingSettings(Section):
    """Algorithm 2 of the paper."""

    stages: tuple[Literal["sft", "dpo"], ...] = Field(
        ("sft", "dpo"),
        min_length=1,
        description="stages of an iteration; one that is left out passes its model on and its data is not generated",
    )
    steps_of: str | None = Field(
        None,
        description="as a control: SFT takes as many optimiser steps as all stages of the same iteration of this other "
        "experiment, instead of a number of epochs",
    )
    initial: SFTSettings = SFTSettings()
    sft: SFTSettings = SFTSettings()
    dpo: DPOSettings = DPOSettings()
    start_from: Literal["policy", "initial", "base"] = Field(
        "policy",
        description="weights that SFT of an iteration starts from: M_t (paper; the reference code leaves training to "
        "its user), M_0, or M",
    )
    accumulate: bool = Field(True, description="train on the rows of all iterations so far (paper), or of this one")
    replay_seed: Literal["none", "accepted", "all"] = Field(
        "none",
        description="seed rows in D^s: none (Algorithm 2), those with a score of at least V, or all (reference code)",
    )
    replay_reviews: bool = Field(False, description="review seed rows in D^s (reference code: yes)")
    accelerate_config: str | None = Field(
        None,
        description="YAML file of `accelerate config` with which stages are trained in processes of their own, such as "
        "package://lance_dagster/training/fsdp.yaml (eight GPUs); in the run's own process if unset",
    )
    seed: int = Field(42, ge=0, description="random seed of all training")


class EvaluationSettings(Section):
    """lm-eval tasks that every checkpoint is scored on."""

    tasks: tuple[Text, ...] = Field(min_length=1, description="lm-eval task names", examples=[["arc_challenge"]])
    include_path: str | None = Field(None, description="folder with task YAML files; package://... is allowed")
    question_fields: tuple[str, ...] = Field(
        (),
        description="fields of the evaluation documents that must not occur in training (text or list of texts); if "
        "empty, those that the task's prompt shows",
    )
    breakdown_field: str | None = Field(
        None, description="field of the evaluation documents by which scores are listed in parts, such as a subject"
    )
    limit: int | None = Field(None, ge=1, description="documents per task; all if unset")
    batch_size: int = Field(16, ge=1, description="documents in one forward pass")
    few_shot: int | None = Field(None, ge=0, description="worked examples in the prompt; the task's own if unset")
    chat_template: bool = Field(True, description="prompts are user turns of the model's chat template")
    noise_floor: Literal["retrain", "off"] = Field(
        "retrain",
        description="how far two M_0 trained with unlike seeds are apart: a second one is trained and scored with the "
        "baseline, or not, and reports say that it was not measured",
    )
    drift_rows: int = Field(128, ge=1, description="seed rows on which drift is measured")


def _band(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[0] > shares[1]:
        raise ValueError("the first share should not exceed the second")
    return shares


class GateSettings(Section):
    """Where the checks on an iteration's artifacts draw the line. None of them changes an artifact."""

    parsed_share: Share = Field(0.8, description="a smaller share of reviews that give a score is warned of")
    score_spread: float = Field(
        0.25, ge=0.0, le=10.0, description="a smaller standard deviation of the scores is warned of: the judge is blind"
    )
    kept_share: Annotated[tuple[Share, Share], AfterValidator(_band)] = Field(
        (0.02, 0.95), description="a kept share of the candidates outside of this band is warned of"
    )
    length_ratio: float = Field(
        2.0, ge=1.0, le=100.0, description="chosen responses this many times longer or shorter are warned of"
    )
    first_loss_tolerance: float = Field(
        0.05, gt=0.0, le=1.0, description="a first DPO loss farther than this from ln 2 stops the iteration"
    )
    score_drop: float = Field(
        2.0, ge=0.0, le=10.0, description="a score that is lower by more standard errors is warned of"
    )


def _cron(text: str) -> str:
    """Five fields, as Dagster's schedules take them; the fields themselves are checked when the schedule is built."""
    if len(text.split()) != 5:
        raise ValueError("a cron schedule has five fields: minute, hour, day of month, month, day of week")
    return text


Cron = Annotated[str, AfterValidator(_cron)]


class AutomationSettings(Section):
    """Sensors and schedules of the experiment. All are stopped until somebody starts them in the web UI."""

    interval_seconds: int = Field(15, ge=1, description="the sensors look this often")
    next_iteration_cron: Cron = Field("0 2 * * *", description="when the next missing iteration is requested")
    refresh_window_cron: Cron = Field("0 3 * * 0", description="when the iterations of the window are made again")
    refresh_from: int = Field(0, ge=0, lt=MAX_ITERATIONS, description="first iteration of that window")
    campaign_until: int | None = Field(
        None, ge=0, lt=MAX_ITERATIONS, description="the campaign sensor stops after this iteration; the last if unset"
    )
    seed_settle_seconds: float = Field(
        5.0, ge=0.0, description="seed files that were changed more recently are left alone: they may be half written"
    )


class BranchSettings(Section):
    """Another experiment, and the last of its iterations that this one shares."""

    experiment: Text = Field(description="the other experiment's name", examples=["mini"])
    iteration: int = Field(ge=0, lt=MAX_ITERATIONS, description="its last shared iteration", examples=[1])


class EvolutionSettings(Section):
    """Everything that one experiment needs."""

    method: Literal["lance", "replay"] = Field("lance", description="how data is built and the model trained")
    iterations: int = Field(4, ge=1, le=MAX_ITERATIONS, description="number of iteration partitions (N in the paper)")
    store: Text = Field("data/store", description="folder or fsspec URL under which artifacts are written")
    executor: Literal["process_per_stage", "in_process"] = Field(
        "process_per_stage",
        description="the jobs run each stage in a process of its own, so that it gives all GPU memory back, or all in "
        "one, which saves their imports",
    )
    model: ModelSettings
    seed: SeedSettings
    prompts: PromptSettings = PromptSettings()
    engine: EngineSettings = EngineSettings()
    construction: ConstructionSettings = ConstructionSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings
    start_from: BranchSettings | None = Field(
        None,
        description="branch off: seeds, base, M_0, baseline scores and the iterations up to this one are those of the "
        "other experiment, and the first own iteration is the next one",
    )
    gates: GateSettings = GateSettings()
    automation: AutomationSettings = AutomationSettings()

    @model_validator(mode="after")
    def _something_is_left_to_do(self) -> Self:
        if self.start_from is not None and self.start_from.iteration + 1 >= self.iterations:
            raise ValueError(
                f"start_from.iteration {self.start_from.iteration} leaves no iteration of its own: iterations is "
                f"{self.iterations}"
            )
        return self

    @property
    def first_iteration(self) -> int:
        """The first iteration that this experiment makes itself."""
        return 0 if self.start_from is None else self.start_from.iteration + 1


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings with ``changes`` in them: sections are merged name by name, anything else is replaced."""
    out = dict(settings)
    for name, value in changes.items():
        inner = out.get(name)
        out[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def parse_settings(values: dict[str, Any]) -> EvolutionSettings:
    """Validate plain values. Raises SettingsError with one line per wrong setting: name, value, what is allowed."""
    try:
        return EvolutionSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(error, EvolutionSettings)) from error


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """One line per wrong setting: its dotted name, the value, and with ``model`` the allowed range and an example."""
    schema = settings_schema(model) if model else None
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        value = "" if item["type"] == "missing" else f" (got {item['input']!r})"
        allowed = f"; allowed: {_allowed_at(schema, item['loc'])}" if schema else ""
        lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')}{value}{allowed}")
    return "wrong settings:\n  " + "\n  ".join(lines)


def _allowed_at(schema: Mapping[str, Any], path: tuple[int | str, ...]) -> str:
    """What the setting at ``path`` may be, or the section that it was looked for in, and an example."""
    for part in path:
        schema = schema.get("properties", {}).get(part, schema)
    example = next((x for x in [schema.get("default"), *schema.get("examples", [])] if x is not None), None)
    plain = example is None or schema.keys() & {"properties", "enum", "const"} or schema.get("type") == "boolean"
    return allowed_values(schema) + ("" if plain else f", such as {json.dumps(example)}")


@cache
def settings_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a section in which each inner section stands in its place, with the defaults that hold there."""
    root = model.model_json_schema()

    def placed(schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in schema:
            schema = {**root["$defs"][schema["$ref"].removeprefix("#/$defs/")], **schema}
        if "anyOf" in schema:  # a section that may be unset
            return {**schema, "anyOf": [placed(each) for each in schema["anyOf"]]}
        if "properties" not in schema:
            return schema
        defaults = schema.get("default", {})
        inner = {
            name: placed({**each, "default": defaults[name]} if name in defaults else each)
            for name, each in schema["properties"].items()
        }
        return {**schema, "properties": inner}

    return placed(root)


def allowed_values(schema: Mapping[str, Any]) -> str:
    """What a JSON schema of ``settings_schema`` allows, in words: 'whole number, 1 to 64'."""
    if "properties" in schema:
        return "a section with " + ", ".join(schema["properties"])
    if "anyOf" in schema:  # a setting that may be unset
        return f"{allowed_values(schema['anyOf'][0])}, or null"
    if "const" in schema or "enum" in schema:
        *others, last = schema.get("enum", [schema.get("const")])
        return f"{', '.join(others)} or {last}" if others else str(last)
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}, each a {allowed_values(schema['prefixItems'][0])}"
    if schema["type"] == "array":
        return f"list of {allowed_values(schema['items'])}" + (", not empty" if schema.get("minItems") else "")
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words[schema["type"]] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    """', 1 to 64', ', 1 or more', ', above 0, at most 1' or nothing."""
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    least, most, above, below = (f"{schema[name]:,}".removesuffix(".0") if name in schema else "" for name in names)
    if least and most:
        return f", {least} to {most}"
    parts = [f"{least} or more" if least else "", f"above {above}" if above else ""]
    parts += [f"at most {most}" if most else "", f"below {below}" if below else ""]
    return "".join(f", {part}" for part in parts if part)
