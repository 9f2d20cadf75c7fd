"""Gated recurrent layers against ``torch.nn``, whose passes over time are compiled."""

from collections.abc import Iterator

from torch import nn

from benchmarks.measure import Row
from benchmarks.recurrence import sequence_row
from companion.lstm import GRU, LSTM

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """One layer over whole sequences, large and small."""
    for batch, size, aim in [(128, 256, 1.2), (32, 64, 1.8)]:
        yield sequence_row(LSTM, nn.LSTM, 32, batch, size, aim)
    yield sequence_row(GRU, nn.GRU, 32, 32, 64, aim=None)
