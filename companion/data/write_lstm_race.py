"""Write ``lstm_race.json``: language models with and without gates, in the same time.

Run ``python companion/data/write_lstm_race.py``; it takes eleven minutes on one core. An
LSTM runs against an RNN of as many units and against one of as many parameters, each for as
many epochs as cost about the same; then it and the larger RNN run twice as long. The learning
rate of each is chosen on the validation text, with the first seed: the smallest that comes
within a fiftieth of a bit of the best, since a large one that happens to do well with one seed
may fail with the next. Two more seeds follow at the chosen rate. The chapter *LSTM* draws the
result, and runs a part of it again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from companion.datasets import CHARACTERS, encode, python_documentation
from companion.language_models import LanguageModel, bits_per_character, fit_truncated
from companion.lstm import LSTM
from companion.optimization import Adam, CosineWithWarmup
from companion.recurrence import RNN
from companion.training import History

# layer, units, epochs, learning rates to choose from
RUNNERS = {
    "RNN, 128 units": (RNN, 128, 14, (1e-3, 4e-3, 1.6e-2)),
    "RNN, 262 units": (RNN, 262, 6, (2e-3, 4e-3, 8e-3, 1.6e-2)),
    "LSTM, 128 units": (LSTM, 128, 5, (4e-3, 1.6e-2, 3.2e-2, 6.4e-2)),
    "RNN, 262 units, twice as long": (RNN, 262, 12, (2e-3, 4e-3, 8e-3, 1.6e-2)),
    "LSTM, 128 units, twice as long": (LSTM, 128, 10, (8e-3, 1.6e-2, 3.2e-2, 6.4e-2)),
}
SEEDS = (0, 1, 2)


def model_of(runner: str, seed: int = 0) -> LanguageModel:
    """A fresh model. The forget gates of an LSTM begin with a bias of one."""
    kind, units, _, _ = RUNNERS[runner]
    torch.manual_seed(seed)
    model = LanguageModel(len(CHARACTERS), kind(64, units))
    if kind is LSTM:
        model.recurrent.bias_hh_l0.data.chunk(4)[1].fill_(1.0)
    return model


def trained(
    runner: str, rate: float, seed: int = 0, epochs: int | None = None
) -> tuple[LanguageModel, History]:
    """A trained model, and what happened meanwhile.

    Args:
        runner: One of ``RUNNERS``.
        rate: The learning rate with which training begins.
        seed: For the first weights.
        epochs: Where to stop; the schedule is always that of all epochs.
    """
    train, validation, _ = map(encode, python_documentation())
    model, whole = model_of(runner, seed), RUNNERS[runner][2]
    optimizer = Adam(model.parameters(), lr=rate)
    scheduler = CosineWithWarmup(optimizer, 0, whole * (len(train) // 32 // 64))
    options = {"validation": validation, "scheduler": scheduler, "progress": False}
    return model, fit_truncated(model, optimizer, train, epochs=epochs or whole, **options)


def run(runner: str, rate: float, seed: int = 0) -> dict[str, Any]:
    """The seconds of the processor that training took, bits on the validation text after each
    epoch, and on the test text at the end.
    """
    begin = time.process_time()
    model, history = trained(runner, rate, seed)
    return {
        "seconds": round(time.process_time() - begin, 1),
        "validation": [round(bits, 4) for bits in history.validation_metric],
        "test": round(bits_per_character(model, encode(python_documentation().test)), 4),
    }


def write(target: Path) -> None:
    """Train every model at every rate and write the bits.

    Args:
        target: The file to write.
    """
    race = {}
    for runner, (_, _, _, rates) in RUNNERS.items():
        runs = {rate: [run(runner, rate)] for rate in rates}
        ends = {rate: tries[0]["validation"][-1] for rate, tries in runs.items()}
        chosen = next(rate for rate in rates if ends[rate] < min(ends.values()) + 0.02)
        runs[chosen] += [run(runner, chosen, seed) for seed in SEEDS[1:]]
        race[runner] = {str(rate): results for rate, results in runs.items()}
    target.write_text(json.dumps(race, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("lstm_race.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
