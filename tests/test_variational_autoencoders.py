import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate
from sklearn.decomposition import PCA
from torch import distributions as dist
from torch import nn

from companion import variational_autoencoders
from companion.backpropagation import gradient_check
from companion.data import write_vae_trials as trials
from companion.datasets import Examples, Splits, fashion_mnist
from companion.layers import MLP, Linear, count_parameters, mse_loss
from companion.optimization import Adam, CosineWithWarmup
from companion.training import fit, train
from companion.variational_autoencoders import (
    VAE,
    Autoencoder,
    Bernoulli,
    DiagonalGaussian,
    Gaussian,
    ProbabilisticPCA,
    active_units,
    kl_divergence,
    reparameterise,
)

DATA = Path(variational_autoencoders.__file__).parent / "data"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def binary(*shape, seed=0):
    return (normal(*shape, seed=seed) > 0).double()


def close(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def vae(likelihood=None, d=2, D=5, outputs=None, seed=0):
    torch.manual_seed(seed)
    return VAE(
        MLP([D, 7, 2 * d], torch.tanh), MLP([d, 7, outputs or D], torch.tanh), likelihood
    ).double()


LIKELIHOODS = [
    (Bernoulli, binary, 1, lambda s: dist.Bernoulli(logits=s)),
    (lambda: Gaussian(0.3), normal, 1, lambda s: dist.Normal(s, math.sqrt(0.3))),
    (
        lambda: DiagonalGaussian(0.0),
        normal,
        2,
        lambda s: dist.Normal(s.chunk(2, -1)[0], (s.chunk(2, -1)[1] / 2).exp()),
    ),
]
NAMES = ["Bernoulli", "Gaussian", "DiagonalGaussian"]
each_likelihood = pytest.mark.parametrize(
    ("make", "draw", "outputs", "judge"), LIKELIHOODS, ids=NAMES
)


# The terms of the bound


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 3), (2, 4, 1), (0, 3)])
def test_the_divergence_is_that_of_torch(shape):
    mean, log_variance = 3 * normal(*shape), 3 * normal(*shape, seed=1)
    q = dist.Normal(mean, (log_variance / 2).exp())
    judge = dist.kl_divergence(q, dist.Normal(torch.zeros(()).double(), 1.0)).sum(-1)
    close(kl_divergence(mean, log_variance), judge)


def test_the_divergence_is_the_integral_that_it_stands_for():
    mean, log_variance = torch.tensor([0.7]).double(), torch.tensor([-1.2]).double()
    q, p = dist.Normal(mean, (log_variance / 2).exp()), dist.Normal(0.0, 1.0)

    def integrand(z):
        z = torch.tensor(z, dtype=torch.float64)
        return (q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).item()

    close(kl_divergence(mean, log_variance).item(), integrate.quad(integrand, -9, 9)[0], 1e-8)


def test_the_divergence_keeps_its_digits_near_zero_and_far_out():
    small = torch.full((1,), 1e-7, dtype=torch.float64)
    # e^v − 1 − v = v² / 2 + v³ / 6 + ...
    close(kl_divergence(0 * small, small).item(), 1e-14 / 4 + 1e-21 / 12, rtol=1e-6, atol=0)
    assert kl_divergence(torch.zeros(3), torch.zeros(3)) == 0
    far = torch.tensor([-1000.0]).double()
    close(kl_divergence(0 * far, far).item(), 0.5 * 999)


def test_gradients_of_divergence_and_code_agree_with_central_differences():
    assert gradient_check(kl_divergence, normal(4, 3), normal(4, 3, seed=1))
    assert gradient_check(
        reparameterise, normal(4, 3), normal(4, 3, seed=1), normal(2, 4, 3, seed=2)
    )


