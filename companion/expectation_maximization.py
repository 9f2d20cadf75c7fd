r"""Mixtures of Gaussians, fitted by expectation maximisation, and :math:`k`-means, its limit.

Taught in chapter *Expectation maximisation*. Names, arguments, defaults and learned attributes
are those of ``sklearn.mixture`` and ``sklearn.cluster``, on tensors. Not here:
``sample_weight``, sparse data, and arguments that only choose what is printed or copied.

An example :math:`x_n` has a hidden class :math:`z_n`. The E-step sets the responsibilities
:math:`r_{nk} = p(z_n = k \mid x_n, \theta)`, the M-step sets the parameters
:math:`\theta = (\pi, \mu, \Sigma)` as if the responsibilities were true. Neither lowers the
likelihood :math:`\ell(\theta) = \sum_n \log p(x_n \mid \theta)`.

**Inside.** Differences :math:`x_n - \mu_k` are kept as (components, features, examples), since
the examples are many and the features may be two, and for as many examples at a time as fit
into a processor's cache.

References: Dempster, Laird and Rubin, *Maximum likelihood from incomplete data via the EM
algorithm*, Journal of the Royal Statistical Society B 39 (1977); Bishop, *Pattern Recognition
and Machine Learning* (2006), chapter 9; for the start Arthur and Vassilvitskii, *k-means++: the
advantages of careful seeding*, SODA (2007).
"""

import math
import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from companion.checks import accepts, check_alike, checked

__all__ = ["GaussianMixture", "KMeans", "UnconstrainedMixture", "kmeans_plus_plus"]


