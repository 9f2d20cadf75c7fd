r"""Mixtures of experts: several models for one task, and a gate that says which of them to ask.

Taught in chapter *Mixture of experts*. :class:`MixtureOfExperts` is a probability model, so it
can be fitted by expectation maximisation (:meth:`~MixtureOfExperts.fit_em`) and by gradient
(:meth:`~MixtureOfExperts.fit`), on the same likelihood. Its M-step is made of two functions
that are of use alone: :func:`weighted_least_squares` and :func:`irls`, multinomial logistic
regression with a weight for each example. :class:`SparseMixtureOfExperts` is the layer of
today's language models, which computes only the experts that it chooses, and
:func:`load_balancing_loss` is what keeps its router from choosing always the same.

References: Jacobs, Jordan, Nowlan and Hinton, *Adaptive mixtures of local experts*, Neural
Computation 3 (1991); Jordan and Jacobs, *Hierarchical mixtures of experts and the EM
algorithm*, Neural Computation 6 (1994); Shazeer et al., *Outrageously large neural networks:
the sparsely-gated mixture-of-experts layer*, ICLR 2017; Fedus, Zoph and Shazeer, *Switch
transformers: scaling to trillion parameter models with simple and efficient sparsity*, Journal
of Machine Learning Research 23 (2022).
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot

from companion.activations import log_softmax, softmax
from companion.checks import Unbounded, check_alike, checked
from companion.layers import MLP, Linear
from companion.optimization import Adam
from companion.training import History, train

__all__ = [
    "MixtureOfExperts",
    "SparseMixtureOfExperts",
    "irls",
    "load_balancing_loss",
    "weighted_least_squares",
]


@checked
def weighted_least_squares(
    x: Float[Tensor, "examples features"],
    y: Float[Tensor, "examples outputs"],
    weight: Float[Tensor, " examples"],
) -> Float[Tensor, "outputs features_and_one"]:
    r"""The linear map, with a bias, whose weighted squared error is smallest.

    With :math:`\tilde x_n = (x_n, 1)` and the weights :math:`r_n`,

    .. math:: \hat W = \arg\min_W \sum_n r_n \lVert y_n - W \tilde x_n \rVert^2
              \quad\Longleftrightarrow\quad
              \Big(\sum_n r_n \tilde x_n \tilde x_n^\top\Big) \hat W^\top
              = \sum_n r_n \tilde x_n y_n^\top .

    It is the plain least-squares solution for :math:`\sqrt{r_n}\, \tilde x_n` and
    :math:`\sqrt{r_n}\, y_n`, found by their pseudo-inverse, without squaring the condition
    number. Source: any book on linear regression; as an M-step, Jordan and Jacobs (1994).

    Args:
        x: Inputs.
        y: Targets.
        weight: :math:`r_n`, not negative.

    Returns:
        :math:`\hat W`, the biases in its last column. Where there are several (fewer weighted
        examples than columns, or a column of zeros), the shortest.

    Raises:
        ValueError: If there are no examples, or their numbers differ.
    """
    _check_examples(x, y=y, weight=weight)
    root = weight.sqrt()[:, None]
    return (torch.linalg.pinv(root * _with_one(x)) @ (root * y)).T


@checked
def irls(
    x: Float[Tensor, "examples features"],
    target: Float[Tensor, "examples classes"],
    weight: Float[Tensor, " examples"],
    W: Float[Tensor, "classes features_and_one"],
    steps: int = 1,
) -> Float[Tensor, "classes features_and_one"]:
    r"""Multinomial logistic regression by Newton's method, also called iteratively reweighted
    least squares.

    Lowers the weighted cross-entropy of the probabilities :math:`t_n` and
    :math:`p_n = \operatorname{softmax}(W \tilde x_n)`, where :math:`\tilde x_n = (x_n, 1)`:

    .. math:: C(W) = -\sum_n r_n \sum_k t_{nk} \log p_{nk}, \quad
              \frac{\partial C}{\partial w_k} = \sum_n r_n (p_{nk} - t_{nk})\, \tilde x_n, \quad
              \frac{\partial^2 C}{\partial w_k \partial w_l^\top}
              = \sum_n r_n\, p_{nk} (\delta_{kl} - p_{nl})\, \tilde x_n \tilde x_n^\top .

    A vector that is added to all :math:`w_k` changes no probability, so the last one stays as
    it is. A step that would raise the cost is halved until it does not. Source: Jordan and
    Jacobs (1994); that the whole Hessian is needed and not its diagonal blocks alone: Chen, Xu
    and Chi, *Improved learning algorithms for mixture of experts in multiclass
    classification*, Neural Networks 12 (1999).

    Args:
        x: Inputs.
        target: :math:`t_n`: probabilities of the classes, one row an example.
        weight: :math:`r_n`, not negative.
        W: Where to begin; the biases stand in the last column.
        steps: How many steps of Newton's method.

    Returns:
        The weights after these steps.

    Raises:
        ValueError: If there are no examples, numbers of examples, features or classes differ,
            or there are no steps.
    """
    _check_examples(x, target=target, weight=weight)
    check_alike("W", x, W)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if W.shape[1] != x.shape[1] + 1:
        raise ValueError(
            f"W needs a column for each of {x.shape[1]} features and one for the biases, got "
            f"shape {tuple(W.shape)}"
        )
    x = _with_one(x)

    def cost(W):
        return -(weight[:, None] * target * log_softmax(x @ W.T, dim=1)).sum()

    for _ in range(steps if len(W) > 1 else 0):
        p = softmax(x @ W.T, dim=1)[:, :-1]
        px = (p[:, :, None] * x[:, None, :]).flatten(1)  # (examples, (classes − 1) columns)
        blocks = torch.einsum("nk,ni,nj->kij", weight[:, None] * p, x, x)
        hessian = torch.block_diag(*blocks) - px.T @ (weight[:, None] * px)
        gradient = (((p - target[:, :-1]) * weight[:, None]).T @ x).flatten()
        step = torch.zeros_like(W)
        step[:-1] = -(torch.linalg.pinv(hessian, hermitian=True) @ gradient).view(
            -1, x.shape[1]
        )
        W = _halved_until_no_worse(cost, W, step)
    return W


class MixtureOfExperts(nn.Module):
    r"""A gate that divides the inputs among experts, and the experts.

    .. math:: p(y \mid x) = \sum_{k=1}^K g_k(x)\, p_k(y \mid x), \qquad
              g(x) = \operatorname{softmax}(\mathrm{gate}(x)) .

    In regression expert :math:`k` says :math:`p_k(y \mid x) = \mathcal N(y; f_k(x), \sigma_k^2
    I)`, in classification :math:`\operatorname{softmax}(f_k(x))_y`. Gate and experts are each
    an :class:`~companion.layers.MLP`, a linear map if they have no hidden layer. Sources:
    Jacobs et al. (1991), Jordan and Jacobs (1994).

    ``model(x)`` is a prediction that works with the losses of :mod:`companion.layers`: in
    regression the mean :math:`\sum_k g_k(x) f_k(x)`, in classification :math:`\log p(c \mid x)`
    for every class :math:`c`, whose cross-entropy is the loss of this model.

    Args:
        in_features: Length of :math:`x`.
        out_features: Length of :math:`y`, or the number of classes.
        n_experts: :math:`K`.
        task: ``"regression"`` or ``"classification"``.
        hidden: Sizes of the hidden layers of each expert.
        gate_hidden: Sizes of the hidden layers of the gate.
        activation: The non-linearity of hidden layers.
        min_variance: The variance below which no :math:`\sigma_k^2` falls. Without it an expert
            that passes exactly through a few points would have infinite likelihood.

    Attributes:
        gate: The network whose softmax is :math:`g`.
        experts: The networks :math:`f_k`.
        log_variance: In regression the logarithm of what each :math:`\sigma_k^2` has above
            ``min_variance``.

    Raises:
        ValueError: If a size is less than one, the task is unknown, or ``min_variance`` is not
            above zero.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_experts: int,
        task: str = "regression",
        hidden: Sequence[int] = (),
        gate_hidden: Sequence[int] = (),
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        min_variance: float = 1e-6,
    ):
        super().__init__()
        if task not in ("regression", "classification"):
            raise ValueError(f'task must be "regression" or "classification", got {task!r}')
        if n_experts < 1 or min_variance <= 0:
            raise ValueError(
                "wanted at least one expert and a min_variance above 0, got "
                f"{n_experts} and {min_variance}"
            )
        self.gate = MLP([in_features, *gate_hidden, n_experts], activation)
        self.experts = nn.ModuleList(
            MLP([in_features, *hidden, out_features], activation) for _ in range(n_experts)
        )
        self.regression, self.min_variance = task == "regression", min_variance
        if self.regression:
            self.log_variance = nn.Parameter(torch.zeros(n_experts))

    @property
    def variance(self) -> Float[Tensor, " experts"]:
        """In regression, the variance of each expert."""
        return self.min_variance + self.log_variance.exp()

    @checked
    def log_gate(
        self, x: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples experts"]:
        r"""The prior of each expert, :math:`\log g_k(x_n)`.

        Args:
            x: Inputs.
        """
        return log_softmax(self.gate(x), dim=1)

    @checked
    def outputs(
        self, x: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples experts outputs"]:
        """What each expert says, :math:`f_k(x_n)`.

        Args:
            x: Inputs.
        """
        return torch.stack([expert(x) for expert in self.experts], dim=1)

    @checked
    def log_joint(
        self,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "..."] | Int64[Tensor, "..."],
    ) -> Float[Tensor, "examples experts"]:
        r"""How likely it is that an expert is asked and says the truth,
        :math:`\log g_k(x_n)\, p_k(y_n \mid x_n)`. Its log-sum-exp over the experts is
        :math:`\log p(y_n \mid x_n)`.

        Args:
            x: Inputs.
            y: Targets: vectors in regression, numbers of classes in classification.

        Raises:
            ValueError: If there are no examples, or the targets are not of the task's kind.
        """
        outputs = self._checked_outputs(x, y)
        if self.regression:
            error = (y[:, None] - outputs).square().sum(dim=2)
            likelihood = -0.5 * (
                error / self.variance + y.shape[1] * (2 * math.pi * self.variance).log()
            )
        else:
            chosen = y[:, None, None].expand(-1, outputs.shape[1], 1)
            likelihood = log_softmax(outputs, dim=2).gather(2, chosen).squeeze(2)
        return self.log_gate(x) + likelihood

    def loss(
        self,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "..."] | Int64[Tensor, "..."],
    ) -> Float[Tensor, ""]:
        r"""Minus the mean log-likelihood, :math:`-\frac1N \sum_n \log p(y_n \mid x_n)`.

        Args:
            x: Inputs.
            y: Targets, as in :meth:`log_joint`.

        Returns:
            Nats an example.
        """
        return -self.log_joint(x, y).logsumexp(dim=1).mean()

    @checked
    def forward(
        self, input: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples outputs"]:
        """The mean of the prediction, or the log-probability of each class.

        Args:
            input: Inputs.
        """
        log_gate, outputs = self.log_gate(input)[:, :, None], self.outputs(input)
        if self.regression:
            return (log_gate.exp() * outputs).sum(dim=1)
        return (log_gate + log_softmax(outputs, dim=2)).logsumexp(dim=1)

    @torch.no_grad()
    def responsibilities(
        self,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "..."] | Int64[Tensor, "..."],
    ) -> Float[Tensor, "examples experts"]:
        r"""The E-step: the probability that expert :math:`k` is behind example :math:`n`, now
        that the answer is known.

        .. math:: r_{nk} = \frac{g_k(x_n)\, p_k(y_n \mid x_n)}
                                {\sum_l g_l(x_n)\, p_l(y_n \mid x_n)}

        Args:
            x: Inputs.
            y: Targets, as in :meth:`log_joint`.
        """
        return softmax(self.log_joint(x, y), dim=1)

    @checked
    @torch.no_grad()
    def m_step(
        self,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "..."] | Int64[Tensor, "..."],
        r: Float[Tensor, "examples experts"],
        inner: int = 1,
        lr: float = 0.01,
    ) -> None:
        r"""The M-step: raise :math:`\sum_n \sum_k r_{nk} \log g_k(x_n)\, p_k(y_n \mid x_n)`.

        It falls apart into a problem for the gate and one for each expert. A linear expert of
        regression is set to the maximum by :func:`weighted_least_squares`, and so is each
        :math:`\sigma_k^2`; a linear gate or expert of classification takes ``inner`` steps of
        :func:`irls`; a network with hidden layers takes ``inner`` steps of Adam on its own
        problem, and goes back halfway, and halfway again, where that would lower the sum. So
        the sum never falls, and neither does the likelihood.

        An expert whose responsibilities are all zero is left as it is.

        Args:
            x: Inputs.
            y: Targets, as in :meth:`log_joint`.
            r: Responsibilities, or any other probabilities of the experts.
            inner: Steps for what has no closed form.
            lr: The learning rate of Adam.

        Raises:
            ValueError: If shapes do not fit, or a number is out of range.
        """
        self._checked_outputs(x, y)
        _check_examples(x, r=r)
        if inner < 1 or lr <= 0:
            raise ValueError(f"inner must be at least 1 and lr above 0, got {inner} and {lr}")
        _improve_classifier(self.gate, x, r, torch.ones_like(r[:, 0]), inner, lr)
        for k, expert in enumerate(self.experts):
            if (most := r[:, k].max()) == 0:
                continue
            weight = r[:, k] / most  # the scale makes no difference, but could underflow
            if not self.regression:
                target = one_hot(y, expert.layers[-1].out_features).to(x)
                _improve_classifier(expert, x, target, weight, inner, lr)
                continue
            if len(expert.layers) == 1:
                _set(expert.layers[0], weighted_least_squares(x, y, weight))
            else:
                _improve(expert, _squared_error(expert, x, y, weight), inner, lr)
            error = _squared_error(expert, x, y, weight)()
            excess = error / (weight.sum() * y.shape[1]) - self.min_variance
            self.log_variance[k] = excess.clamp(min=torch.finfo(x.dtype).tiny).log()

    @checked
    def fit_em(
        self,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "..."] | Int64[Tensor, "..."],
        *,
        max_iter: int = 100,
        tol: Unbounded = 1e-6,
        inner: int = 1,
        lr: float = 0.01,
    ) -> History:
        """Fit by expectation maximisation: :meth:`responsibilities`, then :meth:`m_step`, and
        again. The loss never rises, but for rounding.

        Args:
            x: Inputs.
            y: Targets, as in :meth:`log_joint`.
            max_iter: The largest number of iterations.
            tol: Ends when an iteration has lowered the loss by less; ``-math.inf`` never does.
            inner: Steps of the M-step for what has no closed form.
            lr: The learning rate of Adam there.

        Returns:
            As of :func:`companion.training.train`, an iteration being a step: the loss before
            each of them, and the seconds at its end.

        Raises:
            ValueError: If shapes do not fit, or a number is out of range.
        """
        if max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {max_iter}")
        history, begin = History(steps_per_epoch=1), time.perf_counter()
        for _ in range(max_iter):
            with torch.no_grad():
                log_joint = self.log_joint(x, y)
            loss = -log_joint.logsumexp(dim=1).mean().item()
            if history.loss and history.loss[-1] - loss < tol:
                break
            self.m_step(x, y, softmax(log_joint, dim=1), inner, lr)
            history.loss.append(loss)
            history.seconds.append(time.perf_counter() - begin)
        return history

    def fit(
        self,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "..."] | Int64[Tensor, "..."],
        optimizer: torch.optim.Optimizer,
        **options: Any,
    ) -> History:
        """Fit by gradient descent on :meth:`loss`, by :func:`companion.training.train`.

        Args:
            x: Inputs.
            y: Targets, as in :meth:`log_joint`.
            optimizer: Holds the parameters.
            options: Of :func:`~companion.training.train`: ``epochs``, ``batch_size`` and so on.

        Returns:
            The losses of all steps.
        """
        return train(lambda batch: self.loss(*batch), optimizer, (x, y), model=self, **options)

    def _checked_outputs(self, x, y):
        """What the experts say, if the targets can be compared with it."""
        outputs = self.outputs(x)
        size = outputs.shape[2]
        wanted = (len(x), size) if self.regression else (len(x),)
        if self.regression != y.is_floating_point() or y.shape != wanted:
            raise ValueError(
                f"y must hold {'numbers' if self.regression else 'classes, torch.int64,'} in "
                f"the shape {wanted}, got shape {tuple(y.shape)} of {y.dtype}"
            )
        _check_examples(x, y=y)
        if not self.regression and not 0 <= y.min() <= y.max() < size:
            raise ValueError(
                f"classes are numbered from 0 to {size - 1}, got {y.min().item()} to "
                f"{y.max().item()}"
            )
        return outputs


