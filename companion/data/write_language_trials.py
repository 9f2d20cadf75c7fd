"""Write ``language_trials.json``: networks with a window beside a recurrent one.

Run ``python companion/data/write_language_trials.py``; it takes six minutes on one core.
All networks read the characters of :func:`companion.datasets.python_documentation`, have as
many parameters as each other, within one in a hundred, and see the same chunks in the same
order. The learning rate of each is chosen on the validation text, with the first seed; two more
seeds follow at the chosen rate. The controls share the numbers of a window's network out in
other ways, or give it more of them; they are trained with the first seed, at the rate that both
windows chose. The chapter *Language models* draws the result, and runs a part
of it again. The text is not quite the same in every version of Python, so its size is kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion.datasets import CHARACTERS, encode, python_documentation
from companion.language_models import (
    Embedding,
    LanguageModel,
    bits_per_character,
    fit_truncated,
)
from companion.layers import Linear, count_parameters
from companion.optimization import Adam, CosineWithWarmup
from companion.recurrence import RNN

EPOCHS, SEEDS, RATES = 14, (0, 1, 2), (1e-3, 4e-3, 1.6e-2, 6.4e-2)
# window, length of a vector, hidden units (by default for as many parameters as the RNN has)
WINDOWS = {"window 4": (4, 32, None), "window 8": (8, 32, None)}
CONTROLS = {
    "window 4, vectors of 16": (4, 16, None),
    "window 4, vectors of 64": (4, 64, None),
    "window 8, vectors of 16": (8, 16, None),
    "window 8, 179 units": (8, 32, 179),
}
KINDS = ("RNN", *WINDOWS)


class WindowModel(nn.Module):
    r"""The network of Bengio et al. (2003), for characters: the vectors of the last
    ``window`` tokens side by side, one hidden layer, logits.

    .. math:: z_t = \tanh\big([x_{t-k+1}, \dots, x_t]\, W_1^\top + b_1\big) W_2^\top + b_2

    Args:
        vocabulary: How many different tokens there are.
        window: :math:`k`.
        vector: Length of a token's vector.
        hidden: Number of hidden units.
    """

    def __init__(self, vocabulary: int, window: int, vector: int, hidden: int):
        super().__init__()
        self.embedding = Embedding(vocabulary, vector)
        self.hidden = Linear(window * vector, hidden)
        self.head = Linear(hidden, vocabulary)
        self.window = window

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        """The logits (batch, time, vocabulary), and as the state the last tokens read."""
        if state is None:
            state = tokens.new_zeros(len(tokens), self.window - 1)
        read = torch.cat([state, tokens], dim=1)
        windows = self.embedding(read).unfold(
            1, self.window, 1
        )  # (batch, time, vector, window)
        outputs = self.hidden(windows.transpose(2, 3).flatten(2)).tanh()
        return self.head(outputs), read[:, len(read[0]) - self.window + 1 :]


def model_of(kind: str, seed: int) -> nn.Module:
    """A fresh model: one of ``KINDS`` or ``CONTROLS``."""
    torch.manual_seed(seed)
    size = len(CHARACTERS)
    if kind == "RNN":
        return LanguageModel(size, RNN(64, 128))
    window, vector, hidden = (WINDOWS | CONTROLS)[kind]
    if hidden is None:
        wanted = count_parameters(LanguageModel(size, RNN(64, 128)))
        hidden = round((wanted - size * vector - size) / (window * vector + 1 + size))
    return WindowModel(size, window, vector, hidden)


def learn(kind: str, rate: float, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Bits on the validation text after each epoch, and on the test text in the end.

    Args:
        kind: One of ``KINDS`` or ``CONTROLS``.
        rate: The learning rate with which training begins.
        seed: For the first weights.
        epochs: Where to stop; the schedule is always that of all ``EPOCHS``.
    """
    train, validation, test = map(encode, python_documentation())
    model = model_of(kind, seed)
    optimizer = Adam(model.parameters(), lr=rate)
    scheduler = CosineWithWarmup(optimizer, 0, EPOCHS * (len(train) // 32 // 64))
    options = {"validation": validation, "scheduler": scheduler, "progress": False}
    history = fit_truncated(model, optimizer, train, epochs=epochs, **options)
    return {
        "validation": [round(bits, 4) for bits in history.validation_metric],
        "test": round(bits_per_character(model, test), 4),
    }


def write(target: Path) -> None:
    """Train every model at every rate and write the bits.

    Args:
        target: The file to write.
    """
    trials = {}
    for kind in KINDS:
        runs = {rate: [learn(kind, rate, SEEDS[0])] for rate in RATES}
        best = min(runs, key=lambda rate: runs[rate][0]["validation"][-1])
        runs[best] += [learn(kind, best, seed) for seed in SEEDS[1:]]
        trials[kind] = {str(rate): results for rate, results in runs.items()}
    controls = {}
    for kind in CONTROLS:
        result = learn(kind, 1.6e-2, SEEDS[0])
        controls[kind] = {"validation": result["validation"][-1], "test": result["test"]}
    characters = [len(text) for text in python_documentation()]
    result = {"characters": characters, "trials": trials, "controls": controls}
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("language_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
