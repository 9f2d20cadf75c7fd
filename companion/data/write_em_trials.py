"""Write ``em_trials.json``: EM against gradient descent on the likelihood of a mixture.

Run ``python companion/data/write_em_trials.py``; it takes four minutes on one core. The
chapter *Expectation maximisation* explains both trials, draws the result, and runs a part of
them again.

*Race*: EM, Adam and gradient descent with momentum, all on the whole data, from the same
starts, on clouds that lie apart and on clouds that overlap. *Minibatches*: the pixels of a
photograph, of which EM reads all for each step, and the others a few hundred.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import torch
from torch import Tensor

from companion.datasets import photographs
from companion.expectation_maximization import GaussianMixture, UnconstrainedMixture
from companion.optimization import SGD, Adam
from companion.training import train

RACE = {"examples": 1000, "components": 5, "starts": 20, "sweep": 8, "further": 1000}
SPREADS = {"apart": 4.0, "overlapping": 0.8}
CHECKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
OPTIMIZERS = {"Adam": Adam, "momentum": partial(SGD, momentum=0.9)}
RATES = {"Adam": (0.03, 0.1, 0.3, 1.0), "momentum": (0.03, 0.1, 0.3, 1.0, 3.0)}
PIXELS = {"components": 8, "starts": 3, "sweep": 3, "batch": 500, "held out": 20_000}
PIXEL_CHECKS = (1, 2, 3, 5, 7, 10, 15, 20, 30)  # steps of EM, on all pixels
PIXEL_CHOICES = {  # what is tried: powers of the share, and rates
    "stepwise EM": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "Adam": (0.01, 0.03, 0.1, 0.3),
    "momentum": (0.01, 0.03, 0.1, 0.3),
}
FAILED = -1e3  # nats, far below all others
STEP_CHECKS = (10, 20, 50, 100, 200, 500, 1000, 2000, 4000)  # steps on minibatches


def clouds(spread: float) -> Tensor:
    """Five skewed clouds in the plane, whose centres are drawn so far apart."""
    draws = torch.Generator().manual_seed(4)
    normal = {"generator": draws, "dtype": torch.float64}
    K, N = RACE["components"], RACE["examples"]
    centres, shapes = spread * torch.randn(K, 2, **normal), torch.randn(K, 2, 2, **normal)
    shapes = 0.3 * shapes + torch.eye(2)
    z = torch.arange(N) % K
    noise = torch.randn(N, 2, 1, **normal)
    return (centres[z] + (shapes[z] @ noise)[..., 0]).T.contiguous().T


def started(X: Tensor, K: int, seed: int) -> GaussianMixture:
    """A mixture whose means are examples, each component as wide as the data."""
    draws = torch.Generator().manual_seed(seed)
    D = X.shape[1]
    return GaussianMixture(
        K,
        weights_init=torch.full((K,), 1 / K, dtype=torch.float64),
        means_init=X[torch.randperm(len(X), generator=draws)[:K]],
        precisions_init=torch.linalg.inv(X.T.cov(correction=0)).expand(K, D, D),
        reg_covar=0.0,
        max_iter=0,
    ).fit(X[: 2 * K])


Trace = list[tuple[float, float]]


def trace(
    advance: Callable[[int], object], height: Callable[[], float], checks: tuple[int, ...]
) -> Trace:
    """CPU seconds and mean log-likelihood after so many steps each."""
    seconds, done, trail = 0.0, 0, []
    for check in checks:
        begun = time.process_time()
        advance(check - done)
        seconds += time.process_time() - begun
        done = check
        trail.append((round(seconds, 4), round(height(), 6)))
    return trail


def by_em(mixture: GaussianMixture, X: Tensor, held_out: Tensor, checks=CHECKS) -> Trace:
    """EM on all examples."""

    def advance(steps):
        for _ in range(steps):
            mixture.m_step(X, mixture.e_step(X)[1])

    return trace(advance, lambda: mixture.score(held_out), checks)


def by_gradient(
    name: str,
    rate: float,
    mixture: GaussianMixture,
    batches: Iterator[tuple[Tensor]],
    held_out: Tensor,
    checks: tuple[int, ...] = CHECKS,
) -> Trace:
    """Gradient descent; the mixture ends with the parameters that were found."""
    free = UnconstrainedMixture(mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
    optimizer = OPTIMIZERS[name](free.parameters(), lr=rate)

    def advance(steps):
        train(
            lambda batch: -free(batch[0]).mean(),
            optimizer,
            list(islice(batches, steps)),
            progress=False,
        )

    @torch.no_grad()
    def height():
        return free(held_out).mean().item()

    trail = trace(advance, height, checks)
    with torch.no_grad():
        W = torch.linalg.inv(free.factors())
        mixture.set_parameters(free.a.softmax(0), free.means.detach(), W.mT @ W)
    return trail


def by_stepwise_em(
    power: float,
    mixture: GaussianMixture,
    batches: Iterator[tuple[Tensor]],
    held_out: Tensor,
    checks: tuple[int, ...],
) -> Trace:
    """EM on minibatches: the sums of the M-step become moving averages, of which the t-th
    minibatch replaces the share (t + 2) to the power of minus ``power``.
    """
    m = mixture.means_
    N = mixture.weights_  # divided by the number of examples, as the two other sums
    Nx = N[:, None] * m
    Nxx = N[:, None, None] * (mixture.covariances_ + m[:, :, None] * m[:, None])
    t = 0

    def advance(steps):
        nonlocal N, Nx, Nxx, t
        for (x,) in islice(batches, steps):
            r = mixture.e_step(x)[1].T / len(x)
            share, t = (t + 2) ** -power, t + 1
            N = N.lerp(r.sum(1), share)
            Nx = Nx.lerp(r @ x, share)
            Nxx = Nxx.lerp((r[:, None] * x.T) @ x, share)
            m = Nx / N[:, None]
            covariances = Nxx / N[:, None, None] - m[:, :, None] * m[:, None]
            mixture.set_parameters(N / N.sum(), m, covariances)

    return trace(advance, lambda: mixture.score(held_out), checks)


def best_rate(trails: dict[str, list[Trace]]) -> str:
    """The rate whose runs are highest on average, over the starts and the later two thirds of
    the checks.
    """
    return max(
        trails,
        key=lambda rate: sum(h for trail in trails[rate] for _, h in trail[len(trail) // 3 :]),
    )


def ends_of(sweep: dict[str, dict[str, list[Trace]]]) -> dict[str, dict[str, list[float]]]:
    """Where the runs of each choice end."""
    return {
        name: {choice: [trail[-1][1] for trail in trails] for choice, trails in of.items()}
        for name, of in sweep.items()
    }


def survived(run: Callable[[], Trace], checks: tuple[int, ...]) -> Trace:
    """A run, or one that is far below all others if its numbers did not stay finite."""
    try:
        return run()
    except (FloatingPointError, ValueError):  # not finite, or a component has collapsed
        return [(0.0, FAILED)] * len(checks)


def gone_on(mixture: GaussianMixture, trail: Trace, X: Tensor) -> float:
    """Where EM comes to from the end of a run."""
    if trail[-1][1] == FAILED:
        return FAILED
    checks = (RACE["further"],)
    return survived(lambda: by_em(mixture, X, X, checks), checks)[0][1]


def race(spread: float) -> dict:
    """EM, Adam and momentum from the same starts; the rates were chosen on others. From where
    each has ended EM goes on, to tell who was slow from who was elsewhere.
    """
    X, K = clouds(spread), RACE["components"]

    def descend(name, rate, seed, mixture=None):
        start = mixture or started(X, K, seed)
        return survived(lambda: by_gradient(name, rate, start, repeat((X,)), X), CHECKS)

    others = range(100, 100 + RACE["sweep"])
    sweep = {
        name: {str(rate): [descend(name, rate, seed) for seed in others] for rate in rates}
        for name, rates in RATES.items()
    }
    chosen = {name: best_rate(trails) for name, trails in sweep.items()}
    starts = range(RACE["starts"])
    mixtures = {name: [started(X, K, seed) for seed in starts] for name in ("EM", *chosen)}
    runs = {"EM": [by_em(mixture, X, X) for mixture in mixtures["EM"]]}
    for name, rate in chosen.items():
        runs[name] = [descend(name, float(rate), 0, mixture) for mixture in mixtures[name]]
    further = {
        name: [gone_on(*pair, X) for pair in zip(mixtures[name], runs[name], strict=True)]
        for name in runs
    }
    return {"sweep": ends_of(sweep), "chosen": chosen, "runs": runs, "further": further}


def pixels(seed: int = 0) -> tuple[Tensor, Tensor]:
    """The colours of a photograph, in random order, with noise as wide as their rounding, and
    whitened, which EM would not need: those to learn from, and those held out.
    """
    draws = torch.Generator().manual_seed(seed)
    colours = photographs()["china"].flatten(1).T.double()
    colours = colours[torch.randperm(len(colours), generator=draws)]
    noise = torch.rand(colours.shape, generator=draws, dtype=torch.float64) - 0.5
    colours = colours + noise / 255
    L = torch.linalg.cholesky(colours.T.cov(correction=0))
    whitened = colours - colours.mean(0)
    colours = torch.linalg.solve_triangular(L, whitened.T, upper=False).T
    n = PIXELS["held out"]
    return colours[n:].T.contiguous().T, colours[:n].T.contiguous().T


def minibatches(X: Tensor, seed: int) -> Iterator[tuple[Tensor]]:
    """Minibatches without end, each epoch in a new order."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        for places in torch.randperm(len(X), generator=draws).split(PIXELS["batch"]):
            yield (X[places],)


