"""Write ``convolution_trials.json``: LeNet beside networks that lack one of its parts.

Run ``python companion/data/write_convolution_trials.py``; it takes seven minutes on
one core. The chapter *Convolution* explains the networks, draws the results, and trains some of
them again.

Every network learns from the default part of :func:`companion.datasets.fashion_mnist`, with
several learning rates and three seeds. The rate is chosen on the validation pictures; what is
counted on the test pictures is written for that rate alone.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad

from companion.activations import ReLU
from companion.convolution import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Flatten,
    LeNet,
    MaxPool2d,
)
from companion.datasets import Examples, Splits, fashion_mnist
from companion.layers import MLP, Linear, Sequential, cross_entropy
from companion.optimization import Adam, OneCycleLR
from companion.training import evaluate, fit

SETTINGS = {
    "epochs": 5,
    "batch_size": 64,
    "rates": [0.002, 0.005, 0.0125],  # and further on, as long as the best is at an end
    "factor": 2.5,
    "rate": 0.005,  # of the controls and in the frame, where none is chosen
    "seeds": [0, 1, 2],
    "frame": 8,  # black pixels on each side
    "framed_epochs": 3,
    "shifts": [1, 2, 3, 4],
}


def mlp(*hidden):
    """A maker of fully connected networks for the same pictures."""
    return lambda: Sequential(Flatten(), MLP([784, *hidden, 10]))


def unpadded():
    """LeNet without its padding, and so with smaller maps."""
    model = LeNet()
    model.features = Sequential(Conv2d(1, 6, kernel_size=5), *model.features[1:])
    model.head = Sequential(Flatten(), MLP([16 * 4 * 4, 120, 84, 10]))
    return model


def separable():
    """LeNet with one kernel of 5 × 5 for each channel, then 1 × 1, as its second layer."""
    model = LeNet()
    *before, _, bend, pool = model.features
    model.features = Sequential(
        *before, Conv2d(6, 6, 5, groups=6), Conv2d(6, 16, 1), bend, pool
    )
    return model


def unbent():
    """LeNet with means for maxima and without ReLUs: linear, whatever its depth."""
    model = LeNet()
    first, _, _, second, _, _ = model.features
    model.features = Sequential(first, AvgPool2d(2), second, AvgPool2d(2))
    model.head[1].activation = nn.Identity()
    return model


MAKERS = {
    "LeNet": LeNet,
    "MLP": mlp(77),  # as many parameters as LeNet
    "deep MLP": mlp(66, 66, 48, 32),  # as many parameters and layers
    "large MLP": mlp(400, 200, 100, 30),  # as many multiplications and layers
    "one linear layer": lambda: Sequential(Flatten(), Linear(784, 10)),
}
CONTROLS = {"separable": separable, "no padding": unpadded, "no bends": unbent}
SHUFFLED = ("LeNet", "MLP")


def shuffled(data: Splits, seed: int) -> Splits:
    """The same pictures, with the 784 pixels of each in one and the same random order."""
    order = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    return Splits(*(Examples(x.flatten(1)[:, order].view_as(x), y) for x, y in data))


def framed(head: str, strides: bool = True):
    """LeNet for pictures in a black frame, without biases in its convolutions and with enough
    padding for every pixel to be seen equally often: black stays zero, so that a picture that
    moves in its frame leaves nothing behind.

    Without strides a kernel is dilated by as much as the strides before it would have skipped:
    the maps are the same, but known at every pixel.
    """
    s, d = (2, 1) if strides else (1, 2)
    features = Sequential(
        *(Conv2d(1, 6, 5, padding=4, bias=False), ReLU(), MaxPool2d(2, s)),
        *(
            Conv2d(6, 16, 5, padding=4 * d, dilation=d, bias=False),
            ReLU(),
            MaxPool2d(2, s, 0, d),
        ),
    )
    if head == "global average":
        return Sequential(features, AdaptiveAvgPool2d(1), Flatten(), MLP([16, 120, 84, 10]))
    side = 28 + 2 * SETTINGS["frame"]
    maps = features(torch.zeros(1, 1, side, side))
    return Sequential(features, Flatten(), MLP([maps.numel(), 120, 84, 10]))


FRAMED = {  # the head, and whether the pictures are shifted in training
    "fully connected": ("fully connected", False),
    "fully connected, shifted pictures": ("fully connected", True),
    "global average": ("global average", False),
}


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture moved in its frame by up to four pixels down or up, and across."""
    most = max(SETTINGS["shifts"])
    moves = torch.randint(-most, most + 1, (len(x), 2), generator=generator)
    moved = torch.empty_like(x)
    for down, across in moves.unique(dim=0).tolist():
        these = (moves == torch.tensor([down, across])).all(1)
        moved[these] = x[these].roll((down, across), (2, 3))
    return moved


