import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

from companion.backpropagation import gradient_check
from companion.data import write_expert_trials as trials
from companion.datasets import fashion_mnist
from companion.expectation_maximization import GaussianMixture
from companion.layers import count_parameters
from companion.mixture_of_experts import (
    MixtureOfExperts,
    SparseMixtureOfExperts,
    irls,
    load_balancing_loss,
    weighted_least_squares,
)
from companion.optimization import Adam

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def probabilities(*shape, seed=0):
    return normal(*shape, seed=seed).softmax(dim=-1)


def model_of(*sizes, seed=0, **options):
    torch.manual_seed(seed)
    return MixtureOfExperts(*sizes, **options).double()


def data_of(task, n=40, features=2, outputs=3, seed=0):
    x = normal(n, features, seed=seed)
    if task == "regression":
        return x, normal(n, outputs, seed=seed + 1)
    return x, normal(n, outputs, seed=seed + 1).argmax(dim=1)


def with_one(x):
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def scipys_minimum(function, start):
    """Where SciPy finds the smallest value of a function of a tensor."""

    def of_numbers(numbers):
        theta = torch.tensor(numbers, requires_grad=True)
        value = function(theta.view_as(start))
        (gradient,) = torch.autograd.grad(value, theta)
        return value.item(), gradient.numpy()

    flat = start.flatten().numpy()
    found = minimize(of_numbers, flat, jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.tensor(found.x).view_as(start)


# The two problems of the M-step


def test_weighted_least_squares_is_where_scipy_finds_the_minimum():
    x, y, weight = normal(30, 3), normal(30, 2, seed=1), normal(30, seed=2).exp()
    judge = scipys_minimum(
        lambda W: (weight[:, None] * (y - with_one(x) @ W.T) ** 2).sum(),
        torch.zeros(2, 4, dtype=torch.float64),
    )
    assert_close(weighted_least_squares(x, y, weight), judge, rtol=1e-6, atol=1e-6)


def test_a_weight_of_three_counts_as_three_examples_and_zero_as_none():
    x, y = normal(12, 2), normal(12, 2, seed=1)
    counts = torch.tensor([3, 0, 1, 2] * 3)
    repeated = with_one(x).repeat_interleave(counts, dim=0).numpy()
    judge = np.linalg.lstsq(repeated, y.repeat_interleave(counts, dim=0).numpy())[0].T
    assert_close(weighted_least_squares(x, y, counts.double()), torch.tensor(judge), **EXACT)


def test_least_squares_with_too_few_examples_passes_through_them():
    x, y = normal(2, 4), normal(2, 1, seed=1)
    W = weighted_least_squares(x, y, torch.ones(2).double())
    assert_close(with_one(x) @ W.T, y, **EXACT)


def test_ill_conditioned_least_squares_keeps_its_digits():
    # the square of this condition number, 1e18, would leave none
    x = normal(50, 1)
    x = torch.cat([x, x + 1e-9 * normal(50, 1, seed=1)], dim=1)
    W = torch.tensor([[1.0, 2.0, 3.0]]).double()
    found = weighted_least_squares(x, with_one(x) @ W.T, torch.ones(50).double())
    assert_close(found, W, rtol=1e-5, atol=1e-5)


def soft_cross_entropy(W, x, target, weight):
    return -(weight[:, None] * target * (with_one(x) @ W.T).log_softmax(dim=1)).sum()


@pytest.mark.parametrize("classes", [2, 4])
def test_irls_ends_where_scipy_finds_the_minimum(classes):
    x, target = normal(40, 3), probabilities(40, classes, seed=1)
    weight, start = normal(40, seed=2).exp(), normal(classes, 4, seed=3)
    found = irls(x, target, weight, start, steps=12)
    judge = scipys_minimum(lambda W: soft_cross_entropy(W, x, target, weight), start)
    # the same up to a row that is added to all
    assert_close(found - found[-1], judge - judge[-1], rtol=1e-5, atol=1e-6)
    assert_close(found[-1], start[-1], rtol=0, atol=0)


def test_one_step_of_irls_is_newtons_step_with_the_hessian_of_autograd():
    x, target, weight = normal(20, 2), probabilities(20, 3, seed=1), normal(20, seed=2).exp()
    start = 0.1 * normal(3, 3, seed=3)

    def cost(first_rows):
        return soft_cross_entropy(torch.cat([first_rows, start[-1:]]), x, target, weight)

    gradient = torch.func.grad(cost)(start[:-1]).flatten()
    hessian = torch.func.hessian(cost)(start[:-1]).reshape(6, 6)
    newton = start[:-1] - torch.linalg.solve(hessian, gradient).view(2, 3)
    assert_close(irls(x, target, weight, start)[:-1], newton, **EXACT)


def test_irls_with_one_class_an_example_is_scikit_learns_logistic_regression():
    x, y = normal(60, 2), normal(60, 3, seed=1).argmax(dim=1)
    judge = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x.numpy(), y.numpy())
    W = irls(x, one_hot(y).double(), torch.ones(60).double(), torch.zeros(3, 3).double(), 12)
    ours = (with_one(x) @ W.T).softmax(dim=1)
    assert_close(ours, torch.tensor(judge.predict_proba(x.numpy())), rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 8), st.sampled_from([1e-3, 1, 30])
)
def test_no_step_of_irls_raises_the_cost(seed, classes, n, scale):
    # few examples are separable, and far from the minimum the whole step overshoots
    x, weight = scale * normal(n, 2, seed=seed), normal(n, seed=seed + 1).exp()
    target = one_hot(torch.arange(n) % classes, classes).double()
    W = 5 * normal(classes, 3, seed=seed + 2)
    before = soft_cross_entropy(W, x, target, weight)
    for _ in range(8):
        W = irls(x, target, weight, W)
        assert W.isfinite().all()
        after = soft_cross_entropy(W, x, target, weight)
        assert after <= before * (1 + 1e-12) + 1e-12
        before = after


