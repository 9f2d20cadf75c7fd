"""Write ``semi_supervised_trials.json``: how right classifiers are on ``digits`` and on
``docstrings`` with 10 to 1,000 labels, with and without the examples that have none.

Run ``python companion/data/write_semi_supervised_trials.py``; it takes seven minutes of one
core. The chapter *Semi-supervised learning* explains the methods, draws the result, and runs
some of them again.

Whoever labels ten examples has no thousand to choose a method by. So what a method needs to be
told is chosen once for each data set: by its accuracy on the validation part with 100 labels,
in the mean of three draws of labels that are not among the ten of which the result is made. All
numbers of labels then use the same. What was tried is written too.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from companion.datasets import Examples, Splits, digits, docstrings
from companion.layers import MLP, Sequential, cross_entropy
from companion.optimization import Adam
from companion.semi_supervised import (
    M2,
    GaussianMixtureClassifier,
    GenerativeClassifier,
    MultinomialLikelihood,
    MultinomialNB,
    fit_semi_supervised,
    hide_labels,
    pseudo_label_loss,
)
from companion.training import accuracy
from companion.variational_autoencoders import Gaussian

NAMES, LABELS, DRAWS = ("digits", "docstrings"), (10, 30, 100, 300, 1000), range(10)
SWEEP_LABELS, SWEEP_DRAWS = 100, range(100, 103)
SETTINGS = {
    "hidden": 50,
    "code": 5,
    "batch_size": 64,
    "steps": {"digits": 200, "docstrings": 140},
    "iterations": 50,
}
METHODS = ("labels only", "EM", "self-training", "network", "network, pseudo-labels", "M2")
# what is chosen for a method, and for those that build on it
SWEEP = {
    "EM": {
        "digits": [{"reg_covar": value} for value in (0.005, 0.01, 0.02, 0.05, 0.1)],
        "docstrings": [{"alpha": value} for value in (0.01, 0.03, 0.1, 0.3, 1.0)],
    },
    "network": {name: [{"lr": value} for value in (1e-3, 3e-3, 1e-2, 3e-2)] for name in NAMES},
    "network, pseudo-labels": {
        name: [{"threshold": t, "weight": w} for t in (0.0, 0.8, 0.95) for w in (0.1, 1.0)]
        for name in NAMES
    },
    "M2": {name: [{"alpha": value} for value in (1.0, 10.0, 100.0)] for name in NAMES},
}
BUILDS_ON = {
    "labels only": "EM",
    "self-training": "EM",
    "network, pseudo-labels": "network",
    "M2": "network",
}


@cache
def data(name: str) -> Splits:
    """Counts of words, or pixels, one row an example."""
    if name == "docstrings":
        return Splits(*docstrings()[:3])
    return Splits(*(Examples(x.flatten(1), y) for x, y in digits()))


class WeightedWords(nn.Module):
    """For networks: the logarithms of counts, times how rare a word is among the training
    texts, as rows of length one. It needs no label. Further columns pass unchanged.
    """

    def __init__(self, counts: Tensor):
        super().__init__()
        self.register_buffer("rarity", (len(counts) / (counts > 0).sum(0)).log())

    def forward(self, x: Tensor) -> Tensor:
        """The weighted words."""
        words = len(self.rarity)
        weighted = normalize(x[..., :words].log1p() * self.rarity, dim=-1)
        return torch.cat([weighted, x[..., words:]], dim=-1)


def network(name: str, more: int, outputs: int) -> nn.Module:
    """A network with one hidden layer, for examples with ``more`` columns beside them."""
    x = data(name).train.x
    mlp = MLP([x.shape[1] + more, SETTINGS["hidden"], outputs])
    return Sequential(WeightedWords(x), mlp) if name == "docstrings" else mlp


def fitted(
    name: str, method: str, labels: int, options: dict[str, float], seed: int
) -> GenerativeClassifier | nn.Module:
    """A classifier that knows so many labels of the training part, drawn by ``seed``."""
    options = dict(options)
    x, y = data(name).train
    few = hide_labels(y, labels, seed)
    known = few >= 0
    if method in ("labels only", "EM", "self-training"):
        kind = MultinomialNB if name == "docstrings" else GaussianMixtureClassifier
        hard, iterations = method == "self-training", SETTINGS["iterations"]
        model = kind(**options, hard=hard, max_iter=iterations)
        if method == "labels only":
            return model.fit(x[known].double(), few[known])
        return model.fit(x.double(), few)
    torch.manual_seed(seed)
    lr, classifier = options.pop("lr"), network(name, 0, 10)
    model, losses = classifier, [labels_alone(classifier)] * 2
    if method == "network, pseudo-labels":
        losses[1] = with_pseudo_labels(classifier, **options)
    elif method == "M2":
        model = m2(name, classifier)
        losses = [partial(model.loss, labelled_share=labels / len(x), **options)] * 2
    optimizer = Adam(model.parameters(), lr=lr)
    minibatches = math.ceil((len(x) - labels) / SETTINGS["batch_size"])  # of the unlabelled
    for loss in losses:  # pseudo-labels begin when half of the time is over
        fit_semi_supervised(
            model,
            optimizer,
            loss,
            (x[known], few[known]),
            x[~known],
            epochs=math.ceil(SETTINGS["steps"][name] / 2 / minibatches),
            batch_size=SETTINGS["batch_size"],
            progress=False,
        )
    return model


def labels_alone(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A loss that does not look at what has no label."""
    return lambda x, y, unlabelled: cross_entropy(model(x), y)


