"""Reads the committed files of ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Load = Callable[[str], list[Record]]
Content = tuple[list[str], list[list[str]]]
"""Header and rows of a table."""

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@cache
def load(name: str) -> list[dict[str, Any]]:
    """The records of a result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def record(name: str, case: str) -> dict[str, Any]:
    """The one record of a case."""
    found = [row for row in load(name) if row["case"] == case]
    if len(found) != 1:
        raise LookupError(f"{name}.json has {len(found)} records of {case!r}, expected one")
    return found[0]


def number(text: str) -> str:
    """The value that ``file | case | key | format`` asks for; ``outer inner`` is a key within a
    key, ``key / 1024`` and ``key / other`` divide.
    """
    name, case, key, form = (part.strip() for part in text.split("|"))
    path, _, divisor = (part.strip() for part in key.partition("/"))
    row = record(name, case)
    value: Any = row
    for part in path.split():
        value = value[part]
    if divisor:
        value /= row[divisor] if divisor in row else float(divisor)
    return format(value, form)


def conditions(name: str) -> str:
    """On what, with what and when the records of a file were measured."""
    machines, versions, days = set(), set(), set()
    for row in load(name):
        where = row.get("environment") or {**row["versions"], "gpu": row["card"]}
        days.add((row.get("date") or where["date"])[:10])
        # A machine may have a GPU that a run did not use.
        gpu = None if row.get("clock") == "cpu" else where.get("gpu")
        machines.add(gpu or f"{where['cpu']}, threads: {row.get('threads', where['threads'])}")
        keys = ("python", "torch", "torch_geometric", "triton")
        versions.add(", ".join(f"{key} {where[key]}" for key in keys if key in where))
    return "; ".join([*sorted(machines), *sorted(versions), " and ".join(sorted(days))])