def _with_one(x):
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def _set(layer, W):
    """Give a linear layer weights, and biases from the last column."""
    layer.weight.copy_(W[:, :-1])
    layer.bias.copy_(W[:, -1])


def _squared_error(net, x, y, weight):
    return lambda: (weight[:, None] * (y - net(x)).square()).sum()


def _improve_classifier(net, x, target, weight, inner, lr):
    """Lower the weighted cross-entropy: by Newton's method if the network is linear."""
    if len(net.layers) == 1:
        layer = net.layers[0]
        W = torch.cat([layer.weight, layer.bias[:, None]], dim=1)
        _set(layer, irls(x, target, weight, W, inner))
    else:
        weighted = weight[:, None] * target
        _improve(net, lambda: -(weighted * log_softmax(net(x), dim=1)).sum(), inner, lr)


def _improve(net, cost, steps, lr):
    """Lower the cost of a network by a few steps of Adam, or leave it as it is."""
    parameters = [*net.parameters()]

    def place():
        return torch.cat([parameter.flatten() for parameter in parameters])

    def cost_at(theta):
        parts = theta.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
        return cost()

    before = place()
    with torch.enable_grad():
        optimizer = Adam(parameters, lr=lr)
        train(lambda _: cost(), optimizer, [None] * steps, model=net, progress=False)
    cost_at(_halved_until_no_worse(cost_at, before, place() - before))


