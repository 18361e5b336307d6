"""Load a sparse model that transformers knows, from a local folder: to be traced, never fetched."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checked import check_room, open_tensors, read_json, short
from ..trace import INDEX, WEIGHT, takes_choices

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


@contextmanager
def ablated(model: nn.Module, layer: str, expert: int) -> Iterator[nn.Module]:
    """Take an expert out while the block runs: the weight that the experts are handed for it is 0.

    The choice stays, and so do the token's other weights: nothing is put in its place. A
    :func:`~moe_lite.trace.record` begun inside sees the 0; one begun before, what the gate said.

    Args:   layer: as in the trace's ``layer_names``; a block that runs several times loses the
            expert each time.
    Raises: ValueError for a layer or an expert that is not there, or experts that are not handed
            their weights.
    """
    # 1. the experts of this layer, as the recorder names and finds them
    found = {n.rpartition(".")[0] or n: m for n, m in model.named_modules() if takes_choices(m)}
    if layer not in found:
        raise ValueError(f"there is no layer {short(layer)}; those with experts: {list(found)}")
    experts, count = found[layer], getattr(found[layer], "num_experts", None)
    if expert < 0 or (count is not None and expert >= count):
        raise ValueError(f"there is no expert {expert} in {layer}, which has {count}, from 0")
    names = inspect.signature(experts.forward).parameters
    handed = [next((n for n in those if n in names), "") for those in (INDEX, WEIGHT)]
    if not all(handed):
        raise ValueError(f"the experts of {layer} are not handed weights: none can be taken out")

    # 2. its weight is 0, in a new tensor: the gate's own stays
    def without(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        call = inspect.signature(module.forward).bind(*args, **kwargs)
        index, weight = (call.arguments[name] for name in handed)
        if index.shape == weight.shape and not index.is_floating_point():
            its = index == expert
        else:  # a column for each expert; of the weights perhaps one, that of the only expert
            column = torch.arange(index.shape[-1], device=index.device) == expert
            its = (index != 0) & column
            its = its if weight.shape == index.shape else its.any(dim=-1).view(weight.shape)
        call.arguments[handed[1]] = weight.masked_fill(its, 0)
        return call.args, call.kwargs

    hook = experts.register_forward_pre_hook(without, with_kwargs=True)
    try:
        yield model
    finally:
        hook.remove()
