"""Construction steps with a scripted model: settings, seeds, and what the model says.

A text says itself what its reviews give: ``worth 9`` three times 9, ``worth 6|none|cut`` a 6, a review without a score,
and one that was cut off behind "Score: 9".
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from upath import UPath

from lance_dagster.construction.filters.contamination import EvaluationIndex, EvaluationText
from lance_dagster.construction.generate import flawed_responses, new_instructions
from lance_dagster.construction.ledger import Ledger, build_ledger
from lance_dagster.construction.review import review_seed
from lance_dagster.construction.steps import StepContext
from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.engines.scripted_engine import ScriptedEngine
from lance_dagster.prompts.prompt_sets import PROMPT_KINDS, PromptKind, PromptSet, load_prompt_set
from lance_dagster.records import SEED_INSTRUCTIONS, SEED_REVIEWS, row_id, table_of
from lance_dagster.settings import EvolutionSettings, parse_settings

PROMPT_SETS = ("mini_v1", "lance_v1")
INSTRUCTION, RESPONSE, FLAWED = "instruction", "response", "flawed_response"
Row = dict[str, Any]


def cut(text: str) -> Completion:
    """A text that ran into its token limit."""
    return Completion(text, "length", 5, 512)


def raw(text: str) -> Completion:
    """A text as the model wrote it, without the answer marker that a plain script text is given."""
    return Completion(text, "stop", 5, 7)


def unlike(number: int, words: int = 12) -> str:
    """Words that occur in no other number's text."""
    return " ".join(hashlib.sha256(f"{number} {i}".encode()).hexdigest()[:7] for i in range(words))


def seed(text: str, worth: str = "9", origin: str = "seed") -> Row:
    """A row of Seed_t whose response says what it is worth."""
    instruction, response = f"Tell me about {text}.", f"{text} is a thing, worth {worth}"
    identity = row_id(instruction, response)
    return {
        "seed_id": identity,
        "parent_ids": [],
        "instruction": instruction,
        "response": response,
        "origin": origin,
    }


LOW, HIGH = seed("ice", "3"), seed("fire", "9")
OPEN = {"rouge_threshold": 1.0}  # ROUGE-L keeps everything but exact repetitions
NO_REVIEWS = table_of([], SEED_REVIEWS)


def seed_instructions(*rows: Row) -> pa.Table:
    columns = ("seed_id", "instruction", "response")
    return table_of(
        [{**{name: row[name] for name in columns}, "source": "s", "position": i} for i, row in enumerate(rows)],
        SEED_INSTRUCTIONS,
    )


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def fates(rows: Sequence[Row], kind: str) -> list[str | None]:
    return [row["drop_reason"] for row in of_kind(rows, kind)]


def filters(**changes: Any) -> dict[str, Any]:
    return {"filters": changes}


def settings(prompt_set: str = "mini_v1", **sections: Mapping[str, Any]) -> EvolutionSettings:
    """Settings with wide filters, so that a test narrows only what it is about. ``sections`` are merged into them."""
    construction = dict(sections.pop("construction", {}))
    filters = {"instruction_words": [1, 60], "response_words": [1, 60], **construction.pop("filters", {})}
    return parse_settings(
        {
            "model": {"path": "unused"},
            "seed": {"instructions": "unused", "reviews": "unused", **sections.pop("seed", {})},
            "prompts": {"set": prompt_set, **sections.pop("prompts", {})},
            "construction": {"samples": 2, **construction, "filters": filters},
            "evaluation": {"tasks": ["unused"]},
            **sections,
        }
    )


