"""Checkpoints in Hugging Face's Mixtral layout, read and written; every name is translated here.

A checkpoint is a folder: ``config.json``, and either ``model.safetensors`` or shards
``model-00001-of-0000n.safetensors`` with ``model.safetensors.index.json``, which says which
tensor lies in which shard. Pickles are refused: unpickling runs whatever code they hold.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .checked import build, check_room, hints, open_tensors, read_json, short
from .config import MixtralConfig
from .files import commit
from .model import Mixtral

PRETRAINED = Path(__file__).resolve().parent.parent / "checkpoints"  # comes with the course
if not PRETRAINED.is_dir():  # installed from a wheel
    PRETRAINED = Path(sysconfig.get_path("data"), "share", "moe_lite", "checkpoints")
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HEAD = "lm_head.weight"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Sizes have no default worth guessing; the other fields have the one transformers gives them.
REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_local_experts", "num_experts_per_tok", "max_position_embeddings",
)  # fmt: skip
# Fields that would change the forward pass, and the values that leave it as it is here.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("mixtral",),
    "architectures": (["MixtralForCausalLM"], None),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "pretraining_tp": (1, None),
    "router_jitter_noise": (0, None),
    "partial_rotary_factor": (1, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}
HARMLESS = {
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "dtype",
    "torch_dtype", "transformers_version", "use_cache", "output_router_logits",
    "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id",
    "problem_type", "chunk_size_feed_forward", "tokenizer_class", "unsloth_version",
}  # fmt: skip


# --------------------------------------------------------------------------- config.json


def load_config(path: str | os.PathLike[str], *, ignore: Collection[str] = ()) -> MixtralConfig:
    """Read the config.json of a Mixtral checkpoint, refusing what this model would not compute.

    Args:    path: the folder. ignore: names of fields to read past.
    Raises:  FileNotFoundError if there is none; ValueError naming the file, the field and the
             value if it is unknown, malformed, or asks for another forward pass.
    """
    file = _folder(path) / CONFIG
    fields = {name: value for name, value in read_json(file).items() if name not in ignore}
    if fields.get("model_type") != "mixtral":
        raise ValueError(f"{file}: model_type is {short(fields.get('model_type'))}, not 'mixtral'")
    _read_rope(fields, file)
    for name, value in fields.items():
        read_past = f"ignore=({short(name)},) reads past it"
        if name in FIXED:
            if value not in FIXED[name]:
                raise ValueError(
                    f"{file}: {name} is {short(value)}, which would change the forward pass; "
                    f"only {FIXED[name][0]!r} is computed here ({read_past})"
                )
        elif name not in hints(MixtralConfig) and name not in HARMLESS:
            raise ValueError(
                f"{file}: the field {short(name)} ({short(value)}) is unknown and might change "
                f"the model; if it does not matter, {read_past}"
            )
    if fields.get("num_key_value_heads") is None:
        fields["num_key_value_heads"] = fields.get("num_attention_heads")
    if missing := [name for name in REQUIRED if name not in fields]:
        raise ValueError(f"{file}: {', '.join(missing)} missing")
    used = {name: value for name, value in fields.items() if name in hints(MixtralConfig)}
    return build(MixtralConfig, used, str(file))


def _read_rope(fields: dict[str, Any], file: Path) -> None:
    """Bring both spellings of the rotary settings to one ``rope_theta``."""
    for key in ("rope_parameters", "rope_scaling"):  # transformers 5, and 4
        rope = fields.get(key)
        if not isinstance(rope, dict):
            continue
        rope = dict(rope)
        theta = rope.pop("rope_theta", None)
        kinds = [rope.pop("rope_type", "default"), rope.pop("type", "default")]
        if kinds != ["default"] * 2 or rope.pop("partial_rotary_factor", 1) != 1 or rope:
            raise ValueError(
                f"{file}: {key} is {short(fields[key])}; only the default rotary embedding "
                "is computed"
            )
        if theta is not None and (said := fields.setdefault("rope_theta", theta)) != theta:
            raise ValueError(f"{file}: rope_theta is {short(said)}, but {key} says {short(theta)}")
        del fields[key]
    if fields.get("rope_parameters", 0) is None:
        del fields["rope_parameters"]


def _config_json(config: MixtralConfig, dtype: torch.dtype) -> str:
    """Write a config that transformers 4 (rope_theta) and 5 (rope_parameters) both read."""
    name = str(dtype).removeprefix("torch.")
    fields = dataclasses.asdict(config) | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "dtype": name,
        "torch_dtype": name,
        "use_cache": True,
    }
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


# --------------------------------------------------------------------------- names


def _layout(model: Mixtral, stored: Collection[str] = ()) -> dict[str, tuple[Tensor, ...]]:
    """Give each tensor of a checkpoint the pieces of the parameters that it holds.

    In the published layout every expert has its own tensors. In transformers 5's own names
    (``save_original_format=False``), taken if ``stored`` has one of them, the experts are stacked,
    and w1 and w3 are the two halves of one tensor's second dimension.
    """
    stacked = any(name.endswith(".mlp.experts.gate_up_proj") for name in stored)
    names: dict[str, tuple[Tensor, ...]] = {}
    for name, parameter in model.named_parameters():  # a tied lm_head is not listed twice
        tensor, (layer, _, weight) = parameter.detach(), name.rpartition(".experts.")
        if not layer:
            names[name if name.startswith("lm_head.") else f"model.{name}"] = (tensor,)
        elif stacked:
            key = f"model.{layer}.experts.{'down_proj' if weight == 'w2' else 'gate_up_proj'}"
            names[key] = (*names.get(key, ()), tensor)  # w1 comes before w3
        else:
            for e, expert in enumerate(tensor):
                names[f"model.{layer}.experts.{e}.{weight}.weight"] = (expert,)
    if HEAD in stored and HEAD not in names:  # tied, and stored all the same: a copy to compare
        names[HEAD] = (torch.empty_like(model.lm_head.weight),)
    if stacked:
        return {name.replace(".block_sparse_moe.", ".mlp."): names[name] for name in names}
    return names


class _Undrawn(TorchFunctionMode):
    """Skip torch.nn.init: for nothing on the meta device, its first use would take a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) != torch.nn.init.__name__:
            return func(*args, **(kwargs or {}))
        return None