def train(
    make, data: Splits, rate: float, seed: int, epochs: int, shift: bool = False
) -> nn.Module:
    """A network after Adam with one cycle of the rate."""
    batch_size = SETTINGS["batch_size"]
    torch.manual_seed(seed)
    model = make()
    optimizer = Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(data.train.x) // batch_size)
    options = {
        "scheduler": OneCycleLR(optimizer, max_lr=rate, total_steps=steps),
        "batch_size": batch_size,
        "progress": False,
    }
    if not shift:
        fit(model, optimizer, cross_entropy, data.train, epochs=epochs, seed=seed, **options)
        return model
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        pictures = shifted(data.train.x, generator), data.train.y
        fit(model, optimizer, cross_entropy, pictures, seed=epochs * seed + epoch, **options)
    return model


def score(model: nn.Module, data: Examples) -> float:
    """The share of right answers."""
    return round(evaluate(model, cross_entropy, data)[1], 4)


@torch.no_grad()
def answers(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The class that the network gives to each picture."""
    return torch.cat([model(part).argmax(1) for part in x.split(500)])


def sweep(make, data_of) -> dict:
    """Validation accuracies for each rate and seed, and for the best rate which test pictures
    are answered right.
    """
    validation, right = {}, {}
    rates = list(SETTINGS["rates"])
    while rates:
        rate = rates.pop(0)
        validation[rate], right[rate] = [], []
        for seed in SETTINGS["seeds"]:
            data = data_of(seed)
            model = train(make, data, rate, seed, SETTINGS["epochs"])
            validation[rate].append(score(model, data.validation))
            right[rate].append(answers(model, data.test.x) == data.test.y)
        best = max(validation, key=lambda rate: sum(validation[rate]))
        if not rates and best == max(validation):
            rates = [best * SETTINGS["factor"]]
        elif not rates and best == min(validation):
            rates = [best / SETTINGS["factor"]]
    return {"rate": best, "validation": dict(sorted(validation.items())), "right": right[best]}


def control(make, data: Splits) -> list[float]:
    """Validation accuracies for each seed, with the rate that is the same for all controls."""
    rate, epochs = SETTINGS["rate"], SETTINGS["epochs"]
    models = (train(make, data, rate, seed, epochs) for seed in SETTINGS["seeds"])
    return [score(model, data.validation) for model in models]


def moved(model: nn.Module, data: Examples) -> dict:
    """The accuracy on pictures, and how many answers change when they move to the right."""
    before = answers(model, data.x)
    changed = [
        int((answers(model, data.x.roll(shift, 3)) != before).sum())
        for shift in SETTINGS["shifts"]
    ]
    return {"test": score(model, data), "changed": changed}


def move(data: Splits) -> dict:
    """What moving the test pictures does to each network of :data:`FRAMED`, and to the one with
    global averages when its strides are taken away after training.
    """
    results = {name: [] for name in (*FRAMED, "global average, no strides")}
    for seed in SETTINGS["seeds"]:
        for name, (head, shift) in FRAMED.items():
            maker, epochs = partial(framed, head), SETTINGS["framed_epochs"]
            model = train(maker, data, SETTINGS["rate"], seed, epochs, shift)
            results[name].append(moved(model, data.test))
        dense = framed(head, strides=False)
        dense.load_state_dict(model.state_dict())
        results["global average, no strides"].append(moved(dense, data.test))
    return results


def write(target: Path, data: Splits) -> None:
    """Train every network and write what it did.

    Args:
        target: The file to write.
        data: What to train, to choose and to count on.
    """
    trials = {name: sweep(make, lambda seed: data) for name, make in MAKERS.items()}
    for name in SHUFFLED:
        trials[f"{name}, shuffled"] = sweep(MAKERS[name], partial(shuffled, data))
    all_right = {name: trial.pop("right") for name, trial in trials.items()}
    for name, trial in trials.items():
        right = all_right[name]
        trial["test"] = [round(r.double().mean().item(), 4) for r in right]
        trial["only LeNet, only it"] = [
            [int((a & ~b).sum()), int((~a & b).sum())]
            for a, b in zip(all_right["LeNet"], right, strict=True)
        ]
    wide = [SETTINGS["frame"]] * 4
    in_frame = Splits(*(Examples(pad(x, wide), y) for x, y in data))
    result = {
        "settings": SETTINGS,
        "trials": trials,
        "controls": {name: control(make, data) for name, make in CONTROLS.items()},
        "framed": move(in_frame),
    }
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("convolution_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target, fashion_mnist())
