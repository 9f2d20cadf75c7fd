"""The table of vectors against ``torch.nn.Embedding``."""

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.measure import Row, forward_backward
from companion.language_models import Embedding

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """A thousand tokens, and a minibatch of them."""
    tokens, size, batch = 1000, 64, 4096
    g = torch.Generator().manual_seed(0)
    text = torch.randint(tokens, (batch,), generator=g)
    upstream = torch.randn(batch, size, generator=g)
    ours, theirs = Embedding(tokens, size), nn.Embedding(tokens, size)
    theirs.load_state_dict(ours.state_dict())
    yield Row(
        (
            f"Embedding of {tokens} tokens in {size} numbers, {batch} at a time, forward and "
            "backward"
        ),
        forward_backward(lambda: ours(text), (ours.weight,), upstream),
        forward_backward(lambda: theirs(text), (theirs.weight,), upstream),
        aim=None,
    )
