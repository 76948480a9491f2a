"""Drift: how far a checkpoint moved from the base, from M_0 and from every earlier policy model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lance_dagster.prompts.prompt_sets import Message
from lance_dagster.records import DRIFT, table_of
from lance_dagster.settings import ModelSettings
from lance_dagster.storage.models import load_model, load_tokenizer

if TYPE_CHECKING:
    import torch

# Logits, one per token of the vocabulary, are what fills the memory: 152,000 for each token of Qwen2-7B.
_LOGITS_PER_BATCH = 1 << 28  # at most, in one forward pass, unless a single row has more
_LOGITS_PER_PART = 1 << 26  # compared at a time, in 32 bits


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
    KL(reference || model) in nats, and the model's own negative log-likelihood. Two models are in memory at a time,
    and about 3 GiB of logits.
    """
    import torch

    tokenizer = load_tokenizer(folder)
    network = load_model(folder, model).eval()
    batches = list(_batches(tokenizer, probes, network.config.get_text_config().vocab_size))
    rows: list[dict[str, Any]] = []
    for reference in references:
        other = load_model(reference.folder, model).eval()
        divergence, likelihood, tokens = 0.0, 0.0, 0
        with torch.inference_mode():
            for ids, mask, scored in batches:
                targets = ids[scored].to(network.device)
                figures = _compare(_logits(network, ids, mask, scored), _logits(other, ids, mask, scored), targets)
                divergence += figures[0]
                likelihood += figures[1]
                tokens += len(targets)
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
    tokenizer: Any, probes: Sequence[tuple[list[Message], str]], vocabulary: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Right-padded ids, attention mask, and which tokens belong to responses; each (rows, length)."""
    rows: list[tuple[list[int], list[int]]] = []
    longest = 0
    for messages, response in probes:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        longest = max(longest, len(prompt) + len(answer))
        if rows and (len(rows) + 1) * longest * vocabulary > _LOGITS_PER_BATCH:
            yield _padded(rows, tokenizer.pad_token_id)
            rows, longest = [], len(prompt) + len(answer)
        rows.append((prompt, answer))
    yield _padded(rows, tokenizer.pad_token_id)


def _padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        scored[row, len(prompt) : end] = True
    return ids, mask, scored


def _logits(network: Any, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """What predicts each scored token, (scored tokens, vocabulary)."""
    device = network.device
    logits: torch.Tensor = network(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    return logits[:, :-1][scored[:, 1:].to(device)]


def _compare(own: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Sums over tokens of KL(theirs || own) and of the negative log-likelihood of ``targets`` under ``own``."""
    divergence, likelihood = 0.0, 0.0
    step = max(1, _LOGITS_PER_PART // own.shape[-1])
    for start in range(0, len(targets), step):
        mine, other, target = own[start : start + step], theirs[start : start + step], targets[start : start + step]
        log_p, log_q = other.float().log_softmax(-1), mine.float().log_softmax(-1)
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        likelihood -= float(log_q.gather(-1, target[:, None]).sum())
    return divergence, likelihood


def _weight_distance(network: Any, other: Any) -> float:
    """|w - w'| / |w'| in the L2 norm over all weights."""
    difference, norm = 0.0, 0.0
    theirs = dict(other.named_parameters())
    for name, parameter in network.named_parameters():
        weight, reference = parameter.detach().float(), theirs[name].detach().float()
        difference += float((weight - reference).pow(2).sum())
        norm += float(reference.pow(2).sum())
    return float((difference / norm) ** 0.5)
