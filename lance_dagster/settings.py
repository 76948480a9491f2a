"""Typed settings of one experiment. Every switch has a name, a range and a source.

Sections refer to arXiv 2412.15151 ("the paper"); "reference code" is the code that its authors released.
Where the two disagree, the switch is here and the default is named; docs/settings.md lists them in one table.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lance_dagster.errors import SettingsError

MAX_ITERATIONS = 99  # Dagster stops tracking staleness over 100 upstream partitions


class Section(BaseModel):
    """A group of settings. Unknown names are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Score = Annotated[float, Field(ge=0.0, le=10.0)]


class ModelSettings(Section):
    """The untouched model M that the experiment starts from."""

    path: str = Field(
        description="a hub name (Qwen/Qwen2-7B), a local folder, or package://lance_dagster/... for shipped weights"
    )
    revision: str | None = Field(None, description="commit or tag of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="weights are loaded as this")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    threads: int | None = Field(None, ge=1, le=256, description="CPU threads of torch; the machine's count if unset")
    trust_remote_code: bool = Field(False, description="run model code that ships with a hub model")


class SeedSettings(Section):
    """Seed_0: the instruction seed and the review seed (section 3.2 of the paper)."""

    instructions: str = Field(description="JSONL, JSON or Parquet file, or hf://owner/name[@split] for a hub data set")
    reviews: str = Field(description="the same for (instruction, response, rationale, score) rows")
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

    set: str = Field("lance_v1", description="shipped set by name, or the path of a YAML file")
    system_in_preferences: bool = Field(
        True, description="DPO rows carry the system prompt that generation uses (reference code: no)"
    )


class SamplingSettings(Section):
    """How one kind of text is sampled."""

    temperature: float = Field(0.7, ge=0.0, le=5.0, description="0 is greedy")
    top_p: Probability = 0.9
    max_new_tokens: int = Field(512, ge=1, le=131_072)


class EngineSettings(Section):
    """How text is generated."""

    name: Literal["transformers"] = "transformers"
    max_batch_rows: int = Field(256, ge=1, description="prompts in one forward pass")
    max_batch_tokens: int = Field(65_536, ge=1, description="padded prompt and new tokens in one forward pass")
    shard_rows: int = Field(1024, ge=1, description="requests that are generated, then kept on disk, at a time")


class FilterSettings(Section):
    """Cheap filters before the reward (section 3.3, data filtering)."""

    instruction_words: tuple[int, int] = Field((5, 4096), description="fewest and most words of a new instruction")
    response_words: tuple[int, int] = Field((10, 4096), description="fewest and most words of a new response")
    rouge_threshold: float = Field(0.7, gt=0.0, le=1.0, description="drop above this similarity; 1.0 keeps all")
    rouge_statistic: Literal["f", "any"] = Field(
        "f", description="ROUGE-L F of the rouge-score package, or any of recall, precision and F (reference code)"
    )
    rouge_scope: Literal["seed", "iteration"] = Field(
        "seed", description="compare within one seed's rows (reference code), or with all of this iteration"
    )
    rouge_responses: bool = Field(
        True, description="compare responses too; turn off where right answers are short and alike by nature"
    )
    contamination: Literal["drop", "off"] = Field("drop", description="rows whose instruction an evaluation task asks")

    @model_validator(mode="after")
    def _ordered(self) -> FilterSettings:
        for name in ("instruction_words", "response_words"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be two numbers with 0 <= fewest <= most, got {[low, high]}")
        return self


class ConstructionSettings(Section):
    """Algorithm 1 of the paper."""

    threshold: Score = Field(7.0, description="branch threshold V")
    branch_at_threshold: Literal["preference", "instruction"] = Field(
        "preference", description="a score equal to V: flawed responses (paper, >=) or new instructions (code, >)"
    )
    samples: int = Field(4, ge=1, le=64, description="K: new instructions or flawed responses per seed")
    responses_per_instruction: int | None = Field(None, ge=1, le=64, description="K if unset, as in the paper")
    reviews_per_item: int = Field(3, ge=1, le=64, description="the score is the mean of those that parse")
    rereview_seeds: bool = Field(True, description="review Seed_t with M_t each iteration (reference code: only once)")
    unreviewed_seeds: Literal["skip", "instruction"] = Field(
        "skip", description="seeds none of whose reviews parse: left out, or sent to the low branch"
    )
    review: SamplingSettings = SamplingSettings()
    new_instruction: SamplingSettings = SamplingSettings()
    response: SamplingSettings = SamplingSettings()
    flawed_response: SamplingSettings = SamplingSettings()
    filters: FilterSettings = FilterSettings()
    accept_above: Score = Field(8.0, description="SFT rows need a higher reward (reference code 8.0; paper V)")
    preference_gap: float = Field(2.0, ge=0.0, le=10.0, description="a pair needs a larger difference of rewards")
    max_rows_per_seed: int | None = Field(None, ge=1, description="cap on kept rows per seed, best rewards first")
    max_rows_per_iteration: int | None = Field(None, ge=1, description="cap on kept rows of each kind, likewise")
    seed: int = Field(0, ge=0, description="random seed of all sampling")


class OptimiserSettings(Section):
    """One training stage."""

    epochs: float = Field(1.0, gt=0.0, le=100.0)
    learning_rate: float = Field(gt=0.0, le=1.0)
    batch_size: int = Field(8, ge=1, description="rows (or pairs) per device and step")
    gradient_accumulation: int = Field(1, ge=1)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.0, ge=0.0, le=1.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    max_tokens: int = Field(2048, ge=8, description="longer rows are left out and counted, never cut")
    gradient_checkpointing: bool = Field(True, description="less memory, about a third more time")


class SFTSettings(OptimiserSettings):
    """Equation 1: negative log-likelihood of the response."""

    learning_rate: float = Field(1e-5, gt=0.0, le=1.0)


class DPOSettings(OptimiserSettings):
    """Equations 2 to 4: sigmoid loss, reference M_t^S."""

    learning_rate: float = Field(5e-7, gt=0.0, le=1.0)
    beta: float = Field(0.1, gt=0.0, le=10.0)


class TrainingSettings(Section):
    """Algorithm 2 of the paper."""

    initial: SFTSettings = SFTSettings()
    sft: SFTSettings = SFTSettings()
    dpo: DPOSettings = DPOSettings()
    start_from: Literal["policy", "initial", "base"] = Field(
        "policy", description="weights that SFT of an iteration starts from: M_t (paper), M_0, or M"
    )
    accumulate: bool = Field(True, description="train on the rows of all iterations so far (paper), or of this one")
    replay_seed: Literal["none", "accepted", "all"] = Field(
        "none", description="seed rows in D^s: none (Algorithm 2), those with a score of at least V, or all (code)"
    )
    replay_reviews: bool = Field(False, description="review seed rows in D^s (reference code: yes)")
    seed: int = Field(42, ge=0, description="random seed of all training")


class EvaluationSettings(Section):
    """lm-eval tasks that every checkpoint is scored on."""

    tasks: tuple[str, ...] = Field(min_length=1, description="lm-eval task names")
    include_path: str | None = Field(None, description="folder with task YAML files; package://... is allowed")
    question_fields: tuple[str, ...] = Field(
        (), description="fields of the evaluation documents that must not occur in training (text or list of texts)"
    )
    breakdown_field: str | None = Field(
        None, description="field of the evaluation documents by which scores are listed in parts, such as a subject"
    )
    limit: int | None = Field(None, ge=1, description="documents per task; all if unset")
    batch_size: int = Field(16, ge=1)
    few_shot: int | None = Field(None, ge=0)
    chat_template: bool = True
    noise_floor: Literal["retrain", "reevaluate"] = Field(
        "reevaluate", description="the second M_0 of baseline_scores: trained again with another seed, or scored again"
    )
    drift_rows: int = Field(128, ge=1, description="seed rows on which drift is measured")


class EvolutionSettings(Section):
    """Everything that one experiment needs."""

    method: Literal["lance"] = "lance"
    iterations: int = Field(4, ge=1, le=MAX_ITERATIONS, description="number of iteration partitions (N in the paper)")
    store: str = Field("data/store", description="folder or fsspec URL under which artifacts are written")
    model: ModelSettings
    seed: SeedSettings
    prompts: PromptSettings = PromptSettings()
    engine: EngineSettings = EngineSettings()
    construction: ConstructionSettings = ConstructionSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings


def parse_settings(values: dict[str, Any]) -> EvolutionSettings:
    """Validate plain values. Raises SettingsError with one line per wrong setting: name, value, what is allowed."""
    try:
        return EvolutionSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """One line per wrong setting: its dotted name, the value, the allowed range."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        value = "" if item["type"] == "missing" else f" (got {item['input']!r})"
        lines.append(f"{name}: {item['msg']}{value}")
    return "wrong settings:\n  " + "\n  ".join(lines)
