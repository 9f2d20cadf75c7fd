"""Write ``vae_trials.json``: what variational autoencoders and their rivals pay for a picture.

Run ``python companion/data/write_vae_trials.py``; it takes six minutes on one core. Pictures
are those of Fashion-MNIST, black and white or grey, in bits per dimension, which is a pixel.
The rivals are mixtures of as many parameters and probabilistic PCA. A second part weights the
divergence differently, a third scales the squared error differently. The chapter *Variational
autoencoders* draws the result, and trains some of the models again.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from companion.datasets import fashion_mnist
from companion.expectation_maximization import GaussianMixture
from companion.layers import MLP, Sequential
from companion.optimization import Adam, CosineWithWarmup
from companion.training import train
from companion.variational_autoencoders import (
    VAE,
    DiagonalGaussian,
    Gaussian,
    ProbabilisticPCA,
    active_units,
    kl_divergence,
    reparameterise,
)

SETTINGS = {
    "epochs": 30,
    "epochs_of_a_sweep": 12,
    "batch_size": 100,
    "lr": 0.003,
    "max_norm": 3000.0,  # of grey pictures alone, whose densities are steep
    "codes_of_iwae": 50,
    "components": [1, 66, 132, 264, 533],  # 264 are the parameters of a decoder, 533 of a VAE
    "components_of_pca": [20, 50, 100, 200, 264, 400, 533, 700],
    "iterations": 100,
    "betas": [0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
}
SEEDS = (0, 1, 2)
Three = tuple[Tensor, Tensor, Tensor]


def binarised() -> Three:
    """Training, validation and test pictures, (examples, 784): one where a pixel is brighter
    than half, else zero.
    """
    return tuple((part.x.flatten(1) > 0.5).float() for part in fashion_mnist())


def dequantised(pictures: Three, levels: int) -> Three:
    """Pixels of so many levels between 0 and 1, each with uniform noise as wide as a level.

    The density of a picture with noise, averaged in logarithms, is a lower bound of the
    probability of the picture.
    """
    draws = torch.Generator().manual_seed(0)
    return tuple(
        ((x * (levels - 1)).round() + torch.rand(x.shape, generator=draws)) / levels
        for x in pictures
    )


def bits(nats: float, levels: int = 1) -> float:
    """Bits per dimension of a picture with this log-probability or, of so many levels, with
    this log-density.
    """
    return -nats / (784 * math.log(2)) + math.log2(levels)


class Squashed(nn.Module):
    """Means between 0 and 1, as those of pixels are; the other half stays as it is."""

    def forward(self, decoded: Tensor) -> Tensor:
        """What the decoder is taken to have said."""
        mean, log_variance = decoded.chunk(2, dim=-1)
        return torch.cat([mean.sigmoid(), log_variance], dim=-1)


def vae_of(kind: str, d: int = 20, hidden: int = 256, seed: int = 0) -> VAE:
    """A fresh VAE: ``"black and white"``, ``"one variance"``, or ``"own variances"``."""
    torch.manual_seed(seed)
    encoder = MLP([784, hidden, 2 * d])
    if kind != "own variances":
        likelihood = {"one variance": Gaussian(0.03)}.get(kind)
        return VAE(encoder, MLP([d, hidden, 784]), likelihood)
    mlp, grey = MLP([d, hidden, 2 * 784]), dequantised_train()
    with torch.no_grad():  # begin as a model of independent pixels
        mean, log_variance = mlp.layers[-1].bias.chunk(2)
        mean.copy_(grey.mean(0).logit())
        log_variance.copy_(grey.var(0).log())
    return VAE(encoder, Sequential(mlp, Squashed()), DiagonalGaussian())


def dequantised_train() -> Tensor:
    """The grey training pictures with noise."""
    return dequantised(tuple(part.x.flatten(1) for part in fashion_mnist()), 256)[0]


def learn(
    vae: VAE,
    pictures: Tensor,
    loss: Callable[[Tensor], Tensor] | None = None,
    epochs: int | None = None,
    validation: Callable[[], float] | None = None,
    max_norm: float | None = None,
) -> list[float]:
    """Train a VAE on pictures, by minus the bound or another loss; the validation's numbers."""
    epochs = epochs or SETTINGS["epochs_of_a_sweep"]
    optimizer = Adam(vae.parameters(), lr=SETTINGS["lr"])
    steps = epochs * math.ceil(len(pictures) / SETTINGS["batch_size"])
    history = train(
        lambda batch: loss(batch[0]) if loss else -vae.elbo(batch[0]).mean(),
        optimizer,
        (pictures,),
        model=vae,
        epochs=epochs,
        batch_size=SETTINGS["batch_size"],
        scheduler=CosineWithWarmup(optimizer, steps // 20, steps),
        max_norm=max_norm,
        validation=validation,
        progress=False,
    )
    return history.validation_loss


class BernoulliMixture:
    """A mixture whose classes are pictures of independent black and white pixels, by EM.

    A tenth of an example of each colour is added to what a class has seen of each pixel.
    """

    def __init__(self, K: int, x: Tensor, seed: int = 0):
        first = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:K]
        self.p = 0.25 + 0.5 * x[first]  # classes begin near single pictures
        self.pi = torch.full((K,), 1 / K)
        levels = [-math.inf]
        for _ in range(SETTINGS["iterations"]):
            log_joint = self.log_joint(x)
            levels.append(log_joint.logsumexp(1).mean().item())
            if levels[-1] - levels[-2] < 0.02:
                break
            r = log_joint.softmax(1)  # E-step
            n = r.sum(0)
            self.p = (r.T @ x + 0.1) / (n + 0.2)[:, None]  # M-step
            self.pi = (n + 0.1) / (n + 0.1).sum()

    def log_joint(self, x: Tensor) -> Tensor:
        """The logarithm of π_k p(x | k), (examples, classes)."""
        log_odds, log_black = self.p.logit(), (-self.p).log1p().sum(1)
        return x @ log_odds.T + log_black + self.pi.log()

    def score(self, x: Tensor) -> float:
        """The mean log-likelihood of a picture."""
        return self.log_joint(x).logsumexp(1).mean().item()