def _outline(config: MixtralConfig) -> Mixtral:
    """Build a model that has shapes but no memory."""
    with torch.device("meta"), _Undrawn():
        return Mixtral(config)


# --------------------------------------------------------------------------- reading


def load(
    path: str | os.PathLike[str], device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None, *, ignore: Collection[str] = (),
) -> Mixtral:  # fmt: skip
    """Read a Mixtral checkpoint shard by shard into a new model.

    Files, names, shapes and types are all checked before any weight is allocated; then one
    shard at a time is mapped into memory and each of its tensors copied to its place on the
    device. So the host needs room for little beyond the model itself.

    Args:    path: the folder. dtype: of the parameters; None keeps the stored one.
             ignore: config fields to read past, as in :func:`load_config`.
    Raises:  FileNotFoundError if there is no such folder; ValueError naming the file for
             whatever is missing, superfluous, truncated, misshapen, or a pickle.
    """
    folder = _folder(path)
    _check_dtype(dtype)
    config, shards = load_config(folder, ignore=ignore), _shards(folder)
    stored_names = {name for names in shards.values() for name in names}
    _check_size(folder, config, stored_names, device, dtype)
    model = _outline(config)
    stored_dtype = _verify(model, shards)
    if dtype is None and len(stored_dtype) > 1:
        raise ValueError(
            f"{folder}: the tensors are stored in several types "
            f"({', '.join(sorted(map(str, stored_dtype)))}); say which to load, dtype=..."
        )
    _allocate(model, torch.device(device), dtype or stored_dtype.pop())
    layout = _layout(model, stored_names)
    for file, names in shards.items():
        with open_tensors(file) as shard:
            for name in names:
                stored, pieces = shard.get_tensor(name), layout[name]
                parts = stored.chunk(len(pieces), dim=1) if len(pieces) > 1 else (stored,)
                for piece, part in zip(pieces, parts, strict=True):
                    piece.copy_(part)
    tied = config.tie_word_embeddings and HEAD in layout
    if tied and not torch.equal(layout[HEAD][0], model.lm_head.weight):
        raise ValueError(f"{folder}: {HEAD} is not the embedding, but the config ties the two")
    return model


def load_pretrained(
    name: str = "mixtral-mini",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Mixtral:
    """Load a model that comes with the course: no network, wherever it was installed from.

    Raises: ValueError naming those there are.
    """
    if not (PRETRAINED / name / CONFIG).is_file():
        there = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
        raise ValueError(
            f"there is no model {name!r} in {PRETRAINED}, only {', '.join(there) or 'nothing'}"
        )
    return load(PRETRAINED / name, device=device, dtype=dtype)


def _allocate(model: Mixtral, device: torch.device, dtype: torch.dtype) -> None:
    """Give an outline memory, not yet filled."""
    for module in model.modules():  # to_empty would first import a second's worth of torch
        for name, outline in module.named_parameters(recurse=False):
            empty = torch.empty(outline.shape, dtype=dtype, device=device)
            setattr(module, name, torch.nn.Parameter(empty))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} is a file; give the folder that holds config.json")
    replaced = folder.with_name(f".{folder.name}.replaced") if folder.name else folder
    hint = f"; an interrupted save left it at {replaced}" if replaced.is_dir() else ""
    raise FileNotFoundError(f"there is no folder {folder}{hint}")


