"""Write ``recurrence_trials.json``: how far back a plain recurrent network learns to remember.

Run ``python companion/data/write_recurrence_trials.py``; it takes three minutes on one core.
The chapter *Recurrence* explains both trials, draws the result, and runs a part of them again.

*Digits*: the rows of a handwritten digit come one at a time, each followed by a number of empty
rows, so that nothing but the time between them changes. *Copy*: three symbols, a number of
blanks, and three times the sign to say the symbols again.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from companion.datasets import digits
from companion.layers import Linear, cross_entropy
from companion.optimization import Adam
from companion.recurrence import RNN
from companion.training import accuracy

STARTS = ("usual", "orthogonal", "identity")
SEEDS = (0, 1, 2)
DIGITS = {"blanks": (0, 1, 3, 7), "rates": (1e-3, 3e-3, 1e-2, 3e-2), "epochs": 30}
COPY = {"distances": (1, 5, 10, 20, 40), "steps": 400, "lr": 0.005}


def started(inputs: int, start: str, biases: str | None = None) -> RNN:
    """An RNN of 32 units with its usual start, an orthogonal matrix, or ReLU and identity; its
    biases are ``"zero"`` or ``"usual"``, by default usual for the usual start only.
    """
    rnn = RNN(inputs, 32, nonlinearity="relu" if start == "identity" else "tanh")
    if start != "usual":
        with torch.no_grad():
            orthogonal = torch.linalg.qr(torch.randn(32, 32)).Q
            rnn.weight_hh_l0.copy_(torch.eye(32) if start == "identity" else orthogonal)
    if (biases or start) != "usual":
        nn.init.zeros_(rnn.bias_ih_l0), nn.init.zeros_(rnn.bias_hh_l0)
    return rnn


class Last(nn.Module):
    """A class from the last state: many steps in, one answer out."""

    def __init__(self, start: str, blanks: int):
        super().__init__()
        self.rnn, self.head, self.blanks = started(8, start), Linear(32, 10), blanks

    def forward(self, pictures: Tensor) -> Tensor:
        """The logits for pictures (batch, 1, 8, 8)."""
        rows = pictures[:, 0].transpose(0, 1)  # (8, batch, 8)
        empty = torch.zeros(self.blanks, *rows.shape[1:])
        steps = torch.cat([torch.cat([row[None], empty]) for row in rows])
        return self.head(self.rnn(steps)[0][-1])


def read_digits(start: str, blanks: int, rate: float, seed: int) -> tuple[float, float]:
    """Accuracy on validation and test pictures of a freshly trained reader of rows."""
    torch.manual_seed(seed)
    model, data = Last(start, blanks), digits()
    optimizer = Adam(model.parameters(), lr=rate)
    order = torch.Generator().manual_seed(seed)
    for _ in range(DIGITS["epochs"]):
        for batch in torch.randperm(len(data.train.x), generator=order).split(32):
            loss = cross_entropy(model(data.train.x[batch]), data.train.y[batch])
            step(loss, optimizer, model.parameters())
    with torch.no_grad():
        return tuple(round(accuracy(model(part.x), part.y), 4) for part in data[1:])


def step(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """One step of training, with the gradient clipped to length one."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def copy_task(n: int, distance: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (6 + distance, n, 10), and the symbols (3, n) to be said at the end."""
    symbols = torch.randint(8, (3, n), generator=draws)
    blanks, now = torch.full((distance, n), 8), torch.full((3, n), 9)
    return one_hot(torch.cat([symbols, blanks, now]), 10).float(), symbols


def copy_symbols(
    start: str, distance: int, seed: int, biases: str | None = None, **changes: float
) -> float:
    """The share of symbols that a freshly trained network copies right in new sequences;
    ``changes`` are other ``steps`` or another ``lr`` than in ``COPY``.
    """
    torch.manual_seed(seed)
    settings = COPY | changes
    rnn, head = started(10, start, biases), Linear(32, 8)
    draws = torch.Generator().manual_seed(seed)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = Adam(parameters, lr=settings["lr"])
    for _ in range(settings["steps"]):
        x, symbols = copy_task(32, distance, draws)
        loss = cross_entropy(head(rnn(x)[0][-3:]).flatten(0, 1), symbols.flatten())
        step(loss, optimizer, parameters)
    x, symbols = copy_task(1000, distance, draws)
    with torch.no_grad():
        said = head(rnn(x)[0][-3:]).argmax(-1)
    return round((said == symbols).double().mean().item(), 4)


def write(target: Path) -> None:
    """Run both trials and write their results.

    Args:
        target: The file to write.
    """
    pictures = {
        start: {
            str(blanks): {
                str(rate): [read_digits(start, blanks, rate, seed) for seed in SEEDS]
                for rate in DIGITS["rates"]
            }
            for blanks in DIGITS["blanks"]
        }
        for start in STARTS[:2]
    }
    symbols = {
        start: {
            str(distance): [copy_symbols(start, distance, seed) for seed in SEEDS]
            for distance in COPY["distances"]
        }
        for start in STARTS
    }
    target.write_text(
        json.dumps({"digits": pictures, "copy": symbols}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("recurrence_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
