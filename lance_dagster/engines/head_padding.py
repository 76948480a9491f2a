"""Checkpoints whose attention heads vLLM's CPU kernels do not take, written with wider heads that give the same texts.

The kernels exist for some head sizes only (vllm/v1/attention/backends/cpu_attn.py); the embedded model has 24. Zero
columns leave every product of a query and a key as it was, zero rows add nothing to the output; the rotation is limited
to the old width by ``partial_rotary_factor``, and queries are scaled for the square root that attention divides by.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lance_dagster.errors import GenerationError

if TYPE_CHECKING:
    import torch

_FAMILIES = ("qwen2", "llama")  # the same layers; vLLM's Llama takes a head size of its own, its Qwen2 does not


def head_size(folder: Path) -> int | None:
    """Width of one attention head of the checkpoint in ``folder``; None if its configuration does not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("head_dim"):
        return int(config["head_dim"])
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(hidden) // int(heads) if hidden and heads else None


def pad_heads(folder: Path, target: Path, width: int) -> None:
    """Write the checkpoint in ``folder`` to ``target`` with heads of ``width``, as a Llama model.

    Raises GenerationError for a kind of model whose layers are not known here, or without a safetensors file.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size, kind, files = head_size(folder), config.get("model_type"), sorted(folder.glob("*.safetensors"))
    if size is None or kind not in _FAMILIES or not files or config.get("use_sliding_window"):
        raise GenerationError(
            f"vLLM on a CPU has no attention for heads of {size}, and a {kind!r} checkpoint cannot be padded to "
            f"{width} (only {' and '.join(_FAMILIES)} in safetensors files can). Set engine.kind to 'transformers', or "
            "use a GPU."
        )
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]

    def widened(name: str, weight: torch.Tensor) -> torch.Tensor:
        """Rows of q, k and v (and their biases), columns of o, head by head."""
        part = name.split(".")[-2] if "." in name else name
        if part == "o_proj":
            if name.endswith(".bias"):
                return weight
            split = weight.view(weight.shape[0], heads, size)
            return torch.nn.functional.pad(split, (0, width - size)).reshape(weight.shape[0], heads * width)
        if part not in ("q_proj", "k_proj", "v_proj"):
            return weight
        count = heads if part == "q_proj" else groups
        scale = (width / size) ** 0.5 if part == "q_proj" else 1.0
        split = (weight * scale).view(count, size, -1)
        padded = torch.nn.functional.pad(split, (0, 0, 0, width - size))
        return padded.reshape(count * width, *weight.shape[1:])

    target.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path not in files:
            shutil.copyfile(path, target / path.name)
    for path in files:
        weights = {name: widened(name, weight).contiguous() for name, weight in load_file(path).items()}
        save_file(weights, target / path.name, metadata={"format": "pt"})
    rope = dict(config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta", 1e4)})
    rope["partial_rotary_factor"] = size / width * rope.get("partial_rotary_factor", 1.0)
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": width, "rope_parameters": rope}
    config.pop("layer_types", None)
    if kind == "qwen2":
        config |= {"attention_bias": False, "qkv_bias": True}
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