def _shards(folder: Path) -> dict[Path, list[str]]:
    """List the weight files and the tensors in each, as the files themselves say."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder}: holds both {WEIGHTS} and {INDEX}; remove one of them")
    if single.is_file():
        return {single: _names(single)}
    if not index.is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{folder / pickles[0]}: a pickle can run any code when it is read and is "
                "refused; convert it to safetensors first"
            )
        raise FileNotFoundError(f"there is neither {WEIGHTS} nor {INDEX} in {folder}")

    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: has no weight_map from tensor names to files")
    claimed: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]{0,200}", file):
            raise ValueError(
                f"{index}: {_few([name])} is said to lie in {short(file)}, outside the folder"
            )
        if not file.endswith(".safetensors"):
            raise ValueError(
                f"{index}: {_few([name])} is said to lie in {short(file)}, no safetensors file; "
                "a pickle is refused, convert it first"
            )
        claimed.setdefault(folder / file, []).append(name)
    for file in sorted(claimed):
        if not file.is_file():
            raise ValueError(f"{file}: the shard is missing, but {INDEX} names it")
    for file in sorted(folder.glob(SHARDS)):
        if file not in claimed:
            raise ValueError(f"{file}: the shard is there, but {INDEX} does not name it")
    for file, names in claimed.items():
        differ = sorted(set(names) ^ set(_names(file)))
        if differ:
            raise ValueError(f"{file}: the shard and {INDEX} disagree about {_few(differ)}")
    return dict(sorted(claimed.items()))


def _check_size(
    folder: Path, config: MixtralConfig, stored: Collection[str], device: torch.device | str,
    dtype: torch.dtype | None,
) -> None:  # fmt: skip
    """Count what a config asks for before an outline of it is made: that would take as long."""
    stacked = any(name.endswith(".gate_up_proj") for name in stored)
    experts = config.num_hidden_layers * (1 if stacked else config.num_local_experts)
    if experts > len(stored):
        raise ValueError(
            f"{folder / CONFIG}: num_hidden_layers {config.num_hidden_layers:,} and "
            f"num_local_experts {config.num_local_experts:,} ask for more than the "
            f"{len(stored):,} tensors that are stored"
        )
    size = config.num_parameters * (dtype or torch.bfloat16).itemsize
    check_room(size, f"{folder / CONFIG}: the model", device)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, *DTYPES.values()):
        raise ValueError(f"dtype must be None or one of {[*DTYPES.values()]}, not {dtype!r}")


def _names(file: Path) -> list[str]:
    with open_tensors(file) as shard:
        return sorted(shard.keys())


def _few(names: list[str]) -> str:
    first = [name if re.fullmatch(r"[\w.-]{1,99}", name) else short(name) for name in names[:3]]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _verify(model: Mixtral, shards: dict[Path, list[str]]) -> set[torch.dtype]:
    """Compare the stored names, shapes and types with the model's; return the types."""
    there = {name for names in shards.values() for name in names}
    layout = _layout(model, there)
    folder = next(iter(shards)).parent
    if missing := [name for name in layout if name not in there]:
        raise ValueError(f"{folder}: the checkpoint lacks {_few(missing)}")
    dtypes = set()
    for file, names in shards.items():
        with open_tensors(file) as shard:
            for name in names:
                if name not in layout:
                    raise ValueError(f"{file}: holds the unexpected tensor {_few([name])}")
                pieces, stored = layout[name], shard.get_slice(name)
                shape = list(pieces[0].shape)
                if len(pieces) > 1:
                    shape[1] *= len(pieces)
                if stored.get_shape() != shape:
                    raise ValueError(
                        f"{file}: {name} has shape {tuple(stored.get_shape())}, "
                        f"but the config asks for {tuple(shape)}"
                    )
                if stored.get_dtype() not in DTYPES:
                    raise ValueError(
                        f"{file}: {name} is stored as {stored.get_dtype()}, "
                        f"which is none of {', '.join(DTYPES)}"
                    )
                dtypes.add(DTYPES[stored.get_dtype()])
    return dtypes


# --------------------------------------------------------------------------- upcycling