class GaussianMixture:
    r"""A density that is a weighted sum of Gaussians, fitted by expectation maximisation.

    .. math:: p(x \mid \theta) = \sum_{k=1}^K \pi_k\, \mathcal N(x \mid \mu_k, \Sigma_k)

    Interchangeable with ``sklearn.mixture.GaussianMixture``, given and giving tensors; of
    its arguments ``verbose`` and ``verbose_interval`` are left out. From one start both do the
    same steps. One thing differs: a component without examples goes where the whole data are,
    wherever that is, and there to the origin.

    Args:
        n_components: The number :math:`K` of components.
        covariance_type: ``"full"``: a matrix for each component; ``"tied"``: one matrix for
            all; ``"diag"``: a variance for each component and feature; ``"spherical"``: a
            variance for each component.
        tol: Stop when the mean log-likelihood of an example changes by less, in nats.
        reg_covar: Added to each variance, so that none becomes zero; in the square of the
            data's unit.
        max_iter: The most iterations of E-step and M-step.
        n_init: How many starts to try; the one that ends highest is kept.
        init_params: Where the first responsibilities come from: ``"kmeans"``: the clusters of
            :class:`KMeans`; ``"k-means++"`` and ``"random_from_data"``: single examples, chosen
            by :func:`kmeans_plus_plus` or evenly; ``"random"``: random numbers.
        weights_init: Mixing weights to start from, instead.
        means_init: Means to start from, instead.
        precisions_init: Inverse covariances to start from, instead, in the shape of
            ``covariances_``.
        random_state: A seed, or a generator; by default PyTorch's own generator.
        warm_start: Whether ``fit`` goes on from what was learned before.

    Attributes:
        weights_: :math:`\pi`, of shape (components,).
        means_: :math:`\mu`, of shape (components, features).
        covariances_: :math:`\Sigma`, of shape (components, features, features), (features,
            features), (components, features) or (components,), by type.
        precisions_cholesky_: For each covariance a factor of its inverse, :math:`\Sigma^{-1} =
            P P^\top`, upper triangular; for variances their inverse square roots.
        converged_: Whether the last change was below ``tol``.
        n_iter_: The iterations of the best start.
        lower_bound_: The mean log-likelihood of an example before the last M-step.
        lower_bounds_: The same for every iteration.

    Raises:
        ValueError: If an option is outside its range, or a start is not a distribution.
    """

    @accepts(verbose=0, verbose_interval=10)
    @checked
    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Float[Tensor, " components"] | None = None,
        means_init: Float[Tensor, "components features"] | None = None,
        precisions_init: Float[Tensor, "..."] | None = None,
        random_state: int | torch.Generator | None = None,
        warm_start: bool = False,
    ):
        _check_least(1, n_components=n_components, n_init=n_init)
        _check_least(0, max_iter=max_iter, tol=tol, reg_covar=reg_covar)
        _check_word("covariance_type", covariance_type, ("full", "tied", "diag", "spherical"))
        starts = ("kmeans", "k-means++", "random", "random_from_data")
        _check_word("init_params", init_params, starts)
        self.n_components, self.covariance_type = n_components, covariance_type
        self.tol, self.reg_covar, self.max_iter, self.n_init = tol, reg_covar, max_iter, n_init
        self.init_params = init_params
        self.weights_init, self.means_init = weights_init, means_init
        self.precisions_init = precisions_init
        self.random_state, self.warm_start = random_state, warm_start

    @torch.no_grad()
    @accepts(y=None)
    @checked
    def fit(self, X: Float[Tensor, "examples features"]) -> "GaussianMixture":
        """Fit the mixture: E-step and M-step in turn, from each start.

        Args:
            X: The examples. Their type of number becomes that of the parameters.

        Returns:
            The mixture itself.

        Raises:
            ValueError: If there are fewer examples than components, or some are not finite, if
                a start does not fit the data, or if a component collapses.
        """
        _check_examples(X, self.n_components)
        X = X.T.contiguous().T  # feature by feature, as the differences are kept
        resumed = self.warm_start and hasattr(self, "converged_")
        random = _generator(self.random_state, X)
        best = None
        for _ in range(1 if resumed else self.n_init):
            bounds = [self.lower_bound_] if resumed else [-math.inf]
            if not resumed:
                self._start(X, random)
            converged = False
            while len(bounds) <= self.max_iter and not converged:
                log_p, r = self.e_step(X)
                self.m_step(X, r)
                bounds.append(log_p.mean().item())
                converged = abs(bounds[-1] - bounds[-2]) < self.tol
            if best is None or bounds[-1] > best[0][-1]:
                best = bounds, converged, (self.weights_, self.means_, self.covariances_)
        bounds, self.converged_, parameters = best
        self.set_parameters(*parameters)
        self.lower_bound_, self.lower_bounds_ = bounds[-1], bounds[1:]
        self.n_iter_ = len(self.lower_bounds_)
        if not self.converged_ and self.max_iter:
            warnings.warn(
                f"EM has not converged within max_iter={self.max_iter} iterations: allow more, "
                "or raise tol",
                stacklevel=2,
            )
        return self

    @checked
    def e_step(
        self, X: Float[Tensor, "examples features"]
    ) -> tuple[Float[Tensor, " examples"], Float[Tensor, "examples components"]]:
        r"""The E-step: for each example its log-likelihood and its responsibilities.

        .. math::
            \log p(x_n) = \log \sum_k e^{\log \pi_k + \log \mathcal N(x_n \mid \mu_k,
            \Sigma_k)}, \qquad
            r_{nk} = \frac{\pi_k\, \mathcal N(x_n \mid \mu_k, \Sigma_k)}{p(x_n)}

        Args:
            X: The examples.

        Returns:
            The log-likelihoods, in nats, and the responsibilities, which sum to one over the
            components.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture has no parameters yet, or another number of features.
        """
        _check_fitted(self, "means_", X)
        log_joint = _log_joint(
            X,
            self.weights_.log(),
            self.means_,
            self.precisions_cholesky_,
            self.covariance_type,
        )
        top = log_joint.amax(0)  # log-sum-exp, whose exponentials serve both results
        r = (log_joint - top).exp_()
        total = r.sum(0)
        return top + total.log(), (r / total).T

    @checked
    def m_step(
        self,
        X: Float[Tensor, "examples features"],
        responsibilities: Float[Tensor, "examples components"],
    ) -> "GaussianMixture":
        r"""The M-step: the parameters that suit the responsibilities best.

        .. math::
            N_k = \sum_n r_{nk}, \qquad \pi_k = \frac{N_k}{N}, \qquad
            \mu_k = \frac1{N_k} \sum_n r_{nk} x_n, \qquad
            \Sigma_k = \frac1{N_k} \sum_n r_{nk} (x_n - \mu_k)(x_n - \mu_k)^\top

        A tied covariance is the mean of these, weighted by :math:`\pi_k`; a diagonal one has
        their diagonals, a spherical one the mean of the diagonal. To each variance
        ``reg_covar`` is added. A component without examples, :math:`N_k < 10\,\varepsilon`
        with the rounding unit :math:`\varepsilon`, is given that much, evenly from all: it has
        the mean and the covariance of the whole data.

        Args:
            X: The examples.
            responsibilities: For each example the share of each component; known classes are
                shares of zero and one.

        Returns:
            The mixture itself.

        Raises:
            ValueError: If there is not one column for each component, or a covariance is not
                positive definite.
        """
        if responsibilities.shape[1] != self.n_components:
            raise ValueError(
                f"responsibilities must have {self.n_components} columns, one for each "
                f"component, got {responsibilities.shape[1]}"
            )
        r, least = responsibilities.T, 10 * torch.finfo(X.dtype).eps  # r: (K, N)
        counts = r.sum(1)
        if (empty := counts < least).any():
            r, counts = torch.where(empty[:, None], least / len(X), r), counts.clamp(min=least)
        means = r @ X / counts[:, None]
        matrix = self.covariance_type in ("full", "tied")
        scatter = sum(
            _scatter(d, part, matrix)
            for d, part in zip(
                _differences(X, means), r.split(_at_a_time(means), 1), strict=True
            )
        )
        if self.covariance_type == "tied":
            covariances = scatter.sum(0) / counts.sum()
        else:
            covariances = scatter / counts.view(-1, *[1] * (scatter.dim() - 1))
        variances = covariances.diagonal(dim1=-2, dim2=-1) if matrix else covariances
        variances += self.reg_covar  # in place
        if self.covariance_type == "spherical":
            covariances = covariances.mean(1)
        self.set_parameters(counts / counts.sum(), means, covariances)
        return self

    @checked
    def score_samples(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, " examples"]:
        """The log-likelihood of each example, in nats.

        Args:
            X: The examples.

        Returns:
            One number for each example.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture is not fitted, or has another number of features.
        """
        return self.e_step(X)[0]

    @checked
    def score(self, X: Float[Tensor, "examples features"]) -> float:
        """The mean log-likelihood of an example, in nats.

        Args:
            X: The examples.

        Returns:
            The mean.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture is not fitted, or has another number of features.
        """
        return self.score_samples(X).mean().item()

    @checked
    def predict_proba(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples components"]:
        """The responsibilities: how probable each component is, given the example.

        Args:
            X: The examples.

        Returns:
            For each example numbers that sum to one.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture is not fitted, or has another number of features.
        """
        return self.e_step(X)[1]

    @checked
    def predict(self, X: Float[Tensor, "examples features"]) -> Int64[Tensor, " examples"]:
        """The most probable component of each example.

        Args:
            X: The examples.

        Returns:
            Numbers of components.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture is not fitted, or has another number of features.
        """
        return self.predict_proba(X).argmax(1)

    @checked
    def fit_predict(self, X: Float[Tensor, "examples features"]) -> Int64[Tensor, " examples"]:
        """Fit the mixture, and say the most probable component of each example.

        Args:
            X: The examples.

        Returns:
            Numbers of components.

        Raises:
            ValueError: As :meth:`fit`.
        """
        return self.fit(X).predict(X)

    @checked
    def sample(
        self, n_samples: int = 1
    ) -> tuple[Float[Tensor, "examples features"], Int64[Tensor, " examples"]]:
        r"""Draw from the mixture: first the component, then :math:`x = \mu_k + L_k \epsilon`
        with :math:`\Sigma_k = L_k L_k^\top` and :math:`\epsilon \sim \mathcal N(0, I)`.

        Args:
            n_samples: How many examples to draw.

        Returns:
            The examples and their components, component by component, as scikit-learn's.

        Raises:
            ValueError: If ``n_samples`` is below one, or the mixture is not fitted.
        """
        _check_least(1, n_samples=n_samples)
        _check_fitted(self, "means_")
        random = _generator(self.random_state, self.means_)
        L = torch.linalg.cholesky(self._matrices())
        y = torch.multinomial(self.weights_, n_samples, True, generator=random).sort().values
        noise = torch.randn(
            n_samples,
            self.means_.shape[1],
            generator=random,
            dtype=self.means_.dtype,
            device=self.means_.device,
        )
        parts = [
            mean + noise[y == k] @ factor.T
            for k, (mean, factor) in enumerate(zip(self.means_, L, strict=True))
        ]
        return torch.cat(parts), y

    @checked
    def aic(self, X: Float[Tensor, "examples features"]) -> float:
        r"""Akaike's information criterion, :math:`-2 \ell + 2 p` for :math:`p` free parameters;
        lower is better.

        Args:
            X: The examples.

        Returns:
            The criterion.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture is not fitted, or has another number of features.
        """
        return -2 * len(X) * self.score(X) + 2 * self._parameters()

    @checked
    def bic(self, X: Float[Tensor, "examples features"]) -> float:
        r"""The Bayesian information criterion, :math:`-2 \ell + p \log N` for :math:`p` free
        parameters; lower is better.

        Args:
            X: The examples.

        Returns:
            The criterion.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If the mixture is not fitted, or has another number of features.
        """
        return -2 * len(X) * self.score(X) + self._parameters() * math.log(len(X))

    @property
    def precisions_(self) -> Float[Tensor, "..."]:
        """The inverse covariances, in the shape of ``covariances_``."""
        P = self.precisions_cholesky_
        return P @ P.mT if self.covariance_type in ("full", "tied") else P**2

    def _parameters(self):
        """The number of free parameters: the weights sum to one, a covariance is symmetric."""
        K, D = self.means_.shape
        symmetric = D * (D + 1) // 2
        free = {"full": K * symmetric, "tied": symmetric, "diag": K * D, "spherical": K}
        return free[self.covariance_type] + K * D + K - 1

    def _matrices(self):
        """The covariances as matrices, one for each component."""
        K, D = self.means_.shape
        if self.covariance_type == "diag":
            return torch.diag_embed(self.covariances_)
        if self.covariance_type == "spherical":
            return torch.diag_embed(self.covariances_[:, None].expand(K, D))
        return self.covariances_.expand(K, D, D)

    def _start(self, X, random):
        """First parameters: an M-step on first responsibilities, or what was given instead."""
        given = self._given(X)
        if any(parameter is None for parameter in given):
            self.m_step(X, self._first_responsibilities(X, random))
            learned = self.weights_, self.means_, self.covariances_
            given = [
                mine if value is None else value
                for value, mine in zip(given, learned, strict=True)
            ]
        self.set_parameters(*given)

    def _first_responsibilities(self, X, random):
        K, like = self.n_components, {"dtype": X.dtype, "device": X.device}
        if self.init_params == "kmeans":
            clusters = KMeans(K, n_init=1, random_state=random).fit(X).labels_
            return nn.functional.one_hot(clusters, K).to(X)
        if self.init_params == "random":
            r = torch.rand(len(X), K, generator=random, **like)
            return r / r.sum(1, keepdim=True)
        if self.init_params == "k-means++":
            places = kmeans_plus_plus(X, K, random_state=random)[1]
        else:
            places = torch.randperm(len(X), generator=random, device=X.device)[:K]
        r = torch.zeros(len(X), K, **like)
        r[places, torch.arange(K)] = 1
        return r

    def _given(self, X):
        """What the user wants to start from: weights, means and covariances, or None."""
        K, D = self.n_components, X.shape[1]
        by_type = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}
        shapes = {"weights": (K,), "means": (K, D), "precisions": by_type[self.covariance_type]}
        given = []
        for name, shape in shapes.items():
            value = getattr(self, f"{name}_init")
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name}_init must have the shape {shape} for these data and "
                    f"covariance_type {self.covariance_type!r}, got {tuple(value.shape)}"
                )
            given.append(None if value is None else value.to(X))
        weights, means, precisions = given
        if weights is not None and (weights.min() < 0 or abs(weights.sum() - 1) > 1e-5):
            raise ValueError(
                "weights_init must be a distribution, not negative and of sum one, got "
                f"numbers from {weights.min():.3g} up whose sum is {weights.sum():.3g}"
            )
        if precisions is None:
            return weights, means, None
        if self.covariance_type in ("full", "tied"):
            L = _cholesky(precisions, "precisions_init")
            return weights, means, torch.cholesky_inverse(L)
        _check_positive(precisions, "precisions_init")
        return weights, means, 1 / precisions

    @checked
    def set_parameters(
        self,
        weights: Float[Tensor, " components"],
        means: Float[Tensor, "components features"],
        covariances: Float[Tensor, "..."],
    ) -> "GaussianMixture":
        """Take these parameters, and the factors that follow from them.

        Args:
            weights: Mixing weights, which sum to one.
            means: Means.
            covariances: Covariances, in the shape of ``covariances_``.

        Returns:
            The mixture itself.

        Raises:
            ValueError: If a covariance is not positive definite.
        """
        self.weights_, self.means_, self.covariances_ = weights, means, covariances
        if self.covariance_type in ("full", "tied"):
            L = _cholesky(covariances, "the covariance")
            eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
            self.precisions_cholesky_ = torch.linalg.solve_triangular(L, eye, upper=False).mT
        else:
            _check_positive(covariances, "the variance")
            self.precisions_cholesky_ = covariances.rsqrt()
        return self


