"""Rank-16 factors of matrices of a language model's size: time and error against the full decomposition.

    python benchmarks/low_rank.py [--shapes 4096x4096 11008x4096] [--rank 16] [--threads 2] [--rounds 5]

Spectra: `noise` (independent normal numbers, as of an untrained matrix) and `trained` (singular values as they are seen
in trained language models: some that stand out, then a slow power law, beneath noise). The full decomposition is
`torch.linalg.svd(matrix, full_matrices=False)`, made once a matrix, which takes minutes; ratios are of it to the median
of the rounds of `truncated_svd`. Errors are Frobenius norms of what is left out, measured in float64.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from transfuse.io.hardware import hardware_text
from transfuse.tensors.low_rank import truncated_svd


def noise(n_rows: int, n_columns: int, generator: torch.Generator) -> torch.Tensor:
    """Independent normal numbers."""
    return torch.randn(n_rows, n_columns, generator=generator) * 0.02


def trained(n_rows: int, n_columns: int, generator: torch.Generator) -> torch.Tensor:
    """Twelve outliers on a power law, and noise of the same norm as the power law's."""
    size = min(n_rows, n_columns)
    places = torch.arange(1.0, size + 1)
    values = places**-0.4
    values[:12] *= torch.linspace(6, 2, 12)
    left, right = (
        torch.randn(length, size, generator=generator) / length**0.5 for length in (n_rows, n_columns)
    )
    power_law = (left * values) @ right.T
    beneath = torch.randn(n_rows, n_columns, generator=generator) / (n_rows * n_columns) ** 0.5
    return power_law + beneath * float((places**-0.4).norm())


SPECTRA: dict[str, Callable[[int, int, torch.Generator], torch.Tensor]] = {"noise": noise, "trained": trained}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """One line a matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"])
    parser.add_argument("--spectra", nargs="+", choices=sorted(SPECTRA), default=sorted(SPECTRA))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{hardware_text()}; {arguments.threads} threads; rank {arguments.rank}")
    print(
        "| matrix | spectrum | full, s | randomised, s | x | error / the least | share of the square kept |"
    )
    print("|---|---|---|---|---|---|---|")
    for shape in arguments.shapes:
        n_rows, n_columns = map(int, shape.split("x"))
        for name in arguments.spectra:
            matrix = SPECTRA[name](n_rows, n_columns, torch.Generator().manual_seed(17))
            print(f"| {shape} | {name} | {measured(matrix, arguments.rank, arguments.rounds)}", flush=True)


def measured(matrix: torch.Tensor, rank: int, n_rounds: int) -> str:
    """The columns of one line."""
    generator = torch.Generator().manual_seed(18)
    truncated_svd(matrix[:512, :512], rank, generator=generator)
    took = [seconds(lambda: truncated_svd(matrix, rank, generator=generator)) for _ in range(n_rounds)]
    started = time.perf_counter()
    _, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    full_s = time.perf_counter() - started
    found = truncated_svd(matrix, rank, generator=generator)
    rest = matrix.double() - (found.left * found.values).double() @ found.right.double()
    least = float(values[rank:].double().norm())
    assert abs(found.error / float(rest.norm()) - 1) < 1e-5
    kept = 1 - float(rest.norm() / matrix.double().norm()) ** 2
    median = statistics.median(took)
    return f"{full_s:.1f} | {median:.3f} | {full_s / median:.0f} | {float(rest.norm()) / least:.5f} | {kept:.4f} |"


if __name__ == "__main__":
    main()