@torch.no_grad()
def upcycle(
    dense: Mixtral, num_experts: int, experts_per_tok: int = 2, *, seed: int = 0
) -> Mixtral:
    """Make a sparse model of a dense one: every expert a copy of its network, the routers new.

    A token's gates add up to 1 and its experts are equal, so whatever the new routers say, the
    logits are those of the dense model up to rounding. They part as soon as training begins,
    because each expert then sees other tokens.

    Args:    dense: with one expert in each layer; stays as it is. seed: of the routers.
    Returns: a model of its own memory, on the same device and in the same type.
    Raises:  ValueError if it is not dense, or there cannot be so many experts (per token).
    Source:  Komatsuzaki et al. 2022 (arXiv:2212.05055), section 3.
    """
    if (experts := dense.config.num_local_experts) != 1:
        raise ValueError(f"only a dense model can be upcycled; this one has {experts} experts")
    _check_expressible(dense)
    config = dataclasses.replace(
        dense.config, num_local_experts=num_experts, num_experts_per_tok=experts_per_tok
    )
    model, weight = _outline(config), dense.embed_tokens.weight
    _allocate(model, weight.device, weight.dtype)
    generator = torch.Generator(weight.device).manual_seed(seed)
    source = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        if name.endswith(".gate.weight"):
            parameter.normal_(std=dense.config.initializer_range, generator=generator)
        else:
            one = _exported(dense, name, source[name])
            parameter.copy_(one.expand_as(parameter))  # one expert becomes E
    return model.train(dense.training)


# --------------------------------------------------------------------------- writing


def save(
    model: Mixtral, path: str | os.PathLike[str], *, max_shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None, overwrite: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """Write a model as a checkpoint folder that transformers reads, all of it or nothing.

    The folder changes in one act (:func:`moe_lite.files.commit`). With ``overwrite`` the weights
    and the config are replaced and every other file there (a tokenizer, a note) stays. Beyond
    the model, memory holds one shard if tensors must be converted.

    Args:    max_shard_bytes: above it the weights are split; a larger tensor has a shard of
             its own. dtype: of the stored weights; None keeps that of each. also: writes more
             into the folder it is given (a tokenizer), in the same act.
    Raises:  ValueError if the model is not a Mixtral that the layout can express;
             FileExistsError if the folder is not empty and overwrite is not given; OSError
             if it cannot be written.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    _check_dtype(dtype)
    _check_expressible(model)
    with commit(path, _ours, overwrite) as part:
        _write(model, part, max_shard_bytes, dtype)
        if also is not None:
            also(part)


def _check_expressible(model: Mixtral) -> None:
    want = {name: tuple(p.shape) for name, p in _outline(model.config).named_parameters()}
    have = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise ValueError(
                f"the Mixtral layout cannot hold this model: {name} is {have.get(name)} where "
                f"its config makes it {want.get(name)}"
            )
    for layer in model.moe_layers:
        fits, K = getattr(layer.gate, "fits_mixtral", False), model.config.num_experts_per_tok
        if not fits or layer.gate.top_k != K:
            raise ValueError(
                f"the Mixtral layout cannot hold the router of {layer.name}: {layer.gate} does not "
                f"take the {K} best of a softmax, divided by their sum"
            )


def _exported(model: Mixtral, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as the layout holds it: there a w2 takes on its router's factor on gates."""
    layer, _, weight = name.rpartition(".experts.")
    if "w2" not in weight.split("."):
        return tensor
    gate: Any = model.get_submodule(layer.removeprefix("model.")).gate
    return tensor if gate.gate_scale == 1 else tensor * gate.gate_scale


def _write(model: Mixtral, folder: Path, max_bytes: int, dtype: torch.dtype | None) -> None:
    shards: list[list[str]] = [[]]
    tensors = {name: tensor for name, (tensor,) in _layout(model).items()}
    room, total = max_bytes, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
        total += size

    config = folder / CONFIG
    text = _config_json(model.config, dtype or model.embed_tokens.weight.dtype)
    config.write_text(text, encoding="utf-8", newline="\n")
    weight_map = {}
    for i, names in enumerate(shards, 1):
        one = len(shards) == 1
        file = folder / (WEIGHTS if one else f"model-{i:05}-of-{len(shards):05}.safetensors")
        shard = {name: _exported(model, name, tensors[name]) for name in names}
        shard = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in shard.items()}
        try:
            save_file(shard, file, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk too
            raise OSError(str(error)) from error
        shutil.copymode(config, file)  # safetensors makes it private to its owner
        weight_map.update(dict.fromkeys(names, file.name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8", newline="\n")


def _ours(name: str) -> bool:
    """Return whether a file of a folder is one that a save replaces."""
    return name in (CONFIG, WEIGHTS, INDEX) or Path(name).match(SHARDS)