# The model


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_the_likelihood_of_regression_is_that_of_torch_distributions(hidden):
    model, (x, y) = model_of(2, 1, 3, hidden=hidden), data_of("regression", outputs=1)
    model.log_variance.data = normal(3, seed=5)
    mixture = MixtureSameFamily(
        Categorical(logits=model.gate(x)),
        Normal(model.outputs(x)[:, :, 0], model.variance.sqrt()),
    )
    assert_close(-model.loss(x, y), mixture.log_prob(y[:, 0]).mean(), **EXACT)
    assert_close(model(x)[:, 0], mixture.mean, **EXACT)


def test_several_outputs_are_independent_given_the_expert():
    model, (x, y) = model_of(2, 3, 2), data_of("regression")
    each = Normal(model.outputs(x), model.variance.sqrt()[:, None]).log_prob(y[:, None])
    assert_close(model.log_joint(x, y), model.gate(x).log_softmax(1) + each.sum(dim=2), **EXACT)


def test_the_likelihood_of_classification_is_the_cross_entropy_of_what_the_model_says():
    model, (x, y) = model_of(2, 3, 4, task="classification"), data_of("classification")
    by_hand = (model.gate(x).softmax(1)[:, :, None] * model.outputs(x).softmax(2)).sum(1)
    assert_close(model(x).exp(), by_hand, **EXACT)
    assert_close(model.loss(x, y), cross_entropy(by_hand.log(), y), **EXACT)
    assert_close(model.loss(x, y), cross_entropy(model(x), y), **EXACT)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_responsibilities_are_those_of_bayes(task):
    model, (x, y) = model_of(2, 3, 3, task=task), data_of(task, n=7)
    r = model.responsibilities(x, y)
    for n in range(7):
        joint = []
        for k, expert in enumerate(model.experts):
            said = expert(x[n : n + 1])[0]
            if task == "regression":
                likelihood = Normal(said, model.variance[k].sqrt()).log_prob(y[n]).sum().exp()
            else:
                likelihood = said.softmax(0)[y[n]]
            joint.append(model.gate(x[n : n + 1]).softmax(1)[0, k] * likelihood)
        joint = torch.stack(joint)
        assert_close(r[n], (joint / joint.sum()).detach(), **EXACT)


