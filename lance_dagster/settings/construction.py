"""Settings of data construction (section 3.3 of the paper): sampling, filters, reward, acceptance and pairs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lance_dagster.settings.section import Phrase, Probability, Score, Section, Share, WordRange


class SamplingSettings(Section):
    """How one kind of text is sampled."""

    temperature: float = Field(0.7, ge=0.0, le=5.0, description="0 is greedy")
    top_p: Probability = Field(0.9, description="the most probable tokens that add up to this are sampled; 1.0: all")
    max_new_tokens: int = Field(512, ge=1, le=131_072, description="longer texts are cut, flagged and not trained on")


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
