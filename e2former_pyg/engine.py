"""What autograd's engine is about to do."""

from __future__ import annotations

from typing import Any

import torch


def is_read(ctx: Any, position: int) -> bool:
    """Whether this run of the engine goes on to the node behind a tensor argument, counted among
    the tensors. Forces alone need no gradients of weights, nor those of weights any of positions.
    """
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[position][0])
    except (AttributeError, IndexError, RuntimeError, TypeError):  # outside the engine: unknown
        return True
