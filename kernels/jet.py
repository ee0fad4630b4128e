"""Arithmetic of jets: a value ``(x,)``, or a value and its tangent ``(x, dx)``.

The same source then serves an evaluation and its directional derivative. Applied to a gradient it
gives the derivative of that gradient, which is all that second order needs.
"""

import triton
import triton.language as tl

from . import lanes


@triton.jit
def constant(value, like):
    """``value`` as a jet of the length of ``like``; its tangent is zero."""
    if len(like) == 2:
        return (value, tl.zeros_like(value))
    else:
        return (value,)


@triton.jit
def add(a, b):
    if len(a) == 2:
        return (a[0] + b[0], a[1] + b[1])
    else:
        return (a[0] + b[0],)


@triton.jit
def mul(a, b):
    if len(a) == 2:
        return (a[0] * b[0], a[0] * b[1] + a[1] * b[0])
    else:
        return (a[0] * b[0],)


@triton.jit
def scale(a, factor):
    """Product with a constant, or with a tensor that has no tangent."""
    if len(a) == 2:
        return (a[0] * factor, a[1] * factor)
    else:
        return (a[0] * factor,)


@triton.jit
def chain(value, derivative, x):
    """A function of the jet ``x``, from its value and derivative at ``x[0]``."""
    if len(x) == 2:
        return (value, derivative * x[1])
    else:
        return (value,)


@triton.jit
def cast(a, DTYPE: tl.constexpr):
    if len(a) == 2:
        return (a[0].to(DTYPE), a[1].to(DTYPE))
    else:
        return (a[0].to(DTYPE),)


@triton.jit
def dot3(a, b):
    """Inner product of two vectors, tuples of three jets."""
    return add(add(mul(a[0], b[0]), mul(a[1], b[1])), mul(a[2], b[2]))


@triton.jit
def load(pointer, tangent, where, mask, DTYPE: tl.constexpr, DUAL: tl.constexpr):
    """A jet from memory; a missing tangent is zero."""
    value = lanes.load(pointer + where, mask).to(DTYPE)
    if DUAL:
        if tangent is not None:
            return (value, lanes.load(tangent + where, mask).to(DTYPE))
        else:
            return (value, tl.zeros_like(value))
    else:
        return (value,)


@triton.jit
def picks(jets, n):
    """Row ``n`` of the tiles of jets."""
    out = ()
    for m in tl.static_range(len(jets)):
        out = out + (lanes.picks(jets[m], n),)
    return out
