"""Write ``convolution_controls.json``: LeNet without weight sharing, and without strides.

Run ``python companion/data/write_convolution_controls.py``; it takes four minutes on one
core. Each network is trained as those of ``write_convolution_trials.py`` are, beside which the
chapter *Convolution* puts the results.

*Sharing*: LeNet is local and shares its weights. A network that is as local, but has kernels of
its own at each place, learns from the same pictures, with several rates and three seeds.
*Strides*: a network with a connected head and no strides learns from pictures in a frame, in
which the test pictures then move.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad

from companion.activations import ReLU
from companion.convolution import Conv2d, Flatten, LeNet, output_size
from companion.data.write_convolution_trials import SETTINGS, answers, moved, sweep, train
from companion.datasets import Examples, Splits, fashion_mnist
from companion.layers import MLP, Sequential


class LocallyConnected2d(nn.Module):
    """A convolution of square images that shares nothing: each place has its own kernels."""

    def __init__(self, in_channels, out_channels, kernel_size, side, padding=0):
        super().__init__()
        m = output_size(side, kernel_size, padding=padding)
        self.k, self.padding = kernel_size, padding
        bound = (in_channels * kernel_size**2) ** -0.5  # as in Conv2d
        shape = (m, m, out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels, m, m).uniform_(-bound, bound))

    def forward(self, x):
        """Of (batch, channels, side, side) the maps (batch, out_channels, m, m)."""
        patches = pad(x, [self.padding] * 4).unfold(2, self.k, 1).unfold(3, self.k, 1)
        return torch.einsum("hwocij,nchwij->nohw", self.weight, patches) + self.bias


def unshared():
    """LeNet in which each place has its own kernels: local, but nothing is shared."""
    model = LeNet()
    _, *between, _, bend, pool = model.features
    model.features = Sequential(
        *(LocallyConnected2d(1, 6, 5, 28, padding=2), *between),
        *(LocallyConnected2d(6, 16, 5, 14), bend, pool),
    )
    return model


def framed():
    """The first maps of LeNet for pictures in a frame, without pooling, and LeNet's head."""
    side = output_size(28 + 2 * SETTINGS["frame"], 5, padding=4)
    first = Conv2d(1, 6, 5, padding=4, bias=False)
    return Sequential(first, ReLU(), Flatten(), MLP([6 * side**2, 120, 84, 10]))


def write(target: Path, data: Splits, lenet_rate: float) -> None:
    """Train every network and write what it did.

    Args:
        target: The file to write.
        data: What to train, to choose and to count on.
        lenet_rate: The rate of the LeNet whose answers are compared.
    """
    trial, pairs = sweep(unshared, lambda seed: data), []
    right = trial.pop("right")
    for seed, b in zip(SETTINGS["seeds"], right, strict=True):
        lenet = train(LeNet, data, lenet_rate, seed, SETTINGS["epochs"])
        a = answers(lenet, data.test.x) == data.test.y
        pairs.append([int((a & ~b).sum()), int((~a & b).sum())])
    trial["test"] = [round(r.double().mean().item(), 4) for r in right]
    trial["only LeNet, only it"] = pairs
    in_frame = Splits(*(Examples(pad(x, [SETTINGS["frame"]] * 4), y) for x, y in data))
    rate, epochs = SETTINGS["rate"], SETTINGS["framed_epochs"]
    models = (train(framed, in_frame, rate, seed, epochs) for seed in SETTINGS["seeds"])
    result = {
        "LeNet, not shared": trial,
        "fully connected, no strides": [moved(model, in_frame.test) for model in models],
    }
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("convolution_controls.json")
    )
    torch.set_num_threads(1)
    trials = Path(__file__).with_name("convolution_trials.json").read_text(encoding="utf-8")
    lenet = json.loads(trials)["trials"]["LeNet"]
    write(parser.parse_args().target, fashion_mnist(), lenet["rate"])
