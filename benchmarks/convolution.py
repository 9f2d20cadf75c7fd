"""Convolution, max pooling and a training step of LeNet, against ``torch.nn.functional`` and
``torch.nn``.

Gradients of weights are sums over many places. The upstream gradients are small, so that
PyTorch's rounding errors in these sums, some ten times as large as ours, stay below what the
comparison of the results allows.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import Row, forward_backward
from companion.convolution import LeNet, conv2d, max_pool2d
from companion.layers import cross_entropy
from companion.optimization import Adam

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """Convolutions of LeNet and of a residual block, in groups too, pooling, LeNet's step."""
    for images, kernels, padding, aim in [
        ((64, 1, 28, 28), (6, 5), 2, 1.0),
        ((64, 6, 14, 14), (16, 5), 0, 1.6),
        ((32, 64, 14, 14), (64, 3), 1, 1.4),
        ((1, 3, 224, 224), (64, 7), 3, None),
    ]:
        yield _conv2d(images, *kernels, padding, aim)
    for images, groups, aim in [((32, 64, 14, 14), 64, 4.0), ((32, 64, 14, 14), 4, 3.0)]:
        yield _conv2d(images, images[1], 3, 1, aim, groups)
    for images, aim in [((64, 6, 28, 28), 1.0), ((64, 16, 10, 10), 1.0)]:
        yield _max_pool2d(images, aim)
    yield _step(64, 1.25)
    yield _step(256, None)


def _conv2d(
    images: tuple[int, ...],
    channels: int,
    size: int,
    padding: int,
    aim: float | None,
    groups: int = 1,
) -> Row:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(images, generator=g).requires_grad_()
    weight = torch.randn(channels, images[1] // groups, size, size, generator=g)
    weight = (weight / weight[0].numel() ** 0.5).requires_grad_()
    bias = torch.randn(channels, generator=g).requires_grad_()
    options = {"padding": padding, "groups": groups}
    upstream = torch.randn(F.conv2d(x, weight, bias, **options).shape, generator=g) / 1000
    return Row(
        (
            f"conv2d {images} → {channels} of {size} × {size}, padding {padding}, "
            + (f"{groups} groups, " if groups > 1 else "")
            + "forward and backward"
        ),
        forward_backward(
            lambda: conv2d(x, weight, bias, **options), (x, weight, bias), upstream
        ),
        forward_backward(
            lambda: F.conv2d(x, weight, bias, **options), (x, weight, bias), upstream
        ),
        aim,
    )


def _max_pool2d(images: tuple[int, ...], aim: float | None) -> Row:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(images, generator=g).requires_grad_()
    upstream = torch.randn(F.max_pool2d(x, 2).shape, generator=g)
    return Row(
        f"max_pool2d {images}, 2 × 2, forward and backward",
        forward_backward(lambda: max_pool2d(x, 2), (x,), upstream),
        forward_backward(lambda: F.max_pool2d(x, 2), (x,), upstream),
        aim,
    )


def _step(batch: int, aim: float | None) -> Row:
    g = torch.Generator().manual_seed(0)
    x, target = (
        torch.rand(batch, 1, 28, 28, generator=g),
        torch.randint(10, (batch,), generator=g),
    )
    ours = LeNet()
    theirs = nn.Sequential(
        *(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        ),
    )
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    )

    def step(model, loss, optimizer):
        def run():
            value = loss(model(x), target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            return value.detach()

        return run

    return Row(
        f"LeNet, a training step with Adam, batch {batch}",
        step(ours, cross_entropy, Adam(ours.parameters())),
        step(theirs, F.cross_entropy, torch.optim.Adam(theirs.parameters())),
        aim,
    )
