"""Write ``expert_trials.json``: mixtures of experts by EM and by gradient, against one network,
and a sparse layer in a language model.

Run ``python companion/data/write_expert_trials.py``; it takes three minutes on three cores. The
chapter *Mixture of experts* explains the three trials, draws the result, and runs a part of
them again.

*Race*: six planes in the plane, and the likelihood of a mixture of six linear experts over the
seconds of the processor, for EM and for four ways to follow the gradient, from the same twenty
starts. *Clothes*: pictures of clothes, each turned by a quarter, a half, three quarters or not
at all. *Text*: a language model with a window of eight characters, whose layer is dense, or
sparse with and without balancing. Rates are chosen on other starts, or on validation data.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot

from companion.datasets import CHARACTERS, encode, fashion_mnist, python_documentation
from companion.language_models import Embedding
from companion.layers import MLP, Linear, cross_entropy
from companion.mixture_of_experts import MixtureOfExperts, SparseMixtureOfExperts
from companion.optimization import SGD, Adam, CosineWithWarmup
from companion.training import accuracy, train

SEEDS = (0, 1, 2)

# Race

SECONDS, STARTS, TRIALS = 1.0, range(20), (100, 101, 102)
MOMENTS = np.geomspace(0.003, SECONDS, 28).round(4).tolist()
# the rates of each are tried on starts of their own
RUNNERS = {
    "EM": (None,),
    "Adam": (0.01, 0.03, 0.1, 0.3),
    "Adam, minibatches": (0.01, 0.03, 0.1, 0.3),
    "SGD with momentum": (0.03, 0.1, 0.3, 1.0),
    "L-BFGS": (None,),
}


def six_planes(n: int = 600, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points of a square, heights that lie on one of six planes but for noise of 0.2, and the
    number of that plane, drawn from a softmax that is linear in the point.
    """
    g = torch.Generator().manual_seed(106)
    centres, planes = (
        (2 * torch.rand(6, 2, generator=g) - 1).double(),
        torch.randn(6, 3, generator=g).double(),
    )
    g = torch.Generator().manual_seed(seed)
    x = (2 * torch.rand(n, 2, generator=g) - 1).double()
    gate = (-12 * torch.cdist(x, centres).square()).softmax(dim=1)
    k = torch.multinomial(gate, 1, generator=g)[:, 0]
    noise = 0.2 * torch.randn(n, generator=g).double()
    return x, ((planes[k, :2] * x).sum(dim=1) + planes[k, 2] + noise)[:, None], k


class Watch:
    """The losses of a model in training, and the seconds of the processor until then; to look
    costs nothing.
    """

    def __init__(self, model: MixtureOfExperts, x: Tensor, y: Tensor):
        self.model, self.data, self.curve = model, (x, y), []
        self.begin = time.process_time()

    def __call__(self, *_: Any) -> bool:
        """Look; whether time is over."""
        now = time.process_time()
        with torch.no_grad():
            self.curve.append((now - self.begin, self.model.loss(*self.data).item()))
        self.begin += time.process_time() - now
        return self.curve[-1][0] > SECONDS

    def at_moments(self) -> list[float]:
        """The lowest loss until each of ``MOMENTS``."""
        seconds, losses = map(np.array, zip(*self.curve, strict=True))
        lowest = np.minimum.accumulate(np.nan_to_num(losses, nan=math.inf))
        places = np.searchsorted(seconds, MOMENTS, side="right") - 1
        return lowest[places.clip(min=0)].round(4).tolist()


def run(runner: str, rate: float | None, start: int) -> list[float]:
    """The losses of one of ``RUNNERS`` at ``MOMENTS``."""
    x, y, _ = six_planes()
    torch.manual_seed(start)
    model = MixtureOfExperts(2, 1, 6).double()
    watch = Watch(model, x, y)
    watch()
    if runner == "EM":
        while not watch():
            model.fit_em(x, y, max_iter=1)
    elif runner == "L-BFGS":
        _lbfgs(model, x, y, watch)
    else:
        optimizer = SGD if runner.startswith("SGD") else Adam
        options = {"momentum": 0.9} if optimizer is SGD else {}
        optimizer = optimizer(model.parameters(), lr=rate, **options)
        batch_size = 100 if runner.endswith("minibatches") else len(x)
        options = {"epochs": 10**6, "batch_size": batch_size, "progress": False}
        with suppress(FloatingPointError):  # it left for infinity: what it had before counts
            model.fit(x, y, optimizer, stop=watch, **options)
    return watch.at_moments()


