"""Time, memory and accuracy of the attention, the convolution and the layer on a GPU, beside the
same formulas with edge tensors and PyG's TransformerConv.

Each result is compared with float64 first; a wrong one gets no speed-up and a nonzero exit status.
Every record is written as soon as it is measured, into results/attention_<card>.json, where those
of other cases stay. See NOTES.md.

    python benchmarks/attention.py
    python benchmarks/attention.py --cases op layer --minutes 5
    python benchmarks/attention.py --backend torch --device cpu --atoms 64 --repeats 2 --out DIR
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch
from attention_cases import GROUPS, all_cases
from attention_measure import Meter
from attention_runner import Runner
from case_loop import (
    ResultFile,
    about_card,
    add_options,
    card_name,
    full_name,
    plot,
    run_cases,
)

COLUMNS = f"{'case':42}{'atoms':>9}{'edges':>10}{'ours ms':>10}{'± ':>8}{'baseline':>17}{'ms':>9}"
COLUMNS += f"{'ratio':>8}{'MiB':>9}{'its MiB':>9}{'floor':>8}{'TFLOP/s':>8}{'error':>9}"


def table_row(record: dict[str, Any]) -> str:
    def cell(name: str, form: str, width: int) -> str:
        value = record[name]
        return f"{'-' if value is None else format(value, form):>{width}}"

    if "error" in record:
        return f"{record['case']:42} failed: {record['error'].splitlines()[0]}"
    row = f"{record['case']:42}{record['atoms']:9}{record['edges']:10}"
    row += cell("ours_ms", ".3f", 10) + cell("spread", ".3f", 8) + cell("baseline", "", 17)
    row += cell("baseline_ms", ".2f", 9) + cell("ratio", ".1f", 8) + cell("peak_mib", ".1f", 9)
    row += cell("baseline_peak_mib", ".0f", 9) + cell("floor_ms", ".3f", 8)
    row += cell("tflops", ".2f", 8) + cell("relative_error", ".1e", 9)
    if record["python_ms"] is not None:
        row += "  Python" + cell("python_ms", ".3f", 7) + cell("baseline_python_ms", ".3f", 7)
    return row if record["right"] else f"{row}  WRONG {record['relative_errors']}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--backend", choices=("triton", "torch"), default="triton")
    parser.add_argument("--atoms", type=int, default=10_240)
    parser.add_argument("--no-plots", action="store_true")
    add_options(parser, repeats=20, seconds=1.0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    runner = Runner(Meter(args.device, args.repeats, args.seconds), args.backend)
    results = ResultFile(args.out / f"attention_{card_name(args.device)}.json")
    print(f"{full_name(args.device)}, copies at {1e-12 * runner.bandwidth:.2f} TB/s")
    cases = [case for case in all_cases(args.atoms, args.channels) if case.group in args.cases]
    if not runner.meter.is_cuda:
        cases = [case for case in cases if case.mode != "graph"]
    runs = {case.name: partial(runner, case) for case in cases}
    print(COLUMNS)
    about = partial(about_card, args.device)
    status = run_cases(runs, results, runner.meter, table_row, about, args.minutes)
    if not args.no_plots:
        plot("attention_plots", results)
    return status


if __name__ == "__main__":
    sys.exit(main())
