r"""Variational autoencoders, which learn a model of the data and a hidden code at once, and
their nearest relatives.

Taught in chapter *Variational autoencoders*. A :class:`VAE` is a decoder
:math:`p_\theta(x \mid z)` with a likelihood, :class:`Bernoulli`, :class:`Gaussian` or
:class:`DiagonalGaussian`, and an encoder that says for each :math:`x` which codes it may have
come from. Its linear case is :class:`ProbabilisticPCA`, which expectation maximisation fits
too, or a formula. Without probabilities an :class:`Autoencoder` is left.

A code :math:`z` has :math:`d` numbers and, before anything is seen, a standard normal
distribution. The encoder's distribution is given everywhere by its mean :math:`\mu` and the
logarithm of its variance, :math:`\log \sigma^2`, one each for each number of the code.

References: Kingma and Welling, *Auto-encoding variational Bayes*, ICLR 2014, arXiv:1312.6114;
Rezende, Mohamed and Wierstra, *Stochastic backpropagation and approximate inference in deep
generative models*, ICML 2014, arXiv:1401.4082.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from companion.checks import check_alike, checked

__all__ = [
    "VAE",
    "Autoencoder",
    "Bernoulli",
    "DiagonalGaussian",
    "Gaussian",
    "ProbabilisticPCA",
    "active_units",
    "kl_divergence",
    "reparameterise",
]


@checked
def kl_divergence(
    mean: Float[Tensor, "*batch d"], log_variance: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch"]:
    r"""How far a normal distribution with independent numbers is from the standard one.

    .. math:: \mathrm{KL}\bigl(\mathcal N(\mu, \operatorname{diag} \sigma^2) \,\|\,
              \mathcal N(0, I)\bigr)
              = \frac12 \sum_{i=1}^d \bigl(\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2\bigr)

    Args:
        mean: :math:`\mu`.
        log_variance: :math:`\log \sigma^2`.

    Returns:
        One number for each code, in nats; zero only for the standard normal distribution.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same(mean, log_variance)
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance).sum(-1)


