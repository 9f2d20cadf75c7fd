"""Plain recurrent layers against ``torch.nn``."""

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.measure import Row, forward_backward
from companion.recurrence import RNN

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """One layer over whole sequences, large and small."""
    for time, batch, size, aim in [(32, 128, 256, 1.8), (32, 32, 64, 1.8)]:
        yield sequence_row(RNN, nn.RNN, time, batch, size, aim)


def sequence_row(
    our_layer: type[nn.Module],
    their_layer: type[nn.Module],
    time: int,
    batch: int,
    size: int,
    aim: float | None,
) -> Row:
    """Forward and backward through a layer with as many inputs as hidden units."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(time, batch, size, generator=g).requires_grad_()
    # as from a mean over the sequences
    upstream = torch.randn(time, batch, size, generator=g) / batch
    ours, theirs = our_layer(size, size), their_layer(size, size)
    theirs.load_state_dict(ours.state_dict())
    return Row(
        (
            f"{our_layer.__name__} {size} → {size}, time {time}, batch {batch}, forward and "
            "backward"
        ),
        forward_backward(lambda: ours(x)[0], (x, *ours.parameters()), upstream),
        forward_backward(lambda: theirs(x)[0], (x, *theirs.parameters()), upstream),
        aim,
    )
