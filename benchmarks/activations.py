"""Each activation on a hidden layer's output, beside torch.nn.functional's.

PyTorch computes each in one pass over the numbers. An expression in Python makes one pass for
each operation in it. Above the aim is the price of those passes through memory, and for GELU
that of ``torch.erfc``, which PyTorch for x86 takes from Intel's MKL: on an AMD processor it
alone takes as long as all of ``F.gelu``, forward and backward.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, forward_backward
from companion import activations

BATCH, HIDDEN = 256, 1024
ACTIVATIONS = [
    ("relu", {}),
    ("leaky_relu", {}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("softmax", {"dim": 1}),
    ("log_softmax", {"dim": 1}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
]


def rows() -> Iterator[Row]:
    """All seven on normal numbers in float32, forward and backward; GELU in both its forms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, HIDDEN, generator=generator).requires_grad_()
    g = torch.randn(BATCH, HIDDEN, generator=generator)
    for name, options in ACTIVATIONS:
        ours, theirs = (
            forward_backward(partial(getattr(module, name), x, **options), [x], g)
            for module in (activations, F)
        )
        label = "".join(f", {key}={value}" for key, value in options.items())
        yield Row(
            f"{name}{label}, {BATCH} × {HIDDEN}, forward and backward", ours, theirs, aim=2.0
        )
