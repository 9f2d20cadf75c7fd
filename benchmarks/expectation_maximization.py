"""Expectation maximisation against ``sklearn.mixture``, which computes with NumPy and SciPy."""

import warnings
from collections.abc import Iterator
from functools import partial

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs

from benchmarks.measure import Row
from companion.expectation_maximization import GaussianMixture

__all__ = ["rows"]

ITERATIONS = 10


def rows() -> Iterator[Row]:
    """Ten iterations from one start: full covariances at three sizes, then the other types."""
    for D, aim in [(2, 0.3), (10, 0.6), (50, 0.8)]:
        yield mixture_row("full", D, aim)
    for covariance_type in ("tied", "diag", "spherical"):
        yield mixture_row(covariance_type, 10, aim=None)


def mixture_row(covariance_type: str, D: int, aim: float | None, N=10_000, K=5) -> Row:
    """One type of covariance at one size."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(K, D, dtype=torch.float64)
    X = centres[torch.arange(N) % K] + torch.randn(N, D, dtype=torch.float64)
    precisions = {
        "full": torch.eye(D).double().expand(K, D, D),
        "tied": torch.eye(D).double(),
        "diag": torch.ones(K, D).double(),
        "spherical": torch.ones(K).double(),
    }
    start = {
        "weights_init": torch.full((K,), 1 / K, dtype=torch.float64),
        "means_init": X[:K],
        "precisions_init": precisions[covariance_type],
    }
    in_numpy = {name: value.numpy() for name, value in start.items()}
    options = {"covariance_type": covariance_type, "max_iter": ITERATIONS, "tol": 0.0}
    return Row(
        f"Gaussian mixture, {covariance_type}, {N:,} examples, D = {D}, K = {K}, "
        f"{ITERATIONS} iterations",
        partial(fitted, GaussianMixture, X, K, start | options),
        partial(fitted, Theirs, X.numpy(), K, in_numpy | options),
        aim=aim,
    )


def fitted(mixture, X, K, options):
    """The means and the final bound of a fresh mixture."""
    with warnings.catch_warnings():  # nobody has converged after ten iterations
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        warnings.filterwarnings("ignore", "EM has not converged")
        m = mixture(K, **options).fit(X)
    return torch.as_tensor(m.means_), float(m.lower_bound_)
