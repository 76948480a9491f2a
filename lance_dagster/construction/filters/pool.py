"""Rows that new ones are compared with, and the index of them that one iteration hands to the next.

With ``rouge_scope: all`` the index holds the words of every instruction and flawed response that was kept so far, so
that a later iteration splits and hashes only its own rows. Schema ROUGE_INDEX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.construction.filters.contamination import normalise
from lance_dagster.construction.filters.rouge_l import tokens_of
from lance_dagster.construction.filters.words import Vocabulary, WordRows, split_words
from lance_dagster.errors import ArtifactError
from lance_dagster.records import ROUGE_INDEX, table_of
from lance_dagster.settings import FilterSettings

Digests = npt.NDArray[np.uint64]  # shape (rows, 2)
DIGEST_BYTES = 16
ANYWHERE = bytes(DIGEST_BYTES)  # the prompt of what is compared whatever it belongs to


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def prompt_digest(seed_id: str, instruction: str) -> bytes:
    """Responses are compared with those to the same instruction that came from the same seed."""
    return digest(f"{seed_id}\n{instruction}")


def text_digest(text: str, duplicates: str) -> bytes:
    """Equal for texts that repeat each other: up to white space, or up to case and punctuation as well.

    Normalised, a text of punctuation alone is compared as it is, since nothing would be left of it.
    """
    exact = " ".join(text.split())
    return digest((normalise(text) or exact) if duplicates == "normalised" else exact)


@dataclass(frozen=True)
class PoolRows:
    """Rows of the pool: their ids, hashes of prompt and text, and words."""

    ids: list[str]
    prompts: Digests
    texts: Digests
    words: WordRows

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, rows: Iterable[tuple[str, bytes, str]], filters: FilterSettings, vocabulary: Vocabulary) -> Self:
        """From (row id, prompt digest, text)."""
        entries = list(rows)
        rule = tokens_of(filters.rouge_statistic, filters.rouge_words)
        return cls(
            [identity for identity, _, _ in entries],
            as_digests([prompt for _, prompt, _ in entries]),
            as_digests([text_digest(text, filters.duplicates) for _, _, text in entries]),
            WordRows.of((text for _, _, text in entries), rule, vocabulary),
        )

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(
            [identity for part in parts for identity in part.ids],
            np.concatenate([as_digests([]), *(part.prompts for part in parts)]),
            np.concatenate([as_digests([]), *(part.texts for part in parts)]),
            WordRows.joined([part.words for part in parts]),
        )

    @classmethod
    def of_index(cls, index: pa.Table, kind: str, filters: FilterSettings, vocabulary: Vocabulary) -> Self:
        """Rows of one kind from the index of the iteration before. ArtifactError if its rows were told otherwise."""
        rules = set(index["rule"].unique().to_pylist()) - {_rule(filters)}
        if rules:
            raise ArtifactError(
                f"the index of earlier rows was made with {', '.join(sorted(rules))}, the settings now say "
                f"{_rule(filters)}: re-materialise candidate_ledger of the earlier iterations, from the first, or "
                "change construction.filters back."
            )
        rows = index.filter(pc.equal(index["kind"], kind))
        words = rows["words"].combine_chunks()
        encoded = pc.list_flatten(words).dictionary_encode()
        numbers = np.array(vocabulary.numbers(encoded.dictionary.to_pylist()), dtype=np.int32)
        lengths = pc.list_value_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(
            rows["row_id"].to_pylist(),
            as_digests([bytes.fromhex(value) for value in rows["prompt"].to_pylist()]),
            as_digests([bytes.fromhex(value) for value in rows["text"].to_pylist()]),
            WordRows(
                numbers[encoded.indices.to_numpy(zero_copy_only=False)], np.concatenate([[0], np.cumsum(lengths)])
            ),
        )


def extended_index(earlier: pa.Table | None, ledger: pa.Table, filters: FilterSettings) -> pa.Table:
    """The index of earlier rows with the kept instructions and flawed responses of a ledger. Schema ROUGE_INDEX."""
    rule = tokens_of(filters.rouge_statistic, filters.rouge_words)
    kept = ledger.filter(
        pc.and_(ledger["kept"], pc.is_in(ledger["kind"], pa.array(["instruction", "flawed_response"])))
    )

    def rows() -> Iterator[dict[str, Any]]:
        for row in kept.select(["row_id", "iteration", "kind", "seed_id", "instruction", "response"]).to_pylist():
            flawed = row["kind"] == "flawed_response"
            text = row["response"] if flawed else row["instruction"]
            yield {
                "row_id": row["row_id"],
                "iteration": row["iteration"],
                "kind": row["kind"],
                "prompt": (prompt_digest(row["seed_id"], row["instruction"]) if flawed else ANYWHERE).hex(),
                "text": text_digest(text, filters.duplicates).hex(),
                "words": split_words(text, rule),
                "rule": _rule(filters),
            }

    new = table_of(list(rows()), ROUGE_INDEX)
    return new if earlier is None else pa.concat_tables([earlier, new]).combine_chunks()


def as_digests(values: list[bytes]) -> Digests:
    return np.frombuffer(b"".join(values), dtype=np.uint64).reshape(-1, 2)


def _rule(filters: FilterSettings) -> str:
    return f"{tokens_of(filters.rouge_statistic, filters.rouge_words)} words, {filters.duplicates} repetitions"