@dataclass
class Script:
    """What the model writes: the texts of a kind in turn, then texts of new words, worth 9."""

    prompts: PromptSet
    texts: Mapping[PromptKind, deque[str | Completion]]
    reviews_of: Counter[str] = field(default_factory=Counter)

    def __call__(self, request: GenerationRequest) -> Completion | str:
        prompt = request.messages[-1]["content"]
        kind = self.kind_of(prompt)
        if kind == "review":
            return self._review(prompt)
        text = self.texts[kind].popleft() if self.texts[kind] else f"{unlike(request.seed)} worth 9"
        marker = self.prompts.template(kind).answer_marker
        return f"Thoughts.\n{marker} {text}" if marker and isinstance(text, str) else text

    def kind_of(self, prompt: str) -> PromptKind:
        """By the wording before the first field; the bare instruction has none."""
        heads = {kind: self.prompts.template(kind).user.partition("{{")[0] for kind in PROMPT_KINDS}
        return next((kind for kind, head in heads.items() if head and prompt.startswith(head)), "answer")

    def _review(self, prompt: str) -> Completion | str:
        verdicts = (re.findall(r"worth (\S+)", prompt) or ["9"])[-1].split("|")
        verdict = verdicts[self.reviews_of[prompt] % len(verdicts)]
        self.reviews_of[prompt] += 1
        if verdict == "none":
            return "I would rather not say."
        if verdict == "cut":
            return cut("It is right. Score: 9")
        return self.prompts.review_target("It is as it is.", float(verdict))


@dataclass
class Bench:
    """One iteration's step with the engine behind it and the lines it logged."""

    context: StepContext
    engine: ScriptedEngine
    script: Script
    lines: list[str]

    def asked(self, kind: PromptKind) -> list[GenerationRequest]:
        return [r for r in self.engine.requests if self.script.kind_of(r.messages[-1]["content"]) == kind]

    def review(self, *seeds: Row) -> pa.Table:
        return review_seed(self.context, seeds)

    def candidates(self, reviewed: pa.Table) -> tuple[pa.Table, pa.Table]:
        return new_instructions(self.context, reviewed), flawed_responses(self.context, reviewed)

    def ledger(self, *seeds: Row, questions: Iterable[str] = ()) -> list[Row]:
        """Review, generate and filter; the ledger's rows."""
        return list(self.tables(*seeds, questions=questions)[1].to_pylist())

    def tables(self, *seeds: Row, questions: Iterable[str] = ()) -> tuple[pa.Table, pa.Table]:
        """The reviewed seed and the rows of the ledger."""
        reviewed, made = self.made(*seeds, questions=questions)
        return reviewed, made.rows

    def made(
        self, *seeds: Row, questions: Iterable[str] = (), earlier: pa.Table | None = None
    ) -> tuple[pa.Table, Ledger]:
        """The reviewed seed, and the ledger with what it found."""
        reviewed = self.review(*seeds)
        evaluation = evaluation_of(questions, self.context.settings.construction.filters.contamination_words)
        return reviewed, build_ledger(self.context, *self.candidates(reviewed), reviewed, evaluation, earlier)


def evaluation_of(questions: Iterable[str], words: int = 13) -> EvaluationIndex:
    """An index over these questions, each a document of the task "exam"."""
    return EvaluationIndex((EvaluationText("exam", i, "question", text) for i, text in enumerate(questions)), words)


def bench(
    folder: Path,
    prompt_set: str = "mini_v1",
    *,
    iteration: int = 0,
    instructions: Sequence[str | Completion] = (),
    responses: Sequence[str | Completion] = (),
    flawed: Sequence[str | Completion] = (),
    **sections: Mapping[str, Any],
) -> Bench:
    """A step of ``iteration`` whose model writes these texts; ``sections`` change settings."""
    chosen = settings(prompt_set, **sections)
    prompts = load_prompt_set(chosen.prompts.set)
    texts: Mapping[PromptKind, deque[str | Completion]] = defaultdict(
        deque, {"new_instruction": deque(instructions), "answer": deque(responses), "flawed_response": deque(flawed)}
    )
    script = Script(prompts, texts)
    engine = ScriptedEngine(script, digest=f"model_{iteration}")
    lines: list[str] = []
    cache = UPath(folder / "completions")
    share = chosen.engine.max_failed_share
    runner = BatchRunner(lambda: engine, engine.model_digest, engine.identity, cache, 100, lines.append, share)
    return Bench(StepContext(iteration, chosen, prompts, runner, lines.append), engine, script, lines)