class KMeans:
    r"""Clusters around centres: every example belongs to the nearest, and every centre is the
    mean of its examples.

    .. math:: \min_{\mu} \sum_n \min_k \lVert x_n - \mu_k \rVert^2

    This is EM for spherical Gaussians of equal weight and one variance, in the limit in which
    the variance goes to zero: the responsibilities become zero and one. Interchangeable with
    ``sklearn.cluster.KMeans``, given and giving tensors; of its arguments ``verbose``,
    ``copy_x`` and ``algorithm`` are left out.

    Args:
        n_clusters: The number of clusters.
        init: ``"k-means++"``: start from :func:`kmeans_plus_plus`; ``"random"``: from examples
            chosen evenly; or the centres to start from.
        n_init: How many starts to try; the one with the lowest sum is kept. ``"auto"`` is one
            for ``"k-means++"`` and for given centres, ten for ``"random"``.
        max_iter: The most iterations.
        tol: Stop when the squared lengths of all the centres' moves add up to at most ``tol``
            times the mean variance of a feature.
        random_state: A seed, or a generator; by default PyTorch's own generator.

    Attributes:
        cluster_centers_: The centres, of shape (clusters, features).
        labels_: For each example its cluster.
        inertia_: The sum of squared distances to the nearest centre.
        n_iter_: The iterations of the best start.

    Raises:
        ValueError: If an option is outside its range.

    References: Lloyd, *Least squares quantization in PCM*, IEEE Transactions on Information
    Theory 28 (1982).
    """

    @accepts(verbose=0, copy_x=True, algorithm="lloyd")
    @checked
    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | Float[Tensor, "clusters features"] = "k-means++",
        n_init: str | int = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | torch.Generator | None = None,
    ):
        _check_least(1, n_clusters=n_clusters, max_iter=max_iter)
        _check_least(0, tol=tol)
        if isinstance(init, str):
            _check_word("init", init, ("k-means++", "random"))
        if isinstance(n_init, str):
            _check_word("n_init", n_init, ("auto",))
            n_init = 10 if isinstance(init, str) and init == "random" else 1
        _check_least(1, n_init=n_init)
        self.n_clusters, self.init, self.n_init = n_clusters, init, n_init
        self.max_iter, self.tol, self.random_state = max_iter, tol, random_state

    @torch.no_grad()
    @accepts(y=None, sample_weight=None)
    @checked
    def fit(self, X: Float[Tensor, "examples features"]) -> "KMeans":
        """Find the clusters. A cluster that loses its last example takes the one that is
        farthest from its centre.

        Args:
            X: The examples.

        Returns:
            The clusters.

        Raises:
            ValueError: If there are fewer examples than clusters, some are not finite, or given
                centres do not fit.
        """
        _check_examples(X, self.n_clusters)
        random = _generator(self.random_state, X)
        X = X.T.contiguous().T
        least_move = self.tol * X.var(0, correction=0).mean()
        best = None
        for _ in range(self.n_init):
            centers, move, n_iter = self._start(X, random), math.inf, 0
            while n_iter < self.max_iter and move > least_move:
                moved = _means(X, *_nearest(X, centers), self.n_clusters)
                move, centers, n_iter = (moved - centers).square().sum(), moved, n_iter + 1
            labels, distances = _nearest(X, centers)
            inertia = distances.sum().item()
            if best is None or inertia < best[0]:
                best = inertia, centers, labels, n_iter
        self.inertia_, self.cluster_centers_, self.labels_, self.n_iter_ = best
        return self

    @checked
    def predict(self, X: Float[Tensor, "examples features"]) -> Int64[Tensor, " examples"]:
        """The nearest centre of each example.

        Args:
            X: The examples.

        Returns:
            Numbers of clusters.

        Raises:
            TypeError: If the examples have another type of number than the centres.
            ValueError: If nothing is fitted, or with another number of features.
        """
        _check_fitted(self, "cluster_centers_", X)
        return _nearest(X, self.cluster_centers_)[0]

    @checked
    def fit_predict(self, X: Float[Tensor, "examples features"]) -> Int64[Tensor, " examples"]:
        """Find the clusters, and say which each example belongs to.

        Args:
            X: The examples.

        Returns:
            Numbers of clusters.

        Raises:
            ValueError: As :meth:`fit`.
        """
        return self.fit(X).labels_

    @checked
    def transform(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples clusters"]:
        """The distance of each example from each centre.

        Args:
            X: The examples.

        Returns:
            Distances, in the data's unit.

        Raises:
            TypeError: If the examples have another type of number than the centres.
            ValueError: If nothing is fitted, or with another number of features.
        """
        _check_fitted(self, "cluster_centers_", X)
        return _squared_lengths(X, self.cluster_centers_).sqrt().T

    @checked
    def score(self, X: Float[Tensor, "examples features"]) -> float:
        """Minus the sum of squared distances to the nearest centre.

        Args:
            X: The examples.

        Returns:
            A number that is higher for better clusters.

        Raises:
            TypeError: If the examples have another type of number than the centres.
            ValueError: If nothing is fitted, or with another number of features.
        """
        _check_fitted(self, "cluster_centers_", X)
        return -_nearest(X, self.cluster_centers_)[1].sum().item()

    def _start(self, X, random):
        if isinstance(self.init, Tensor):
            if self.init.shape != (self.n_clusters, X.shape[1]):
                raise ValueError(
                    f"init must have the shape {(self.n_clusters, X.shape[1])}, a centre for "
                    f"each cluster, got {tuple(self.init.shape)}"
                )
            return self.init.to(X)
        if self.init == "random":
            return X[
                torch.randperm(len(X), generator=random, device=X.device)[: self.n_clusters]
            ]
        return kmeans_plus_plus(X, self.n_clusters, random_state=random)[0]


@torch.no_grad()
@accepts(sample_weight=None, x_squared_norms=None)
@checked
def kmeans_plus_plus(
    X: Float[Tensor, "examples features"],
    n_clusters: int,
    *,
    random_state: int | torch.Generator | None = None,
    n_local_trials: int | None = None,
) -> tuple[Float[Tensor, "clusters features"], Int64[Tensor, " clusters"]]:
    r"""Examples that lie far apart, to start from: each next one is drawn with a probability
    proportional to its squared distance :math:`d^2(x)` from the nearest of those before.

    Of a few that are drawn so, the one is taken that leaves the smallest sum of :math:`d^2`.
    This is ``sklearn.cluster.kmeans_plusplus``.

    Args:
        X: The examples.
        n_clusters: How many to choose.
        random_state: A seed, or a generator; by default PyTorch's own generator.
        n_local_trials: How many to draw for each choice: one is the algorithm as published, the
            default is two and the logarithm of ``n_clusters``, cut to a whole number.

    Returns:
        The chosen examples, and their numbers.

    Raises:
        ValueError: If there are fewer examples than clusters, some are not finite, or a number
            is below one.

    References: Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding*, SODA
    (2007).
    """
    _check_least(1, n_clusters=n_clusters)
    trials = 2 + int(math.log(n_clusters)) if n_local_trials is None else n_local_trials
    _check_least(1, n_local_trials=trials)
    _check_examples(X, n_clusters)
    random = _generator(random_state, X)
    chosen = [torch.randint(len(X), (1,), generator=random, device=X.device)]
    nearest = _squared_lengths(X, X[chosen[0]])  # (1, N)
    while len(chosen) < n_clusters:
        height = nearest.cumsum(1)[0]
        drawn = height[-1] * torch.rand(
            trials, generator=random, dtype=X.dtype, device=X.device
        )
        places = torch.searchsorted(height, drawn).clamp(max=len(X) - 1)
        after = torch.minimum(nearest, _squared_lengths(X, X[places]))  # (trials, N)
        best = after.sum(1).argmin()
        chosen.append(places[best, None])
        nearest = after[best, None]
    indices = torch.cat(chosen)
    return X[indices], indices


class UnconstrainedMixture(nn.Module):
    r"""The same mixture, with parameters that may take any value, for gradient descent.

    .. math::
        \pi = \operatorname{softmax}(a), \qquad
        \Sigma_k^{-1} = P_k P_k^\top, \qquad
        (P_k)_{ij} = \begin{cases} e^{(B_k)_{ii}} & i = j \\ (B_k)_{ij} & i < j \\ 0 & i > j
        \end{cases}

    Args:
        weights: Mixing weights to start from, of shape (components,), all above zero.
        means: Means, of shape (components, features).
        precisions_cholesky: Factors :math:`P_k`, of shape (components, features, features):
            ``precisions_cholesky_`` of a :class:`GaussianMixture` with full covariances.

    Attributes:
        a: The logits of the weights.
        means: The means.
        B: The factors, with logarithms on the diagonal; what is below it plays no part.

    Raises:
        ValueError: If a weight or a diagonal entry is not above zero.
    """

    @checked
    def __init__(
        self,
        weights: Float[Tensor, " components"],
        means: Float[Tensor, "components features"],
        precisions_cholesky: Float[Tensor, "components features features"],
    ):
        super().__init__()
        diagonal = precisions_cholesky.diagonal(dim1=1, dim2=2)
        _check_positive(weights, "the weight")
        _check_positive(diagonal, "the diagonal of precisions_cholesky")
        self.a = nn.Parameter(weights.log())
        self.means = nn.Parameter(means.clone())
        self.B = nn.Parameter(precisions_cholesky.triu(1) + torch.diag_embed(diagonal.log()))

    @checked
    def forward(self, X: Float[Tensor, "examples features"]) -> Float[Tensor, " examples"]:
        """The log-likelihood of each example, in nats.

        Args:
            X: The examples.

        Returns:
            One number for each example.

        Raises:
            TypeError: If the examples have another type of number than the parameters.
            ValueError: If they have another number of features.
        """
        _check_features(self, X, self.means)
        log_weights = self.a.log_softmax(0)
        return _log_joint(X, log_weights, self.means, self.factors(), "full").logsumexp(0)

    def factors(self) -> Float[Tensor, "components features features"]:
        """The factors P of the inverse covariances."""
        return self.B.triu(1) + torch.diag_embed(self.B.diagonal(dim1=1, dim2=2).exp())


_CACHED = 2**16  # so many numbers at a time, half a megabyte


def _at_a_time(means):
    """How many examples make a block whose differences stay in the cache."""
    return max(1, _CACHED // means.numel())


def _differences(X, means) -> Iterator[Tensor]:
    """The differences x - μ, block by block, each of shape (components, features, examples)."""
    for block in X.split(_at_a_time(means)):
        yield block.T - means[:, :, None]


def _squared_lengths(X, means, scale=lambda d: d):
    """The squared length of each difference x - μ after scaling, of shape (K, N)."""
    return torch.cat([scale(d).square().sum(1) for d in _differences(X, means)], 1)


def _log_joint(X, log_weights, means, P, covariance_type):
    """The logarithm of π N(x | μ, Σ) for each component and example, (K, N)."""
    K, D = means.shape
    if covariance_type in ("full", "tied"):
        lengths = _squared_lengths(X, means, lambda d: P.mT @ d)
        log_det = P.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(K)
    else:
        P = P.view(K, -1, 1).expand(K, D, 1)
        lengths = _squared_lengths(X, means, lambda d: P * d)
        log_det = P.log().sum((1, 2))
    log_factor = log_weights + log_det - D / 2 * math.log(math.tau)
    return lengths.mul_(-0.5).add_(log_factor[:, None])  # in place: it is a fresh tensor


def _scatter(d, r, matrix):
    """The weighted sum of products of differences, (K, D, D), or of their squares, (K, D)."""
    weighted = d * r[:, None]
    return weighted @ d.mT if matrix else (weighted * d).sum(2)


def _nearest(X, centers):
    """For each example the nearest centre and the squared distance from it."""
    distances, labels = _squared_lengths(X, centers).min(0)
    return labels, distances


def _means(X, labels, distances, K):
    """The mean of each cluster; one that is empty takes an example from far away."""
    empty = (labels.bincount(minlength=K) == 0).nonzero()[:, 0]
    if len(empty):
        labels = labels.scatter(0, distances.topk(len(empty)).indices, empty)
    members = nn.functional.one_hot(labels, K).to(X)  # (N, K)
    return members.T @ X / members.sum(0)[:, None]


def _generator(random_state, X):
    """A generator of random numbers on the device of the data; None is PyTorch's own."""
    if isinstance(random_state, int):
        return torch.Generator(X.device).manual_seed(random_state)
    return random_state


def _cholesky(matrices, name):
    L, info = torch.linalg.cholesky_ex(matrices)
    if info.any() or not L.isfinite().all():
        _raise_collapsed(name, info.nonzero())
    return L


def _check_positive(values, name):
    if not (values > 0).all():
        _raise_collapsed(name, (~(values > 0)).nonzero())


def _raise_collapsed(name, places):
    of = f" of component {places[0, 0].item()}" if places.numel() else ""
    raise ValueError(
        f"{name}{of} is not positive: it stands on too few examples, or on a line or plane of "
        "them; raise reg_covar, ask for fewer components, or drop features that others "
        "determine"
    )


def _check_examples(X, least):
    if len(X) < max(least, 1) or X.shape[1] == 0:
        raise ValueError(
            f"X must have at least {least} examples, one for each component, and a feature, "
            f"got shape {tuple(X.shape)}"
        )
    if not X.isfinite().all():
        raise ValueError(
            "X must be finite, got NaN or infinity: drop those examples, or fill in "
            "their features"
        )


def _check_fitted(model, name, X=None):
    if not hasattr(model, name):
        raise ValueError(f"this {type(model).__name__} has learned nothing yet: call fit first")
    if X is not None:
        _check_features(model, X, getattr(model, name))


def _check_features(model, X, means):
    if X.shape[1] != means.shape[1]:
        raise ValueError(
            f"X must have the {means.shape[1]} features of the means, got {X.shape[1]}"
        )
    check_alike(type(model).__name__, X, means)


def _check_least(least, **numbers):
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def _check_word(name, word, words):
    if word not in words:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {word!r}")
