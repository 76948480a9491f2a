"""The tables of a study: every run against the base, M_0 and replay, item by item; and what the oracle says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from lance_dagster.evaluation.significance import PairedDifference, paired_difference
from lance_dagster.storage.files import write_bytes, write_json
from lance_dagster.study.controls import WHOLE
from lance_dagster.study.outcome import Outcome, Scored

REPLAY = "replay"


def against(outcome: Outcome, outcomes: Sequence[Outcome]) -> dict[str, PairedDifference]:
    """The last checkpoint of a run minus the base, M_0 and the last checkpoint of replay with the same seed."""
    references: dict[str, Scored] = {"base": outcome.checkpoint("base"), "M_0": outcome.checkpoint("M_0")}
    for other in outcomes:
        if other.variant == REPLAY and other.seed == outcome.seed and outcome.variant != REPLAY:
            references[REPLAY] = other.last
    return {name: paired_difference(outcome.last.values, each.values) for name, each in references.items()}


def scores_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: accuracy in percent; differences in points with 95 % intervals over items; * is beyond noise."""
    before, last = (scored.label for scored in outcomes[0].checkpoints[-2:])
    lines = [
        f"| variant | seed | base | M_0 | {before} | {last} | against base | against M_0 | against replay | pass@1 "
        "| pass@8 |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- | --- | ---: | ---: |",
    ]
    for each in outcomes:
        differences = against(each, outcomes)
        cells = [each.variant, str(each.seed)]
        cells += [_percent(scored.mean) for scored in (*each.checkpoints[:2], *each.checkpoints[-2:])]
        cells += [_points(differences.get(name)) for name in ("base", "M_0", REPLAY)]
        answering = (each.oracle or {}).get("last", {}).get("answering", {})
        cells += [_percent(answering.get("pass_at_1")), _percent(answering.get("pass_at_k"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def oracle_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: what the world's oracle says, as 'first → last' iteration; '' outside the mini worlds."""
    known = [each for each in outcomes if each.oracle is not None]
    if not known:
        return ""
    lines = [
        "| variant | seed | AUC on seeds | AUC on generated rows | AUC on held-out reviews, M_0 → last | right of all "
        "generated | right of those kept | rows kept | pairs in order | pairs reversed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in known:
        oracle = each.oracle or {}
        rounds: list[dict[str, Any]] = oracle["iterations"]
        cells = [
            each.variant,
            str(each.seed),
            _course([r["seed_reviews"]["auc"] for r in rounds]),
            _course([r["generated_reviews"]["auc"] for r in rounds]),
            _course([oracle[model]["reviewing"]["auc"] for model in ("M_0", "last")]),
            _course([r["precision"]["generated"] for r in rounds]),
            _course([r["precision"]["kept"] for r in rounds]),
            " → ".join(f"{r['precision']['kept_rows']:,}" for r in (rounds[0], rounds[-1])),
            _course([r["pairs"]["right"] for r in rounds]),
            _course([r["pairs"]["reversed"] for r in rounds]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    base = known[0].oracle or {}
    answering = base["base"]["answering"]
    lines += [
        "",
        f"The untouched base: pass@1 {_percent(answering['pass_at_1'])}, pass@{answering['k']} "
        f"{_percent(answering['pass_at_k'])}, AUC on held-out reviews {_auc(base['base']['reviewing']['auc'])} "
        f"(split `{base['base']['split']}`, {answering['items']} items).",
    ]
    return "\n".join(lines)


def curve_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: accuracy of every checkpoint in percent, mean over the seeds."""
    labels = [scored.label for scored in outcomes[0].checkpoints]
    lines = [f"| variant | {' | '.join(labels)} |", f"| --- |{' ---: |' * len(labels)}"]
    for variant in dict.fromkeys(each.variant for each in outcomes):
        own = [each for each in outcomes if each.variant == variant]
        means = [sum(each.checkpoint(label).mean for each in own) / len(own) for label in labels]
        lines.append(f"| {variant}: {own[0].what} | {' | '.join(map(_percent, means))} |")
    return "\n".join(lines)


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """One sentence per reference on the whole experiment: the gain on each seed and whether it is beyond noise."""
    whole = [each for each in outcomes if each.variant == WHOLE]
    found = []
    for name in ("base", "M_0", REPLAY):
        differences = [against(each, outcomes).get(name) for each in whole]
        known = [difference for difference in differences if difference is not None]
        if not known:
            continue
        gains = ", ".join(f"{100 * difference.value:+.1f}" for difference in known)
        beyond = sum(difference.low > 0 for difference in known)
        worse = sum(difference.high < 0 for difference in known)
        fate = f"above it beyond noise on {beyond} of {len(known)} seeds"
        fate += f", below it beyond noise on {worse}" if worse else ""
        found.append(f"{whole[0].last.label} against {name}: {gains} points, {fate}.")
    return found


class StudyFiles(NamedTuple):
    """Where a study's tables were written."""

    markdown: Path
    json: Path


def write_study(folder: Path, outcomes: Sequence[Outcome]) -> StudyFiles:
    """Write study.md and study.json."""
    parts = [
        *verdicts(outcomes),
        "Accuracy of every checkpoint, mean over the seeds, in percent:",
        curve_table(outcomes),
        "Each run, item by item: differences in points with 95 % bootstrap intervals, * where 0 lies outside:",
        scores_table(outcomes),
        "Measured against the world's oracle, which nothing else sees:",
        oracle_table(outcomes) or "(no mini world, so there is no oracle)",
    ]
    files = StudyFiles(folder / "study.md", folder / "study.json")
    write_bytes(UPath(files.markdown), ("\n\n".join(parts) + "\n").encode())
    write_json(UPath(files.json), to_json(outcomes))
    return files


def to_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Everything in the tables, for other programs; item scores are left out, they are in the stores."""
    return [
        {
            "variant": each.variant,
            "what": each.what,
            "seed": each.seed,
            "accuracy": {scored.label: scored.mean for scored in each.checkpoints},
            "digests": {scored.label: scored.digest for scored in each.checkpoints},
            "against": {name: asdict(difference) for name, difference in against(each, outcomes).items()},
            "oracle": each.oracle,
        }
        for each in outcomes
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _auc(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _course(values: Sequence[float | None]) -> str:
    """First and last of the iterations."""
    return "–" if all(value is None for value in values) else f"{_auc(values[0])} → {_auc(values[-1])}"


def _points(difference: PairedDifference | None) -> str:
    if difference is None:
        return "–"
    star = "*" if difference.beyond_noise else ""
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]{star}"
