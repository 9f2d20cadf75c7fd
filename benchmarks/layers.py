"""Linear layers, cross-entropy, and the two together, against ``torch.nn``.

The small sizes are there for honesty: what they measure is the price of a few more calls from
Python, some 10 µs for a layer and 100 µs for the loss, however small the batch. In the large
ones the loss waits for ``torch.exp``. PyTorch for x86 takes it from Intel's MKL;
``F.cross_entropy`` has an exponential of its own, twice as fast on an AMD processor.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import Row, forward_backward
from companion.layers import MLP, Linear, binary_cross_entropy_with_logits, cross_entropy

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """Linear layers, losses, and a network with its loss; small ones too, to know the price of
    a call from Python.
    """
    for batch, inputs, outputs, aim in [(128, 784, 256, 1.1), (32, 64, 64, None)]:
        yield from _linear(batch, inputs, outputs, aim)
    for batch, classes, aim in [(4096, 100, 1.3), (256, 100, 1.3), (256, 10, 2.0)]:
        yield _cross_entropy(batch, classes, aim)
    yield _binary_cross_entropy(4096, 10)
    yield _network(128, [784, 256, 10])


def _linear(batch: int, inputs: int, outputs: int, aim: float | None) -> Iterator[Row]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, generator=g).requires_grad_()
    upstream = torch.randn(batch, outputs, generator=g)
    ours, theirs = Linear(inputs, outputs), nn.Linear(inputs, outputs)
    theirs.load_state_dict(ours.state_dict())
    name = f"Linear {inputs} → {outputs}, batch {batch}"
    yield Row(f"{name}, forward", lambda: ours(x), lambda: theirs(x), aim)
    yield Row(
        f"{name}, forward and backward",
        forward_backward(lambda: ours(x), (x, *ours.parameters()), upstream),
        forward_backward(lambda: theirs(x), (x, *theirs.parameters()), upstream),
        aim,
    )


def _cross_entropy(batch: int, classes: int, aim: float | None) -> Row:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=g).requires_grad_()
    target = torch.randint(classes, (batch,), generator=g)
    return Row(
        f"cross_entropy, {classes} classes, batch {batch}, forward and backward",
        forward_backward(lambda: cross_entropy(logits, target), (logits,)),
        forward_backward(lambda: F.cross_entropy(logits, target), (logits,)),
        aim,
    )


def _binary_cross_entropy(batch: int, questions: int) -> Row:
    """No aim: written as it is derived, it takes two logarithms where one would do."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, questions, generator=g).requires_grad_()
    target = torch.randint(2, (batch, questions), generator=g).float()
    ours, theirs = binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    return Row(
        f"binary cross-entropy, {questions} questions, batch {batch}, forward and backward",
        forward_backward(lambda: ours(logits, target), (logits,)),
        forward_backward(lambda: theirs(logits, target), (logits,)),
        aim=None,
    )


def _network(batch: int, sizes: list[int]) -> Row:
    g = torch.Generator().manual_seed(0)
    x, target = (
        torch.randn(batch, sizes[0], generator=g),
        torch.randint(sizes[-1], (batch,), generator=g),
    )
    ours = MLP(sizes)
    theirs = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    )
    return Row(
        f"MLP {'–'.join(map(str, sizes))} and its loss, batch {batch}, forward and backward",
        forward_backward(lambda: cross_entropy(ours(x), target), list(ours.parameters())),
        forward_backward(lambda: F.cross_entropy(theirs(x), target), list(theirs.parameters())),
        aim=None,
    )
