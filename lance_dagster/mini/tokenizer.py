"""The tokenizer of the mini world: byte-level BPE with one token per digit and per capital letter."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from lance_dagster.mini.world import World
from lance_dagster.prompts.prompt_sets import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 640
PAD, SYSTEM, USER, ASSISTANT, END = "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(world: World, prompts: PromptSet, seed: int = 1, documents: int = 6000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on pre-training text of ``world``.

    Digits and runs of capitals are taken out of the training text, so that numbers and the words that tasks
    spell, sort and reverse are read character by character.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lance_dagster.mini.documents import pretraining_documents

    def strip(text: str) -> str:
        return re.sub(r"\b[A-Z]{2,}(-[A-Z])*\b", "", re.sub(r"\d", "", text))

    rng = random.Random(seed)
    corpus: list[str] = []
    for document in pretraining_documents(world, prompts, rng, documents):
        corpus += [strip(document.prompt), strip(document.response)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted({chr(code) for code in range(33, 127)} | {"Ġ", "Ċ"})
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
