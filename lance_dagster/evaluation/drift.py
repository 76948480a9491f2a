"""Drift: how far a checkpoint moved from the base, from M_0 and from every earlier policy model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lance_dagster.prompts.library import Message
from lance_dagster.records import DRIFT, table_of
from lance_dagster.settings import ModelSettings
from lance_dagster.storage.models import load_model, load_tokenizer

if TYPE_CHECKING:
    import torch

_ROWS_PER_BATCH = 16


@dataclass(frozen=True)
class Reference:
    """A model to compare with: its name in the table, its folder and its digest."""

    label: str
    folder: Path
    digest: str


def measure_drift(
    folder: Path,
    digest: str,
    iteration: int,
    references: Sequence[Reference],
    probes: Sequence[tuple[list[Message], str]],
    model: ModelSettings,
    log: Callable[[str], None],
) -> pa.Table:
    """One row per reference. Schema DRIFT.

    ``probes`` are (messages, response) of seed rows; figures are means over the tokens of their responses:
    KL(reference || model) in nats, and the model's own negative log-likelihood. Two models are in memory at a time.
    """
    import torch

    tokenizer = load_tokenizer(folder)
    network = load_model(folder, model).eval()
    batches = list(_batches(tokenizer, probes))
    rows: list[dict[str, Any]] = []
    for reference in references:
        other = load_model(reference.folder, model).eval()
        divergence, likelihood, tokens = 0.0, 0.0, 0
        with torch.inference_mode():
            for ids, mask, scored in batches:
                own = _log_probabilities(network, ids, mask)[scored[:, 1:]]
                theirs = _log_probabilities(other, ids, mask)[scored[:, 1:]]
                targets = ids[:, 1:][scored[:, 1:]].to(own.device)
                divergence += float((theirs.exp() * (theirs - own)).sum())
                likelihood -= float(own.gather(-1, targets[:, None]).sum())
                tokens += int(scored[:, 1:].sum())
        rows.append(
            {
                "iteration": iteration,
                "model_digest": digest,
                "against": reference.label,
                "against_digest": reference.digest,
                "kl": max(0.0, divergence / tokens),
                "weight_distance": _weight_distance(network, other),
                "response_nll": likelihood / tokens,
                "rows": len(probes),
            }
        )
        log(f"drift against {reference.label}: KL {rows[-1]['kl']:.4f}, weights {rows[-1]['weight_distance']:.4f}")
    return table_of(rows, DRIFT)


def _batches(
    tokenizer: Any, probes: Sequence[tuple[list[Message], str]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Right-padded ids, attention mask, and which tokens belong to responses; each (rows, length)."""
    import torch

    for start in range(0, len(probes), _ROWS_PER_BATCH):
        rows = []
        for messages, response in probes[start : start + _ROWS_PER_BATCH]:
            prompt = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            answer = tokenizer(response, add_special_tokens=False)["input_ids"]
            rows.append((prompt, [*answer, tokenizer.eos_token_id]))
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), length), tokenizer.pad_token_id, dtype=torch.long)
        mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            mask[row, :end] = 1
            scored[row, len(prompt) : end] = True
        yield ids, mask, scored


def _log_probabilities(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token, (rows, length - 1, vocabulary)."""
    import torch

    device = network.device
    logits = network(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    return torch.log_softmax(logits[:, :-1].float(), dim=-1)


def _weight_distance(network: Any, other: Any) -> float:
    """|w - w'| / |w'| in the L2 norm over all weights."""
    difference, norm = 0.0, 0.0
    theirs = dict(other.named_parameters())
    for name, parameter in network.named_parameters():
        weight, reference = parameter.detach().float(), theirs[name].detach().float()
        difference += float((weight - reference).pow(2).sum())
        norm += float(reference.pow(2).sum())
    return float((difference / norm) ** 0.5)