def test_a_code_is_mean_plus_deviation_times_noise():
    mean, log_variance = normal(4, 3), normal(4, 3, seed=1)
    noise = normal(6, 4, 3, seed=2)
    z = reparameterise(mean, log_variance, noise)
    close(z, mean + torch.sqrt(torch.exp(log_variance)) * noise)
    torch.manual_seed(0)
    z = reparameterise(mean, log_variance)
    torch.manual_seed(0)
    close(z, mean + torch.sqrt(torch.exp(log_variance)) * torch.randn_like(mean))


def test_codes_have_the_moments_that_were_asked_for():
    mean, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 2.0])
    torch.manual_seed(0)
    z = reparameterise(mean.expand(40_000, 2), log_variance.expand(40_000, 2))
    error = log_variance.exp().sqrt() / 200
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    assert (z.var(0) / log_variance.exp() - 1).abs().max() < 5 * math.sqrt(2 / 40_000)


@each_likelihood
@pytest.mark.parametrize(
    ("x_shape", "codes"), [((5,), ()), ((4, 5), ()), ((4, 1), (3,)), ((2, 4, 3), (6,))]
)
def test_a_likelihood_is_that_of_torch(make, draw, outputs, judge, x_shape, codes):
    x = draw(*x_shape)
    decoded = 3 * normal(*codes, *x_shape[:-1], outputs * x_shape[-1], seed=1)
    likelihood = make().double()
    close(likelihood.log_prob(x, decoded), judge(decoded).log_prob(x).sum(-1), rtol=1e-7)
    close(likelihood.mean(decoded), judge(decoded).mean)