def _halved_until_no_worse(cost, start, step):
    """``start + step``, or half of that way, or a quarter, ..., whose cost is no higher."""
    highest = cost(start)
    for _ in range(20):
        if cost(start + step) <= highest:
            return start + step
        step = step / 2
    return start


def _check_examples(x, **others):
    """There is an example, and one of everything for each; weights are not negative."""
    if len(x) == 0:
        raise ValueError("x has no examples: there is nothing to fit to")
    for name, tensor in others.items():
        if len(tensor) != len(x):
            raise ValueError(
                f"there must be one entry of {name} for each of {len(x)} examples, got "
                f"{len(tensor)}"
            )
        if tensor.is_floating_point():
            check_alike(name, x, tensor)
    if "weight" in others and others["weight"].min() < 0:
        raise ValueError(f"no weight may be negative, got {others['weight'].min().item()}")


@checked
def load_balancing_loss(
    probabilities: Float[Tensor, "tokens experts"], chosen: Int[Tensor, "tokens top_k"]
) -> Float[Tensor, ""]:
    r"""How uneven a router is: 1 if every expert gets equally much, up to the number of experts
    if one gets everything.

    .. math:: E \sum_{k=1}^E f_k P_k, \qquad
              f_k = \frac{\text{how often } k \text{ was chosen}}{\text{choices}}, \qquad
              P_k = \frac1N \sum_n p_{nk} .

    The shares :math:`f_k` have no gradient, the mean probabilities :math:`P_k` have: it takes
    probability from experts in proportion to how often they were chosen. Added to the loss with
    a small weight, :math:`10^{-2}` in the paper. Source: Fedus, Zoph and Shazeer (2022), who
    choose one expert a token; with more we divide by the number of choices.

    Args:
        probabilities: :math:`p_{nk}`, the router's softmax.
        chosen: The numbers of the experts that each token went to.

    Returns:
        A number without unit.

    Raises:
        ValueError: If there are no tokens, their numbers differ, or an expert does not exist.
    """
    experts = probabilities.shape[1]
    if len(chosen) != len(probabilities) or chosen.numel() == 0:
        raise ValueError(
            "wanted the chosen experts of each token, and at least one token, got shapes "
            f"{tuple(probabilities.shape)} and {tuple(chosen.shape)}"
        )
    if not 0 <= chosen.min() <= chosen.max() < experts:
        raise ValueError(
            f"experts are numbered from 0 to {experts - 1}, got {chosen.min().item()} to "
            f"{chosen.max().item()}"
        )
    counts = chosen.flatten().bincount(minlength=experts).to(probabilities)
    return experts * (counts / chosen.numel() * probabilities.mean(dim=0)).sum()


