"""Write ``activation_trials.json``: which activation trains at which depth, and what a sigmoid
lacks.

Run ``python companion/data/write_activation_trials.py``; it takes about three and a half
minutes on one core. The chapter *Activations* explains the networks, draws the results, and
trains some of them again.

Every network learns from :func:`companion.datasets.digits` by plain minibatch gradient descent,
at several learning rates from three starts. The rate is chosen on the validation images; what
is counted on the test images, from six starts, is written for that rate alone.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import nn

from companion.activations import gelu, leaky_relu, relu, sigmoid, tanh
from companion.datasets import Examples, Splits, digits
from companion.layers import MLP, cross_entropy
from companion.training import evaluate, fit

SETTINGS = {
    "epochs": 6,
    "batch_size": 32,
    "width": 64,
    "causes": {  # at each depth, beside all of BENDS
        "2": [],
        "10": ["sigmoid, gain 4", "centred", "centred, gain 4"],
        "20": ["ReLU, rows centred", "ReLU, scaled", "GELU, scaled"],
    },
    "patient": {"depth": 10, "epochs": 24, "bends": ["sigmoid", "sigmoid, gain 4", "centred"]},
    "rates": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "first": [0.01, 0.03, 0.1],  # and further out, as long as the best is at an end
    "seeds": [0, 1, 2],
    "more_seeds": [3, 4, 5],  # at the best rate only
}

BENDS = {  # the function, and the gain of the weights before it
    "none": (nn.Identity(), 1.0),
    "sigmoid": (sigmoid, 1.0),
    "tanh": (tanh, 1.0),
    "ReLU": (relu, math.sqrt(2)),
    "leaky ReLU": (leaky_relu, math.sqrt(2)),
    "GELU": (gelu, math.sqrt(2)),
}


def centred(z):
    """A sigmoid whose middle is zero."""
    return sigmoid(z) - 0.5


def rows_centred(z):
    """ReLU without the mean of each row of outputs."""
    return relu(z) - relu(z).mean(-1, keepdim=True)


def scaled(z):
    """Each row of sums at the root mean square 1."""
    return z / z.square().mean(-1, keepdim=True).sqrt()


CAUSES = {  # what each of the others may lack
    "sigmoid, gain 4": (sigmoid, 4.0),
    "centred": (centred, 1.0),
    "centred, gain 4": (centred, 4.0),
    "ReLU, rows centred": (rows_centred, math.sqrt(2)),
    "ReLU, scaled": (lambda z: relu(scaled(z)), math.sqrt(2)),
    "GELU, scaled": (lambda z: gelu(scaled(z)), math.sqrt(2)),
}


def network(sizes, activation, gain: float, seed: int) -> MLP:
    """An MLP whose weights have variance gain² / inputs, and whose biases are zero."""
    model = MLP(sizes, activation)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        nn.init.normal_(layer.weight, 0, gain / layer.in_features**0.5, generator)
        nn.init.zeros_(layer.bias)
    return model


def standardised(data: Splits) -> Splits:
    """Rows of pixels with mean 0 and standard deviation 1 over the whole training part."""
    mean, std = data.train.x.mean(), data.train.x.std()
    return Splits(*(Examples((x.flatten(1) - mean) / std, y) for x, y in data))


def scores(
    data: Splits, bend, depth: int, rate: float, seed: int, epochs: int | None = None
) -> tuple[float, float]:
    """Validation and test accuracy after training; zero if the loss has left all bounds."""
    sizes = [data.train.x.shape[1], *depth * [SETTINGS["width"]], 10]
    model = network(sizes, *bend, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    options = {"epochs": epochs or SETTINGS["epochs"], "batch_size": SETTINGS["batch_size"]}
    try:
        fit(model, optimizer, cross_entropy, data.train, progress=False, **options)
    except FloatingPointError:
        return 0.0, 0.0
    parts = data.validation, data.test
    return tuple(round(evaluate(model, cross_entropy, part)[1], 4) for part in parts)


def sweep(data: Splits, bend, depth: int, epochs: int | None = None) -> dict:
    """Validation accuracies for each rate, and test accuracies at the best."""
    grid, to_try = SETTINGS["rates"], list(SETTINGS["first"])
    validation, test = {}, {}
    while to_try:
        for rate in to_try:
            pairs = [
                scores(data, bend, depth, rate, seed, epochs) for seed in SETTINGS["seeds"]
            ]
            validation[rate], test[rate] = map(list, zip(*pairs, strict=True))
        # of equals the largest: what learns at no rate is tried at all of the large ones
        best = max(validation, key=lambda rate: (sum(validation[rate]), rate))
        place = grid.index(best)
        to_try = [
            rate for rate in grid[max(place - 1, 0) : place + 2] if rate not in validation
        ]
    more = [scores(data, bend, depth, best, seed, epochs)[1] for seed in SETTINGS["more_seeds"]]
    return {
        "rate": best,
        "validation": dict(sorted(validation.items())),
        "test": test[best] + more,
    }


def write(target: Path, data: Splits) -> None:
    """Train every network and write what it did.

    Args:
        target: The file to write.
        data: What to train, to choose and to count on.
    """
    data = standardised(data)
    bends, longer = BENDS | CAUSES, SETTINGS["patient"]
    trials = {
        depth: {name: sweep(data, bends[name], int(depth)) for name in (*BENDS, *causes)}
        for depth, causes in SETTINGS["causes"].items()
    }
    patient = {
        name: sweep(data, bends[name], longer["depth"], longer["epochs"])
        for name in longer["bends"]
    }
    result = {"settings": SETTINGS, "trials": trials, "patient": patient}
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("activation_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target, digits())
