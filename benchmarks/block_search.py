"""Seconds to find the heaviest block of a matrix: against the published window loop, and one sum over the matrix.

    python benchmarks/block_search.py [--cases 5120x5120:4096x4096 13824x5120:11008x4096] [--threads 2] [--rounds 15]
        [--loop-rows 64]

Scores: `uniform` (the hardest for rounding: all windows are nearly alike) and `lognormal` (as sensitivities are). The
window loop is that of the published code in what it does a window: one reads the window's sum from the
matrix's running sums and compares it with the best so far, in Python. It is run on the first `--loop-rows` rows of
windows (0: on all) and its time taken in proportion. `torch.sum` and the search take turns; times are medians of wall
time, and beside them the least CPU time, which other processes disturb less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from transfuse.io.hardware import hardware_text
from transfuse.tensors.sub_matrices import heaviest_block

SCORES: dict[str, Callable[[int, int, torch.Generator], torch.Tensor]] = {
    "uniform": lambda *shape_and_generator: torch.rand(
        *shape_and_generator[:2], generator=shape_and_generator[2]
    ),
    "lognormal": lambda *shape_and_generator: (
        torch.randn(*shape_and_generator[:2], generator=shape_and_generator[2]) * 1.5
    ).exp_(),
}


def window_loop(
    sums: torch.Tensor, n_rows: int, n_columns: int, n_window_rows: int
) -> tuple[int, int, float]:
    """Place and sum of the best window among the first rows of windows, read from the matrix's running sums."""
    best = (0, 0, -1.0)
    for row in range(n_window_rows):
        for column in range(sums.shape[1] - n_columns):
            total = (
                sums[row + n_rows, column + n_columns]
                - sums[row, column + n_columns]
                - sums[row + n_rows, column]
                + sums[row, column]
            )
            if total > best[2]:
                best = (row, column, float(total))
    return best


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - started_cpu


def main() -> None:
    """One line a matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["5120x5120:4096x4096", "13824x5120:11008x4096"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loop-rows", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{hardware_text()}; {arguments.threads} threads")
    print(
        "| matrix | block | scores | window loop, s | search, ms | x | one sum, ms | sums "
        "| search, CPU ms | one sum, CPU ms | sums |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case in arguments.cases:
        (height, width), (n_rows, n_columns) = (map(int, part.split("x")) for part in case.split(":"))
        for name, draw in SCORES.items():
            scores = draw(height, width, torch.Generator().manual_seed(17))
            line = measured(scores, n_rows, n_columns, arguments.rounds, arguments.loop_rows)
            print(f"| {height} x {width} | {n_rows} x {n_columns} | {name} | {line}", flush=True)


def measured(scores: torch.Tensor, n_rows: int, n_columns: int, n_rounds: int, n_loop_rows: int) -> str:
    """The columns of one line."""
    one_sum, search = [], []
    for _ in range(n_rounds + 1):
        one_sum.append(seconds(lambda: scores.sum()))
        search.append(seconds(lambda: heaviest_block(scores, n_rows, n_columns)))
    sum_s, search_s = (statistics.median(wall for wall, _ in found[1:]) for found in (one_sum, search))
    sum_cpu_s, search_cpu_s = (min(cpu for _, cpu in found[1:]) for found in (one_sum, search))
    n_window_rows = scores.shape[0] - n_rows + 1
    n_looped = min(n_loop_rows or n_window_rows, n_window_rows)
    started = time.perf_counter()
    sums = torch.nn.functional.pad(scores.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    sums_s, started = time.perf_counter() - started, time.perf_counter()
    row, column, total = window_loop(sums, n_rows, n_columns, n_looped)
    row_s = (time.perf_counter() - started) / n_looped
    found = heaviest_block(scores[: n_rows + n_looped - 1], n_rows, n_columns)
    assert found[:2] == (row, column)
    assert abs(found.score / total - 1) < 1e-6
    loop_s = sums_s + row_s * n_window_rows
    window_us = 1e6 * row_s / (sums.shape[1] - n_columns)
    return (
        f"{loop_s:.1f} ({window_us:.1f} us a window) | {1e3 * search_s:.1f} | {loop_s / search_s:.0f} | "
        f"{1e3 * sum_s:.1f} | {search_s / sum_s:.1f} | "
        f"{1e3 * search_cpu_s:.1f} | {1e3 * sum_cpu_s:.1f} | {search_cpu_s / sum_cpu_s:.2f} |"
    )


if __name__ == "__main__":
    main()