def test_responsibilities_far_from_everything_still_sum_to_one():
    model, (x, y) = model_of(2, 1, 3), data_of("regression", outputs=1)
    r = model.responsibilities(x, 1e8 * y)
    assert_close(r.sum(dim=1), torch.ones(40).double(), **EXACT)
    assert (model.loss(x, 1e8 * y) > 1e10).item()


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_gradient_agrees_with_central_differences(task):
    model, (x, y) = model_of(2, 3, 2, task=task, hidden=(3,)), data_of(task, n=6)
    parameters = [*model.parameters()]

    def loss(*values):
        names = [name for name, _ in model.named_parameters()]
        return torch.func.functional_call(
            _Loss(model),
            {f"model.{n}": v for n, v in zip(names, values, strict=True)},
            (x, y),
        )

    gradient_check(loss, *(p.detach() for p in parameters))


class _Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        return self.model.loss(x, y)


def test_the_gates_gradient_is_responsibility_minus_gate():
    model, (x, y) = model_of(2, 1, 3), data_of("regression", outputs=1)
    (gradient,) = torch.autograd.grad(model.loss(x, y), model.gate.layers[0].weight)
    difference = model.log_gate(x).exp() - model.responsibilities(x, y)
    assert_close(gradient, (difference.T @ x / len(x)).detach(), **EXACT)


# The M-step, and the whole algorithm


def q_function(model, x, y, r):
    return (r * model.log_joint(x, y)).sum()


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_m_step_is_where_scipy_finds_the_maximum(task):
    model, (x, y) = model_of(2, 2, 2, task=task), data_of(task, outputs=2)
    r = probabilities(40, 2, seed=7)
    judge = model_of(2, 2, 2, task=task, seed=1)
    names = [name for name, _ in judge.named_parameters()]
    sizes = [p.numel() for p in judge.parameters()]

    def minus_q(theta):
        parts = [
            part.view_as(p)
            for part, p in zip(theta.split(sizes), judge.parameters(), strict=True)
        ]
        state = dict(zip([f"model.{name}" for name in names], parts, strict=True))
        return torch.func.functional_call(_MinusQ(judge), state, (x, y, r))

    found = scipys_minimum(
        minus_q, torch.cat([p.detach().flatten() for p in judge.parameters()])
    )
    nn.utils.vector_to_parameters(found, judge.parameters())
    model.m_step(x, y, r, inner=12)
    assert_close(model.log_gate(x), judge.log_gate(x), rtol=1e-5, atol=1e-6)
    assert_close(model(x), judge(x), rtol=1e-5, atol=1e-6)
    if task == "regression":
        assert_close(model.outputs(x), judge.outputs(x), rtol=1e-5, atol=1e-6)
        assert_close(model.variance, judge.variance, rtol=1e-5, atol=1e-6)


class _MinusQ(_Loss):
    def forward(self, x, y, r):
        return -q_function(self.model, x, y, r)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    task=st.sampled_from(["regression", "classification"]),
    experts=st.integers(1, 4),
    n=st.integers(1, 30),
    hidden=st.sampled_from([(), (3,)]),
    gate_hidden=st.sampled_from([(), (3,)]),
    inner=st.integers(1, 3),
    lr=st.sampled_from([0.01, 3.0]),  # the second is much too large, and must be halved
    seed=st.integers(0, 10**6),
)
def test_no_iteration_of_em_raises_the_loss(
    task, experts, n, hidden, gate_hidden, inner, lr, seed
):
    options = {"task": task, "hidden": hidden, "gate_hidden": gate_hidden}
    model, (x, y) = model_of(2, 3, experts, seed=seed, **options), data_of(task, n, seed=seed)
    before = model.loss(x, y).item()
    for _ in range(6):
        model.fit_em(x, y, max_iter=1, inner=inner, lr=lr)
        after = model.loss(x, y).item()
        assert after <= before + 1e-9 * (1 + abs(before))
        before = after


