"""The loop against a bare one, which does nothing but train: what bars, records, checks and the
random states cost.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Row
from companion.training import fit, train

__all__ = ["rows"]

BATCH, STEPS = 128, 64


class Setting:
    """An MLP 784–256–10, its optimiser and data; the same numbers each time it is made."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.rand(STEPS * BATCH, 784, generator=g)
        self.y = torch.randint(10, (STEPS * BATCH,), generator=g)
        self.model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
        for parameter in self.model.parameters():
            nn.init.uniform_(parameter, -0.04, 0.04, generator=g)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.model.parameters()]


def with_train() -> Callable[[], list[Tensor]]:
    """An epoch of the loop."""
    s = Setting()
    options = {"model": s.model, "batch_size": BATCH, "progress": False}

    def epoch() -> list[Tensor]:
        train(s.step, s.optimizer, (s.x, s.y), **options)
        return s.weights()

    return epoch


def with_fit() -> Callable[[], list[Tensor]]:
    """An epoch of the loop for inputs and targets."""
    s = Setting()

    def epoch() -> list[Tensor]:
        fit(s.model, s.optimizer, F.cross_entropy, (s.x, s.y), batch_size=BATCH, progress=False)
        return s.weights()

    return epoch


def bare() -> Callable[[], list[Tensor]]:
    """The same epoch, and nothing is looked at."""
    s = Setting()

    def epoch() -> list[Tensor]:
        order = torch.randperm(len(s.x), generator=torch.Generator().manual_seed(0))
        for indices in order.split(BATCH):
            batch = s.x[indices], s.y[indices]
            loss = s.step(batch)
            s.optimizer.zero_grad()
            loss.backward()
            s.optimizer.step()
        return s.weights()

    return epoch


def rows() -> Iterator[Row]:
    """An epoch, with and without what stands around it."""
    for name, ours in [("train", with_train()), ("fit", with_fit())]:
        yield Row(f"{name}: {STEPS} steps, MLP 784–256–10, batch {BATCH}", ours, bare(), 1.05)
