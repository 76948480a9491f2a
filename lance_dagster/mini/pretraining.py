"""Pre-training of the mini base model from nothing: `lance-dagster mini pretrain`.

In: the mini world and the prompt set. Out: a folder that transformers loads (config.json, model.safetensors,
tokenizer) plus ``pretraining.json`` (recipe, log, measurements) and a model card. Half a million parameters,
Qwen2 architecture, loss on the responses only, Muon for the matrices and AdamW for the rest. About half an hour
on two cores: judging is learned well after answering, which is why the weights ship with the package.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lance_dagster.mini.documents import Document, DocumentMix, answer_pools, pretraining_documents
from lance_dagster.mini.world import World, WorldName, world_named
from lance_dagster.prompts.prompt_sets import PromptSet, load_prompt_set

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that decides the weights. Same recipe, same machine and thread count: same weights."""

    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 288
    steps: int = 20_000
    tokens_per_batch: int = 2048
    learning_rate: float = 5e-3
    warmup_steps: int = 100
    decay_from: float = 0.5
    seed: int = 11
    threads: int = 2
    prompts: str = "mini_v1"
    mix: DocumentMix = field(default_factory=DocumentMix)
    world: WorldName = "repair"
    verdict_weight: float = 1.0


RECIPES: Mapping[WorldName, PretrainingRecipe] = {
    "repair": PretrainingRecipe(),
    "discovery": PretrainingRecipe(
        world="discovery",
        steps=9_000,
        threads=1,
        mix=DocumentMix(
            answer=0.25,
            review=0.55,
            new_instruction=0.12,
            flawed_response=0.08,
            slow_families=0.0,
            chat=1.0,
            answer_pool=2000,
            pool_noise=0.25,
        ),
        # Few tokens decide a review, and they are learned last: they count for more.
        verdict_weight=8.0,
    ),
}


def world_of_recipe(file: Path) -> World:
    """The world that a base model was made in, by its ``pretraining.json``."""
    return world_named(json.loads(file.read_text(encoding="utf-8"))["recipe"].get("world", "repair"))


def new_model(recipe: PretrainingRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A freshly initialised Qwen2 model of the recipe's size."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            scale = 0.02 if "embed" in name else weight.shape[1] ** -0.5
            if "o_proj" in name or "down_proj" in name:
                scale *= (2 * recipe.layers) ** -0.5
            torch.nn.init.normal_(weight, 0.0, scale)
    return model


class Encoded(NamedTuple):
    """Token ids of a prompt and of its response with the end token; ``verdicts`` are places in the response."""

    prompt: list[int]
    response: list[int]
    verdicts: tuple[int, ...]


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """The tokens of a document."""
    if document.chat:
        messages = [{"role": "user", "content": document.prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        text = f"Q: {document.prompt}\nA: "
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    response = tokenizer(document.response, add_special_tokens=False)["input_ids"]
    verdicts = tuple(
        len(tokenizer(document.response[:place], add_special_tokens=False)["input_ids"]) for place in document.verdicts
    )
    return Encoded(prompt, [*response, tokenizer.eos_token_id], verdicts)


def _batches(
    recipe: PretrainingRecipe, world: World, prompts: PromptSet, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless batches of about ``tokens_per_batch`` tokens, rows of similar length together.

    Each batch is (input ids, labels, weights), all of shape (rows, length); labels are -100 on prompts and padding.
    """
    import torch

    rng = random.Random(recipe.seed)
    pools = answer_pools(world, recipe.mix, recipe.seed)
    while True:
        documents = list(pretraining_documents(world, prompts, rng, 4096, recipe.mix, pools))
        encoded = sorted((encode(d, tokenizer) for d in documents), key=lambda e: len(e.prompt) + len(e.response))
        groups: list[list[Encoded]] = [[]]
        for row in encoded:
            longest = len(row.prompt) + len(row.response)
            if groups[-1] and longest * (len(groups[-1]) + 1) > recipe.tokens_per_batch:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            length = max(len(row.prompt) + len(row.response) for row in group)
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            labels = torch.full((len(group), length), -100)
            weights = torch.ones((len(group), length))
            for number, row in enumerate(group):
                end = len(row.prompt) + len(row.response)
                ids[number, :end] = torch.tensor(row.prompt + row.response)
                labels[number, len(row.prompt) : end] = torch.tensor(row.response)
                for place in row.verdicts:
                    weights[number, len(row.prompt) + place] = recipe.verdict_weight
            yield ids, labels, weights


def _response_loss(
    model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean negative log-likelihood of the labelled tokens; logits are computed for those alone."""
    import torch.nn.functional as F

    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    chosen = targets != -100
    logits = model.lm_head(hidden[chosen])
    if bool((weights == 1.0).all()):  # the plain mean, which rounds as the weights that ship were trained with
        return F.cross_entropy(logits, targets[chosen])
    losses = F.cross_entropy(logits, targets[chosen], reduction="none")
    return (losses * weights[:, 1:][chosen]).sum() / losses.numel()


def pretrain(out: Path, recipe: PretrainingRecipe | None = None, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Build tokenizer and weights from nothing and write them to ``out``. Returns the log that is written too."""
    import torch

    from lance_dagster.mini.tokenizer import build_tokenizer

    recipe = recipe or PretrainingRecipe()
    world, prompts = world_named(recipe.world), load_prompt_set(recipe.prompts)
    torch.set_num_threads(recipe.threads)
    tokenizer = build_tokenizer(world, prompts)
    model = new_model(recipe, tokenizer)
    model.train()
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "embed" not in n)]
    muon = torch.optim.Muon(
        matrices, lr=recipe.learning_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    curve: list[dict[str, float]] = []
    losses: list[float] = []
    tokens = 0
    started = time.monotonic()
    batches = _batches(recipe, world, prompts, tokenizer)
    for step in range(1, recipe.steps + 1):
        ids, labels, weights = next(batches)
        done = step / recipe.steps
        cooling = 1.0 if done < recipe.decay_from else max(0.02, (1 - done) / (1 - recipe.decay_from))
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = recipe.learning_rate * min(1.0, step / recipe.warmup_steps) * cooling
        loss = _response_loss(model, ids, labels, weights)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()  # type: ignore[no-untyped-call]  # torch
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        tokens += ids.numel()
        if step % max(1, recipe.steps // 40) == 0 or step == recipe.steps:
            recent = losses[-200:]
            seconds = time.monotonic() - started
            curve.append({"step": step, "tokens": tokens, "loss": sum(recent) / len(recent), "seconds": seconds})
            log(f"step {step}/{recipe.steps}  loss {curve[-1]['loss']:.4f}  {tokens / seconds:,.0f} tokens/s")
            model.eval()
            _save(model, tokenizer, out)
            model.train()
    model.eval()
    _save(model, tokenizer, out)
    record = {"recipe": asdict(recipe), "parameters": model.num_parameters(), "curve": curve}
    (out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model and tokenizer as transformers loads them."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
