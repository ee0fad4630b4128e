"""Checkpoints without pickle: weights as safetensors, configuration as JSON in their header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import written_whole
from .e2former import E2Former

FORMAT = "e2former_pyg"
FORMAT_VERSION = 1

Model = TypeVar("Model", bound=nn.Module)


def config_text(config: dict[str, Any]) -> str:
    """A configuration as JSON."""
    # Settings may be numbers of NumPy or scalar tensors, which know their plain value.
    return json.dumps(config, default=lambda value: value.item())


def class_name(model: nn.Module) -> str:
    """The name of the class that was built, which FSDP covers with a subclass of its own."""
    classes = type(model).__mro__
    return next(c.__name__ for c in classes if not c.__module__.startswith("torch.distributed"))


def save_checkpoint(
    path: str | Path, model: nn.Module, backbone: nn.Module, config: dict[str, Any]
) -> None:
    """Saves ``model``, whose arguments are ``config`` and those of its backbone.

    Writes to a temporary file first, so that an interruption costs no older checkpoint. All
    processes of a sharded model have to call it, of which the first one writes.
    """
    if type(backbone) is not E2Former:
        raise TypeError(
            "`backbone` must be an E2Former for its configuration to be saved, got "
            f"{type(backbone).__name__}; save the `state_dict` instead"
        )
    path = Path(path)
    settings = {**config, **backbone.config}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "class": class_name(model),
        "config": config_text(settings),
    }
    tensors, sharded = {}, False
    for key, value in model.state_dict().items():
        if hasattr(value, "full_tensor"):  # a DTensor, which not every build of PyTorch has
            value, sharded = value.full_tensor(), True
        tensors[key] = value.detach().cpu().contiguous().clone()
    if sharded and torch.distributed.get_rank() != 0:
        return
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_checkpoint(path: str | Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The class name, configuration and weights of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a checkpoint file, found none at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"`path` is damaged or no safetensors file: {path} ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"`path` is no {FORMAT} checkpoint: {path}")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"`path` has checkpoint format {metadata.get('format_version')}, "
            f"expected {FORMAT_VERSION}: {path}"
        )
    try:
        return metadata["class"], json.loads(metadata["config"]), state
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"`path` has a damaged configuration: {path} ({error!r})") from error


@torch.inference_mode(False)  # parameters made in inference mode could never have gradients
def load_checkpoint(path: str | Path, cls: type[Model], device: torch.device | str) -> Model:
    """Builds a ``cls`` from its configuration and loads its weights, in eval mode."""
    name, config, state = read_checkpoint(path)
    if name != cls.__name__:
        raise ValueError(f"`path` holds a {name}, expected a {cls.__name__}: {path}")
    return build_model(cls, config, state, path).to(device).eval()


def build_model(
    cls: type[Model], config: dict[str, Any], state: dict[str, Tensor], path: str | Path
) -> Model:
    """Builds a ``cls`` from its configuration and the weights that were found at ``path``."""
    try:
        # Files without it are of models whose last block computed all degrees.
        model = cls(**{"lmax_out": config["lmax"], **config})
        # The dtype of the parameters is the model's; references stay in float64 anyway.
        names = [key for key, _ in model.named_parameters()]
        dtypes = {state[key].dtype for key in names}
        if len(dtypes) == 1:
            model.to(dtypes.pop())
        model.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"`path` has weights that do not fit its configuration: {path}") from error
    return model
