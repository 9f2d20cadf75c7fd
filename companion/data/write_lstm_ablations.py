"""Write ``lstm_ablations.json``: what an LSTM learns with one of its gates taken away, or from
another start, and what an RNN and a GRU learn.

Run ``python companion/data/write_lstm_ablations.py``; it takes ten minutes on one core. The
chapter *LSTM* explains the tasks and the variants, draws the result, and trains some of the
networks again.

A gate is taken away through its bias. At 100 the sigmoid is exactly one and its slope exactly
zero: whatever comes in, the gate is open, and no gradient ever moves it.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from companion.layers import Linear, cross_entropy, mse_loss
from companion.lstm import GRU, LSTM
from companion.optimization import Adam, CosineWithWarmup
from companion.recurrence import RNN
from companion.training import train

SETTINGS = {
    "hidden_size": 32,
    "batch_size": 32,
    "steps": 800,
    "steps_of_running_sum": 300,
    "lr": 0.01,
    "max_norm": 1.0,
    "fresh_sequences": 1000,
}
LENGTHS, SEEDS = (10, 30, 100), (0, 1, 2)
GATES = {"no input gate": 0, "no forget gate": 1, "no output gate": 3}
VARIANTS = (
    *("full", "forget bias log T", "forget bias 1", "forget bias 0"),
    *("no forget gate", "no input gate", "no output gate", "RNN"),
)


def adding(n: int, draws: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """Numbers, of which two are marked, one in each half. What is their sum?"""
    numbers, marks = torch.rand(length, n, generator=draws), torch.zeros(length, n)
    for start, end in [(0, length // 2), (length // 2, length)]:
        marks[torch.randint(start, end, (n,), generator=draws), torch.arange(n)] = 1
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(0)[:, None]


def copying(n: int, draws: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """A symbol, a stretch of blanks, and a question mark. What was the symbol?"""
    symbol = torch.randint(8, (n,), generator=draws)
    x = torch.cat([symbol[None], torch.full((length, n), 8), torch.full((1, n), 9)])
    return one_hot(x, 10).float(), symbol


def running_sum(n: int, draws: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """Numbers, and now and then a mark. After each number, what is the sum since the mark?"""
    numbers = 2 * torch.rand(length, n, generator=draws) - 1
    marks = (torch.rand(length, n, generator=draws) < 0.05).float()  # one in twenty
    sums = [torch.zeros(n)]
    for number, mark in zip(numbers, marks, strict=True):
        sums.append((1 - mark) * sums[-1] + number)
    return torch.stack([numbers, marks], dim=-1), torch.stack(sums[1:])[..., None]


@torch.no_grad()
def begin(layer: nn.Module, forget: float, write: float | None = None) -> None:
    """Set the biases of the forget gates of an LSTM and, with ``write``, of its input gates; or
    those of the update gates of a GRU.
    """
    i, f, *_ = layer.bias_hh_l0.chunk(layer.gates)
    f.fill_(forget)
    if write is not None:
        i.fill_(write)


@torch.no_grad()
def take_away(lstm: LSTM, gate: int) -> None:
    """Leave the gate with this number (input 0, forget 1, output 3) open for ever."""
    for parameter in lstm.parameters():
        parameter.chunk(4)[gate].zero_()
    lstm.bias_hh_l0.chunk(4)[gate].fill_(100.0)


def layer_of(variant: str, inputs: int, length: int) -> nn.Module:
    """A fresh layer, which is to keep something for ``length`` steps."""
    kind = {"RNN": RNN, "GRU": GRU}.get(variant, LSTM)
    layer, keep = kind(inputs, SETTINGS["hidden_size"]), math.log(length)
    if variant in ("GRU", "forget bias log T"):
        begin(layer, keep)
    elif variant.startswith("forget bias"):
        begin(layer, float(variant.split()[-1]))
    elif variant != "RNN":
        begin(layer, keep, -keep)
    if variant in GATES:
        take_away(layer, GATES[variant])
    return layer


def learn(
    layer: nn.Module,
    head: nn.Module,
    task: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    places: int | slice = -1,
    seed: int = 0,
    steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Train on sequences that are seen once; what is answered to a thousand new ones, and what
    should have been. ``places`` are the steps at which an answer is wanted.
    """
    model, draws = nn.ModuleList([layer, head]), torch.Generator().manual_seed(seed)
    optimizer = Adam(model.parameters(), lr=SETTINGS["lr"])
    steps = steps or SETTINGS["steps"]

    def step(_):
        x, y = task(SETTINGS["batch_size"], draws)
        return loss(head(layer(x)[0][places]), y)

    train(
        step,
        optimizer,
        range(steps),
        scheduler=CosineWithWarmup(optimizer, 0, steps),
        max_norm=SETTINGS["max_norm"],
        progress=False,
    )
    x, y = task(SETTINGS["fresh_sequences"], draws)
    with torch.no_grad():
        return head(layer(x)[0][places]), y


def error(task: str, variant: str, length: int, seed: int) -> float:
    """The error of a freshly trained network on sequences that it has not seen, as a share of
    knowing nothing.
    """
    torch.manual_seed(seed)
    if task == "copying":
        layer, head = layer_of(variant, 10, length), Linear(SETTINGS["hidden_size"], 8)
        z, y = learn(layer, head, partial(copying, length=length), cross_entropy, seed=seed)
        return (z.argmax(dim=1) != y).double().mean().item() / (7 / 8)
    layer, head = layer_of(variant, 2, length), Linear(SETTINGS["hidden_size"], 1)
    if task == "adding":
        z, y = learn(layer, head, partial(adding, length=length), mse_loss, seed=seed)
    else:  # a mark comes once in `length` steps, and the sequence is three times as long
        whole = partial(running_sum, length=3 * length)
        z, y = learn(
            layer, head, whole, mse_loss, slice(None), seed, SETTINGS["steps_of_running_sum"]
        )
    return (mse_loss(z, y) / y.var()).item()


TRIALS = {
    "copying": dict.fromkeys(VARIANTS, LENGTHS) | {"GRU": (30,)},
    "adding": dict.fromkeys(VARIANTS, LENGTHS) | {"GRU": (30,)},
    "running sum": {"full": (20,), "no forget gate": (20,)},
}


def write(target: Path) -> None:
    """Train every variant on every task and write the errors.

    Args:
        target: The file to write.
    """
    errors = {
        task: {
            variant: {
                str(length): [round(error(task, variant, length, seed), 4) for seed in SEEDS]
                for length in lengths
            }
            for variant, lengths in variants.items()
        }
        for task, variants in TRIALS.items()
    }
    target.write_text(
        json.dumps({"settings": SETTINGS, "errors": errors}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("lstm_ablations.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