class SparseMixtureOfExperts(nn.Module):
    r"""A layer of many experts, of which each token sees a few.

    .. math:: p = \operatorname{softmax}(W x), \qquad
              y = \sum_{k \in \text{top}} w_k\, f_k(x), \qquad
              w_k = \begin{cases} p_k & \text{if one expert is chosen} \\
                    p_k / \sum_{l \in \text{top}} p_l & \text{if several are} \end{cases}

    Only the chosen experts are computed: tokens are sorted by expert, each expert gets its own
    as one batch, and the results go back to where the tokens came from. Every expert is an
    :class:`~companion.layers.MLP` with one hidden layer. With one expert the weight is
    :math:`p_k` itself, not :math:`p_k / p_k = 1`, through which no gradient would reach the
    router. Sources: Shazeer et al. (2017) for several, whose noise on the router is left out;
    Fedus, Zoph and Shazeer (2022) for one, whose limit to the tokens of an expert is left out.

    Args:
        in_features: Length of a token, before and after.
        hidden: Hidden units of each expert.
        n_experts: How many experts there are.
        top_k: How many each token sees.
        activation: The non-linearity of the hidden layer.

    Attributes:
        router: The linear layer whose softmax is :math:`p`, without biases.
        experts: The networks :math:`f_k`.

    Raises:
        ValueError: If a size is less than one, or more experts are to be chosen than there are.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        hidden: int,
        n_experts: int,
        top_k: int = 1,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        super().__init__()
        if not 1 <= top_k <= n_experts:
            raise ValueError(
                "top_k must lie between 1 and the number of experts, got "
                f"{top_k} of {n_experts}"
            )
        self.router = Linear(in_features, n_experts, bias=False)
        self.experts = nn.ModuleList(
            MLP([in_features, hidden, in_features], activation) for _ in range(n_experts)
        )
        self.top_k = top_k

    def route(
        self, x: Float[Tensor, "tokens features"]
    ) -> tuple[
        Float[Tensor, "tokens experts"],
        Int[Tensor, "tokens top_k"],
        Float[Tensor, "tokens top_k"],
    ]:
        """Who sees which token.

        Args:
            x: Tokens.

        Returns:
            The router's probabilities, the numbers of the chosen experts, and their weights.
        """
        probabilities = softmax(self.router(x), dim=1)
        weight, chosen = probabilities.topk(self.top_k, dim=1)
        if self.top_k > 1:
            weight = weight / weight.sum(dim=1, keepdim=True)
        return probabilities, chosen, weight

    @checked
    def forward(
        self, input: Float[Tensor, "*batch features"]
    ) -> tuple[Float[Tensor, "*batch features"], Float[Tensor, ""]]:
        """What the chosen experts say, and :func:`load_balancing_loss`.

        Args:
            input: Tokens, with any number of leading dimensions.

        Returns:
            The weighted sums, in the shape of the input, and how uneven the router was.

        Raises:
            ValueError: If there are no tokens, or they are not ``in_features`` long.
        """
        x = input.flatten(0, -2) if input.dim() > 1 else input[None]
        probabilities, chosen, weight = self.route(x)
        balance = load_balancing_loss(probabilities, chosen)
        order = chosen.flatten().argsort()  # choices of the first expert, of the second, ...
        token = order // self.top_k
        sizes = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        said = [
            expert(part)
            for expert, part in zip(self.experts, x[token].split(sizes), strict=True)
        ]
        said = torch.cat(said) * weight.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, token, said).view_as(input), balance