def _lbfgs(model, x, y, watch):
    """SciPy's quasi-Newton method on the same loss, for as long as time lasts."""
    parameters = [*model.parameters()]
    sizes = [parameter.numel() for parameter in parameters]

    @torch.no_grad()
    def go_to(theta):
        parts = torch.from_numpy(theta).split(sizes)
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))

    def loss_and_gradient(theta):
        go_to(theta)
        loss = model.loss(x, y)
        gradient = torch.autograd.grad(loss, parameters)
        return loss.item(), torch.cat([part.flatten() for part in gradient]).numpy()

    def callback(theta):
        go_to(theta)
        if watch():
            raise StopIteration

    start = torch.cat([parameter.detach().flatten() for parameter in parameters]).numpy()
    forever = {"maxiter": 10**6, "maxfun": 10**6, "ftol": 1e-12}
    minimize(
        loss_and_gradient,
        start.copy(),
        jac=True,
        method="L-BFGS-B",
        callback=callback,
        options=forever,
    )


def race(runner: str) -> dict[str, Any]:
    """One of ``RUNNERS`` from all ``STARTS``, at the rate that is best on ``TRIALS``."""
    tried = {
        rate: [run(runner, rate, start)[-1] for start in TRIALS]
        for rate in RUNNERS[runner]
        if rate is not None
    }
    chosen = min(tried, key=lambda rate: median(tried[rate]), default=None)
    losses = [run(runner, chosen, start) for start in STARTS]
    return {"tried": tried, "chosen": chosen, "losses": losses}


# Clothes

CLOTHES_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
EPOCHS = 15


class Turned(NamedTuple):
    """Pictures of 14 by 14 pixels, laid out in a row, their classes, and their turns."""

    x: Tensor
    y: Tensor
    turn: Tensor


@cache
def turned_clothes() -> tuple[Turned, Turned, Turned]:
    """The three parts of Fashion-MNIST, each picture at half its size and turned by so many
    quarters.
    """
    parts = []
    for seed, part in enumerate(fashion_mnist()):
        g = torch.Generator().manual_seed(seed)
        turn = torch.randint(4, (len(part.x),), generator=g)
        small = avg_pool2d(part.x, 2)
        x = torch.stack(
            [torch.rot90(a, k, (1, 2)) for a, k in zip(small, turn.tolist(), strict=True)]
        )
        parts.append(Turned(x.flatten(1), part.y, turn))
    return tuple(parts)


def four_experts(seed: int = 0) -> MixtureOfExperts:
    """Four experts of 24 hidden units and a gate of 16."""
    torch.manual_seed(seed)
    return MixtureOfExperts(196, 10, 4, "classification", [24], [16], torch.relu)


def one_network(units: int, seed: int = 0) -> MLP:
    """A network with one hidden layer."""
    torch.manual_seed(seed)
    return MLP([196, units, 10])


# units with which one network has as many parameters as the experts and the gate together, and
# as the gate and one expert
SAME_PARAMETERS, SAME_COMPUTE = 112, 40
DRESSERS = {
    "experts": four_experts,
    "experts, shown the turns": four_experts,
    "same parameters": partial(one_network, SAME_PARAMETERS),
    "same compute": partial(one_network, SAME_COMPUTE),
}


def dress(kind: str, rate: float, seed: int = 0, epochs: int = EPOCHS) -> nn.Module:
    """Train one of ``DRESSERS``.

    Args:
        kind: Which.
        rate: The rate with which training begins; it falls along a cosine.
        seed: For the first weights and the order of pictures.
        epochs: In two thirds of them, experts who are shown the turns have the turn of a
            picture for its responsibilities; in the last third nobody is shown anything.
    """
    x, y, turn = turned_clothes()[0]
    model = DRESSERS[kind](seed=seed)
    optimizer = Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(x) // 64)
    options = {
        "model": model,
        "seed": seed,
        "scheduler": CosineWithWarmup(optimizer, 0, steps),
        "progress": False,
    }

    def loss(batch):
        return cross_entropy(model(batch[0]), batch[1])

    def shown(batch):
        x, y, r = batch
        return -(r * model.log_joint(x, y)).sum(dim=1).mean()

    if kind.endswith("turns"):
        first = 2 * epochs // 3
        train(shown, optimizer, (x, y, one_hot(turn).to(x)), epochs=first, **options)
        epochs -= first
    train(loss, optimizer, (x, y), epochs=epochs, **options)
    return model


