"""Time ours against theirs: alternately, in one process, so that a disturbance hits both."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["Result", "Row", "forward_backward", "measure"]

# seconds: what takes less is called several times between two looks at the clock
SHORTEST = 0.005


@dataclass(frozen=True)
class Row:
    """One comparison: two functions that compute the same, and return it, so that a test can
    compare the results.
    """

    name: str  # such as "Linear 784 → 256, batch 128, forward and backward"
    ours: Callable[[], object]
    theirs: Callable[[], object]
    # the ratio ours / theirs to be reached; lower is better; None where it is only to be known
    aim: float | None
    # measured with so many; (1,) where their number plays no part
    threads: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Result:
    """Medians over all rounds."""

    ratio: float  # of the per-round ratios ours / theirs
    ours: float  # seconds a call
    theirs: float


def forward_backward(
    function: Callable[[], Tensor], leaves: Sequence[Tensor], upstream: Tensor | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """A function that returns the output of ``function`` and the gradients with respect to the
    leaves.
    """

    def run():
        output = function()
        return output, *torch.autograd.grad(output, leaves, upstream)

    return run


def measure(row: Row, rounds: int = 20, threads: int = 1) -> Result:
    """Ours and theirs in turn, ``rounds`` times after a warm-up, on so many threads."""
    # freed at once: from now on malloc keeps what is freed, as in training
    torch.empty(31 * 2**20, dtype=torch.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):  # NumPy's and scikit-learn's
            ours, theirs = [], []
            turns = [
                (row.ours, _calls(row.ours), ours),
                (row.theirs, _calls(row.theirs), theirs),
            ]
            for _ in range(rounds):
                for function, calls, seconds in turns:
                    seconds.append(_seconds(function, calls) / calls)
                turns.reverse()  # neither side is always the first
    finally:
        torch.set_num_threads(before)
    return Result(
        median(a / b for a, b in zip(ours, theirs, strict=True)), median(ours), median(theirs)
    )


def _calls(function):
    """How many calls take long enough for the clock. Finding out is the warm-up."""
    calls = 1
    while _seconds(function, calls) < SHORTEST:
        calls *= 2
    return calls


def _seconds(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start
