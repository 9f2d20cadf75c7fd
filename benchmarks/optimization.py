"""One step of each optimiser beside torch.optim's, on the parameters of ResNet-18 and of a
small MLP.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Row
from companion import optimization

MLP = [(256, 784), (256,), (10, 256), (10,)]
OPTIONS = {"SGD": {"momentum": 0.9}, "RMSprop": {}, "Adam": {}, "AdamW": {}}


def resnet18() -> Iterator[tuple[int, ...]]:
    """The shapes of torchvision's resnet18: 11,689,512 parameters in 62 tensors."""

    def convolution_and_norm(
        out_channels: int, in_channels: int, size: int
    ) -> Iterator[tuple[int, ...]]:
        yield from [(out_channels, in_channels, size, size), (out_channels,), (out_channels,)]

    yield from convolution_and_norm(64, 3, 7)
    before = 64
    for channels in [64, 64, 128, 128, 256, 256, 512, 512]:
        yield from convolution_and_norm(channels, before, 3)
        yield from convolution_and_norm(channels, channels, 3)
        if channels != before:
            yield from convolution_and_norm(channels, before, 1)
        before = channels
    yield from [(1000, 512), (1000,)]


def stepper(
    optimizer: type[torch.optim.Optimizer], gradients: list[Tensor], **options: float
) -> Callable[[], list[Tensor]]:
    """A function that takes the next step with these same gradients, and returns the
    parameters.
    """
    params = [torch.ones_like(g).requires_grad_() for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = g
    descent = optimizer(params, lr=1e-3, **options)

    def step() -> list[Tensor]:
        descent.step()
        return params

    return step


def rows() -> Iterator[Row]:
    """Each optimiser on the MLP 784–256–10, then on ResNet-18."""
    g = torch.Generator().manual_seed(0)
    for model, shapes in {"MLP 784–256–10": MLP, "ResNet-18": resnet18()}.items():
        gradients = [torch.randn(shape, generator=g) for shape in shapes]
        for name, options in OPTIONS.items():
            ours = stepper(getattr(optimization, name), gradients, **options)
            theirs = stepper(getattr(torch.optim, name), gradients, **options)
            yield Row(f"{name} step, {model}", ours, theirs, 1.0)
