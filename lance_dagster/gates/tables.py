"""Gates on tables: do the reviews say something, and may the rows be trained on?"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.gates.verdict import Verdict


def reviews_parse(table: pa.Table, least: float) -> Verdict:
    """The share of review samples that gave a score, over the column ``scores`` (null where a review did not parse)."""
    reviews = pc.list_flatten(table["scores"])
    if not len(reviews):
        return Verdict(True, "no row was reviewed", {"reviews": 0})
    share = 1 - reviews.null_count / len(reviews)
    return Verdict(
        share >= least,
        f"{share:.1%} of {len(reviews)} reviews gave a score, at least {least:.1%} should",
        {"reviews": len(reviews), "parsed_share": share},
    )


def score_spread(table: pa.Table, least: float) -> Verdict:
    """The standard deviation of ``score``: a judge that gives every row the same score selects nothing."""
    scores = pc.drop_null(table["score"].combine_chunks())
    if len(scores) < 2:
        return Verdict(True, f"{len(scores)} rows have a score, too few to spread", {"rows": len(scores)})
    spread = float(pc.stddev(scores).as_py())
    return Verdict(
        spread >= least,
        f"the scores of {len(scores)} rows have a standard deviation of {spread:.2f}, at least {least:.2f} is expected "
        "of a judge that tells good from bad",
        {"rows": len(scores), "standard_deviation": spread, "mean": float(pc.mean(scores).as_py())},
    )


def kept_share(ledger: pa.Table, band: tuple[float, float]) -> Verdict:
    """Kept candidates of all generated ones: near 0 the filters starve training, near 1 they filter nothing."""
    if not ledger.num_rows:
        return Verdict(False, "nothing was generated", {"generated": 0, "kept": 0})
    kept = ledger.filter(ledger["kept"]).num_rows
    share = kept / ledger.num_rows
    least, most = band
    return Verdict(
        least <= share <= most,
        f"{kept} of {ledger.num_rows} candidates were kept ({share:.1%}), expected are {least:.1%} to {most:.1%}",
        {"generated": ledger.num_rows, "kept": kept, "kept_share": share},
    )


def no_evaluation_item(table: pa.Table, column: str, evaluation: EvaluationIndex) -> Verdict:
    """No row overlaps with what an evaluation task asks or answers."""
    prompts = dict.fromkeys(table[column].to_pylist())
    found = {prompt: overlap for prompt in prompts if (overlap := evaluation.overlap(prompt)) is not None}
    figures = {"rows": table.num_rows, "questions": len(evaluation), "in_evaluation": len(found)}
    if not evaluation:
        return Verdict(False, "the evaluation tasks gave no text to compare rows with", figures)
    if found:
        prompt, overlap = next(iter(found.items()))
        return Verdict(
            False, f"{len(found)} prompts overlap with {overlap.source.task}, the first is {prompt!r}", figures
        )
    return Verdict(
        True, f"none of {table.num_rows} rows overlaps with one of {len(evaluation)} evaluation questions", figures
    )


def sides_differ(pairs: pa.Table) -> Verdict:
    """Chosen and rejected of a pair are not the same text; where they are, DPO pushes one text up and down at once."""
    same = [
        row["row_id"]
        for row in pairs.select(["row_id", "chosen", "rejected"]).to_pylist()
        if row["chosen"].split() == row["rejected"].split()
    ]
    figures = {"pairs": pairs.num_rows, "same": len(same)}
    if same:
        return Verdict(False, f"{len(same)} pairs prefer a text to itself, the first is row {same[0]}", figures)
    return Verdict(True, f"the two sides of all {pairs.num_rows} pairs differ", figures)


def length_gap(pairs: pa.Table, most: float) -> Verdict:
    """Mean words of chosen over those of rejected, in either direction: beyond ``most``, DPO learns mainly length."""
    if not pairs.num_rows:
        return Verdict(True, "there are no pairs", {"pairs": 0})
    chosen, rejected = _mean_words(pairs["chosen"].to_pylist()), _mean_words(pairs["rejected"].to_pylist())
    ratio = max(chosen, 1.0) / max(rejected, 1.0)
    return Verdict(
        1 / most <= ratio <= most,
        f"chosen responses have {chosen:.1f} words, rejected ones {rejected:.1f}: a ratio of {ratio:.2f}, expected is "
        f"{1 / most:.2f} to {most:.2f}",
        {"pairs": pairs.num_rows, "chosen_words": chosen, "rejected_words": rejected, "ratio": ratio},
    )


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)
