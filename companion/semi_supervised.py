r"""Learning from a few labelled and many unlabelled examples.

Taught in chapter *Semi-supervised learning*. A label is the number of a class, 0, 1, ...; what
has none bears :data:`UNLABELLED`, as in scikit-learn.

The generative models, :class:`MultinomialNB` and :class:`GaussianMixtureClassifier`, are
fitted by EM: the class of an unlabelled example is what is hidden.
:class:`SelfTrainingClassifier` lets a model label its own training data. :func:`entropy_loss`
and :func:`pseudo_label_loss` are what a network, which knows no :math:`p(x)`, can learn from an
example without a label, :class:`M2` is a variational autoencoder with a class, and
:func:`fit_semi_supervised` trains either.

References: Nigam, McCallum, Thrun and Mitchell, *Text classification from labeled and unlabeled
documents using EM*, Machine Learning 39 (2000); further papers are named where they are used.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot

from companion.checks import accepts, check_alike, checked
from companion.expectation_maximization import (
    GaussianMixture,
    KMeans,
    _check_fitted,
    _log_joint,
)
from companion.layers import cross_entropy
from companion.training import History, train
from companion.variational_autoencoders import Bernoulli, kl_divergence, reparameterise

__all__ = [
    "M2",
    "UNLABELLED",
    "GaussianMixtureClassifier",
    "GenerativeClassifier",
    "MultinomialLikelihood",
    "MultinomialNB",
    "SelfTrainingClassifier",
    "entropy_loss",
    "fit_semi_supervised",
    "hide_labels",
    "pseudo_label_loss",
]

UNLABELLED = -1
"""What stands in the place of a label that is not known."""


@checked
def hide_labels(
    y: Int[Tensor, " examples"], keep: int, seed: int = 0
) -> Int[Tensor, " examples"]:
    """Forget all labels but a few: one of each class, and the rest of them at random.

    Args:
        y: The labels, 0 to classes − 1.
        keep: How many of them to keep, at least one for each class.
        seed: The same seed keeps the same; whoever keeps more keeps these too.

    Returns:
        A copy of ``y`` with :data:`UNLABELLED` in all other places.

    Raises:
        ValueError: If ``keep`` is less than the number of classes, or more than there are
            labels.
    """
    classes = y.unique()
    if not len(classes) <= keep <= len(y):
        raise ValueError(
            f"keep must lie between {len(classes)}, one label a class, and {len(y)}, all of "
            f"them, got {keep}"
        )
    g = torch.Generator().manual_seed(seed)
    # two orders: after the first of its class, an example would stand too far back in the same
    order, others = (torch.randperm(len(y), generator=g).to(y.device) for _ in range(2))
    first = torch.stack([order[y[order] == label][0] for label in classes])
    kept = torch.cat([first, others[~torch.isin(others, first)]])[:keep]
    hidden = torch.full_like(y, UNLABELLED)
    hidden[kept] = y[kept]
    return hidden


class GenerativeClassifier:
    r"""What generative models share: EM on labelled and unlabelled examples.

    Each class is a mixture of one component or more, and a model gives the joint density
    :math:`p(x, k \mid \theta)` of an example and its component. With the set :math:`K_n` of the
    components that example :math:`n` can come from, those of its class or, without a label,
    all, EM climbs

    .. math::
        J(\theta) = \sum_n w_n \log \sum_{k \in K_n} p(x_n, k \mid \theta) + \log p(\theta),
        \qquad w_n = \begin{cases} 1 & n \text{ has a label} \\ \lambda & \text{not}
        \end{cases}

    from the estimate that the labelled examples give alone. The E-step sets the
    responsibilities :math:`r_{nk} = w_n\, p(k \mid x_n, K_n, \theta)`. The M-step is that of a
    subclass, which defines :meth:`m_step`, :meth:`log_joint` and :meth:`log_prior`.

    Args:
        unlabelled_weight: :math:`\lambda`, from zero (only labels count) to one (every example
            counts the same).
        hard: Whether an example belongs wholly to its most probable component: hard EM, which
            is self-training. It climbs :math:`J` with the largest of the :math:`p(x_n, k \mid
            \theta)` in the place of their sum.
        components_per_class: How many. Where it is several, the labelled examples of each class
            are divided by :class:`~companion.expectation_maximization.KMeans` at the start.
        tol: Stop when :math:`J / N` changes by less, in nats.
        max_iter: The most iterations of E-step and M-step.
        random_state: A seed for that division.
        warm_start: Whether ``fit`` goes on from what was learned before, and needs no labels.

    Attributes:
        objective_: :math:`J` at each E-step.
        n_iter_: How many there were.
        converged_: Whether the last change was below ``tol``.

    Raises:
        ValueError: If an option is outside its range.
    """

    @checked
    def __init__(
        self,
        *,
        unlabelled_weight: float = 1.0,
        hard: bool = False,
        components_per_class: int = 1,
        tol: float = 1e-4,
        max_iter: int = 100,
        random_state: int | None = None,
        warm_start: bool = False,
    ):
        if not 0 <= unlabelled_weight <= 1:
            raise ValueError(
                f"unlabelled_weight must lie between 0 and 1, got {unlabelled_weight}"
            )
        if components_per_class < 1 or min(tol, max_iter) < 0:
            raise ValueError(
                "components_per_class must be at least 1, tol and max_iter at least 0, got "
                f"{components_per_class}, {tol} and {max_iter}"
            )
        self.unlabelled_weight, self.hard = unlabelled_weight, hard
        self.components_per_class, self.random_state = components_per_class, random_state
        self.tol, self.max_iter, self.warm_start = tol, max_iter, warm_start

    @torch.no_grad()
    @checked
    def fit(
        self, X: Float[Tensor, "examples features"], y: Int[Tensor, " examples"]
    ) -> "GenerativeClassifier":
        """Fit by EM.

        Args:
            X: The examples.
            y: Their labels, or :data:`UNLABELLED`.

        Returns:
            The model itself.

        Raises:
            ValueError: If a class has no labelled example, or fewer than components, if a warm
                start meets a further class, or if an example is none that the model can have
                drawn.
        """
        if y.numel() and y.min() < UNLABELLED:
            raise ValueError(
                f"labels must not be negative, but for {UNLABELLED}, which says that there is "
                f"none, got {y.min()}"
            )
        known = y != UNLABELLED
        if not (self.warm_start and hasattr(self, "objective_")):
            self._start(X[known], y[known])
        weights = X.new_full(y.shape, self.unlabelled_weight)
        weights[known] = 1
        self.objective_, change = [], math.inf
        while len(self.objective_) < self.max_iter and change >= self.tol:
            joint = self._possible(self.log_joint(X), y)
            evidence = joint.amax(1) if self.hard else joint.logsumexp(1)
            self.objective_.append((weights @ evidence + self.log_prior()).item())
            r = one_hot(joint.argmax(1), joint.shape[1]) if self.hard else joint.softmax(1)
            self.m_step(X, weights[:, None] * r)
            if len(self.objective_) > 1:
                change = abs(self.objective_[-1] - self.objective_[-2]) / len(X)
        self.n_iter_, self.converged_ = len(self.objective_), change < self.tol
        return self

    def _start(self, X, y):
        """The M-step of the labelled examples alone."""
        counts = y.bincount(minlength=1)
        if counts.min() < self.components_per_class:
            raise ValueError(
                f"every class from 0 to {len(counts) - 1} must have at least "
                f"{self.components_per_class} labelled examples, one a component, got "
                f"{counts.tolist()}"
            )
        component = self.components_per_class * y
        if self.components_per_class > 1:
            for label in range(len(counts)):
                parts = KMeans(self.components_per_class, random_state=self.random_state)
                component[y == label] += parts.fit_predict(X[y == label])
        self.m_step(X, one_hot(component, self.components_per_class * len(counts)).to(X))

    def _possible(self, joint, y):
        """The joint with zero probability where a label says so."""
        classes = joint.shape[1] // self.components_per_class
        if (y >= classes).any():  # only a warm start has not seen them
            raise ValueError(
                f"labels must lie below {classes}, those of the first fit, got {y.max()}"
            )
        label = torch.arange(joint.shape[1]).to(y) // self.components_per_class
        return joint.masked_fill((y[:, None] != label) & (y[:, None] != UNLABELLED), -math.inf)

    def log_joint(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples components"]:
        r"""The logarithm of :math:`p(x, k \mid \theta)`, up to terms that depend on :math:`x`
        alone.

        Args:
            X: The examples.
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_joint(X)")

    def m_step(
        self,
        X: Float[Tensor, "examples features"],
        responsibilities: Float[Tensor, "examples components"],
    ) -> "GenerativeClassifier":
        """Set the parameters to those that suit the responsibilities best.

        Args:
            X: The examples.
            responsibilities: For each example a share for each component.
        """
        raise NotImplementedError(f"{type(self).__name__} must define m_step(X, r)")

    def log_prior(self) -> Float[Tensor, ""] | float:
        r"""The logarithm of :math:`p(\theta)`, up to a constant: zero, where there is none."""
        return 0.0

    @checked
    def predict_joint_log_proba(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples classes"]:
        """The logarithm of the joint density of each example and each class, up to terms that
        depend on the example alone.

        Args:
            X: The examples.

        Returns:
            One number for each class, in nats.

        Raises:
            ValueError: If the model is not fitted, or the examples have other features.
        """
        return self.log_joint(X).unflatten(1, (-1, self.components_per_class)).logsumexp(2)

    @checked
    def predict_proba(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples classes"]:
        """The probability of each class, given the example.

        Args:
            X: The examples.

        Returns:
            For each example numbers that sum to one.

        Raises:
            ValueError: If the model is not fitted, or the examples have other features.
        """
        return self.predict_joint_log_proba(X).softmax(1)

    @checked
    def predict(self, X: Float[Tensor, "examples features"]) -> Int64[Tensor, " examples"]:
        """The most probable class of each example.

        Args:
            X: The examples.

        Returns:
            Numbers of classes.

        Raises:
            ValueError: If the model is not fitted, or the examples have other features.
        """
        return self.predict_joint_log_proba(X).argmax(1)

    @checked
    def score(
        self, X: Float[Tensor, "examples features"], y: Int[Tensor, " examples"]
    ) -> float:
        """The share of examples whose most probable class is the right one.

        Args:
            X: The examples.
            y: Their labels.

        Returns:
            The accuracy, from 0 to 1.

        Raises:
            ValueError: If the model is not fitted, or the examples have other features.
        """
        return (self.predict(X) == y).double().mean().item()


class MultinomialNB(GenerativeClassifier):
    r"""Naive Bayes for counts: each word of a text is drawn from the distribution of its class,
    whatever the words around it.

    .. math::
        \log p(x, k \mid \theta) = \log \pi_k + \sum_w x_w \log \theta_{kw} + \text{const}(x),
        \qquad
        \theta_{kw} = \frac{\alpha + \sum_n r_{nk} x_{nw}}{\sum_v (\alpha + \sum_n r_{nk}
        x_{nv})}, \qquad
        \pi_k = \frac{\sum_n r_{nk}}{\sum_n \sum_j r_{nj}}

    With labels alone it is ``sklearn.naive_bayes.MultinomialNB``, given and giving
    tensors; of its arguments ``fit_prior`` and ``class_prior`` are left out. The smoothing
    :math:`\alpha` is a prior :math:`p(\theta) \propto \prod_{kw} \theta_{kw}^\alpha`.

    Args:
        alpha: :math:`\alpha > 0`, so many imagined occurrences of each word in each class.
        options: Those of :class:`GenerativeClassifier`.

    Attributes:
        class_log_prior_: :math:`\log \pi`, of shape (components,).
        feature_log_prob_: :math:`\log \theta`, of shape (components, features).
        class_count_: The sum of the responsibilities of each component.
        feature_count_: The sum of the counts of each word in each component.

    Raises:
        ValueError: If ``alpha`` is not above zero, or an option outside its range.

    References: Nigam, McCallum, Thrun and Mitchell (2000).
    """

    @accepts(force_alpha=True, fit_prior=True, class_prior=None)
    @checked
    def __init__(self, *, alpha: float = 1.0, **options: Any):
        super().__init__(**options)
        if alpha <= 0:
            raise ValueError(
                f"alpha must be above 0, or a word that a class has not shown yet would be "
                f"impossible in it, got {alpha}"
            )
        self.alpha = alpha

    @checked
    def m_step(
        self,
        X: Float[Tensor, "examples features"],
        responsibilities: Float[Tensor, "examples components"],
    ) -> "MultinomialNB":
        """Count, by the equations above.

        Args:
            X: Counts.
            responsibilities: For each example a share for each component.

        Returns:
            The model itself.

        Raises:
            ValueError: If a count is negative.
        """
        if X.numel() == 0 or not X.min() >= 0:
            raise ValueError(
                "X must hold counts, zero or more, of at least one word in at least one text, "
                f"got shape {tuple(X.shape)} with negative numbers, NaN or nothing in it"
            )
        self.class_count_ = responsibilities.sum(0)
        self.feature_count_ = responsibilities.T @ X
        self.class_log_prior_ = (self.class_count_ / self.class_count_.sum()).log()
        smoothed = self.feature_count_ + self.alpha
        self.feature_log_prob_ = (smoothed / smoothed.sum(1, keepdim=True)).log()
        return self

    @checked
    def log_joint(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples components"]:
        """The logarithm of the joint probability, by the equation above, without the constant.

        Args:
            X: Counts.

        Returns:
            One number for each component, in nats.

        Raises:
            ValueError: If the model is not fitted, or ``X`` has another number of words.
        """
        if not hasattr(self, "feature_log_prob_"):
            raise ValueError("this MultinomialNB has learned nothing yet: call fit first")
        if X.shape[1] != (words := self.feature_log_prob_.shape[1]):
            raise ValueError(f"X must count the {words} words of fit, got {X.shape[1]}")
        check_alike("MultinomialNB", X, self.feature_log_prob_)
        return self.class_log_prior_ + X @ self.feature_log_prob_.T

    def log_prior(self) -> Float[Tensor, ""]:
        r"""The logarithm of :math:`p(\theta)`, up to a constant: :math:`\alpha \sum_{kw} \log
        \theta_{kw}`.
        """
        return self.alpha * self.feature_log_prob_.sum()


class GaussianMixtureClassifier(GenerativeClassifier):
    r"""A mixture of Gaussians whose components are classes, or belong to them.

    .. math:: \log p(x, k \mid \theta) = \log \pi_k + \log \mathcal N(x \mid \mu_k, \Sigma_k)

    The parameters are those of a :class:`~companion.expectation_maximization.GaussianMixture`,
    whose M-step this one's is: with no labels (``warm_start``) and weight one both do the same
    steps. One component a class is quadratic discriminant analysis, with ``"tied"`` covariances
    linear discriminant analysis, several are mixture discriminant analysis. The objective is
    sure to rise where ``reg_covar`` is negligible.

    Args:
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        reg_covar: Added to each variance, in the square of the data's unit.
        options: Those of :class:`GenerativeClassifier`.

    Attributes:
        mixture_: The mixture, with ``weights_``, ``means_`` and ``covariances_`` in the order
            of the classes.

    Raises:
        ValueError: If an option is outside its range.
    """

    @checked
    def __init__(
        self, *, covariance_type: str = "full", reg_covar: float = 1e-6, **options: Any
    ):
        super().__init__(**options)
        self.covariance_type, self.reg_covar = covariance_type, reg_covar
        self._mixture(1)  # which checks them

    def _mixture(self, components):
        return GaussianMixture(
            components, covariance_type=self.covariance_type, reg_covar=self.reg_covar
        )

    @checked
    def m_step(
        self,
        X: Float[Tensor, "examples features"],
        responsibilities: Float[Tensor, "examples components"],
    ) -> "GaussianMixtureClassifier":
        """That of the mixture.

        Args:
            X: The examples.
            responsibilities: For each example a share for each component.

        Returns:
            The model itself.

        Raises:
            ValueError: If a covariance is not positive definite.
        """
        self.mixture_ = self._mixture(responsibilities.shape[1])
        self.mixture_.m_step(X, responsibilities)
        return self

    @checked
    def log_joint(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples components"]:
        """The logarithm of the joint density, by the equation above.

        Args:
            X: The examples.

        Returns:
            One number for each component, in nats.

        Raises:
            ValueError: If the model is not fitted, or ``X`` has another number of features.
        """
        m = getattr(self, "mixture_", self._mixture(1))
        _check_fitted(m, "means_", X)
        joint = _log_joint(
            X, m.weights_.log(), m.means_, m.precisions_cholesky_, m.covariance_type
        )
        return joint.T


class SelfTrainingClassifier:
    """A classifier that labels its own training data, round by round.

    Each round fits the estimator to what has a label, and gives its prediction as a label to
    every example of whose class it is sure. What has been labelled stays so. With a threshold
    of zero it takes one round, which is the first iteration of hard EM; hard EM goes on and
    asks again about every example.

    Interchangeable with ``sklearn.semi_supervised.SelfTrainingClassifier``, given and
    giving tensors; of its arguments ``criterion``, ``k_best`` and ``verbose`` are left out.

    Args:
        estimator: Has ``fit(X, y)`` and ``predict_proba(X)``; it is copied.
        threshold: How probable the most probable class must be, from zero to below one; more
            than that is sure.
        max_iter: The most rounds; without end if ``None``.

    Attributes:
        estimator_: The estimator that was fitted last.
        transduction_: The labels that it was fitted to; :data:`UNLABELLED` where none was sure.
        labeled_iter_: In which round each got its label: 0 for those given, −1 for none.
        n_iter_: How many rounds there were.
        termination_condition_: ``"all_labeled"``, ``"no_change"`` or ``"max_iter"``.

    Raises:
        ValueError: If an option is outside its range.

    References: Yarowsky, *Unsupervised word sense disambiguation rivaling supervised methods*,
    ACL (1995).
    """

    @accepts(criterion="threshold", k_best=10, verbose=False)
    @checked
    def __init__(self, estimator: Any, threshold: float = 0.75, *, max_iter: int | None = 10):
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must lie between 0 and below 1, got {threshold}")
        if max_iter is not None and max_iter < 0:
            raise ValueError(f"max_iter must not be negative, got {max_iter}")
        for method in ("fit", "predict_proba"):
            if not hasattr(estimator, method) or isinstance(estimator, type):
                raise TypeError(
                    f"estimator must be a classifier with the method {method}, such as "
                    f"MultinomialNB(), got {estimator!r:.60}"
                )
        self.estimator, self.threshold, self.max_iter = estimator, threshold, max_iter

    @checked
    def fit(
        self, X: Float[Tensor, "examples features"], y: Int[Tensor, " examples"]
    ) -> "SelfTrainingClassifier":
        """Fit the estimator, again and again.

        Args:
            X: The examples.
            y: Their labels, or :data:`UNLABELLED`.

        Returns:
            The classifier itself.

        Raises:
            ValueError: As the estimator.
        """
        labels = y.clone()
        self.labeled_iter_ = torch.where(y == UNLABELLED, -1, 0)
        self.n_iter_, self.termination_condition_ = 0, ""
        while not self.termination_condition_:
            known = labels != UNLABELLED
            self.estimator_ = copy.deepcopy(self.estimator)
            self.estimator_.fit(X[known], labels[known])
            if known.all():
                self.termination_condition_ = "all_labeled"
            elif self.n_iter_ == self.max_iter:
                self.termination_condition_ = "max_iter"
            else:
                self.n_iter_ += 1
                unknown = (~known).nonzero()[:, 0]
                proba = torch.as_tensor(self.estimator_.predict_proba(X[unknown]))
                highest, said = proba.max(1)
                sure = highest > self.threshold
                labels[unknown[sure]] = said[sure].to(labels)
                self.labeled_iter_[unknown[sure]] = self.n_iter_
                if not sure.any():
                    self.termination_condition_ = "no_change"
        self.transduction_ = labels
        return self

    @checked
    def predict_proba(
        self, X: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples classes"]:
        """The probability of each class, by the last estimator.

        Args:
            X: The examples.

        Returns:
            For each example numbers that sum to one.

        Raises:
            ValueError: If nothing is fitted, or as the estimator.
        """
        if not hasattr(self, "estimator_"):
            raise ValueError("this SelfTrainingClassifier has learned nothing yet: call fit")
        return torch.as_tensor(self.estimator_.predict_proba(X))

    @checked
    def predict(self, X: Float[Tensor, "examples features"]) -> Int64[Tensor, " examples"]:
        """The most probable class of each example.

        Args:
            X: The examples.

        Returns:
            Numbers of classes.

        Raises:
            ValueError: If nothing is fitted, or as the estimator.
        """
        return self.predict_proba(X).argmax(1)

    @checked
    def score(
        self, X: Float[Tensor, "examples features"], y: Int[Tensor, " examples"]
    ) -> float:
        """The share of examples whose most probable class is the right one.

        Args:
            X: The examples.
            y: Their labels.

        Returns:
            The accuracy, from 0 to 1.

        Raises:
            ValueError: If nothing is fitted, or as the estimator.
        """
        return (self.predict(X) == y).double().mean().item()


@checked
def entropy_loss(input: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    r"""How undecided a classifier is: the mean entropy of its answers.

    .. math:: -\frac1N \sum_n \sum_k p_{nk} \log p_{nk}, \qquad p_n =
              \operatorname{softmax}(z_n)

    Added to the loss of the labelled examples it pushes the boundary between classes away from
    where examples lie. Source: Grandvalet and Bengio, *Semi-supervised learning by entropy
    minimization*, NIPS 17 (2004).

    Args:
        input: Logits :math:`z` of examples without labels.

    Returns:
        The mean, in nats, from 0 to the logarithm of the number of classes.
    """
    log_p = input.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


@checked
def pseudo_label_loss(
    input: Float[Tensor, "batch classes"], threshold: float = 0.0
) -> Float[Tensor, ""]:
    r"""The cross-entropy with the classifier's own answers, where it is sure of them.

    .. math:: -\frac1N \sum_n \mathbb 1\bigl[p_{n \hat y_n} \ge \tau\bigr] \log p_{n \hat y_n},
              \qquad \hat y_n = \arg\max_k p_{nk}, \qquad p_n = \operatorname{softmax}(z_n)

    The answer :math:`\hat y_n` counts as a label: no gradient flows through it. Sources: Lee,
    *Pseudo-label: the simple and efficient semi-supervised learning method for deep neural
    networks*, ICML workshop on challenges in representation learning (2013); for the threshold
    Sohn et al., *FixMatch*, NeurIPS (2020), arXiv:2001.07685.

    Args:
        input: Logits :math:`z` of examples without labels.
        threshold: :math:`\tau`, from 0 (every answer counts) to 1.

    Returns:
        The mean over all examples, sure or not; in nats.

    Raises:
        ValueError: If the threshold does not lie between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    highest, said = input.detach().softmax(1).max(1)
    return (cross_entropy(input, said, reduction="none") * (highest >= threshold)).mean()


@checked
def fit_semi_supervised(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    labelled: tuple[Tensor, Tensor],
    unlabelled: Tensor,
    *,
    epochs: int = 1,
    batch_size: int = 64,
    scheduler: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train on examples with labels and on examples without, side by side.

    Each step draws a minibatch of either kind and calls ``loss(x, y, unlabelled)``. For a
    classifier that minimises its entropy, that is

    .. code-block:: python

        def loss(x, y, unlabelled):
            return cross_entropy(model(x), y) + entropy_loss(model(unlabelled))

    Args:
        model: What is trained.
        optimizer: Holds its parameters.
        loss: Maps examples, their labels, and further examples to one number.
        labelled: Examples and their labels.
        unlabelled: Examples.
        epochs: Passes through the unlabelled examples.
        batch_size: Examples in a minibatch of either kind; all of the labelled, if they are
            fewer.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        seed: For the minibatches and the model's own randomness.
        progress: Show a progress bar.

    Returns:
        The losses of all steps.

    Raises:
        ValueError: If there are no labels, or not one for each example, or as
            :func:`companion.training.train`.
    """
    x, y = labelled
    if not (x.dim() and y.dim() and 0 < len(x) == len(y)):
        raise ValueError(
            "labelled must be some examples and as many labels, got the shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )

    def step(batch):
        drawn = torch.randperm(len(x))[:batch_size].to(x.device)
        return loss(x[drawn], y[drawn], *batch)

    return train(
        step,
        optimizer,
        (unlabelled,),
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        scheduler=scheduler,
        seed=seed,
        progress=progress,
    )


class MultinomialLikelihood(nn.Module):
    r"""The likelihood of counts, for a decoder: a text of given length draws its words one by
    one from the distribution that the decoder says.

    .. math:: \log p(x \mid z) = \sum_w x_w \log \operatorname{softmax}(s)_w + \text{const}(x)

    The constant, the logarithm of the number of orders that the words can have, is left out.
    """

    @checked
    def log_prob(
        self, x: Float[Tensor, "*batch D"], decoded: Float[Tensor, "*codes D"]
    ) -> Float[Tensor, "*codes"]:
        """The logarithm of the probability of each text, without the constant.

        Args:
            x: Counts.
            decoded: Logits :math:`s` for each code, with further dimensions in front where a
                text has several codes.

        Returns:
            One number for each code, in nats.

        Raises:
            ValueError: If the shapes do not fit.
        """
        check_alike("the decoder's output", x, decoded)
        if decoded.shape[max(decoded.dim() - x.dim(), 0) :] != x.shape:
            raise ValueError(
                f"what is decoded must end in the shape of the texts, {tuple(x.shape)}, got "
                f"{tuple(decoded.shape)}: give the decoder as many outputs as there are words"
            )
        return (x * decoded.log_softmax(-1)).sum(-1)


class M2(nn.Module):
    r"""A variational autoencoder with a class beside its code: for a label that is not known it
    sums over all classes.

    .. math:: y \sim \text{uniform}, \qquad z \sim \mathcal N(0, I), \qquad x \sim p_\theta(x
              \mid z, y), \qquad q_\phi(y, z \mid x) = q_\phi(y \mid x)\, q_\phi(z \mid x, y)

    Args:
        classifier: Maps examples (batch, D) to the logits (batch, K) of :math:`q_\phi(y \mid
            x)`.
        encoder: Maps examples with a class beside them, as zeros and a one, (..., D + K), to
            mean and log variance of the code, (..., 2d).
        decoder: Maps codes with a class beside them, (..., d + K), to what the likelihood
            takes.
        likelihood: One of chapter *Variational autoencoders*, or a
            :class:`MultinomialLikelihood`.

    References: Kingma, Rezende, Mohamed and Welling, *Semi-supervised learning with deep
    generative models*, NIPS 27 (2014), arXiv:1406.5298, in which it is the model M2.
    """

    @checked
    def __init__(
        self,
        classifier: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module | None = None,
    ):
        super().__init__()
        self.classifier, self.encoder, self.decoder = classifier, encoder, decoder
        self.likelihood = Bernoulli() if likelihood is None else likelihood

    def forward(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch K"]:
        r"""The logits of :math:`q_\phi(y \mid x)`, with which it classifies.

        Args:
            x: The examples.
        """
        return self.classifier(x)

    @checked
    def elbo(
        self,
        x: Float[Tensor, "*batch D"],
        y: Float[Tensor, "*batch K"],
        noise: Float[Tensor, "*batch d"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        r"""An unbiased estimate of the bound of a labelled example from one code.

        .. math:: \mathcal L(x, y) = \mathbb E_{q_\phi(z \mid x, y)}\bigl[\log p_\theta(x \mid
                  z, y)\bigr] - \log K - \mathrm{KL}\bigl(q_\phi(z \mid x, y) \,\|\, p(z)\bigr)
                  \le \log p_\theta(x, y)

        Args:
            x: The examples.
            y: Their classes, as zeros and a one.
            noise: :math:`\epsilon` of
                :func:`~companion.variational_autoencoders.reparameterise`.

        Returns:
            One number for each example, in nats.

        Raises:
            ValueError: If the shapes do not fit, or the likelihood refuses the examples.
        """
        mean, log_variance = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
        z = reparameterise(mean, log_variance, noise)
        log_likelihood = self.likelihood.log_prob(x, self.decoder(torch.cat([z, y], -1)))
        return log_likelihood - math.log(y.shape[-1]) - kl_divergence(mean, log_variance)

    @checked
    def unlabelled_elbo(
        self, x: Float[Tensor, "batch D"], noise: Float[Tensor, "K batch d"] | None = None
    ) -> Float[Tensor, " batch"]:
        r"""An estimate of the bound of an example without a label: the class is summed over,
        the code is drawn once for each.

        .. math:: \mathcal U(x) = \sum_y q_\phi(y \mid x) \bigl(\mathcal L(x, y) - \log
                  q_\phi(y \mid x)\bigr) \le \log p_\theta(x)

        Args:
            x: The examples.
            noise: :math:`\epsilon` for each class and example.

        Returns:
            One number for each example, in nats.

        Raises:
            ValueError: If the shapes do not fit, or the likelihood refuses the examples.
        """
        log_q = self(x).log_softmax(1)  # (batch, K)
        K = log_q.shape[1]
        every = torch.eye(K).to(x)[:, None].expand(K, len(x), K)  # each class for each example
        bounds = self.elbo(x.expand(K, *x.shape), every, noise).T  # (batch, K)
        return (log_q.exp() * (bounds - log_q)).sum(1)

    @checked
    def loss(
        self,
        x: Float[Tensor, "batch D"],
        y: Int[Tensor, " batch"],
        unlabelled: Float[Tensor, "others D"],
        *,
        labelled_share: float = 0.5,
        alpha: float = 1.0,
    ) -> Float[Tensor, ""]:
        r"""What is minimised: minus the bounds, and a cross-entropy without which labels would
        not teach the classifier anything.

        .. math:: -s\, \overline{\mathcal L(x, y)} - (1 - s)\, \overline{\mathcal U(x)} -
                  \alpha\, \overline{\log q_\phi(y \mid x)}

        Args:
            x: Examples with labels.
            y: Their labels.
            unlabelled: Examples without.
            labelled_share: :math:`s`, the share of all examples that have labels: then this is
                :math:`1/N` of the bound of the whole data set.
            alpha: :math:`\alpha`.

        Returns:
            One number, in nats.

        Raises:
            ValueError: If the shapes do not fit, or the likelihood refuses the examples.
        """
        if not 0 <= labelled_share <= 1 or alpha < 0:
            raise ValueError(
                "labelled_share must lie between 0 and 1, and alpha must not be negative, got "
                f"{labelled_share} and {alpha}"
            )
        logits = self(x)
        bound = self.elbo(x, one_hot(y, logits.shape[1]).to(x)).mean()
        others = self.unlabelled_elbo(unlabelled).mean()
        bounds = labelled_share * bound + (1 - labelled_share) * others
        return alpha * cross_entropy(logits, y) - bounds
