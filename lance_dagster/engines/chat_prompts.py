"""From a request to the token ids of its prompt, and from the tokens of an answer to its completion.

Engines that run a checkpoint themselves share this, so that the same request is the same prompt in each of them.
"""

from __future__ import annotations

from pathlib import Path

from lance_dagster.engines.engine import Completion, GenerationRequest, failed
from lance_dagster.imports import heavy_imports
from lance_dagster.prompts.neutralise import ControlTokens
from lance_dagster.prompts.prompt_sets import Message
from lance_dagster.storage.models import end_tokens, load_tokenizer


class ChatPrompts:
    """The tokenizer and chat template of one checkpoint.

    ``context``: tokens that a prompt and its answer may have together; the model's own where ``limit`` is unset.
    ``ends``: the tokens that end an answer.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        with heavy_imports():
            from transformers import AutoConfig

        self._tokenizer = load_tokenizer(folder, padding_side="left")
        own = int(getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", 0) or 1 << 30)
        self.context = min(own, limit or own)
        self.ends = end_tokens(folder, self._tokenizer)
        self.pad: int = self._tokenizer.pad_token_id
        self._control = ControlTokens.of_tokenizer(self._tokenizer)
        self._last: tuple[tuple[Message, ...], list[int]] | None = None

    def encode(self, request: GenerationRequest) -> list[int] | Completion:
        """The prompt's token ids, or a failed completion where prompt and answer exceed the context."""
        ids = self._ids(request.messages)
        new = request.sampling.max_new_tokens
        if len(ids) + new > self.context:
            detail = (
                f"{len(ids)} prompt tokens and {new} new ones exceed the context of {self.context}. Shorten the seed "
                "row, or lower max_new_tokens."
            )
            return failed("prompt_too_long", detail, len(ids), attempts=0)
        return ids

    def completion(self, prompt: list[int], new: list[int]) -> Completion:
        """The completion that some new tokens give; what follows the first end token is no part of it."""
        end = next((i for i, token in enumerate(new) if token in self.ends), None)
        text = self._tokenizer.decode(new if end is None else new[:end], skip_special_tokens=False)
        used = len(new) if end is None else end + 1
        return Completion(text, "length" if end is None else "stop", len(prompt), used)

    def _ids(self, messages: tuple[Message, ...]) -> list[int]:
        if self._last is not None and self._last[0] is messages:  # the samples of one row share its prompt
            return self._last[1]
        ids: list[int] = self._tokenizer.apply_chat_template(
            self._control.messages(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        self._last = messages, ids
        return ids
