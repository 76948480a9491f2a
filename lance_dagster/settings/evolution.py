"""Settings of one experiment as a whole: model, seed, prompts, automation, and every other section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lance_dagster.settings.construction import ConstructionSettings
from lance_dagster.settings.engine import EngineSettings
from lance_dagster.settings.evaluation import EvaluationSettings, GateSettings
from lance_dagster.settings.section import MAX_ITERATIONS, Section, Text
from lance_dagster.settings.training import TrainingSettings


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
