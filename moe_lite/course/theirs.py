"""Load a sparse model that transformers knows, from a local folder: to be traced, never fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checked import check_room, open_tensors, read_json, short

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_theirs(folder: Path) -> bool:
    """Return whether a folder's config is of another model than our Mixtral."""
    return read_json(folder / "config.json").get("model_type", "mixtral") != "mixtral"


def size(folder: Path, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Count a folder's parameters, and the bytes they take: as stored, or as this type.

    Raises: ValueError if there are no safetensors, or they cannot be read. Pickles are refused.
    """
    count = total = 0
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if file.name.startswith("model")] or files
    if not files:
        raise ValueError(f"{folder}: there are no weights in safetensors; a pickle is not read")
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                numbers = torch.Size(part.get_shape()).numel()
                bits = int("".join(c for c in part.get_dtype().split("_")[0] if c.isdecimal()) or 8)
                count += numbers
                total += numbers * dtype.itemsize if dtype else numbers * bits // 8
    return count, total


def load(folder: Path, dtype: torch.dtype | None = None) -> nn.Module:
    """Load the model in a folder with transformers; of an encoder and a decoder, the encoder.

    Args:   dtype: of the parameters; None keeps the stored one.
    Raises: ValueError in a sentence if transformers is not there, does not know the model, or
            cannot load it; if it needs code of its own, or more memory than there is.
    """
    config = read_json(folder / "config.json")
    kind = short(config.get("model_type"))
    if "auto_map" in config:
        raise ValueError(f"{folder}: the model brings code of its own, which is not run")
    check_room(size(folder, dtype)[1], f"the model in {folder}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ModuleNotFoundError:
        raise ValueError(
            f"{folder}: a model of type {kind} is loaded by transformers, which is not there; "
            '`pip install "transformers>=5.17"` installs it'
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with_weights = {"dtype": dtype or "auto", "use_safetensors": True, "output_loading_info": True}
    name = next(iter(config.get("architectures") or ()), None)
    made: Any = getattr(transformers, name if isinstance(name, str) else "", None)
    made = made if hasattr(made, "from_pretrained") else transformers.AutoModelForCausalLM
    try:
        transformers.AutoConfig.from_pretrained(folder, **how)
        model, found = made.from_pretrained(folder, **how, **with_weights)
    except Exception as error:  # of any kind: what it does not know, and what it cannot read
        said = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: transformers {transformers.__version__} cannot load this model of type "
            f"{kind}: {short(said, 160)}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more")
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    return model.eval()  # type: ignore[no-any-return]


def context(model: nn.Module) -> tuple[int, int]:
    """Return a model's tokens, and the longest text that it is made for."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return text.vocab_size, getattr(text, "max_position_embeddings", None) or 2**31