def dress_by_em(seed: int = 0, iterations: int = 40) -> MixtureOfExperts:
    """The experts by generalised EM: ten steps of Adam for each of them in every M-step."""
    model, (x, y, _) = four_experts(seed), turned_clothes()[0]
    model.fit_em(x, y, max_iter=iterations, tol=-math.inf, inner=10)
    return model


def bits_about(turn: Tensor, expert: Tensor) -> float:
    """The mutual information of two numbers below four, in bits: 2 if each tells the other."""
    joint = torch.zeros(4, 4, dtype=torch.float64)
    joint.index_put_((expert, turn), torch.ones(1).double(), accumulate=True)
    joint /= joint.sum()
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0)
    there = joint > 0
    return (joint[there] * (joint[there] / independent[there]).log2()).sum().item()


@torch.no_grad()
def judged(model: nn.Module) -> dict[str, float]:
    """Accuracies and the training loss; of experts also the test accuracy of the likeliest one
    alone, and what its number tells about the turn.
    """
    training, validation, test = turned_clothes()
    result = {
        "loss": cross_entropy(model(training.x), training.y).item(),
        "validation": accuracy(model(validation.x), validation.y),
        "test": accuracy(model(test.x), test.y),
    }
    if isinstance(model, MixtureOfExperts):
        expert = model.gate(test.x).argmax(dim=1)
        alone = model.outputs(test.x)[torch.arange(len(expert)), expert]
        result["alone"] = accuracy(alone, test.y)
        result["bits"] = bits_about(test.turn, expert)
    return {name: round(value, 4) for name, value in result.items()}


def clothes(kind: str) -> dict[str, Any]:
    """One of ``DRESSERS`` at the rate that is best on the validation pictures with the first
    seed, or the experts by EM.
    """
    if kind == "EM":
        return {"0.01": [judged(dress_by_em(seed)) for seed in SEEDS]}
    return _with_more_seeds(
        {rate: [judged(dress(kind, rate))] for rate in CLOTHES_RATES},
        lambda found: -found["validation"],
        lambda *run: judged(dress(kind, *run)),
    )


def _with_more_seeds(runs, cost, more) -> dict[str, list[Any]]:
    """The runs of all rates, and two more at the cheapest."""
    chosen = min(runs, key=lambda rate: cost(runs[rate][0]))
    runs[chosen] += [more(chosen, seed) for seed in SEEDS[1:]]
    return {str(rate): results for rate, results in runs.items()}


# Text

WINDOW, WIDTH, HIDDEN, EXPERTS, STEPS = 8, 64, 128, 8, 600
TEXT_RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
BALANCE = 0.01
WRITERS = {
    "top 1": (partial(SparseMixtureOfExperts, WIDTH, HIDDEN, EXPERTS, 1), 0.0),
    "top 1, balanced": (partial(SparseMixtureOfExperts, WIDTH, HIDDEN, EXPERTS, 1), BALANCE),
    "top 2": (partial(SparseMixtureOfExperts, WIDTH, HIDDEN, EXPERTS, 2), 0.0),
    "top 2, balanced": (partial(SparseMixtureOfExperts, WIDTH, HIDDEN, EXPERTS, 2), BALANCE),
    "dense, 1 expert's": (partial(MLP, [WIDTH, HIDDEN, WIDTH]), 0.0),
    "dense, 2 experts'": (partial(MLP, [WIDTH, 2 * HIDDEN, WIDTH]), 0.0),
    "dense, all experts'": (partial(MLP, [WIDTH, EXPERTS * HIDDEN, WIDTH]), 0.0),
}