@each_likelihood
def test_gradients_of_a_likelihood_agree_with_central_differences(make, draw, outputs, judge):
    likelihood, x = make().double(), draw(3, 4)

    def log_prob(decoded, *parameters):
        state = dict(zip(dict(likelihood.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(likelihood, state, (x, decoded))

    likelihood.forward = likelihood.log_prob
    parameters = [p.detach() for p in likelihood.parameters()]
    assert gradient_check(log_prob, normal(3, 4 * outputs, seed=1), *parameters)


@each_likelihood
def test_samples_of_a_likelihood_have_its_moments(make, draw, outputs, judge):
    decoded = 0.5 * normal(3 * outputs)
    many = decoded.expand(40_000, -1)
    torch.manual_seed(0)
    drawn = make().double().sample(many)
    wanted = judge(decoded)
    assert ((drawn.mean(0) - wanted.mean).abs() < 5 * wanted.stddev / 200).all()
    assert (drawn.var(0) / wanted.variance - 1).abs().max() < 0.05


def test_the_probabilities_of_all_black_and_white_pictures_sum_to_one():
    pictures = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 6)
    close(Bernoulli().log_prob(pictures, normal(6).expand(64, -1)).exp().sum().item(), 1.0)


@pytest.mark.parametrize("likelihood", [Gaussian(0.3).double(), DiagonalGaussian(0.01)])
def test_the_densities_of_all_numbers_integrate_to_one(likelihood):
    decoded = torch.tensor([0.4, -1.0]).double()[: 1 + isinstance(likelihood, DiagonalGaussian)]

    def density(x):
        x = torch.tensor([x], dtype=torch.float64)
        return likelihood.log_prob(x, decoded).exp().item()

    close(integrate.quad(density, -8, 8)[0], 1.0, 1e-8)


def test_a_sure_bernoulli_loses_no_digit_and_never_overflows():
    one = torch.ones(1).double()
    close(Bernoulli().log_prob(one, 40 * one).item(), -math.exp(-40), rtol=1e-9, atol=0)
    assert Bernoulli().log_prob(one, -1e4 * one) == -1e4
    assert Bernoulli().log_prob(0 * one, -1e4 * one) == 0


def test_the_floor_under_a_variance_is_added_to_it():
    x, decoded = normal(4, 3), normal(4, 6, seed=1)
    mean, log_variance = decoded.chunk(2, -1)
    judge = dist.Normal(mean, (log_variance.exp() + 0.5).sqrt()).log_prob(x).sum(-1)
    close(DiagonalGaussian(0.5).log_prob(x, decoded), judge)
    certain = torch.tensor([0.0, -2000.0]).double()
    close(DiagonalGaussian(1e-6).log_prob(0 * certain[:1], certain).item(),
          dist.Normal(0.0, 1e-3).log_prob(torch.zeros(())).item(), rtol=1e-6)  # fmt: skip


# The bound


@each_likelihood
def test_the_bound_is_what_its_terms_say(make, draw, outputs, judge):
    model, x, noise = vae(make(), outputs=5 * outputs), draw(4, 5), normal(3, 4, 2, seed=7)
    mean, log_variance = model.encoder(x).chunk(2, -1)
    q = dist.Normal(mean, (log_variance / 2).exp())
    z = mean + (log_variance / 2).exp() * noise
    log_likelihood = judge(model.decoder(z)).log_prob(x).sum(-1)
    kl = dist.kl_divergence(q, dist.Normal(0 * mean, 1.0)).sum(-1)
    for term, wanted in zip(model.terms(x, noise=noise), (log_likelihood, kl), strict=True):
        close(term, wanted, rtol=1e-7)
    for beta in (0.0, 1.0, 4.0):
        elbo = model.elbo(x, beta=beta, noise=noise)
        close(elbo, log_likelihood - beta * kl, rtol=1e-7)
    log_w = log_likelihood + (dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
    bound = model.iwae_bound(x, noise=noise)
    close(bound, log_w.logsumexp(0) - math.log(3), rtol=1e-7)
    other = normal(4, 2, seed=8), normal(4, 2, seed=9)
    close(
        model.elbo(x, other, noise=noise),
        model.likelihood.log_prob(x, model.decoder(reparameterise(*other, noise)))
        - kl_divergence(*other),
    )


@each_likelihood
def test_gradients_of_the_bounds_agree_with_central_differences(make, draw, outputs, judge):
    model, x, noise = vae(make(), outputs=5 * outputs), draw(2, 5), normal(3, 2, 2, seed=7)
    names, parameters = zip(*model.named_parameters(), strict=True)
    for bound in (model.elbo, model.iwae_bound):

        def of(*values, bound=bound):
            model.forward = lambda: bound(x, noise=noise)
            state = dict(zip(names, values, strict=True))
            return torch.func.functional_call(model, state, ())

        assert gradient_check(of, *(p.detach().clone() for p in parameters))


def test_the_bound_lies_under_the_likelihood_and_many_codes_close_the_gap():
    """A code of one number, so that the likelihood is an integral that can be worked out."""
    model, x = vae(d=1, seed=3), binary(3, 5)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter *= 3  # a posterior that is no normal distribution
        grid = torch.linspace(-12, 12, 4001).double()[:, None, None]
        log_prior = dist.Normal(0.0, 1.0).log_prob(grid)[..., 0]
        log_joint = (
            model.likelihood.log_prob(x, model.decoder(grid.expand(-1, 3, 1))) + log_prior
        )
        exact = torch.logsumexp(log_joint, 0) + math.log(24 / 4000)
        torch.manual_seed(0)
        mean, error = {}, {}
        for S in (1, 10, 100, 1000):
            runs = 100_000 // S
            noise = torch.randn(S, runs, 3, 1).double()
            bound = model.iwae_bound(x.expand(runs, 3, 5), noise=noise)
            mean[S], error[S] = bound.mean(0), bound.std(0) / math.sqrt(runs)
        elbo = model.elbo(x, noise=torch.randn(20_000, 3, 1).double())
    for few, many in pairwise((1, 10, 100)):  # the more codes, the smaller the gap
        assert (mean[many] > mean[few] + 3 * error[few]).all()
    assert (exact > mean[10] + 5 * error[10]).all()
    assert (exact - mean[1000]).abs().max() < 0.01
    # with one code the two have one expectation
    difference = (elbo.mean(0) - mean[1]).abs()
    assert (difference < 5 * (error[1] + elbo.std(0) / math.sqrt(20_000))).all()


def test_a_q_of_ones_own_takes_the_encoders_place():
    model, x = vae(), binary(4, 5)
    q, noise = model.encode(x), normal(4, 2, seed=3)
    assert torch.equal(model.elbo(x, q, noise=noise), model.elbo(x, noise=noise))
    assert torch.equal(
        model.iwae_bound(x, q=q, noise=noise[None]), model.iwae_bound(x, noise=noise[None])
    )


def test_both_gradient_estimators_have_the_gradient_as_expectation():
    """Expectations of polynomials of a normal number, exactly, by Gauss's quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    noise = torch.from_numpy(nodes)[:, None]
    weights = torch.from_numpy(weights / weights.sum())
    mean = torch.tensor([0.8]).double().requires_grad_()
    log_variance = torch.tensor([-0.6]).double().requires_grad_()
    f = lambda z: (z**4 - 3 * z**2 + z)[:, 0]  # noqa: E731
    m, v = mean, log_variance.exp()
    exact = (m**4 + 6 * m**2 * v + 3 * v**2 - 3 * (m**2 + v) + m)[0]
    wanted = torch.autograd.grad(exact, (mean, log_variance))
    z = reparameterise(mean, log_variance, noise)
    pathwise = torch.autograd.grad(weights @ f(z), (mean, log_variance))
    log_q = dist.Normal(mean, (log_variance / 2).exp()).log_prob(z.detach())[:, 0]
    score = torch.autograd.grad(weights @ (f(z.detach()) * log_q), (mean, log_variance))
    for estimate in (pathwise, score):
        for a, b in zip(estimate, wanted, strict=True):
            close(a, b)


def test_active_units_are_those_whose_mean_moves():
    mean = torch.stack([normal(50), 0.05 * normal(50, seed=1), torch.ones(50).double()], dim=1)
    assert active_units(mean) == 1
    assert active_units(mean, 1e-4) == 2
    assert active_units(mean, 0.0) == 2


def test_reconstructions_and_samples():
    model, x = vae(), binary(4, 5)
    z = normal(6, 2)
    close(model.decode(z), model.decoder(z).sigmoid())
    close(model(x), model.decode(model.encoder(x)[:, :2]))
    assert set(model.sample(z).unique().tolist()) <= {0.0, 1.0}
    torch.manual_seed(0)
    share = model.sample(z[:1].expand(40_000, -1)).mean(0)
    assert (share - model.decode(z[0])).abs().max() < 5 * 0.5 / 200


def test_any_float_type_and_a_single_example_will_do():
    model = vae().float()
    x = binary(5).float()
    assert model.elbo(x).shape == ()
    assert model.elbo(x).dtype == torch.float32
    assert model.iwae_bound(x[None], 3).shape == (1,)
    assert model(x).dtype == torch.float32


def test_single_precision_is_precise():
    model, x, noise = vae(D=300), binary(4, 300), normal(4, 2, seed=2)
    with torch.no_grad():
        exact = model.elbo(x, noise=noise)
        single = model.float().elbo(x.float(), noise=noise.float())
    close(single.double(), exact, rtol=1e-5)


# Its relatives


def pca_data(N=200, D=6, seed=0):
    mixed = normal(3, D, seed=seed)
    return normal(N, 3, seed=seed + 1) @ mixed + 0.3 * normal(N, D, seed=seed + 2) + 1.5


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_closed_form_is_that_of_scikit_learn(d):
    x, more = pca_data(), pca_data(seed=9)
    ours, theirs = ProbabilisticPCA(d).fit(x), PCA(d).fit(x.numpy())
    shrink = 199 / 200  # theirs divides by N − 1
    close(ours.noise_variance_.item(), theirs.noise_variance_ * shrink)
    eye = torch.eye(6).double()
    covariance = ours.weight_ @ ours.weight_.T + ours.noise_variance_ * eye
    close(covariance, torch.from_numpy(theirs.get_covariance()) * shrink)
    judge = dist.MultivariateNormal(x.mean(0), covariance).log_prob(more)
    close(ours.score_samples(more), judge)
    close(ours.score(more), judge.mean().item())
    close(ours.score(x), theirs.score(x.numpy()), rtol=1e-3)


def test_more_numbers_than_examples_leave_directions_without_variance():
    x = pca_data(N=10, D=30)
    model, climbed = ProbabilisticPCA(2).fit(x), ProbabilisticPCA(2)
    whole = model.weight_.square().sum() + 30 * model.noise_variance_
    close(whole, x.var(0, correction=0).sum())  # the model has the variance of the data
    close(climbed.fit_em(x, 3000, tol=1e-12)[-1], model.score(x), rtol=1e-8)


def test_no_nearby_model_is_as_likely():
    x = pca_data()
    model = ProbabilisticPCA(2).fit(x)
    best, weight = model.score(x), model.weight_
    for seed in range(20):
        model.weight_ = weight + 1e-3 * normal(6, 2, seed=seed)
        assert model.score(x) < best
    model.weight_ = weight
    for factor in (0.99, 1.01):
        model.noise_variance_ = model.noise_variance_ * factor
        assert model.score(x) < best


@pytest.mark.parametrize("seed", range(5))
def test_em_never_falls_and_arrives_at_the_closed_form(seed):
    x = pca_data(seed=seed)
    model, exact = ProbabilisticPCA(2), ProbabilisticPCA(2).fit(x)
    levels = model.fit_em(x, 3000, tol=1e-13, seed=seed)
    assert all(b >= a - 1e-12 for a, b in pairwise(levels))
    close(levels[-1], exact.score(x), rtol=1e-9)
    close(model.noise_variance_, exact.noise_variance_, rtol=1e-5)
    # W up to a rotation of the code
    close(model.weight_ @ model.weight_.T, exact.weight_ @ exact.weight_.T, 1e-4, 1e-4)


def test_em_ends_with_the_first_step_that_adds_less_than_the_tolerance():
    gains = torch.tensor(ProbabilisticPCA(2).fit_em(pca_data(), tol=1e-4)).diff()
    assert gains[-1] < 1e-4 <= gains[:-1].min()


def test_em_takes_the_steps_that_the_equations_say():
    x = pca_data()
    model = ProbabilisticPCA(2)
    levels = model.fit_em(x, 1, seed=3)
    W = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    s = (x - x.mean(0)).square().mean()
    W, c = W * (s / 2).sqrt(), x - x.mean(0)
    M_inverse = torch.linalg.inv(W.T @ W + s * torch.eye(2).double())
    zs = [M_inverse @ W.T @ row for row in c]
    second = sum(s * M_inverse + torch.outer(z, z) for z in zs)
    W_new = sum(torch.outer(row, z) for row, z in zip(c, zs, strict=True)) @ second.inverse()
    # Tipping and Bishop's own form of the noise
    noise = sum(row @ row - 2 * z @ W_new.T @ row for row, z in zip(c, zs, strict=True))
    noise = (noise + torch.trace(second @ W_new.T @ W_new)) / (200 * 6)
    close(model.weight_, W_new, rtol=1e-9)
    close(model.noise_variance_, noise, rtol=1e-9)
    assert len(levels) == 2
    assert levels[1] == model.score(x)


def test_the_posterior_is_that_of_a_joint_normal_distribution():
    x = pca_data()
    model = ProbabilisticPCA(3).fit(x)
    mean, covariance = model.posterior(x[:7])
    W, s = model.weight_, model.noise_variance_
    marginal = W @ W.T + s * torch.eye(6).double()
    gain = W.T @ marginal.inverse()
    close(mean, (x[:7] - x.mean(0)) @ gain.T, rtol=1e-8)
    close(covariance, torch.eye(3).double() - gain @ W, rtol=1e-8)


def as_vae(pca):
    """Probabilistic PCA as a VAE: the same decoder, and an encoder that is the posterior."""
    D, d = pca.weight_.shape
    model = VAE(Linear(D, 2 * d), Linear(d, D), Gaussian()).double()
    zero, covariance = pca.posterior(0 * pca.mean_[None])
    with torch.no_grad():
        model.decoder.weight[:], model.decoder.bias[:] = pca.weight_, pca.mean_
        model.likelihood.log_variance.copy_(pca.noise_variance_.log())
        model.encoder.weight[:d] = (pca.posterior(torch.eye(D).double())[0] - zero).T
        model.encoder.weight[d:] = 0
        model.encoder.bias[:] = torch.cat([zero[0], covariance.diagonal().log()])
    return model


def sigma_points(N, d):
    """2d noises of weight one each that average any square of a code exactly."""
    return math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)]).double()[:, None].expand(
        -1, N, -1
    )


def test_the_bound_of_a_linear_model_with_its_posterior_is_the_likelihood():
    x = pca_data()
    pca = ProbabilisticPCA(3).fit(x)  # the columns of W are orthogonal: q may be diagonal
    bound = as_vae(pca).elbo(x, noise=sigma_points(200, 3)).mean(0)
    close(bound, pca.score_samples(x), rtol=1e-9)


def test_a_linear_vae_trained_by_gradient_arrives_at_probabilistic_pca():
    x = pca_data() / 2
    pca, eps = ProbabilisticPCA(2).fit(x), sigma_points(200, 2)
    torch.manual_seed(0)
    model = VAE(Linear(6, 4), Linear(2, 6), Gaussian()).double()
    optimizer = Adam(model.parameters(), lr=0.05)
    train(
        lambda batch: -model.elbo(batch[0], noise=eps).mean(),
        optimizer,
        (x,),
        model=model,
        epochs=600,
        batch_size=200,
        scheduler=CosineWithWarmup(optimizer, 0, 600),
        progress=False,
    )
    bound = model.elbo(x, noise=eps).mean().item()
    assert pca.score(x) - 0.02 < bound < pca.score(x)
    W = model.decoder.weight.detach()
    best = pca.weight_ @ pca.weight_.T
    assert (W @ W.T - best).norm() < 0.03 * best.norm()
    close(model.likelihood.log_variance.exp().item(), pca.noise_variance_.item(), 1e-2)


def test_a_linear_autoencoder_finds_the_principal_subspace():
    x = pca_data()
    x = x - x.mean(0)
    torch.manual_seed(0)
    model = Autoencoder(Linear(6, 2), Linear(2, 6)).double()
    fit(model, Adam(model.parameters(), lr=0.02), mse_loss, (x, x), epochs=400, batch_size=200,
        metric=mse_loss, progress=False)  # fmt: skip
    vectors = torch.linalg.svd(x, full_matrices=False)[2][:2].T
    best = (x - x @ vectors @ vectors.T).square().mean().item()
    assert best < mse_loss(model(x), x).item() < 1.001 * best


def test_a_vae_trains():
    x = binary(60, 12) * binary(60, 1, seed=1)
    torch.manual_seed(0)
    model = VAE(MLP([12, 16, 4]), MLP([2, 16, 12]))
    assert count_parameters(model) == 12 * 16 + 16 + 16 * 4 + 4 + 2 * 16 + 16 + 16 * 12 + 12
    step = lambda batch: -model.elbo(batch[0]).mean()  # noqa: E731
    history = train(step, Adam(model.parameters(), lr=0.01), (x.float(),), model=model,
                    epochs=80, batch_size=60, progress=False)  # fmt: skip
    share = x.mean(0).float().clamp(1e-3, 1 - 1e-3)
    independent = dist.Bernoulli(share).log_prob(x.float()).sum(-1).mean().item()
    assert -history.loss[-1] > independent + 0.5  # better than pixels that know nothing


# The trials


def keys(tree):
    """A tree of dictionaries without what hangs on it; all numbers are one key."""
    if not isinstance(tree, dict):
        return None
    return {"number" if k.isdigit() else k: keys(v) for k, v in tree.items()}


def test_the_script_writes_what_is_stored_but_for_the_settings(tmp_path, monkeypatch):
    stored = json.loads((DATA / "vae_trials.json").read_text(encoding="utf-8"))
    assert stored["settings"] == trials.SETTINGS
    sizes = (150, 40, 40)
    few = [Examples(x[:n], y[:n]) for (x, y), n in zip(fashion_mnist(), sizes, strict=True)]
    monkeypatch.setattr(trials, "fashion_mnist", lambda: Splits(*few))
    for setting, value in {
        "epochs": 1,
        "epochs_of_a_sweep": 1,
        "components": [1, 5],
        "components_of_pca": [5],
        "iterations": 1,
        "codes_of_iwae": 2,
    }.items():
        monkeypatch.setitem(trials.SETTINGS, setting, value)
    trials.write(tmp_path / "trials.json")
    written = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
    assert keys(written) == keys(stored)
    for tree in (written, stored):
        seeds = [tree["black and white"]["vae"]]
        seeds += [tree["grey"][kind] for kind in ("one variance", "own variances")]
        seeds += [max(tree["black and white"]["mixture"].values(), key=len)]
        assert [*map(len, seeds)] == [3, 3, 3, 3]


def test_stored_bits_are_what_the_script_finds():
    stored = json.loads((DATA / "vae_trials.json").read_text(encoding="utf-8"))
    x, validation, test = trials.binarised()
    mixture = trials.BernoulliMixture(66, x)
    found = [trials.bits(mixture.score(part)) for part in (validation, test)]
    assert found == pytest.approx(stored["black and white"]["mixture"]["66"][0], rel=0.005)
    grey, _, fresh = trials.dequantised(tuple(p.x.flatten(1) for p in fashion_mnist()), 256)
    found = trials.bits(ProbabilisticPCA(20).fit(grey).score(fresh), 256)
    assert found == pytest.approx(stored["grey"]["pca"]["20"][1], abs=0.002)


def test_bits_of_a_fair_coin_are_one_and_of_a_uniform_density_those_of_its_levels():
    assert trials.bits(784 * math.log(0.5)) == pytest.approx(1)
    assert trials.bits(0.0, 256) == 8


def test_noise_makes_of_each_level_an_interval_of_the_same_width():
    levels = torch.tensor([0.0, 1.0, 128.0, 255.0]).repeat(50, 1)
    x, *_ = trials.dequantised((levels / 255,) * 3, 256)
    assert torch.equal((x * 256).floor(), levels)
    assert 0.4 < (x * 256 - levels).mean() < 0.6


def test_pictures_of_two_colours_have_two():
    for part, grey in zip(trials.binarised(), fashion_mnist(), strict=True):
        assert torch.equal(part, (grey.x.flatten(1) > 0.5).float())


def test_the_rivals_have_as_many_parameters():
    vae, grey = trials.vae_of("black and white"), trials.vae_of("own variances", 20, 128)
    decoder, whole = count_parameters(vae.decoder), count_parameters(vae)
    assert abs(264 * 785 / decoder - 1) < 0.005
    assert abs(533 * 785 / whole - 1) < 0.005
    assert abs(132 * (2 * 784 + 1) / count_parameters(grey.decoder) - 1) < 0.015


def test_em_for_a_mixture_of_bernoullis_climbs_and_is_a_distribution(monkeypatch):
    x = binary(200, 6).float() * binary(200, 1, seed=1).float()
    scores = []
    for iterations in (0, 1, 2, 5, 20):
        monkeypatch.setitem(trials.SETTINGS, "iterations", iterations)
        mixture = trials.BernoulliMixture(4, x)
        scores.append(mixture.score(x))
    assert scores == sorted(scores)
    one = trials.BernoulliMixture(1, x)
    torch.testing.assert_close(one.p, (x.sum(0)[None] + 0.1) / 200.2)
    pictures = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    assert mixture.log_joint(pictures).logsumexp(1).exp().sum().item() == pytest.approx(1)
    judge = dist.Bernoulli(mixture.p).log_prob(x[:, None]).sum(2) + mixture.pi.log()
    torch.testing.assert_close(mixture.log_joint(x), judge, rtol=1e-4, atol=1e-4)


# What is refused


@pytest.mark.usefixtures("plain_python")
def test_mistakes_are_explained():
    x, z = torch.rand(4, 5), torch.rand(4, 2)
    model = vae().float()
    with pytest.raises(ValueError, match=r"a distribution over 0 and 1, got 0\.\d+: binarise"):
        model.elbo(x)
    with pytest.raises(ValueError, match=r"encoder must say .* got 3 numbers, which is odd"):
        VAE(Linear(5, 3), Linear(2, 5)).encode(x)
    with pytest.raises(ValueError, match=r"decoder must say .* got 5 numbers, which is odd"):
        VAE(Linear(5, 4), Linear(2, 5), DiagonalGaussian()).decode(z)
    with pytest.raises(ValueError, match=r"with D 5 as in x, got shape \(4, 6\)"):
        VAE(Linear(5, 4), Linear(2, 6)).elbo(x.round())
    with pytest.raises(ValueError, match=r"shape of the examples, \(4, 5\), got \(3, 5\)"):
        Bernoulli().log_prob(x.round(), x[:3])
    with pytest.raises(ValueError, match="beta must not be negative, got -1"):
        model.elbo(x.round(), beta=-1.0)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        model.iwae_bound(x.round(), 0)
    with pytest.raises(ValueError, match=r"must end in the shape of the mean, \(4, 2\), got"):
        reparameterise(z, z, torch.rand(4, 3, 2))
    with pytest.raises(ValueError, match=r"one dimension more than the code, .* \(4, 2\) for"):
        model.iwae_bound(x.round(), noise=z)
    with pytest.raises(ValueError, match=r"\(\*batch, d\), with d 2 as in mean, got"):
        kl_divergence(z, x)
    with pytest.raises(ValueError, match=r"got shapes \(4, 2\) and \(3, 2\)"):
        kl_divergence(z, z[:3])
    with pytest.raises(ValueError, match="a variance must be above 0, got 0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        DiagonalGaussian(-1.0)
    with pytest.raises(ValueError, match="two examples at least"):
        active_units(z[:1])


@pytest.mark.usefixtures("plain_python")
def test_mistakes_with_components_are_explained():
    x = pca_data()
    with pytest.raises(ValueError, match="n_components must be at least 1, got 0"):
        ProbabilisticPCA(0)
    with pytest.raises(ValueError, match="6 components need more examples than that, and more"):
        ProbabilisticPCA(6).fit(x)
    with pytest.raises(ValueError, match="without an error, so that no noise is left"):
        ProbabilisticPCA(3).fit(normal(20, 3) @ normal(3, 6))
    with pytest.raises(ValueError, match="call fit or fit_em first"):
        ProbabilisticPCA(2).score(x)
    with pytest.raises(ValueError, match="was fitted to 6 numbers an example, got 5"):
        ProbabilisticPCA(2).fit(x).score(x[:, :5])
    with pytest.raises(ValueError, match="max_iter must be at least 1 and tol not negative"):
        ProbabilisticPCA(2).fit_em(x, 0)
    with pytest.raises(TypeError, match=r"holds torch.float64, and its input is torch.float32"):
        ProbabilisticPCA(2).fit(x).score(x.float())


def test_a_module_of_another_kind_is_refused(plain_python):
    with pytest.raises(TypeError, match="encoder must be a Module"):
        VAE(lambda x: x, nn.Identity())