def test_the_history_is_the_loss_before_each_iteration():
    (x, y), losses = data_of("regression"), []
    model, again = model_of(2, 3, 2), model_of(2, 3, 2)
    for _ in range(5):
        losses.append(model.loss(x, y).item())
        model.m_step(x, y, model.responsibilities(x, y))
    history = again.fit_em(x, y, max_iter=5, tol=-math.inf)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    assert len(history.seconds) == 5
    assert history.seconds == sorted(history.seconds)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert_close(p, q, **EXACT)


def test_em_stops_when_it_gains_less_than_tol():
    model, (x, y) = model_of(2, 3, 2), data_of("regression")
    loss = model.fit_em(x, y, max_iter=500, tol=1e-4).loss
    assert 3 < len(loss) < 500
    gains = -np.diff(loss)
    assert (gains >= 1e-4).all()
    assert loss[-1] - model.loss(x, y).item() < 1e-4


def test_em_recovers_the_model_that_made_the_data():
    n, truth = 4000, model_of(1, 1, 2, seed=3)
    truth.gate.layers[0].weight.data = torch.tensor([[3.0], [-3.0]]).double()
    truth.gate.layers[0].bias.data = torch.tensor([0.5, -0.5]).double()
    for expert, (slope, bias) in zip(truth.experts, [(2.0, 1.0), (-1.0, 0.0)], strict=True):
        expert.layers[0].weight.data.fill_(slope), expert.layers[0].bias.data.fill_(bias)
    truth.log_variance.data = torch.tensor([0.3, 0.1]).double().square().log()
    x, noise, draw = normal(n, 1), normal(n, seed=1), torch.Generator().manual_seed(2)
    k = torch.multinomial(truth.log_gate(x).exp(), 1, generator=draw)[:, 0]
    each = torch.arange(n)
    y = (truth.outputs(x)[each, k, 0] + noise * truth.variance.sqrt()[k])[:, None].detach()
    model = model_of(1, 1, 2, seed=4)
    model.fit_em(x, y, max_iter=200, tol=1e-9)
    order = model.variance.argsort(descending=True)
    assert model.loss(x, y) < truth.loss(x, y)
    slopes = torch.stack([model.experts[k].layers[0].weight[0, 0] for k in order])
    assert_close(slopes, torch.tensor([2.0, -1.0]).double(), rtol=0, atol=0.05)
    assert_close(model.variance[order].sqrt(), truth.variance.sqrt(), rtol=0.06, atol=0)
    between = [m.gate.layers[0].weight.diff(dim=0).abs().item() for m in (model, truth)]
    assert between[0] == pytest.approx(between[1], rel=0.1)


# Special cases


def test_one_expert_is_plain_least_squares():
    model, (x, y) = model_of(2, 3, 1), data_of("regression")
    model.fit_em(x, y, max_iter=3)
    W, residual, *_ = np.linalg.lstsq(with_one(x).numpy(), y.numpy())
    assert_close(model.experts[0].layers[0].weight, torch.tensor(W[:-1].T), **EXACT)
    assert_close(model.experts[0].layers[0].bias, torch.tensor(W[-1]), **EXACT)
    assert model.variance.item() == pytest.approx(residual.sum() / y.numel(), rel=1e-9)


