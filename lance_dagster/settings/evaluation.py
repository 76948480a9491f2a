"""Settings of evaluation and of the checks on artifacts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lance_dagster.settings.section import Section, Share, Text


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
