"""Checks of arguments, with messages that name them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def values_known(tensor: Tensor) -> bool:
    """Whether values can be looked at: on the CPU, where it costs no sync, and untraced."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and get_proxy_mode() is None
    )


def check_tensor(name: str, value: object) -> None:
    """Raises unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a Tensor, got {type(value).__name__}")


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raises unless ``tensor`` has ``shape``; strings stand for sizes that are free."""
    check_tensor(name, tensor)
    found = tensor.shape
    if len(found) == len(shape):
        for size, want in zip(found, shape, strict=True):
            if size != want and not isinstance(want, str):
                break
        else:
            return
    expected = ", ".join(str(size) for size in shape)
    raise ValueError(f"`{name}` must have shape [{expected}], got {list(found)}")


def check_positive(**sizes: int | float) -> None:
    """Raises unless all are above zero."""
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"`{name}` must be positive, got {size}")


def check_floating(name: str, tensor: Tensor | None) -> None:
    """Raises unless ``tensor`` has a floating point dtype or is absent."""
    if tensor is not None and not tensor.is_floating_point():
        raise TypeError(f"`{name}` must have a floating point dtype, got {tensor.dtype}")


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raises unless ``tensor`` has the ``dtype`` of the parameters, or autocast converts it."""
    if tensor.dtype != dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise TypeError(
            f"`{name}` must have the dtype of the parameters, {dtype}, got {tensor.dtype}"
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises on infinities and NaN, where values are known."""
    if values_known(tensor) and not bool(tensor.isfinite().all()):
        raise ValueError(f"`{name}` must be finite")


def check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Raises on integers outside ``low..high``, where values are known."""
    if not values_known(tensor) or tensor.numel() == 0:
        return
    smallest, largest = (int(value) for value in tensor.aminmax())
    if smallest < low or largest > high:
        found = smallest if smallest < low else largest
        raise ValueError(f"`{name}` must lie in {low}..{high}, got {found}")