def on_pixels() -> dict:
    """EM on all pixels, and gradient descent and stepwise EM on minibatches of them. Rates and
    powers are chosen on other starts, and by pixels that are learned from.
    """
    X, held_out = pixels()
    K = PIXELS["components"]

    def climb(name, choice, seed, scored=held_out, checks=STEP_CHECKS):
        start, batches = started(X, K, seed), minibatches(X, seed)
        by = by_stepwise_em if name == "stepwise EM" else partial(by_gradient, name)
        return survived(partial(by, choice, start, batches, scored, checks), checks)

    some, others = X[: len(held_out)], range(100, 100 + PIXELS["sweep"])
    sweep = {
        name: {
            str(choice): [climb(name, choice, seed, some, STEP_CHECKS[:-1]) for seed in others]
            for choice in choices
        }
        for name, choices in PIXEL_CHOICES.items()
    }
    chosen = {name: best_rate(trails) for name, trails in sweep.items()}
    starts = range(PIXELS["starts"])
    runs = {"EM": [by_em(started(X, K, seed), X, held_out, PIXEL_CHECKS) for seed in starts]}
    for name, choice in chosen.items():
        runs[name] = [climb(name, float(choice), seed) for seed in starts]
    return {"sweep": ends_of(sweep), "chosen": chosen, "runs": runs}


def write(target: Path) -> None:
    """Run both trials and write their results.

    Args:
        target: The file to write.
    """
    trials = {name: race(spread) for name, spread in SPREADS.items()}
    trials["minibatches"] = on_pixels()
    target.write_text(json.dumps(trials) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).with_name("em_trials.json")
    )
    torch.set_num_threads(1)
    write(parser.parse_args().target)