def test_one_expert_is_logistic_regression():
    model = model_of(2, 3, 1, task="classification")
    x, y = data_of("classification")
    model.fit_em(x, y, max_iter=30, tol=1e-12)
    judge = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x.numpy(), y.numpy())
    judged = torch.tensor(judge.predict_log_proba(x.numpy()))
    assert_close(model(x), judged, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:EM has not converged")
@pytest.mark.parametrize("components", [1, 3])
def test_a_gate_that_sees_nothing_is_the_gaussian_mixture_of_chapter_12(components):
    y, x = normal(80, 2), torch.zeros(80, 1, dtype=torch.float64)
    y[:30] += 3
    weights, means = probabilities(components, seed=1), normal(components, 2, seed=2)
    variances = normal(components, seed=3).exp()
    model = model_of(1, 2, components)
    model.gate.layers[0].bias.data = weights.log()
    for expert, mean in zip(model.experts, means, strict=True):
        expert.layers[0].bias.data = mean.clone()
    model.log_variance.data = variances.log()
    judge = GaussianMixture(
        components,
        covariance_type="spherical",
        weights_init=weights,
        means_init=means,
        precisions_init=1 / model.variance.detach(),
        reg_covar=0.0,
        tol=0.0,
        max_iter=15,
    ).fit(y)
    history = model.fit_em(x, y, max_iter=15, tol=-math.inf, inner=12)
    np.testing.assert_allclose([-loss for loss in history.loss], judge.lower_bounds_, rtol=1e-9)
    assert_close(model.outputs(x)[0], judge.means_, **EXACT)
    assert_close(model.variance, judge.covariances_, **EXACT)
    assert_close(model.log_gate(x)[0].exp(), judge.weights_, **EXACT)
    assert_close(model.responsibilities(x, y), judge.predict_proba(y), rtol=1e-7, atol=1e-9)


def test_the_conditional_of_a_tied_gaussian_mixture_is_a_mixture_of_linear_experts():
    weights, means = probabilities(3), normal(3, 3, seed=1)
    root = normal(3, 3, seed=2)
    cov = root @ root.T + torch.eye(3).double()
    model, (x, y) = model_of(2, 1, 3), data_of("regression", outputs=1)
    slope = torch.linalg.solve(cov[:2, :2], cov[:2, 2])
    logits = torch.linalg.solve(cov[:2, :2], means[:, :2].T).T
    model.gate.layers[0].weight.data = logits
    model.gate.layers[0].bias.data = weights.log() - 0.5 * (logits * means[:, :2]).sum(dim=1)
    for expert, mean in zip(model.experts, means, strict=True):
        expert.layers[0].weight.data = slope[None]
        expert.layers[0].bias.data = (mean[2] - slope @ mean[:2])[None]
    left = cov[2, 2] - slope @ cov[:2, 2] - model.min_variance
    model.log_variance.data.fill_(left.log())
    joint = MultivariateNormal(means, cov).log_prob(torch.cat([x, y], dim=1)[:, None])
    marginal = MultivariateNormal(means[:, :2], cov[:2, :2]).log_prob(x[:, None])
    expected = [(term + weights.log()).logsumexp(dim=1) for term in (joint, marginal)]
    assert_close(-model.loss(x, y), (expected[0] - expected[1]).mean(), **EXACT)


def test_experts_that_are_the_same_stay_the_same():
    model, (x, y) = model_of(2, 3, 2), data_of("regression")
    model.experts[1].load_state_dict(model.experts[0].state_dict())
    model.gate.layers[0].weight.data.zero_(), model.gate.layers[0].bias.data.zero_()
    model.fit_em(x, y, max_iter=4, tol=-math.inf)
    assert_close(model.responsibilities(x, y), torch.full((40, 2), 0.5).double(), **EXACT)
    assert_close(*(expert.layers[0].weight for expert in model.experts), **EXACT)


def test_an_expert_that_passes_through_its_points_keeps_the_smallest_variance():
    model, x = model_of(1, 1, 2, min_variance=1e-4), normal(20, 1)
    r = torch.zeros(20, 2).double()
    r[:2, 0], r[2:, 1] = 1, 1
    model.m_step(x, normal(20, 1, seed=1), r)
    assert model.variance[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert model.variance[1] > 0.1


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_an_expert_that_nobody_asks_stays_as_it_is_and_a_hardly_asked_one_does_not(task):
    x, y = data_of(task)
    r = torch.tensor([1.0, 0.0, 1e-310], dtype=torch.float64).expand(40, 3)
    model = model_of(2, 3, 3, task=task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.m_step(x, y, r, inner=12)
    after = model.state_dict()
    for name in before:
        if name.startswith("experts.1"):
            assert_close(after[name], before[name], rtol=0, atol=0)
    # the scale of the responsibilities plays no part
    said = model.outputs(x)
    if task == "classification":
        said = said.log_softmax(dim=2)
    assert_close(said[:, 2], said[:, 0], rtol=1e-6, atol=1e-6)


def test_single_precision_and_gradient_descent():
    torch.manual_seed(0)
    model, (x, y) = MixtureOfExperts(2, 3, 2), data_of("regression")
    x, y = x.float(), y.float()
    exact = model_of(2, 3, 2)
    exact.load_state_dict(model.state_dict())
    assert_close(
        model.loss(x, y).double(), exact.loss(x.double(), y.double()), rtol=1e-6, atol=0
    )
    by_hand = [
        p - 0.1 * g
        for p, g in zip(
            model.parameters(),
            torch.autograd.grad(model.loss(x, y), model.parameters()),
            strict=True,
        )
    ]
    options = {"batch_size": 40, "progress": False}
    history = model.fit(x, y, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    assert len(history.loss) == 1
    for p, expected in zip(model.parameters(), by_hand, strict=True):
        assert_close(p, expected, rtol=1e-5, atol=1e-6)
    fallen = model.fit(x, y, Adam(model.parameters(), lr=0.03), epochs=200, **options).loss
    model.fit_em(x, y, max_iter=5)
    assert fallen[-1] < fallen[0] - 0.05
    assert model.variance.dtype == torch.float32


# The sparse layer


def plain_sparse(layer, x):
    """One token after another."""
    results = []
    for token in x:
        p = layer.router(token).softmax(0)
        best = p.argsort(descending=True)[: layer.top_k]
        total = p[best].sum() if layer.top_k > 1 else 1
        results.append(sum(p[k] / total * layer.experts[k](token) for k in best.tolist()))
    return torch.stack(results)


def sparse(*sizes, seed=0):
    torch.manual_seed(seed)
    return SparseMixtureOfExperts(*sizes).double()


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_the_layer_is_what_one_token_after_another_gives_with_all_gradients(top_k):
    layer, x = sparse(3, 4, 5, top_k), normal(11, 3).requires_grad_()
    leaves, upstream = [x, *layer.parameters()], normal(11, 3, seed=1)
    (ours, _), judge = layer(x), plain_sparse(layer, x)
    assert_close(ours, judge, **EXACT)
    for a, b in zip(
        torch.autograd.grad(ours, leaves, upstream, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(judge, leaves, upstream, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert_close(a, b, **EXACT)


def test_with_every_expert_chosen_it_is_a_dense_mixture():
    layer, x = sparse(3, 4, 5, 5), normal(11, 3)
    outputs = torch.stack([expert(x) for expert in layer.experts], dim=1)
    dense = (layer.router(x).softmax(1)[:, :, None] * outputs).sum(1)
    assert_close(layer(x)[0], dense, **EXACT)


def test_an_expert_that_was_not_chosen_is_not_computed_and_learns_nothing():
    layer, x, seen = sparse(3, 4, 6, 2), normal(2, 3), []
    for k, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda _, args, __, k=k: seen.append((k, len(args[0]))))
    output, _ = layer(x)
    assert sum(n for _, n in seen) == 4  # two tokens, two experts each
    output.sum().backward()
    chosen = set(layer.route(x)[1].flatten().tolist())
    assert len(chosen) < 6
    for k, expert in enumerate(layer.experts):
        slope = expert.layers[0].weight.grad
        assert (slope is not None and slope.abs().sum() > 0) == (k in chosen)


def test_leading_dimensions_and_strides_make_no_difference():
    layer, x = sparse(3, 4, 5, 2), normal(3, 2, 4)
    tokens = x.permute(1, 2, 0)  # (2, 4, 3), not contiguous
    output, balance = layer(tokens)
    flat = tokens.reshape(-1, 3)
    assert_close(output, plain_sparse(layer, flat).view(2, 4, 3), **EXACT)
    assert_close(balance, layer(flat)[1], **EXACT)
    assert_close(layer(tokens[0, 0])[0], output[0, 0], **EXACT)


def test_the_balance_is_one_if_even_and_the_number_of_experts_if_all_goes_to_one():
    even = torch.full((8, 4), 0.25)
    assert load_balancing_loss(even, torch.arange(8)[:, None] % 4).item() == pytest.approx(1)
    one = one_hot(torch.zeros(8, dtype=torch.long), 4).double()
    assert load_balancing_loss(one, torch.zeros(8, 1, dtype=torch.long)).item() == 4


def test_the_balance_is_a_count_and_its_gradient_goes_through_the_probabilities():
    p = probabilities(9, 4).requires_grad_()
    chosen = p.topk(2, dim=1).indices
    total = 0.0
    for k in range(4):
        f = sum(k in row for row in chosen.tolist()) / 18
        total += 4 * f * sum(p[n, k].item() for n in range(9)) / 9
    loss = load_balancing_loss(p, chosen)
    assert loss.item() == pytest.approx(total, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, p)
    shares = chosen.flatten().bincount(minlength=4) / 18
    assert_close(gradient, (4 * shares / 9).expand(9, 4).double(), rtol=1e-6, atol=0)


def test_balancing_alone_evens_out_a_router():
    layer, x = sparse(3, 4, 5, 1), normal(200, 3) + 1
    layer.router.weight.data[0] += 5  # all go to the first
    optimizer = Adam(layer.router.parameters(), lr=0.05)
    before = layer(x)[1].item()
    for _ in range(100):
        optimizer.zero_grad()
        layer(x)[1].backward()
        optimizer.step()
    assert layer(x)[1].item() < 1.1 < 4 < before


X, Y, CLASSES = normal(5, 2), normal(5, 3), torch.tensor([0, 1, 2, 1, 0])
ONES = torch.ones(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: MixtureOfExperts(2, 3, 0), "at least one expert .* got 0 and 1e-06"),
        (lambda: MixtureOfExperts(2, 3, 2, "cluster"), '"regression" or "classification", got'),
        (lambda: model_of(2, 3, 2).loss(X, Y[:, :2]), r"numbers in the shape \(5, 3\), got"),
        (lambda: model_of(2, 3, 2).loss(X, CLASSES), r"numbers in .* \(5,\) of torch.int64"),
        (
            lambda: model_of(2, 3, 2, task="classification").loss(X, Y),
            "hold classes, torch.int",
        ),
        (
            lambda: model_of(2, 2, 2, task="classification").loss(X, CLASSES),
            "numbered from 0 to 1, got 0 to 2",
        ),
        (lambda: model_of(2, 3, 2).fit_em(X[:0], Y[:0]), "x has no examples"),
        (lambda: model_of(2, 3, 2).fit_em(X, Y, max_iter=0), "max_iter must be at least 1"),
        (lambda: model_of(2, 3, 2).m_step(X, Y, X, inner=0), "inner must be at least 1 and"),
        (
            lambda: model_of(2, 3, 2).m_step(X, Y, X[:4]),
            "examples 5 as in x, got shape",
        ),
        (lambda: weighted_least_squares(X, Y, -ONES), "no weight may be negative, got -1"),
        (lambda: irls(X, Y, ONES, Y.T, steps=0), "steps must be at least 1, got 0"),
        (
            lambda: irls(X, Y, ONES, Y.T),
            "a column for each of 2 features and one for the biases",
        ),
        (lambda: sparse(3, 4, 2, 3), "between 1 and the number of experts, got 3 of 2"),
        (lambda: sparse(2, 4, 3)(X[:0]), "at least one token, got shapes"),
        (lambda: load_balancing_loss(Y, CLASSES[:, None] + 1), "from 0 to 2, got 1 to 3"),
    ],
)
def test_a_mistake_is_explained(mistake, words):
    with pytest.raises(ValueError, match=words):
        mistake()


# What the trials were made of


@pytest.fixture(scope="module")
def shipped():
    return json.loads(Path(trials.__file__).with_name("expert_trials.json").read_text("utf-8"))


def test_the_planes_are_what_they_are_said_to_be():
    x, y, k = trials.six_planes()
    again = trials.six_planes(seed=1)[0]
    assert x.shape == (600, 2)
    assert (x != again).all()
    assert x.abs().max() < 1
    for plane in range(6):
        mine = k == plane
        W = np.linalg.lstsq(with_one(x[mine]).numpy(), y[mine].numpy(), rcond=None)
        assert math.sqrt(W[1].item() / (mine.sum() - 3)) == pytest.approx(0.2, rel=0.3)


def test_a_picture_is_turned_by_its_number():
    for part, plain in zip(trials.turned_clothes(), fashion_mnist(), strict=True):
        assert part.turn.bincount().min() > 0.2 * len(part.turn)
        for n in (0, 7):
            small = plain.x[n, 0].reshape(14, 2, 14, 2).mean(dim=(1, 3))
            back = torch.rot90(part.x[n].reshape(14, 14), -part.turn[n].item())
            assert_close(back, small)
            assert part.y[n] == plain.y[n]


def test_the_rivals_have_as_many_parameters_as_is_said():
    experts = trials.four_experts()
    one = count_parameters(experts.gate) + count_parameters(experts.experts[0])
    assert count_parameters(trials.one_network(trials.SAME_PARAMETERS)) == pytest.approx(
        count_parameters(experts), rel=0.005
    )
    assert count_parameters(trials.one_network(trials.SAME_COMPUTE)) == pytest.approx(
        one, rel=0.02
    )


def test_the_watch_has_the_lowest_loss_until_each_moment():
    model, (x, y) = model_of(2, 3, 2), data_of("regression")
    watch = trials.Watch(model, x, y)
    watch.curve = [(0.0, 3.0), (0.01, 2.0), (0.5, 4.0), (0.9, math.nan), (0.95, 1.0)]
    at = dict(zip(trials.MOMENTS, watch.at_moments(), strict=True))
    assert at[trials.MOMENTS[0]] == 3
    assert {loss for moment, loss in at.items() if 0.01 < moment < 0.95} == {2}
    assert at[trials.MOMENTS[-1]] == 1
    assert not trials.Watch(model, x, y)()


def test_information_about_a_number_that_is_known_is_two_bits_and_about_another_none():
    turn = torch.arange(400) % 4
    assert trials.bits_about(turn, (turn + 1) % 4) == pytest.approx(2)
    assert trials.bits_about(turn, torch.arange(400) // 4 % 4) == pytest.approx(0, abs=1e-12)
    assert trials.bits_about(turn, turn // 2) == pytest.approx(1)


@pytest.mark.parametrize("start", [0, 7])
def test_em_ends_where_the_shipped_race_says(shipped, start):
    x, y, _ = trials.six_planes()
    torch.manual_seed(start)
    model = MixtureOfExperts(2, 1, 6).double()
    model.fit_em(x, y, max_iter=300, tol=1e-7)
    assert model.loss(x, y).item() == pytest.approx(
        shipped["race"]["EM"]["losses"][start][-1], abs=2e-3
    )


def test_a_run_of_the_shipped_clothes_comes_out_the_same(shipped):
    runs = shipped["clothes"]["same compute"]["0.01"][0]
    assert trials.judged(trials.dress("same compute", 0.01))["test"] == pytest.approx(
        runs["test"], abs=0.02
    )
