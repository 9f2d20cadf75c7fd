"""The tape beside torch.autograd: a training step, where products cost most, and a chain, where
bookkeeping does.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Row
from companion.backpropagation import Variable, cross_entropy

LEARNING_RATE = 0.1


def batch() -> tuple[Tensor, Tensor]:
    """128 images and their classes."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(128, 784, generator=g), torch.randint(10, (128,), generator=g)


def weights() -> list[Tensor]:
    """The parameters of an MLP 784–256–10, each matrix with a row for each input."""
    g = torch.Generator().manual_seed(1)
    return [
        torch.randn(784, 256, generator=g) / 28,
        torch.zeros(256),
        torch.randn(256, 10, generator=g) / 16,
        torch.zeros(10),
    ]


def step_with_the_tape() -> Callable[[], list[Tensor]]:
    """Forward, loss, backward and update, as in the chapter."""
    x, y = batch()
    W1, b1, W2, b2 = parameters = [Variable(w, requires_grad=True) for w in weights()]

    def step() -> list[Tensor]:
        loss = cross_entropy((x @ W1 + b1).relu() @ W2 + b2, y)
        loss.backward()
        for p in parameters:
            p.data -= LEARNING_RATE * p.grad
            p.grad = None
        return [p.data for p in parameters]

    return step


def step_with_torch() -> Callable[[], list[Tensor]]:
    """The same with the modules, the loss and the optimiser of PyTorch."""
    x, y = batch()
    W1, b1, W2, b2 = weights()
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    model.load_state_dict({"0.weight": W1.T, "0.bias": b1, "2.weight": W2.T, "2.bias": b2})
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> list[Tensor]:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [p.detach().mT if p.dim() == 2 else p.detach() for p in model.parameters()]

    return step


def chain(x: Variable | Tensor) -> Tensor:
    """The gradient through 1,000 operations on eight numbers."""
    y = x
    for _ in range(500):
        y = (0.999 * y).tanh()
    y.sum().backward()
    gradient, x.grad = x.grad, None
    return gradient


def rows() -> Iterator[Row]:
    """One training step of an MLP, and a chain of small operations."""
    yield Row(
        "tape: training step, MLP 784–256–10, batch 128",
        step_with_the_tape(),
        step_with_torch(),
        1.1,
    )
    x = torch.linspace(-1, 1, 8)
    ours, theirs = Variable(x, requires_grad=True), x.clone().requires_grad_()
    yield Row(
        "tape: chain of 1,000 operations on 8 numbers",
        lambda: chain(ours),
        lambda: chain(theirs),
        2.0,
        (1,),
    )
