"""Cuts a stream of (extended) XYZ into frames, so that a damaged one costs no other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TextIO


def xyz_frames(file: TextIO) -> Iterator[str | ValueError]:
    """Yields the text of each frame, or what is wrong with it, holding one at a time."""
    try:
        line = file.readline()
        while line:
            if not line.strip():
                line = file.readline()
                continue
            count = _count(line)
            if count is None:
                found = line.strip()[:60]
                while line and _count(line) is None:
                    line = file.readline()
                yield ValueError(f"expected the number of atoms of a frame, found {found!r}")
                continue
            lines = [line, file.readline()]
            line = file.readline()
            # Lines of atoms have several columns: a lone integer starts the next frame, and this
            # one was cut short.
            while line and len(lines) < count + 2 and _count(line) is None:
                lines.append(line)
                line = file.readline()
            if len(lines) < count + 2:
                yield ValueError(f"expected {count} atoms, found {len(lines) - 2}")
                continue
            while line.lstrip().startswith("VEC"):
                lines.append(line)
                line = file.readline()
            yield "".join(lines)
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        yield ValueError(f"the file cannot be read from here on ({error})")


def _count(line: str) -> int | None:
    text = line.strip()
    return int(text) if text.isascii() and text.isdigit() else None
