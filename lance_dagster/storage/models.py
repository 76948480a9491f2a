"""Loading models and tokenizers from checkpoint folders, on the device and in the type that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lance_dagster.errors import ArtifactError, SettingsError
from lance_dagster.imports import heavy_imports, models_follow
from lance_dagster.settings import ModelSettings

if TYPE_CHECKING:
    import torch


def device_of(settings: ModelSettings) -> torch.device:
    """The device to use: the one named, or a GPU where there is one. SettingsError for a GPU that is not there."""
    import torch

    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "model.device is 'cuda', but torch sees no GPU here. Check the driver (`nvidia-smi`) and "
            "CUDA_VISIBLE_DEVICES, or set it to 'auto' or 'cpu'."
        )
    return torch.device(settings.device)


def load_tokenizer(folder: Path, padding_side: Literal["left", "right"] = "right") -> Any:
    """The tokenizer of a checkpoint, whose ``eos_token`` is the one that ends a turn of its chat template.

    The two differ in some base models: Qwen2-7B has <|endoftext|>, while its template closes turns with <|im_end|>.
    Raises ArtifactError for a folder without a tokenizer or without a chat template, which every stage needs.
    """
    with heavy_imports():
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"transformers cannot load the tokenizer in {folder}: {error}") from error
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:  # what transformers makes up without files
        raise ArtifactError(
            f"{folder} holds no tokenizer, or an empty one. Put tokenizer.json and tokenizer_config.json of the model "
            "beside its weights."
        )
    if not tokenizer.chat_template:
        raise ArtifactError(
            f"the tokenizer in {folder} has no chat template, so prompts cannot be rendered. Use the instruct "
            "variant of the model, or put a chat_template.jinja into the model folder."
        )
    tokenizer.eos_token = _end_of_turn(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _end_of_turn(tokenizer: Any) -> str:
    """The special token that follows a response in the chat template; the tokenizer's own end token if none does."""
    response = "the response"
    turns = [{"role": "user", "content": "the instruction"}, {"role": "assistant", "content": response}]
    _, found, tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(response)
    closing = [token for token in tokenizer.get_added_vocab() if found and tail.lstrip().startswith(token)]
    return str(max(closing, key=len)) if closing else str(tokenizer.eos_token)


def end_tokens(folder: Path, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the end of a turn, and those that the checkpoint's own files name."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(folder).eos_token_id
    else:
        named = AutoConfig.from_pretrained(folder).eos_token_id
    return {tokenizer.eos_token_id, *([named] if isinstance(named, int) else named or ())}


def load_model(folder: Path, settings: ModelSettings) -> Any:
    """The causal language model of a checkpoint, on its device.

    The stages of a run share one process, so GPU memory of models that are no longer used is given back first.
    """
    import gc

    with heavy_imports():
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

    models_follow()
    logging.disable_progress_bar()  # one bar per weight shard is noise in a run's log
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if torch.cuda.is_available():
        gc.collect()  # trainers hold their model and their optimiser in reference cycles
        torch.cuda.empty_cache()
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"transformers cannot load the checkpoint in {folder}: {error}") from error
    return model.to(device_of(settings))


def fetch_base_model(settings: ModelSettings, resolved: str) -> Path:
    """The folder of the untouched model: a local one, or a hub model, downloaded once into the hub's own cache.

    ``resolved`` is ``settings.path`` after resolve_path. Raises ArtifactError that names the path and the next step.
    """
    folder = Path(resolved)
    if folder.is_dir():
        return folder
    if settings.path.count("/") != 1 or settings.path.startswith((".", "/", "package:")):
        raise ArtifactError(
            f"model.path: there is no model folder at {resolved}. Give a folder that transformers can load, or the "
            "name of a hub model such as Qwen/Qwen2-7B."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
        patterns += ["*.py"] if settings.trust_remote_code else []
        return Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"model.path: {settings.path} is neither a local folder nor a hub model that can be downloaded now "
            f"({error}). Check the name, log in with `hf auth login` if the model is gated, or download it on another "
            "machine and give the folder."
        ) from error
