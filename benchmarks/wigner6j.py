r"""What the paper's algebra costs: axis-aligned products, and the factorized convolution.

``product/…``: features of nodes times the harmonics of one vector each, paths mixed to as many
channels, for one order and for all orders up to lmax.

- ``aligned``: Equivariant Axis-Aligned Sparsification, ``so3.axis_aligned_product``.
- ``dense``: one matrix per node and input degree, ``method="dense"`` of the same function.
- ``full tensor``: the dense tensor product, all coefficients times all pairs of inputs.
- ``e3nn``: e3nn's ``TensorProduct`` with a matrix of weights for each path.

``convolution/…``: path rows of a periodic system.

- ``direct`` and ``factorized``: ``equivariant_convolution``.
- ``e3nn on edges``: an SO(3) convolution, e3nn's ``TensorProduct`` on every edge, then sums.

Methods take turns, so that a busy machine slows all. ``forward+backward`` has the derivatives by
all inputs. ``relative_error`` is the largest, of the result and of the derivatives, against
``dense`` and ``direct`` in float64, which tests hold to e3nn's coefficients; e3nn's own product is
one of those compared. A wrong result stops the run. ``peak_mib`` is what a call allocates at its
peak beyond what was held before. ``fastest`` names the quickest method of each case and pass. An
``ms`` of null: it did not fit into memory.

    python benchmarks/wigner6j.py
    python benchmarks/wigner6j.py --device cuda --nodes 4096 --atoms 4096 --channels 128
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from attention_measure import MIB, Meter
from common import write_result
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from wigner6j_edges import EdgeCase
from wigner6j_nodes import NodeCase, coefficient_counts

TOLERANCE = 1e-4
PASSES = ("forward", "forward+backward")


def leaves(inputs: Sequence[Any]) -> list[Tensor]:
    return [t for item in inputs for t in (item if isinstance(item, list) else [item])]


def make_run(
    function: Callable[..., Tensor], inputs: Sequence[Any], which: str
) -> Callable[[], list[Tensor]]:
    """A pass as a function without arguments."""
    if which == "forward":

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*inputs)]

        return forward
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        out = function(*inputs)
        cotangent = torch.randn(out.shape, generator=generator).to(out)

    def both() -> list[Tensor]:
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, leaves(inputs), cotangent)]

    return both


def peak_mib(run: Callable[[], list[Tensor]], device: str) -> float:
    """MiB at the peak of a call beyond those held before."""
    run()
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak / MIB


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        float((one.detach().double() - two.detach()).norm() / two.detach().norm())
        for one, two in zip(found, expected, strict=True)
        if two.norm() > 0
    ]


def measure(case: NodeCase | EdgeCase, meter: Meter, device: str) -> Iterator[dict[str, Any]]:
    """The records of a case."""
    methods = case.methods(device)
    inputs = case.inputs(torch.float32, device)
    # The same numbers, so that only the arithmetic differs.
    exact = tuple(
        [t.detach().double().requires_grad_() for t in item]
        if isinstance(item, list)
        else item.detach().double().requires_grad_()
        for item in inputs
    )
    for which in PASSES:
        expected = make_run(methods[case.reference], exact, which)()
        runs, wrong = {}, {}
        for name, method in methods.items():
            try:
                run = make_run(method, inputs, which)
                wrong[name] = max(errors(run(), expected))
            except torch.OutOfMemoryError:
                meter.release()
                continue
            if not wrong[name] < TOLERANCE:
                raise RuntimeError(f"{case.name}: {name} has a relative error of {wrong[name]:.1e}")
            runs[name] = run
        del expected
        timings = dict(zip(runs, meter.times(list(runs.values())), strict=True))
        fastest = min(timings, key=lambda name: timings[name].median)
        for name in methods:
            record = {
                "case": f"{case.name}/{which}/{name}",
                **{k: v for k, v in vars(case).items() if k != "orders"},
                "orders": list(case.orders),
                "pass": which,
                "method": name,
                "device": device,
                "fastest": fastest,
                "ms": None,
            }
            if name in timings:
                median, spread, count = timings[name]
                ratios = {other: median / timings[other].median for other in runs if other != name}
                record |= {
                    "ms": median,
                    "spread_ms": spread,
                    "runs": count,
                    "peak_mib": peak_mib(runs[name], device),
                    "relative_error": wrong[name],
                    "ratio_to": ratios,
                }
            yield record


def line(record: dict[str, Any]) -> str:
    """A record as a line of the table."""
    if record["ms"] is None:
        return f"{record['case']:64} did not fit into memory"
    return (
        f"{record['case']:64}{record['ms']:10.3f} ms ± {record['spread_ms']:<9.3f}"
        f"{record['peak_mib']:9.1f} MiB  error {record['relative_error']:.0e}"
        + (" *" if record["method"] == record["fastest"] else "")
    )


def make_cases(args: argparse.Namespace) -> list[NodeCase | EdgeCase]:
    cases: list[NodeCase | EdgeCase] = []
    for lmax in range(2, args.lmax + 1):
        for orders in ((1,), tuple(range(lmax + 1))):
            cases.append(NodeCase(lmax, orders, args.nodes, args.channels))
    for lmax, orders in ((2, (1,)), (2, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 2, 3)), (4, (1,))):
        if lmax <= args.lmax:
            cases.append(EdgeCase(lmax, orders, args.atoms, args.channels))
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--atoms", type=int, default=216)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--lmax", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="the least number of runs")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for further runs")
    parser.add_argument("--out", default=None, help="name of the results (wigner6j_DEVICE)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    meter = Meter(args.device, args.repeats, args.seconds)

    records: list[dict[str, Any]] = []
    for case in tqdm(make_cases(args), file=sys.stderr, dynamic_ncols=True):
        counts = coefficient_counts(case) if isinstance(case, NodeCase) else {}
        for record in measure(case, meter, args.device):
            records.append(record | counts)
            tqdm.write(line(record), file=sys.stdout)
        path = write_result(args.out or f"wigner6j_{args.device}", records)
    print(f"wrote {path}; * is the fastest of a case")


if __name__ == "__main__":
    main()