def by_pca(pictures: Three, levels: int) -> dict[str, list[float]]:
    """Bits of validation and test for each number of components."""
    x, *rest = (part.double() for part in dequantised(pictures, levels))
    return {
        str(d): [bits(model.score(part), levels) for part in rest]
        for d in SETTINGS["components_of_pca"]
        for model in [ProbabilisticPCA(d).fit(x)]
    }


@torch.no_grad()
def by_vae(vae: VAE, test: Tensor, levels: int = 1) -> dict[str, float]:
    """Bits of the test by both bounds."""
    torch.manual_seed(0)
    S = SETTINGS["codes_of_iwae"]
    iwae = torch.cat([vae.iwae_bound(part, S) for part in test.split(100)])
    return {
        "elbo": bits(vae.elbo(test).mean().item(), levels),
        "iwae": bits(iwae.mean().item(), levels),
    }


def black_and_white() -> dict:
    """Bits of black and white pictures."""
    x, validation, test = pictures = binarised()

    def mixture(K, seed=0):
        model = BernoulliMixture(K, x, seed)
        return [bits(model.score(part)) for part in (validation, test)]

    def vae(seed):
        model = vae_of("black and white", seed=seed)
        measure = lambda: bits(model.elbo(validation).mean().item())  # noqa: E731
        curve = learn(model, x, epochs=SETTINGS["epochs"], validation=measure)
        return by_vae(model, test) | {"validation": curve}

    mixtures = {str(K): [mixture(K)] for K in SETTINGS["components"]}
    best = min(mixtures, key=lambda K: mixtures[K][0][0])
    mixtures[best] += [mixture(int(best), seed) for seed in SEEDS[1:]]
    return {
        "mixture": mixtures,
        "pca": by_pca(pictures, 2),
        "vae": [vae(seed) for seed in SEEDS],
    }


def grey() -> dict:
    """Bits of grey pictures."""
    pictures = tuple(part.x.flatten(1) for part in fashion_mnist())
    x, validation, test = dequantised(pictures, 256)

    def vae(*model, seed=0):
        model = vae_of(*model, seed=seed)
        learn(model, x, max_norm=SETTINGS["max_norm"])
        return by_vae(model, test, 256)

    options = {"covariance_type": "diag", "init_params": "random_from_data", "tol": 1.0}
    mixture = GaussianMixture(132, random_state=0, max_iter=30, **options).fit(x)
    return {
        "pca": by_pca(pictures, 256),
        "mixture": {"132": [bits(mixture.score(part), 256) for part in (validation, test)]},
        "one variance": [vae("one variance", seed=seed) for seed in SEEDS],
        "one variance, 100": [vae("one variance", 100)],
        "own variances": [vae("own variances", 20, 128, seed=seed) for seed in SEEDS],
    }


def by_beta(beta: float, epochs: int | None = None) -> dict[str, float]:
    """The two terms of the bound of test pictures, in nats, and the active units, if the
    divergence has this weight in training.
    """
    x, _, test = binarised()
    vae = vae_of("black and white")
    learn(vae, x, lambda batch: -vae.elbo(batch, beta=beta).mean(), epochs)
    torch.manual_seed(0)
    with torch.no_grad():
        log_likelihood, kl = (term.mean().item() for term in vae.terms(test))
        active = active_units(vae.encode(test)[0])
    return {"log_likelihood": log_likelihood, "kl": kl, "active": active}


def by_scale(scale: str, epochs: int | None = None) -> dict[str, float]:
    """The squared error of reconstructions of grey test pictures, without noise, and the active
    units, after training with a squared error, averaged over the pixels or summed, beside the
    divergence, or with a variance that is learned.
    """
    x, _, test = (part.x.flatten(1) for part in fashion_mnist())
    vae = vae_of("one variance")

    def squared(batch):
        mean, log_variance = vae.encode(batch)
        error = (vae.decode(reparameterise(mean, log_variance)) - batch).square()
        error = error.mean(1) if scale == "mean" else error.sum(1)
        return (error + kl_divergence(mean, log_variance)).mean()

    learn(vae, x, None if scale == "learned" else squared, epochs)
    with torch.no_grad():
        error = (vae(test) - test).square().sum(1).mean().item()
        return {"squared_error": error, "active": active_units(vae.encode(test)[0])}


def rounded(tree):
    """The same with four digits after the point."""
    if isinstance(tree, dict):
        return {name: rounded(part) for name, part in tree.items()}
    return [*map(rounded, tree)] if isinstance(tree, list) else round(tree, 4)


def write(target: Path) -> None:
    """Train all models and write what they pay.

    Args:
        target: The file to write.
    """
    trials = {
        "settings": SETTINGS,
        "black and white": black_and_white(),
        "grey": grey(),
        "beta": {str(beta): by_beta(beta) for beta in SETTINGS["betas"]},
        "scale": {scale: by_scale(scale) for scale in ("mean", "sum", "learned")},
    }
    target.write_text(json.dumps(rounded(trials), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("vae_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