class WindowModel(nn.Module):
    """The next character from the last eight: each becomes a vector, a linear layer mixes them
    into one token, and ``layer`` adds to it.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.embedding = Embedding(len(CHARACTERS), 16)
        self.mix = Linear(16 * WINDOW, WIDTH)
        self.layer = layer
        self.head = Linear(WIDTH, len(CHARACTERS))

    def token(self, characters: Tensor) -> Tensor:
        """What ``layer`` is given, for characters (batch, window)."""
        return self.mix(self.embedding(characters).flatten(1)).relu()

    def forward(self, characters: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and how unevenly the layer was used."""
        x = self.token(characters)
        added = self.layer(x)
        added, balance = added if isinstance(added, tuple) else (added, x.new_zeros(()))
        return self.head(x + added), balance


@cache
def windows() -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of the text, at each place a window and the character after it."""
    return tuple(encode(part).unfold(0, WINDOW + 1, 1) for part in python_documentation())


class Draws:
    """So many minibatches of 512 places, the same at every reading."""

    def __init__(self, steps: int, seed: int):
        self.steps, self.seed = steps, seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        g, text = torch.Generator().manual_seed(self.seed), windows()[0]
        for _ in range(self.steps):
            yield text[torch.randint(len(text), (512,), generator=g)]


def write_text(
    kind: str, rate: float, seed: int = 0, steps: int = STEPS, look: Callable | None = None
) -> WindowModel:
    """Train one of ``WRITERS``.

    Args:
        kind: Which.
        rate: The rate with which training begins; it falls along a cosine.
        seed: For the first weights and the places of the text.
        steps: How many minibatches.
        look: Called with the model and a minibatch at every step.
    """
    layer, weight = WRITERS[kind]
    torch.manual_seed(seed)
    model = WindowModel(layer())
    optimizer = Adam(model.parameters(), lr=rate)

    def step(batch):
        if look is not None:
            look(model, batch)
        logits, balance = model(batch[:, :-1])
        return cross_entropy(logits, batch[:, -1]) + weight * balance

    scheduler = CosineWithWarmup(optimizer, 0, steps)
    batches = Draws(steps, seed)
    train(step, optimizer, batches, model=model, scheduler=scheduler, progress=False)
    return model


@torch.no_grad()
def shares(model: WindowModel, batch: Tensor) -> list[float]:
    """Which share of a minibatch's choices each expert gets."""
    _, chosen, _ = model.layer.route(model.token(batch[:, :-1]))
    return (chosen.flatten().bincount(minlength=EXPERTS) / chosen.numel()).tolist()


@torch.no_grad()
def read(model: WindowModel) -> dict[str, Any]:
    """Bits a character on validation and test text, and the experts' shares of the latter."""
    result = {}
    for name, text in zip(("validation", "test"), windows()[1:], strict=True):
        bits = [cross_entropy(model(part[:, :-1])[0], part[:, -1]) for part in text.split(4096)]
        weights = torch.tensor([len(part) for part in text.split(4096)], dtype=torch.float64)
        mean = (torch.stack(bits).double() * weights).sum() / weights.sum()
        result[name] = round(mean.item() / math.log(2), 4)
    if isinstance(model.layer, SparseMixtureOfExperts):
        result["shares"] = [round(share, 4) for share in shares(model, windows()[2])]
    return result


def text(kind: str) -> dict[str, Any]:
    """One of ``WRITERS`` at the rate that is best on validation text with the first seed."""
    return _with_more_seeds(
        {rate: [read(write_text(kind, rate))] for rate in TEXT_RATES},
        lambda found: found["validation"],
        lambda *run: read(write_text(kind, *run)),
    )


def write(target: Path) -> None:
    """Run the three trials and write their results.

    Args:
        target: The file to write.
    """
    kinds = {race: RUNNERS, text: WRITERS, clothes: ("EM", *DRESSERS)}
    with ProcessPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {
            trial.__name__: {kind: pool.submit(trial, kind) for kind in kinds[trial]}
            for trial in kinds
        }
        results = {
            name: {kind: future.result() for kind, future in of_kind.items()}
            for name, of_kind in running.items()
        }
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("expert_trials.json")
    )
    write(parser.parse_args().target)
