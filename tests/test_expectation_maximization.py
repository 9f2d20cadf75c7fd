import json
import math
import warnings
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster, mixture
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from companion.data import write_em_trials as trials
from companion.expectation_maximization import (
    GaussianMixture,
    KMeans,
    UnconstrainedMixture,
    kmeans_plus_plus,
)

TYPES = ("full", "tied", "diag", "spherical")
LEARNED = ("weights_", "means_", "covariances_", "precisions_cholesky_", "precisions_")
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EM has not converged")
        warnings.filterwarnings("ignore", "Best performing init")
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        yield


def clouds(n=300, D=3, K=4, spread=2.0, seed=0):
    """Points of K unequal, skewed clouds."""
    g = torch.Generator().manual_seed(seed)
    normal = {"generator": g, "dtype": torch.float64}
    centres, shapes = spread * torch.randn(K, D, **normal), torch.randn(K, D, D, **normal)
    z = torch.randint(K, (n,), generator=g)
    noise = torch.randn(n, D, **normal)
    return centres[z] + (shapes[z] @ noise[:, :, None])[:, :, 0] + 1.0


def start(X, K, covariance_type, seed=0):
    """Weights, means and precisions to start from."""
    g = torch.Generator().manual_seed(seed)
    D = X.shape[1]
    weights = torch.rand(K, generator=g, dtype=torch.float64) + 0.5
    A = torch.randn(K, D, D, generator=g, dtype=torch.float64)
    matrices = A @ A.mT / D + torch.eye(D, dtype=torch.float64)
    precisions = {
        "full": matrices,
        "tied": matrices[0],
        "diag": matrices.diagonal(dim1=1, dim2=2),
        "spherical": matrices[:, 0, 0],
    }[covariance_type]
    return {
        "weights_init": weights / weights.sum(),
        "means_init": X[torch.randperm(len(X), generator=g)[:K]],
        "precisions_init": precisions.clone(),
    }


def pair(X, K, covariance_type, begin, **options):
    """Ours and scikit-learn's, fitted from the same start."""
    options = {"covariance_type": covariance_type, **options}
    ours = GaussianMixture(K, **begin, **options).fit(X)
    begin = {name: value.numpy() for name, value in begin.items()}
    return ours, mixture.GaussianMixture(K, **begin, **options).fit(X.numpy())


def assert_same_mixture(ours, theirs, **tolerance):
    for name in LEARNED:
        expected = torch.as_tensor(getattr(theirs, name))
        assert_close(getattr(ours, name), expected, **(tolerance or CLOSE), msg=name)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize(("D", "K"), [(1, 1), (1, 3), (3, 3), (3, 4), (7, 2)])
