"""Sphinx extension: tables, plots and single numbers from ``benchmarks/results``.

No measured number is typed into a page. A page says ``.. results-table:: attention``,
``.. results-conditions:: attention_h100`` or::

    :result:`attention_h100 | layer/forward/float32 | ours_ms | .1f`

and the values come from the committed files. A file, case or key that is missing ends the build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from result_files import ROOT, conditions, load, number
from result_tables import TABLES
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

FIGURES = Path(__file__).resolve().parents[1] / "_generated"
NO_NUMBER = ("–", "not run", "out of memory")


def is_number(cell: str) -> bool:
    """Whether a cell of a table holds a number, or says why there is none."""
    return bool(re.match(r"(\*\*)?\d[\d.,]*($|\*\*| m|, )", cell)) or cell in NO_NUMBER


class ResultRole(SphinxRole):
    """One number of a result file."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        return [nodes.Text(number(self.text))], []


class Conditions(SphinxDirective):
    """The machine, the versions and the date behind a result file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        text = f"Measured on: {conditions(name)} (``benchmarks/results/{name}.json``)."
        return self.parse_text_to_nodes(text)


class Table(SphinxDirective):
    """A table made by a function of ``result_tables``."""

    required_arguments = 1
    option_spec: ClassVar = {"caption": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        header, rows = TABLES[self.arguments[0]](load)
        lines = [f".. list-table:: {self.options.get('caption', '')}", "   :header-rows: 1"]
        lines += ["   :class: wide", ""] if len(header) > 7 else [""]
        for row in [header, *rows]:
            lines += [f"   {'* -' if n == 0 else '  -'} {cell}" for n, cell in enumerate(row)]
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, self.arguments[0]), 0, container)
        columns = list(zip(*rows, strict=True))
        for row in container.findall(nodes.row):
            for entry, column in zip(row.children, columns, strict=True):
                if all(is_number(cell) for cell in column):
                    entry["classes"].append("number")
        return container.children


def draw(app: Sphinx) -> None:
    """Draws the plots of the performance pages from the result files."""
    sys.path.append(str(ROOT / "benchmarks"))
    import result_plots

    FIGURES.mkdir(exist_ok=True)
    result_plots.draw_all(load, FIGURES)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("result", ResultRole())
    app.add_directive("results-table", Table)
    app.add_directive("results-conditions", Conditions)
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
