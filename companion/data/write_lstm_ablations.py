"""Write ``lstm_ablations.json``: what an LSTM learns with one of its gates taken away, or from
another start.

Run ``python companion/data/write_lstm_ablations.py``; it takes five to ten minutes on one core.
The chapter *LSTM* explains the tasks and the variants, draws the result, and trains some of the
networks again.

A gate is taken away through its bias. At 100 the sigmoid is exactly one and its slope exactly
zero: whatever comes in, the gate is open, and no gradient ever moves it.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import nn

from companion.layers import Linear, cross_entropy, mse_loss
from companion.lstm import LSTM
from companion.optimization import Adam, CosineWithWarmup
from companion.recurrence import RNN

SETTINGS = {
    "hidden_size": 32,
    "batch_size": 32,
    "steps": 800,
    "lr": 0.01,
    "max_norm": 1.0,
    "fresh_sequences": 1000,
}
LENGTHS, SEEDS = (10, 30, 100), (0, 1, 2)
VARIANTS = (
    *("full", "forget bias log T", "forget bias 1", "forget bias 0"),
    *("no forget gate", "no input gate", "no output gate", "RNN"),
)


def adding(n, length, generator):
    """Numbers, of which two are marked, one in each half. What is their sum?"""
    numbers, marks = torch.rand(length, n, generator=generator), torch.zeros(length, n)
    for start, end in [(0, length // 2), (length // 2, length)]:
        marks[torch.randint(start, end, (n,), generator=generator), torch.arange(n)] = 1
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(0)


def copying(n, length, generator):
    """A symbol, a stretch of blanks, and a question mark. What was the symbol?"""
    symbol = torch.randint(8, (n,), generator=generator)
    x = torch.cat([symbol[None], torch.full((length, n), 8), torch.full((1, n), 9)])
    return nn.functional.one_hot(x, 10).float(), symbol


TASKS = {"adding": (adding, 2, 1), "copying": (copying, 10, 8)}


@torch.no_grad()
def begin(lstm, variant, length):
    """Set the biases with which the variant begins, and take away the gate that it lacks."""
    i, f, _, _ = lstm.bias_hh_l0.chunk(4)
    # keeps a number for about so many steps; its opposite writes as rarely
    keep = math.log(length)
    starts = {
        "forget bias log T": (keep, None),
        "forget bias 1": (1.0, None),
        "forget bias 0": (0.0, None),
    }
    forget, write = starts.get(variant, (keep, -keep))
    f.fill_(forget)
    if write is not None:
        i.fill_(write)
    lacking = {"no input gate": 0, "no forget gate": 1, "no output gate": 3}.get(variant)
    if lacking is not None:
        for parameter in lstm.parameters():
            parameter.chunk(4)[lacking].zero_()
        lstm.bias_hh_l0.chunk(4)[lacking].fill_(100.0)


def train(task, variant, length, seed):
    """The error of a freshly trained network on sequences that it has not seen, as a share of
    knowing nothing.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sequences, inputs, outputs = TASKS[task]
    layer = (
        RNN(inputs, SETTINGS["hidden_size"])
        if variant == "RNN"
        else LSTM(inputs, SETTINGS["hidden_size"])
    )
    if variant != "RNN":
        begin(layer, variant, length)
    head = Linear(SETTINGS["hidden_size"], outputs)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = Adam(parameters, lr=SETTINGS["lr"])
    scheduler = CosineWithWarmup(optimizer, 0, SETTINGS["steps"])
    for _ in range(SETTINGS["steps"]):
        x, y = sequences(SETTINGS["batch_size"], length, generator)
        z = head(layer(x)[0][-1])
        loss = cross_entropy(z, y) if task == "copying" else mse_loss(z[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, SETTINGS["max_norm"])
        optimizer.step()
        scheduler.step()
    x, y = sequences(SETTINGS["fresh_sequences"], length, generator)
    with torch.no_grad():
        z = head(layer(x)[0][-1])
    if task == "copying":
        return (z.argmax(dim=1) != y).double().mean().item() / (7 / 8)
    return ((z[:, 0] - y).square().mean() / y.var()).item()


def write(target: Path) -> None:
    """Train every variant on every task and write the errors.

    Args:
        target: The file to write.
    """
    errors = {
        task: {
            variant: {
                str(length): [round(train(task, variant, length, seed), 4) for seed in SEEDS]
                for length in LENGTHS
            }
            for variant in VARIANTS
        }
        for task in TASKS
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