def with_pseudo_labels(
    model: nn.Module, threshold: float, weight: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A loss that takes the sure answers of the network for labels."""
    return lambda x, y, unlabelled: (
        cross_entropy(model(x), y) + weight * pseudo_label_loss(model(unlabelled), threshold)
    )


def m2(name: str, classifier: nn.Module) -> M2:
    """An M2 whose decoder is linear: for a given class it is naive Bayes, or a Gaussian, whose
    parameters move with the code.
    """
    code, features = SETTINGS["code"], data(name).train.x.shape[1]
    likelihood = MultinomialLikelihood() if name == "docstrings" else Gaussian(0.1)
    encoder, decoder = network(name, 10, 2 * code), MLP([code + 10, features])
    return M2(classifier, encoder, decoder, likelihood)


@torch.no_grad()
def score(model: GenerativeClassifier | nn.Module, examples: Examples) -> float:
    """The share of the answers that are right."""
    if isinstance(model, nn.Module):
        return accuracy(model(examples.x), examples.y)
    return model.score(examples.x.double(), examples.y)


def trial(name: str, method: str, labels: int, options: dict[str, float], seed: int) -> float:
    """The accuracy on the test part, or on the validation part for a draw of the sweep."""
    torch.set_num_threads(1)
    part = data(name).test if seed in DRAWS else data(name).validation
    return round(score(fitted(name, method, labels, options, seed), part), 4)


def write(target: Path) -> None:
    """Choose, then run every method, and write what came out.

    Args:
        target: The file to write.
    """
    tried = {name: {} for name in NAMES}
    chosen, accuracies = copy.deepcopy(tried), copy.deepcopy(tried)
    with ProcessPoolExecutor() as pool:
        for name, method in product(NAMES, SWEEP):
            given = chosen[name].get(BUILDS_ON.get(method), {})
            tried[name][method] = [
                [
                    options,
                    mean(
                        pool.map(
                            partial(trial, name, method, SWEEP_LABELS, given | options),
                            SWEEP_DRAWS,
                        )
                    ),
                ]
                for options in SWEEP[method][name]
            ]
            best, _ = max(tried[name][method], key=itemgetter(1))
            chosen[name][method] = given | best
        for name, method in product(NAMES, METHODS):
            options = chosen[name].setdefault(
                method, chosen[name][BUILDS_ON.get(method, method)]
            )
            accuracies[name][method] = {
                labels: list(pool.map(partial(trial, name, method, labels, options), DRAWS))
                for labels in LABELS
            }
    results = {"settings": SETTINGS, "tried": tried, "chosen": chosen, "accuracy": accuracies}
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target",
        type=Path,
        default=Path(__file__).with_name("semi_supervised_trials.json"),
    )
    write(parser.parse_args().target)