def test_from_the_same_start_all_that_is_learned_is_what_scikit_learn_learns(
    covariance_type, D, K
):
    X = clouds(D=D, K=K)
    ours, theirs = pair(X, K, covariance_type, start(X, K, covariance_type), max_iter=20)
    assert ours.n_iter_ > 1 or K == 1
    assert_same_mixture(ours, theirs)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.converged_ == theirs.converged_
    np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-8)
    assert ours.lower_bound_ == ours.lower_bounds_[-1]
    fresh = clouds(n=50, D=D, K=K, seed=1)
    for method in ("score_samples", "predict_proba", "predict", "score", "aic", "bic"):
        expected = getattr(theirs, method)(fresh.numpy())
        got = getattr(ours, method)(fresh)
        assert_close(torch.as_tensor(got), torch.as_tensor(expected), **CLOSE, msg=method)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_start_given_in_part_takes_the_rest_from_the_first_responsibilities(covariance_type):
    X = clouds()
    for name, value in start(X, 4, covariance_type).items():
        ours = GaussianMixture(
            4, covariance_type=covariance_type, random_state=0, max_iter=0, **{name: value}
        ).fit(X)
        clusters = KMeans(4, n_init=1, random_state=0).fit(X).labels_
        r = torch.nn.functional.one_hot(clusters).double()
        other = GaussianMixture(4, covariance_type=covariance_type).m_step(X, r)
        for learned in ("weights_", "means_", "precisions_"):
            given = learned == name.replace("init", "")
            expected = value if given else getattr(other, learned)
            assert_close(getattr(ours, learned), expected, **CLOSE)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_known_classes_give_each_class_its_own_mean_and_covariance(covariance_type):
    X, y = clouds(), torch.arange(300) % 3
    r = torch.nn.functional.one_hot(y).double()
    mine = GaussianMixture(3, covariance_type=covariance_type, reg_covar=0.0).m_step(X, r)
    classes = [X[y == k] for k in range(3)]
    assert_close(mine.weights_, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert_close(mine.means_, torch.stack([x.mean(0) for x in classes]), **CLOSE)
    full = torch.stack([x.T.cov(correction=0) for x in classes])
    expected = {
        "full": full,
        "tied": full.mean(0),
        "diag": full.diagonal(dim1=1, dim2=2),
        "spherical": full.diagonal(dim1=1, dim2=2).mean(1),
    }[covariance_type]
    assert_close(mine.covariances_, expected, **CLOSE)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_the_density_is_that_of_torch_distributions(covariance_type):
    X = clouds()
    mine = GaussianMixture(4, covariance_type=covariance_type, random_state=0).fit(X)
    of_each = torch.stack(
        [
            MultivariateNormal(mean, covariance).log_prob(X)
            for mean, covariance in zip(mine.means_, mine._matrices(), strict=True)
        ],
        1,
    )
    log_joint = mine.weights_.log() + of_each
    assert_close(mine.score_samples(X), log_joint.logsumexp(1), **CLOSE)
    assert_close(mine.predict_proba(X), log_joint.softmax(1), **CLOSE)
    assert_close(mine.predict(X), log_joint.argmax(1))


@pytest.mark.usefixtures("plain_python")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    covariance_type=st.sampled_from(TYPES),
    D=st.integers(1, 4),
    K=st.integers(1, 4),
    spread=st.floats(0.1, 10),
    seed=st.integers(0, 10**6),
)
def test_an_iteration_never_lowers_the_likelihood(covariance_type, D, K, spread, seed):
    X = clouds(60, D, K, spread, seed)
    begin = start(X, K, covariance_type, seed)
    mine = GaussianMixture(
        K, covariance_type=covariance_type, **begin, tol=0.0, reg_covar=0.0, max_iter=15
    ).fit(X)
    steps = np.diff([*mine.lower_bounds_, mine.score(X)])
    assert (steps > -1e-10 * max(1, abs(mine.lower_bound_))).all()
    r = mine.predict_proba(X)
    assert_close(r.sum(1), torch.ones_like(r[:, 0]))
    assert r.min() >= 0
    assert_close(mine.weights_.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize("covariance_type", TYPES)
def test_the_m_step_is_a_maximum_of_the_expected_complete_log_likelihood(covariance_type):
    X = clouds(60, 2, 3)
    g = torch.Generator().manual_seed(1)
    r = torch.rand(60, 3, generator=g, dtype=torch.float64).softmax(1)

    def expected(mixture):
        of_each = [
            MultivariateNormal(mean, covariance).log_prob(X)
            for mean, covariance in zip(mixture.means_, mixture._matrices(), strict=True)
        ]
        return (r * (mixture.weights_.log() + torch.stack(of_each, 1))).sum()

    mine = GaussianMixture(3, covariance_type=covariance_type, reg_covar=0.0).m_step(X, r)
    best = expected(mine)
    weights, means, covariances = mine.weights_, mine.means_, mine.covariances_
    for size in (1e-2, -1e-2):
        for k in range(3):
            other = weights.clone()
            other[k] *= 1 + size
            mine.set_parameters(other / other.sum(), means, covariances)
            assert expected(mine) < best
        for place in range(means.numel()):
            moved = means.clone()
            moved.view(-1)[place] += size
            mine.set_parameters(weights, moved, covariances)
            assert expected(mine) < best
        for place in range(covariances.numel()):
            moved = covariances.clone()
            moved.view(-1)[place] += size
            if covariance_type in ("full", "tied"):
                moved = (moved + moved.mT) / 2
            mine.set_parameters(weights, means, moved)
            assert expected(mine) < best


@pytest.mark.usefixtures("plain_python")
def test_the_parameters_behind_a_sample_are_recovered():
    truth = GaussianMixture(
        2,
        weights_init=torch.tensor([0.3, 0.7]).double(),
        means_init=torch.tensor([[-2.0, 0.0], [2.0, 1.0]]).double(),
        precisions_init=torch.tensor(
            [[[2.0, 0.8], [0.8, 1.0]], [[1.0, -0.5], [-0.5, 1.0]]]
        ).double(),
        max_iter=0,
        random_state=0,
    ).fit(torch.zeros(2, 2, dtype=torch.float64))
    X, y = truth.sample(8_000)
    found = GaussianMixture(2, tol=1e-6, max_iter=100, random_state=0).fit(X)
    order = found.means_[:, 0].argsort()
    assert_close(found.weights_[order], truth.weights_, rtol=0, atol=0.02)
    assert_close(found.means_[order], truth.means_, rtol=0, atol=0.05)
    assert_close(found.covariances_[order], truth.covariances_, rtol=0, atol=0.05)
    assert (order[y] == found.predict(X)).double().mean() > 0.97


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_sample_has_the_moments_of_the_mixture(covariance_type):
    mine = GaussianMixture(4, covariance_type=covariance_type, random_state=3).fit(clouds())
    X, y = mine.sample(20_000)
    assert y.equal(y.sort().values)
    matrices = mine._matrices()
    for k in range(4):
        members = X[y == k]
        scale = matrices[k].diagonal().sqrt().max() / math.sqrt(len(members))
        assert abs(len(members) / 20_000 - mine.weights_[k]) < 0.015
        assert (members.mean(0) - mine.means_[k]).abs().max() < 5 * scale
        bound = 8 * matrices[k].diagonal().max() / math.sqrt(len(members))
        assert (members.T.cov() - matrices[k]).abs().max() < bound
    assert mine.sample(5)[0].equal(mine.sample(5)[0])  # one seed, one sample


@pytest.mark.usefixtures("plain_python")
def test_several_starts_keep_the_best_and_a_seed_repeats_them():
    X = clouds(100, 2, 6)
    options = {"init_params": "random_from_data", "max_iter": 6, "random_state": 5}
    one = GaussianMixture(6, **options).fit(X)
    many = GaussianMixture(6, n_init=4, **options).fit(X)
    again = GaussianMixture(6, n_init=4, **options).fit(X)
    assert many.lower_bound_ > one.lower_bound_ + 1e-3
    assert many.means_.equal(again.means_)
    generator = torch.Generator().manual_seed(5)
    alone = [
        GaussianMixture(6, **options | {"random_state": generator}).fit(X) for _ in range(4)
    ]
    best = max(alone, key=lambda fitted: fitted.lower_bound_)
    assert best.lower_bound_ == many.lower_bound_
    assert best.means_.equal(many.means_)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_each_kind_of_start_begins_where_it_says(init_params):
    X = clouds(100, 2, 3)
    mine = GaussianMixture(
        3, init_params=init_params, max_iter=0, random_state=1, reg_covar=0.01
    ).fit(X)
    if init_params == "kmeans":
        centres = KMeans(3, n_init=1, random_state=1).fit(X).cluster_centers_
        assert_close(mine.means_, centres, **CLOSE)
    elif init_params == "random":  # every component is nearly the whole
        assert (mine.means_ - X.mean(0)).abs().max() < 0.3 * X.std(0).max()
        assert len(mine.means_.unique(dim=0)) == 3
    else:
        assert torch.cdist(mine.means_, X).min(1).values.max() < 1e-6
        assert len(mine.means_.unique(dim=0)) == 3
        assert_close(mine.covariances_, 0.01 * torch.eye(2).double().expand(3, 2, 2), **CLOSE)


def test_a_warm_start_goes_on_where_it_left_off():
    X = clouds()
    begin = start(X, 4, "full")
    whole = GaussianMixture(4, **begin, max_iter=12, tol=0.0).fit(X)
    parts = GaussianMixture(4, **begin, max_iter=6, tol=0.0, warm_start=True).fit(X)
    half = parts.lower_bounds_
    parts.fit(X)
    assert half + parts.lower_bounds_ == whole.lower_bounds_
    assert parts.means_.equal(whole.means_)
    cold = GaussianMixture(4, **begin, max_iter=6, tol=0.0).fit(X).fit(X)
    assert cold.lower_bounds_ == half
    done = GaussianMixture(4, **begin, max_iter=500, tol=1e-6, warm_start=True).fit(X)
    assert done.n_iter_ > 1
    assert done.fit(X).n_iter_ == 1  # nothing changes any more


def test_a_fit_that_ends_too_early_says_so():
    with pytest.warns(UserWarning, match=r"max_iter=2 .*allow more"):
        mine = GaussianMixture(4, max_iter=2, tol=0.0, random_state=0).fit(clouds())
    assert not mine.converged_
    assert mine.n_iter_ == 2


def test_a_component_without_examples_becomes_as_wide_as_the_data():
    X = clouds() + 100
    r = torch.zeros(300, 2, dtype=torch.float64)
    r[:, 0] = 1
    mine = GaussianMixture(2, reg_covar=0.0).m_step(X, r)
    assert 0 < mine.weights_[1] < 1e-14
    assert_close(mine.means_[1], X.mean(0), **CLOSE)
    assert_close(mine.covariances_[1], X.T.cov(correction=0), **CLOSE)
    assert mine.predict_proba(X).isfinite().all()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_component_on_one_point_collapses_unless_there_is_a_floor(covariance_type):
    X = clouds(50, 2)
    r = torch.zeros(50, 2, dtype=torch.float64)
    r[:, 0], r[7] = 1, torch.tensor([0.0, 1.0])
    if covariance_type == "tied":  # one matrix for all does not
        assert GaussianMixture(2, covariance_type="tied", reg_covar=0.0).m_step(X, r)
        return
    floored = GaussianMixture(2, covariance_type=covariance_type).m_step(X, r)
    assert_close(floored._matrices()[1], 1e-6 * torch.eye(2).double(), rtol=0, atol=1e-20)
    with pytest.raises(ValueError, match=r"variance of component 1 is not .*; raise reg_covar"):
        GaussianMixture(2, covariance_type=covariance_type, reg_covar=0.0).m_step(X, r)


@pytest.mark.usefixtures("plain_python")
def test_far_from_the_origin_nothing_is_lost():
    X = clouds()
    far = X + 1e6
    for covariance_type in TYPES:
        begin = start(X, 4, covariance_type)
        near = GaussianMixture(
            4, **begin, covariance_type=covariance_type, max_iter=10, tol=0.0
        ).fit(X)
        begin["means_init"] = begin["means_init"] + 1e6
        moved = GaussianMixture(
            4, **begin, covariance_type=covariance_type, max_iter=10, tol=0.0
        ).fit(far)
        assert_close(moved.covariances_, near.covariances_, rtol=1e-6, atol=1e-8)
        assert_close(moved.means_ - 1e6, near.means_, rtol=0, atol=1e-6)


def test_an_example_far_from_every_component_has_a_likelihood_and_responsibilities():
    mine = GaussianMixture(3, random_state=0).fit(clouds())
    far = torch.full((1, 3), 1e8, dtype=torch.float64)
    assert -1e18 < mine.score(far) < -1e12
    assert_close(mine.predict_proba(far).sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize("covariance_type", TYPES)
def test_single_precision_is_as_exact_as_its_numbers(covariance_type):
    X = clouds()
    begin = start(X, 4, covariance_type)
    options = {"covariance_type": covariance_type, "max_iter": 5, "tol": 0.0}
    exact = GaussianMixture(4, **begin, **options).fit(X)
    single = GaussianMixture(4, **begin, **options).fit(X.float())
    for name in LEARNED:
        value = getattr(single, name)
        assert value.dtype == torch.float32
        assert_close(value.double(), getattr(exact, name), rtol=2e-5, atol=2e-5)
    assert single.score_samples(X.float()).dtype == torch.float32
    assert single.sample(3)[0].dtype == torch.float32


@pytest.mark.parametrize("covariance_type", TYPES)
def test_many_blocks_give_what_one_block_gives(covariance_type, monkeypatch):
    X = clouds(101)
    options = {**start(X, 4, covariance_type), "covariance_type": covariance_type}
    whole = GaussianMixture(4, **options, max_iter=4).fit(X)
    monkeypatch.setattr("companion.expectation_maximization._CACHED", 100)  # 8 at a time
    blocks = GaussianMixture(4, **options, max_iter=4).fit(X[:, [0, 1, 2]].clone())
    for name in LEARNED:
        assert_close(getattr(blocks, name), getattr(whole, name), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("K", [1, 3, 5])
@pytest.mark.parametrize("D", [1, 2, 7])
def test_k_means_from_the_same_centres_is_scikit_learns(D, K):
    X = clouds(D=D, K=K)
    ours = KMeans(K, init=X[:K]).fit(X)
    theirs = cluster.KMeans(K, init=X[:K].numpy(), n_init=1).fit(X.numpy())
    assert_close(ours.cluster_centers_, torch.tensor(theirs.cluster_centers_), **CLOSE)
    assert ours.labels_.tolist() == theirs.labels_.tolist()
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-8)
    assert ours.n_iter_ == theirs.n_iter_
    fresh = clouds(40, D, K, seed=1)
    assert ours.predict(fresh).tolist() == theirs.predict(fresh.numpy()).tolist()
    assert_close(ours.transform(fresh), torch.tensor(theirs.transform(fresh.numpy())), **CLOSE)
    assert ours.score(fresh) == pytest.approx(theirs.score(fresh.numpy()), rel=1e-8)


def test_k_means_stops_early_as_scikit_learn_does():
    X = clouds(400, 2, 8)
    for options in ({"max_iter": 3}, {"tol": 0.05}, {"tol": 0.0}):
        ours = KMeans(8, init=X[:8], **options).fit(X)
        theirs = cluster.KMeans(8, init=X[:8].numpy(), n_init=1, **options).fit(X.numpy())
        assert ours.n_iter_ == theirs.n_iter_
        assert_close(ours.cluster_centers_, torch.tensor(theirs.cluster_centers_), **CLOSE)


def test_an_empty_cluster_takes_the_farthest_example_as_scikit_learns_does():
    X = clouds(60, 2, 3)
    init = torch.cat([X[:2], torch.full((2, 2), 1e3, dtype=torch.float64)])  # two get nothing
    ours = KMeans(4, init=init).fit(X)
    theirs = cluster.KMeans(4, init=init.numpy(), n_init=1).fit(X.numpy())
    order = [centres[:, 0].argsort() for centres in (ours.cluster_centers_,)]
    expected = np.sort(theirs.cluster_centers_[:, 0])
    np.testing.assert_allclose(ours.cluster_centers_[order[0], 0], expected, rtol=1e-8)
    assert len(ours.labels_.unique()) == 4


def test_k_means_is_the_limit_of_spherical_mixtures_as_the_variance_goes_to_zero():
    X = clouds(200, 2, 3)
    centres = X[:3]
    hard = KMeans(3, init=centres, max_iter=1, tol=0.0).fit(X).cluster_centers_
    soft = GaussianMixture(
        3,
        covariance_type="spherical",
        weights_init=torch.full((3,), 1 / 3, dtype=torch.float64),
        means_init=centres,
        precisions_init=torch.full((3,), 1e8).double(),
        max_iter=1,
    ).fit(X)
    assert_close(soft.means_, hard, **CLOSE)


def test_k_means_keeps_the_best_of_several_starts():
    X = clouds(200, 2, 8)
    one = KMeans(8, init="random", n_init=1, random_state=0).fit(X)
    ten = KMeans(8, init="random", random_state=0).fit(X)
    assert ten.n_init == 10
    assert ten.inertia_ < one.inertia_
    assert KMeans(8).n_init == 1
    labels = KMeans(8, random_state=0).fit_predict(X)
    assert labels.equal(KMeans(8, random_state=0).fit(X).labels_)


@pytest.mark.usefixtures("plain_python")
def test_k_means_plus_plus_draws_by_squared_distance():
    X = torch.tensor([[0.0], [1.0], [3.0]]).double()
    random = torch.Generator().manual_seed(0)
    drawn = [
        tuple(kmeans_plus_plus(X, 2, random_state=random, n_local_trials=1)[1].tolist())
        for _ in range(2000)
    ]
    probabilities = {
        (0, 1): 1 / 30, (0, 2): 9 / 30, (1, 0): 1 / 15,
        (1, 2): 4 / 15, (2, 0): 9 / 39, (2, 1): 4 / 39,
    }  # fmt: skip
    for places, p in probabilities.items():
        assert abs(drawn.count(places) / 2000 - p) < 5 * math.sqrt(p * (1 - p) / 2000)


@pytest.mark.usefixtures("plain_python")
def test_k_means_plus_plus_takes_the_best_of_its_trials():
    X = clouds(100, 2, 5)
    random = torch.Generator().manual_seed(0)

    def cost(trials):
        centres, places = kmeans_plus_plus(X, 5, random_state=random, n_local_trials=trials)
        assert centres.equal(X[places])
        assert len(places.unique()) == 5
        return torch.cdist(X, centres).min(1).values.square().sum().item()

    one, many = (np.mean([cost(trials) for _ in range(40)]) for trials in (1, 8))
    assert many < 0.9 * one
    for seed in range(5):  # two and the logarithm of five
        by_default = kmeans_plus_plus(X, 5, random_state=seed)[1]
        assert by_default.equal(kmeans_plus_plus(X, 5, random_state=seed, n_local_trials=3)[1])
    same = torch.zeros(6, 2)
    assert kmeans_plus_plus(same, 3)[0].equal(torch.zeros(3, 2))  # nothing is far: no matter


def test_the_unconstrained_mixture_is_the_same_density():
    X = clouds()
    mine = GaussianMixture(4, random_state=0).fit(X)
    free = UnconstrainedMixture(mine.weights_, mine.means_, mine.precisions_cholesky_)
    assert_close(free(X), mine.score_samples(X), **CLOSE)
    assert torch.autograd.gradcheck(
        lambda *parameters: torch.func.functional_call(
            free, dict(zip(("a", "means", "B"), parameters, strict=True)), X[:9]
        ),
        tuple(p.detach().requires_grad_() for p in free.parameters()),
    )


def test_the_gradient_of_the_likelihood_is_that_of_the_bound_after_an_e_step():
    X = clouds(50)
    begin = GaussianMixture(4, random_state=0, max_iter=1).fit(X)
    free = UnconstrainedMixture(begin.weights_, begin.means_, begin.precisions_cholesky_)
    free(X).sum().backward()
    r = begin.predict_proba(X)
    difference = X[:, None] - begin.means_
    pull = torch.einsum("nk,kij,nkj->ki", r, begin.precisions_, difference)
    assert_close(free.means.grad, pull, **CLOSE)
    assert_close(free.a.grad, r.sum(0) - 50 * begin.weights_, **CLOSE)


def test_values_that_any_float_may_take_make_a_mixture():
    free = UnconstrainedMixture(
        torch.tensor([0.5, 0.5]), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)
    )
    with torch.no_grad():
        free.a.copy_(torch.tensor([-40.0, 40.0]))
        free.B.copy_(torch.tensor([[[-3.0, 7.0], [99.0, 2.0]]]).expand(2, 2, 2))
    P = torch.tensor([[math.exp(-3), 7.0], [0.0, math.exp(2)]])
    expected = MultivariateNormal(torch.zeros(2), precision_matrix=P @ P.T)
    x = torch.tensor([[0.1, -0.2]])
    assert_close(free(x), expected.log_prob(x), rtol=1e-4, atol=1e-4)


SHIPPED = json.loads(Path(trials.__file__).with_name("em_trials.json").read_text())


@pytest.mark.usefixtures("plain_python")
@pytest.mark.parametrize("spread", trials.SPREADS)
def test_the_shipped_race_is_the_scripts(spread):
    X, first = trials.clouds(trials.SPREADS[spread]), trials.CHECKS[:9]
    shipped, chosen = SHIPPED[spread]["runs"], SHIPPED[spread]["chosen"]
    traces = {"EM": trials.by_em(trials.started(X, 5, 3), X, X, first)}
    for name, rate in chosen.items():
        start = trials.started(X, 5, 3)
        traces[name] = trials.by_gradient(name, float(rate), start, repeat((X,)), X, first)
        assert start.score(X) == pytest.approx(traces[name][-1][1], abs=1e-5)
    assert traces.keys() == shipped.keys()
    for name, trail in traces.items():
        heights = [height for _, height in shipped[name][3][: len(first)]]
        np.testing.assert_allclose([height for _, height in trail], heights, atol=1e-4)
    for name, sweep in SHIPPED[spread]["sweep"].items():
        assert list(sweep) == [str(rate) for rate in trials.RATES[name]]


def test_the_shipped_runs_on_minibatches_are_the_scripts():
    X, held_out = trials.pixels()
    shipped, first = SHIPPED["minibatches"], trials.STEP_CHECKS[:2]

    def begin():
        return trials.started(X, trials.PIXELS["components"], 1), trials.minibatches(X, 1)

    traces = {"EM": trials.by_em(begin()[0], X, held_out, (1,))}
    for name, choice in shipped["chosen"].items():
        gradient = partial(trials.by_gradient, name)
        by = trials.by_stepwise_em if name == "stepwise EM" else gradient
        traces[name] = by(float(choice), *begin(), held_out, first)
    for name, sweep in shipped["sweep"].items():
        assert list(sweep) == [str(choice) for choice in trials.PIXEL_CHOICES[name]]
    assert traces.keys() == shipped["runs"].keys()
    for name, trail in traces.items():
        heights = [height for _, height in shipped["runs"][name][1][: len(trail)]]
        np.testing.assert_allclose([height for _, height in trail], heights, atol=1e-4)


@pytest.mark.usefixtures("plain_python")
def test_a_run_that_fails_is_below_all_others():
    def fail():
        raise FloatingPointError

    trail = trials.survived(fail, (1, 2))
    assert trail == [(0.0, trials.FAILED)] * 2
    assert trials.gone_on(None, trail, None) == trials.FAILED
    assert trials.best_rate({"0.1": [trail], "1.0": [[(0.0, -3.0), (0.0, -2.0)]]}) == "1.0"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianMixture(0), "n_components must be at least 1, got 0"),
        (lambda: GaussianMixture(2, covariance_type="round"), "one of 'full', 'tied'"),
        (lambda: GaussianMixture(2, init_params="best"), "one of 'kmeans', 'k-means"),
        (lambda: GaussianMixture(2, reg_covar=-1.0), "reg_covar must be at least 0"),
        (lambda: GaussianMixture(2).predict(clouds()), "learned nothing yet: call fit"),
        (lambda: GaussianMixture(2).sample(), "learned nothing yet: call fit"),
        (lambda: GaussianMixture(2).fit(clouds(1)), "at least 2 examples"),
        (lambda: GaussianMixture(2).fit(clouds() / 0), "drop those examples, or fill in"),
        (
            lambda: GaussianMixture(2).fit(clouds()).predict(clouds(D=2)),
            "the 3 features of the means, got 2",
        ),
        (lambda: GaussianMixture(2).m_step(clouds(), torch.ones(300, 3)), "2 columns"),
        (
            lambda: GaussianMixture(2, means_init=torch.zeros(3, 2)).fit(clouds()),
            r"means_init must have the shape \(2, 3\).*got \(3, 2\)",
        ),
        (
            lambda: GaussianMixture(2, weights_init=torch.tensor([0.2, 0.2])).fit(clouds()),
            "a distribution.*whose sum is 0.4",
        ),
        (
            lambda: GaussianMixture(1, precisions_init=-torch.eye(3)[None]).fit(clouds()),
            "precisions_init of component 0 is not positive",
        ),
        (lambda: KMeans(0), "n_clusters must be at least 1"),
        (lambda: KMeans(init="far"), "init must be one of 'k-means"),
        (lambda: KMeans(n_init="few"), "n_init must be one of 'auto'"),
        (lambda: KMeans(2, init=torch.zeros(3, 3)).fit(clouds()), "a centre for each cluster"),
        (lambda: KMeans(2).predict(clouds()), "learned nothing yet: call fit"),
        (lambda: kmeans_plus_plus(clouds(3), 4), "at least 4 examples"),
        (
            lambda: UnconstrainedMixture(
                torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1, 1)
            ),
            "the weight of component 0 is not positive",
        ),
    ],
)
def test_a_mistake_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