@checked
def reparameterise(
    mean: Float[Tensor, "*batch d"],
    log_variance: Float[Tensor, "*batch d"],
    noise: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    r"""Draw from a normal distribution so that a gradient reaches its parameters.

    .. math:: z = \mu + \sigma \odot \epsilon, \qquad \epsilon \sim \mathcal N(0, I)

    Args:
        mean: :math:`\mu`.
        log_variance: :math:`\log \sigma^2`.
        noise: :math:`\epsilon`, which may have further dimensions in front, for several codes
            of each example; drawn in the shape of ``mean`` by default.

    Returns:
        :math:`z`, in the shape of the noise.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check_same(mean, log_variance)
    if noise is None:
        noise = torch.randn_like(mean)
    elif noise.shape[max(noise.dim() - mean.dim(), 0) :] != mean.shape:
        raise ValueError(
            f"the noise must end in the shape of the mean, {tuple(mean.shape)}, got "
            f"{tuple(noise.shape)}: draw it with torch.randn_like(mean), or with "
            "torch.randn(samples, *mean.shape)"
        )
    check_alike("the code", noise, mean)
    return mean + (log_variance / 2).exp() * noise


@checked
def active_units(mean: Float[Tensor, "examples d"], threshold: float = 0.01) -> int:
    r"""How many numbers of the code tell something about the example.

    Number :math:`i` is active if the encoder's mean moves with the example,
    :math:`\operatorname{Var}_x[\mu_i(x)] >` ``threshold``. Source: Burda, Grosse and
    Salakhutdinov, *Importance weighted autoencoders*, ICLR 2016, arXiv:1509.00519.

    Args:
        mean: The encoder's means, one row an example.
        threshold: The variance that counts as moving.

    Raises:
        ValueError: If there are fewer than two examples, or the threshold is negative.
    """
    if len(mean) < 2 or threshold < 0:
        raise ValueError(
            "a variance needs two examples at least, and a threshold that is not negative, got "
            f"{len(mean)} and {threshold}"
        )
    return int((mean.var(dim=0) > threshold).sum())


class Bernoulli(nn.Module):
    r"""The likelihood of pixels that are black or white: the decoder's numbers are logits.

    .. math:: \log p(x \mid z) = \sum_j \log \sigma\bigl((2 x_j - 1)\, s_j\bigr), \qquad
              x_j \in \{0, 1\},

    where :math:`s` is what the decoder says, and :math:`\sigma(s_j)` the probability of
    :math:`x_j = 1`. Grey pixels have no probability here: over :math:`0 \le x_j \le 1` the
    formula :math:`p^{x} (1 - p)^{1 - x}` does not integrate to one.
    """

    @checked
    def log_prob(
        self, x: Float[Tensor, "*batch D"], decoded: Float[Tensor, "*codes D"]
    ) -> Float[Tensor, "*codes"]:
        """The logarithm of the probability of each example.

        Args:
            x: Zeros and ones.
            decoded: Logits for each code, with further dimensions in front where an example has
                several codes.

        Returns:
            One number for each code, in nats.

        Raises:
            ValueError: If a pixel is neither zero nor one, or the shapes do not fit.
        """
        _check_ends_in(decoded, x)
        if ((x != 0) & (x != 1)).any():
            grey = x[(x != 0) & (x != 1)][0].item()
            raise ValueError(
                f"a Bernoulli is a distribution over 0 and 1, got {grey:.3g}: binarise, as by "
                "(x > 0.5).float(), or take a Gaussian likelihood"
            )
        return F.logsigmoid((2 * x - 1) * decoded).sum(-1)

    @checked
    def mean(self, decoded: Float[Tensor, "*codes D"]) -> Float[Tensor, "*codes D"]:
        """The probability of a one at each place.

        Args:
            decoded: Logits.
        """
        return decoded.sigmoid()

    @checked
    def sample(self, decoded: Float[Tensor, "*codes D"]) -> Float[Tensor, "*codes D"]:
        """Zeros and ones drawn with these probabilities.

        Args:
            decoded: Logits.
        """
        return decoded.sigmoid().bernoulli()


class Gaussian(nn.Module):
    r"""The likelihood of real numbers with the same noise everywhere, whose mean the decoder
    says.

    .. math:: \log p(x \mid z) = -\frac{1}{2 \sigma^2} \lVert x - m \rVert^2
              - \frac D2 \log (2 \pi \sigma^2),

    where :math:`m` is what the decoder says. :math:`\sigma^2` is learned together with the
    weights: it is the scale on which an error counts, and without it the squared error has no
    unit in which it could be added to a divergence.

    Args:
        variance: :math:`\sigma^2`, with which learning begins.

    Attributes:
        log_variance: :math:`\log \sigma^2`, a parameter of one number.

    Raises:
        ValueError: If the variance is not above zero.
    """

    @checked
    def __init__(self, variance: float = 1.0):
        super().__init__()
        if variance <= 0:
            raise ValueError(f"a variance must be above 0, got {variance}")
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)))

    @checked
    def log_prob(
        self, x: Float[Tensor, "*batch D"], decoded: Float[Tensor, "*codes D"]
    ) -> Float[Tensor, "*codes"]:
        """The logarithm of the density at each example.

        Args:
            x: The examples.
            decoded: The mean for each code, with further dimensions in front where an example
                has several codes.

        Returns:
            One number for each code, in nats.

        Raises:
            ValueError: If the shapes do not fit.
        """
        _check_ends_in(decoded, x)
        return _normal_log_density(x, decoded, self.log_variance).sum(-1)

    @checked
    def mean(self, decoded: Float[Tensor, "*codes D"]) -> Float[Tensor, "*codes D"]:
        """The mean, which is what the decoder says.

        Args:
            decoded: The mean.
        """
        return decoded

    @checked
    def sample(self, decoded: Float[Tensor, "*codes D"]) -> Float[Tensor, "*codes D"]:
        r"""The mean, and noise of variance :math:`\sigma^2`.

        Args:
            decoded: The mean.
        """
        return decoded + (self.log_variance / 2).exp() * torch.randn_like(decoded)


class DiagonalGaussian(nn.Module):
    r"""The likelihood of real numbers whose noise differs from place to place: the decoder says
    the mean and the logarithm of the variance of each, means first.

    .. math:: \log p(x \mid z) = -\frac12 \sum_j \Bigl(\frac{(x_j - m_j)^2}{\sigma_j^2}
              + \log (2 \pi \sigma_j^2)\Bigr)

    Args:
        least: A floor under all variances, added to them. Without one, a decoder that knows a
            number exactly makes the density there as large as it likes.

    Raises:
        ValueError: If the floor is negative.
    """

    @checked
    def __init__(self, least: float = 1e-6):
        super().__init__()
        if least < 0:
            raise ValueError(f"the least variance must not be negative, got {least}")
        self.least = least

    @checked
    def log_prob(
        self, x: Float[Tensor, "*batch D"], decoded: Float[Tensor, "*codes D_and_D"]
    ) -> Float[Tensor, "*codes"]:
        """The logarithm of the density at each example.

        Args:
            x: The examples.
            decoded: Means and logarithms of variances for each code, side by side.

        Returns:
            One number for each code, in nats.

        Raises:
            ValueError: If the shapes do not fit.
        """
        mean, log_variance = _halves(decoded, "decoder")
        _check_ends_in(mean, x)
        return _normal_log_density(x, mean, self._floored(log_variance)).sum(-1)

    @checked
    def mean(self, decoded: Float[Tensor, "*codes D_and_D"]) -> Float[Tensor, "*codes D"]:
        """The means, the first half of what the decoder says.

        Args:
            decoded: Means and logarithms of variances, side by side.
        """
        return _halves(decoded, "decoder")[0]

    @checked
    def sample(self, decoded: Float[Tensor, "*codes D_and_D"]) -> Float[Tensor, "*codes D"]:
        """The means, and noise of these variances.

        Args:
            decoded: Means and logarithms of variances, side by side.
        """
        mean, log_variance = _halves(decoded, "decoder")
        return reparameterise(mean, self._floored(log_variance))

    def _floored(self, log_variance):
        return (log_variance.exp() + self.least).log()


class VAE(nn.Module):
    r"""A variational autoencoder: a model of data with hidden codes, and a network that finds
    the codes.

    .. math:: z \sim \mathcal N(0, I), \qquad x \sim p_\theta(x \mid z), \qquad
              q_\phi(z \mid x) = \mathcal N\bigl(\mu_\phi(x),
              \operatorname{diag} \sigma_\phi^2(x)\bigr)

    Minus the mean of :meth:`elbo` is the loss. In expectation maximisation an E-step would find
    :math:`q` for each example anew; here the encoder finds it for all, learned together with
    the decoder by gradient.

    Args:
        encoder: Maps examples (batch, D) to (batch, 2d): :math:`\mu_\phi` and
            :math:`\log \sigma_\phi^2` side by side.
        decoder: Maps codes (batch, d) to what the likelihood takes: (batch, D) for
            :class:`Bernoulli` (logits) and :class:`Gaussian` (means), (batch, 2D) for
            :class:`DiagonalGaussian`.
        likelihood: One of them; black and white by default.

    Example:
        >>> vae = VAE(MLP([784, 256, 2 * 20]), MLP([20, 256, 784]))
        >>> loss = -vae.elbo(x).mean()
    """

    @checked
    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module | None = None
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = Bernoulli() if likelihood is None else likelihood

    @checked
    def encode(
        self, x: Float[Tensor, "*batch D"]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        r"""The distribution of the code of each example.

        Args:
            x: The examples.

        Returns:
            :math:`\mu_\phi(x)` and :math:`\log \sigma_\phi^2(x)`.

        Raises:
            ValueError: If the encoder gives an odd number of numbers.
        """
        return _halves(self.encoder(x), "encoder")

    @checked
    def decode(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch D"]:
        """The mean of the examples that a code stands for.

        Args:
            z: Codes.

        Returns:
            For black and white the probabilities of white.
        """
        return self.likelihood.mean(self.decoder(z))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The reconstruction: what the mean of each example's code stands for.

        Args:
            x: The examples.
        """
        return self.decode(self.encode(x)[0])

    @checked
    def sample(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch D"]:
        """Examples drawn from the model for codes, ``torch.randn(16, d)`` say.

        Args:
            z: Codes.
        """
        return self.likelihood.sample(self.decoder(z))

    @checked
    def terms(
        self,
        x: Float[Tensor, "*batch D"],
        q: tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]] | None = None,
        noise: Float[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "*batch"]]:
        r"""The two terms of the bound: :math:`\log p_\theta(x \mid z)` at a code drawn from
        :math:`q`, and :math:`\mathrm{KL}(q \,\|\, p(z))`.

        Args:
            x: The examples.
            q: :math:`\mu` and :math:`\log \sigma^2` of another :math:`q` than the encoder's.
            noise: :math:`\epsilon` of :func:`reparameterise`.

        Returns:
            One number of each kind for each example, in nats; of the first as many as there are
            codes.

        Raises:
            ValueError: If the shapes do not fit, or the likelihood refuses the examples.
        """
        q = self.encode(x) if q is None else q
        z = reparameterise(*q, noise)
        return self.likelihood.log_prob(x, self.decoder(z)), kl_divergence(*q)

    @checked
    def elbo(
        self,
        x: Float[Tensor, "*batch D"],
        q: tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]] | None = None,
        *,
        beta: float = 1.0,
        noise: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "..."]:
        r"""An unbiased estimate of the lower bound of :math:`\log p_\theta(x)` from one code.

        .. math:: \mathcal L = \mathbb E_{q}\bigl[\log p_\theta(x \mid z)\bigr]
                  - \beta\, \mathrm{KL}\bigl(q(z) \,\|\, p(z)\bigr)

        It bounds the log-likelihood if :math:`\beta \ge 1`, and is the evidence lower bound if
        :math:`\beta = 1`. For another weight: Higgins et al., *beta-VAE: learning basic visual
        concepts with a constrained variational framework*, ICLR 2017.

        Args:
            x: The examples.
            q: :math:`\mu` and :math:`\log \sigma^2` of another :math:`q` than the encoder's.
            beta: The weight of the divergence.
            noise: :math:`\epsilon` of :func:`reparameterise`, with further dimensions in front
                for several codes; drawn by default, fresh for each example.

        Returns:
            One number for each example (for each code, if there is noise for several), in nats.

        Raises:
            ValueError: If the weight is negative, the shapes do not fit, or the likelihood
                refuses the examples.
        """
        if beta < 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        log_likelihood, kl = self.terms(x, q, noise)
        return log_likelihood - beta * kl

    @checked
    def iwae_bound(
        self,
        x: Float[Tensor, "*batch D"],
        samples: int = 50,
        q: tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]] | None = None,
        *,
        noise: Float[Tensor, "samples *batch d"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        r"""A lower bound of :math:`\log p_\theta(x)` that becomes tight with many codes.

        .. math:: \mathcal L_S = \mathbb E \log \frac1S \sum_{s=1}^S w_s, \qquad
                  w_s = \frac{p_\theta(x \mid z_s)\, p(z_s)}{q(z_s)}, \qquad z_s \sim q

        With one code it is :meth:`elbo`, but for the divergence, which is estimated from the
        same code. The expectation never falls with :math:`S`, and converges to the
        log-likelihood. Source: Burda, Grosse and Salakhutdinov, *Importance weighted
        autoencoders*, ICLR 2016, arXiv:1509.00519.

        Args:
            x: The examples.
            samples: :math:`S`. All codes of all examples are decoded at once: for thousands of
                them give a few examples at a time.
            q: :math:`\mu` and :math:`\log \sigma^2` of another :math:`q` than the encoder's.
            noise: The :math:`\epsilon` of all codes, in place of ``samples``.

        Returns:
            An unbiased estimate of the bound for each example, in nats.

        Raises:
            ValueError: If there is no sample, the shapes do not fit, or the likelihood refuses
                the examples.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        mean, log_variance = self.encode(x) if q is None else q
        if noise is None:
            noise = torch.randn(samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        elif noise.dim() != mean.dim() + 1 or len(noise) == 0:
            raise ValueError(
                "the noise needs one dimension more than the code, the samples, got shape "
                f"{tuple(noise.shape)} for codes of shape {tuple(mean.shape)}: draw it with "
                "torch.randn(samples, *mean.shape)"
            )
        z = reparameterise(mean, log_variance, noise)
        # log p(z) − log q(z); the factors 2π are the same in both
        log_ratio = 0.5 * (noise.square() + log_variance - z.square()).sum(-1)
        log_w = self.likelihood.log_prob(x, self.decoder(z)) + log_ratio  # (samples, *batch)
        return log_w.logsumexp(0) - math.log(len(noise))


class Autoencoder(nn.Module):
    r"""Two networks that squeeze an example through a short code, :math:`\hat x =
    g(f(x))`, and no probabilities: ``fit(model, optimizer, mse_loss, (x, x))``.

    Args:
        encoder: :math:`f`, from examples to codes.
        decoder: :math:`g`, from codes to examples.
    """

    @checked
    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The reconstruction.

        Args:
            x: The examples.
        """
        return self.decoder(self.encoder(x))


class ProbabilisticPCA:
    r"""Principal component analysis as a model with hidden codes.

    .. math:: z \sim \mathcal N(0, I), \qquad
              x \mid z \sim \mathcal N(W z + \mu, \sigma^2 I), \qquad
              x \sim \mathcal N(\mu, W W^\top + \sigma^2 I)

    :meth:`fit` takes the maximum of the likelihood from the eigenvectors :math:`u_i` of the
    covariance matrix (with :math:`1/N`) and its eigenvalues :math:`\lambda_1 \ge \lambda_2 \ge
    \dots`, :meth:`fit_em` climbs to it by expectation maximisation. Source: Tipping and Bishop,
    *Probabilistic principal component analysis*, Journal of the Royal Statistical Society B 61
    (1999).

    Args:
        n_components: :math:`d`, the length of a code.

    Attributes:
        mean_: :math:`\mu`, of shape (D,).
        weight_: :math:`W`, of shape (D, d).
        noise_variance_: :math:`\sigma^2`, of shape ().

    Raises:
        ValueError: If there is no component.
    """

    @checked
    def __init__(self, n_components: int):
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {n_components}")
        self.n_components = n_components

    @checked
    def fit(self, x: Float[Tensor, "examples D"]) -> "ProbabilisticPCA":
        r"""The maximum of the likelihood in closed form.

        .. math:: \sigma^2 = \frac{1}{D - d} \sum_{i > d} \lambda_i, \qquad
                  W = \bigl(u_1 \sqrt{\lambda_1 - \sigma^2}, \dots,
                  u_d \sqrt{\lambda_d - \sigma^2}\bigr)

        Any rotation of the code, :math:`W R`, is as likely.

        Args:
            x: The examples.

        Returns:
            The fitted model itself.

        Raises:
            ValueError: If there are too few examples or numbers for so many components, or
                nothing is left over for the noise.
        """
        centred = self._centre(x)
        _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
        variances = singular.square() / len(x)
        d = self.n_components
        self.noise_variance_ = variances[d:].sum() / (x.shape[1] - d)
        if not self.noise_variance_ > 1e-12 * variances[0]:
            raise ValueError(
                f"{d} components describe the examples without an error, so that no noise is "
                "left: the likelihood has no maximum; take fewer"
            )
        scale = (variances[:d] - self.noise_variance_).sqrt()
        self.weight_ = vectors[:d].T * scale
        return self

    @checked
    def fit_em(
        self,
        x: Float[Tensor, "examples D"],
        max_iter: int = 1000,
        *,
        tol: float = 1e-9,
        seed: int = 0,
    ) -> list[float]:
        r"""Climb to the maximum by expectation maximisation, from a random :math:`W`.

        .. math::

            \text{E:} &\quad \bar z_n = M^{-1} W^\top (x_n - \mu), \qquad
            \overline{z_n z_n^\top} = \sigma^2 M^{-1} + \bar z_n \bar z_n^\top, \qquad
            M = W^\top W + \sigma^2 I \\
            \text{M:} &\quad W \gets \Bigl(\sum_n (x_n - \mu)\, \bar z_n^\top\Bigr)
            \Bigl(\sum_n \overline{z_n z_n^\top}\Bigr)^{-1}, \\
            &\quad \sigma^2 \gets \frac{1}{N D} \sum_n \Bigl(\lVert x_n - \mu - W \bar z_n
            \rVert^2 + \operatorname{tr} W^\top W \sigma^2 M^{-1}\Bigr)

        with the old :math:`\sigma^2 M^{-1}` in the last line.

        Args:
            x: The examples.
            max_iter: The largest number of iterations.
            tol: It ends when an iteration adds less than this to the mean log-likelihood.
            seed: Draws the first :math:`W`.

        Returns:
            The mean log-likelihood of an example before each iteration and after the last; it
            never falls.

        Raises:
            ValueError: As :meth:`fit`, or if a number is out of its range.
        """
        if max_iter < 1 or tol < 0:
            raise ValueError(
                f"max_iter must be at least 1 and tol not negative, got {max_iter} and {tol}"
            )
        centred = self._centre(x)
        d = self.n_components
        draws = torch.Generator().manual_seed(seed)
        scale = centred.square().mean()
        W = torch.randn(x.shape[1], d, generator=draws, dtype=torch.float64)
        self.weight_, self.noise_variance_ = W.to(x) * (scale / d).sqrt(), scale
        levels = [self.score(x)]
        for _ in range(max_iter):
            z, covariance = self.posterior(x)
            self.weight_ = torch.linalg.solve(z.T @ z + len(x) * covariance, z.T @ centred).T
            error = (centred - z @ self.weight_.T).square().sum() / len(x)
            spread = (self.weight_.T @ self.weight_ * covariance).sum()
            self.noise_variance_ = (error + spread) / x.shape[1]
            levels.append(self.score(x))
            if levels[-1] - levels[-2] < tol:
                break
        return levels

    @checked
    def posterior(
        self, x: Float[Tensor, "examples D"]
    ) -> tuple[Float[Tensor, "examples d"], Float[Tensor, "d d"]]:
        r"""The distribution of the code of each example, :math:`\mathcal N(M^{-1} W^\top (x -
        \mu), \sigma^2 M^{-1})`.

        Args:
            x: The examples.

        Returns:
            The means, and the covariance, which is the same for all.

        Raises:
            ValueError: If the model is not fitted, or to examples of another length.
        """
        self._check_fitted(x)
        root = self._root()
        mean = torch.cholesky_solve(self.weight_.T @ (x - self.mean_).T, root).T
        return mean, self.noise_variance_ * torch.cholesky_inverse(root)

    @checked
    def score_samples(self, x: Float[Tensor, "examples D"]) -> Float[Tensor, " examples"]:
        r"""The log-likelihood of each example.

        With the posterior mean :math:`\bar z`, and without a matrix of D rows and columns,

        .. math:: \log p(x) = -\frac12 \Bigl(\frac{\lVert x - \mu - W \bar z \rVert^2}{\sigma^2}
                  + \lVert \bar z \rVert^2 + D \log 2 \pi + (D - d) \log \sigma^2
                  + \log \det M\Bigr).

        Args:
            x: The examples.

        Returns:
            One number for each, in nats.

        Raises:
            ValueError: If the model is not fitted, or to examples of another length.
        """
        z, _ = self.posterior(x)
        D, d = self.weight_.shape
        error = (x - self.mean_ - z @ self.weight_.T).square().sum(1)
        distance = error / self.noise_variance_ + z.square().sum(1)
        log_det = (D - d) * self.noise_variance_.log() + 2 * self._root().diagonal().log().sum()
        return -0.5 * (distance + D * math.log(2 * math.pi) + log_det)

    @checked
    def score(self, x: Float[Tensor, "examples D"]) -> float:
        """The mean log-likelihood of an example, in nats.

        Args:
            x: The examples.

        Raises:
            ValueError: If the model is not fitted, or to examples of another length.
        """
        return self.score_samples(x).mean().item()

    def _root(self):
        """The Cholesky factor of M."""
        d = self.n_components
        eye = torch.eye(d, dtype=self.weight_.dtype, device=self.weight_.device)
        return torch.linalg.cholesky(self.weight_.T @ self.weight_ + self.noise_variance_ * eye)

    def _centre(self, x):
        N, D = x.shape
        if not self.n_components < min(N, D):
            raise ValueError(
                f"{self.n_components} components need more examples than that, and more "
                f"numbers in each, got {N} of {D}"
            )
        self.mean_ = x.mean(0)
        return x - self.mean_

    def _check_fitted(self, x):
        if not hasattr(self, "weight_"):
            raise ValueError("the model knows nothing yet: call fit or fit_em first")
        if x.shape[1] != len(self.mean_):
            raise ValueError(
                f"the model was fitted to {len(self.mean_)} numbers an example, got "
                f"{x.shape[1]}"
            )
        check_alike("this model", x, self.weight_)


def _normal_log_density(x, mean, log_variance):
    """The logarithm of the normal density, entry by entry."""
    square = (x - mean).square() * (-log_variance).exp()
    return -0.5 * (square + log_variance + math.log(2 * math.pi))


def _halves(both, who):
    """Means and logarithms of variances, from what a network says."""
    if both.shape[-1] % 2:
        raise ValueError(
            f"the {who} must say a mean and the logarithm of a variance for each number, got "
            f"{both.shape[-1]} numbers, which is odd: its last layer needs twice the length"
        )
    return both.chunk(2, dim=-1)


def _check_same(mean, log_variance):
    if mean.shape != log_variance.shape:
        raise ValueError(
            "expected a mean and the logarithm of a variance for each number, got shapes "
            f"{tuple(mean.shape)} and {tuple(log_variance.shape)}"
        )
    check_alike("the mean", log_variance, mean)


def _check_ends_in(decoded, x):
    if decoded.shape[max(decoded.dim() - x.dim(), 0) :] != x.shape:
        raise ValueError(
            f"what is decoded must end in the shape of the examples, {tuple(x.shape)}, got "
            f"{tuple(decoded.shape)}: flatten pictures with x.flatten(1), and give the decoder "
            "as many outputs"
        )
    check_alike("the decoder's output", x, decoded)
