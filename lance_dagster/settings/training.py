"""Settings of training: optimiser, SFT, DPO, and what the sets hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lance_dagster.settings.section import Section


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
