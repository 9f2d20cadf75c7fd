"""Write ``optimization_trials.json``: how rate and batch size, and how rate and weight decay,
go together.

Run ``python companion/data/write_optimization_trials.py``; it takes about three minutes on one
core. The chapter *Optimisation* draws the results and trains some of the networks again.

Every network is an MLP with 64 hidden units and learns from the default part of
:func:`companion.datasets.fashion_mnist`, with three seeds. Rates and decays are chosen on the
validation pictures; the test pictures are looked at with that choice alone.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch

from companion.datasets import Splits, fashion_mnist
from companion.layers import MLP, cross_entropy
from companion.optimization import SGD, Adam, AdamW, CosineWithWarmup
from companion.training import evaluate, fit

SETTINGS = {
    "seeds": [0, 1, 2],
    "scaling": {
        "epochs": 5,
        "batches": [50, 200, 800],
        "rates": [0.0125 * 2**k for k in range(8)],
    },
    "decay": {
        "pictures": 2000,  # so few that the network overfits
        "epochs": 40,
        "batch_size": 100,
        "warmup": 40,
        "rates": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1],
        "decays": {
            "Adam": [0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01],
            "AdamW": [0.03, 0.1, 0.3, 1.0, 3.0],
        },
    },
}
OPTIMIZERS = {"Adam": Adam, "AdamW": AdamW}


def scaling(data: Splits, batch_size: int, rate: float, seed: int) -> float:
    """The validation loss after SGD with that batch and rate."""
    torch.manual_seed(seed)
    model = MLP([784, 64, 10])
    how = {"epochs": SETTINGS["scaling"]["epochs"], "seed": seed, "progress": False}
    optimizer = SGD(model.parameters(), lr=rate)
    fit(model, optimizer, cross_entropy, data.train, batch_size=batch_size, **how)
    return round(evaluate(model, cross_entropy, data.validation)[0], 4)


def decay(data: Splits, name: str, rate: float, decay: float, seed: int) -> list:
    """Validation loss, test loss and test accuracy after a cosine schedule."""
    settings = SETTINGS["decay"]
    few = tuple(part[: settings["pictures"]] for part in data.train)
    steps = settings["epochs"] * settings["pictures"] // settings["batch_size"]
    torch.manual_seed(seed)
    model = MLP([784, 64, 10])
    optimizer = OPTIMIZERS[name](model.parameters(), lr=rate, weight_decay=decay)
    fit(
        model,
        optimizer,
        cross_entropy,
        few,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        scheduler=CosineWithWarmup(optimizer, settings["warmup"], steps),
        seed=seed,
        progress=False,
    )
    (validation, _), (test, right) = (
        evaluate(model, cross_entropy, part) for part in (data.validation, data.test)
    )
    return [round(number, 4) for number in (validation, test, right)]


def flat(data: Splits) -> Splits:
    """The pictures as rows of 784 numbers."""
    return Splits(*(type(part)(part.x.flatten(1), part.y) for part in data))


def write(target: Path, data: Splits) -> None:
    """Train every network and write what it did.

    Args:
        target: The file to write.
        data: Pictures as rows: to train, to choose and to count on.
    """
    seeds, (s, d) = SETTINGS["seeds"], (SETTINGS["scaling"], SETTINGS["decay"])
    result = {
        "settings": SETTINGS,
        "scaling": [
            {
                "batch_size": batch_size,
                "rate": rate,
                "validation": [scaling(data, batch_size, rate, seed) for seed in seeds],
            }
            for batch_size, rate in product(s["batches"], s["rates"])
        ],
        "decay": [],
    }
    for name, decays in d["decays"].items():
        for rate, weight in product(d["rates"], decays):
            runs = [decay(data, name, rate, weight, seed) for seed in seeds]
            columns = dict(
                zip(("validation", "test", "right"), zip(*runs, strict=True), strict=True)
            )
            result["decay"].append(
                {"optimizer": name, "rate": rate, "decay": weight, **columns}
            )
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("optimization_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target, flat(fashion_mnist()))
