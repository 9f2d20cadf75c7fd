r"""Optimisers, and schedules for their learning rate: what to do with a gradient once you have
it.

Taught in chapter *Optimisation*. Every optimiser walks downhill on a loss :math:`L(\theta)`
that it knows only by noisy gradients :math:`g_t = \nabla_\theta L_t(\theta_{t-1})`, one
minibatch each. They differ in what they remember: :class:`SGD` the direction, :class:`RMSprop`
the size of the gradient, :class:`Adam` and :class:`AdamW` both.

They are :class:`torch.optim.Optimizer`\ s with the arguments, defaults, state names and
conventions of :mod:`torch.optim`, so schedulers work on them and a ``state_dict`` moves both
ways. The arguments that only choose how PyTorch computes (``foreach``, ``fused``,
``capturable``, ``differentiable``) are left out. Here each parameter is updated by itself, as
PyTorch does on a CPU; on an accelerator PyTorch joins all parameters in a few large operations,
which is faster when they are many and small.

**What happens in place.** A method whose name ends in an underscore (``add_``, ``mul_``,
``lerp_``, ``addcmul_``, ``addcdiv_``) overwrites its tensor, and ``out=b`` overwrites ``b``:
these are the parameter, the running averages in ``optimizer.state``, or a temporary that nobody
else sees. The gradient ``p.grad`` is only read.

References: Robbins and Monro, "A stochastic approximation method", *Annals of Mathematical
Statistics* 22 (1951); further papers are named where they are used.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from companion.checks import accepts, checked

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineWithWarmup",
    "Descent",
    "OneCycleLR",
    "RMSprop",
    "StepLR",
]


class Descent(torch.optim.Optimizer):
    """What all optimisers share: visit each parameter that has a gradient, and ``update`` it.

    A new optimiser is a subclass with two methods: ``__init__`` names the options and their
    defaults, and :meth:`update` is the equation.

    Args:
        params: Tensors to optimise, or ``(name, tensor)`` pairs, or dictionaries (parameter
            groups) with the tensors under ``"params"`` beside options of their own.
        defaults: The options, by name, for the groups that do not set them.

    Raises:
        ValueError: If an option of a group is outside its range.
    """

    @checked
    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(_listed(params), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; options that are not given take the
        optimiser's defaults.

        Args:
            param_group: The tensors under ``"params"``, and any options by name.

        Raises:
            ValueError: If an option is outside its range, or a parameter is given twice.
        """
        options = self.defaults | param_group
        _check_options(options)
        if "lr" in options:
            options["lr"] = _scalar(options["lr"])
        if "betas" in options:
            options["betas"] = tuple(map(_scalar, options["betas"]))
        params = param_group["params"]
        if not isinstance(params, Tensor | set):  # one is enough, and a set PyTorch refuses
            params = list(params)
            tensors = [p[1] if isinstance(p, tuple) else p for p in params]  # (name, tensor)
            if len({id(p) for p in tensors}) < len(tensors):
                raise ValueError(
                    "a parameter stands twice in one group, and each step would change it "
                    "twice: name it once, as model.parameters() does"
                )
        super().add_param_group(options | {"params": params})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, once.

        Args:
            closure: Optional function that clears the gradients, computes the loss, runs
                backward and returns the loss.

        Returns:
            What ``closure`` returned; ``None`` without one.

        Raises:
            TypeError: If a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad
                if g is None:
                    continue
                if g.is_sparse:
                    raise TypeError(
                        "wanted a dense gradient, got a sparse one: build the embedding with "
                        "sparse=False"
                    )
                if g.is_complex():
                    raise TypeError(
                        "wanted a real parameter, got a complex one: optimise its "
                        "torch.view_as_real"
                    )
                self.update(p, -g if group["maximize"] else g, group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # one that was saved before an option existed
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def update(
        self, p: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], group: dict[str, Any]
    ) -> None:
        """Change one parameter in place. Subclasses write their equation here.

        Args:
            p: The parameter.
            g: The gradient to descend; it must not be changed.
            group: The options, by name.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(p, g, group)")


class SGD(Descent):
    r"""Stochastic gradient descent, with momentum if wanted.

    With momentum :math:`\mu`, dampening :math:`\tau` and weight decay :math:`\lambda`:

    .. math::
        g_t &\leftarrow g_t + \lambda\,\theta_{t-1} \\
        b_1 &= g_1, \qquad b_t = \mu\, b_{t-1} + (1 - \tau)\, g_t \\
        \theta_t &= \theta_{t-1} - \mathrm{lr} \cdot
            \begin{cases} g_t & \mu = 0 \\ b_t & \text{momentum} \\
            g_t + \mu\, b_t & \text{Nesterov} \end{cases}

    Three conventions are PyTorch's. The learning rate stands outside the buffer, so a new rate
    acts at once on all of the remembered direction; Polyak keeps it inside,
    :math:`v_t = \mu v_{t-1} - \mathrm{lr}\, g_t`, which is the same as long as the rate is
    constant. The first buffer is the raw gradient: dampening begins with the second step. And
    Nesterov's method takes its gradient at the look-ahead point :math:`\theta + \mu v`; here
    that point itself is what is stored as the parameter, so the gradient is taken where the
    parameters are.

    References: Robbins and Monro, "A stochastic approximation method" (1951). Polyak, "Some
    methods of speeding up the convergence of iteration methods", *USSR Computational
    Mathematics and Mathematical Physics* 4 (1964). Nesterov, "A method for solving the convex
    programming problem with convergence rate O(1/k²)", *Soviet Mathematics Doklady* 27 (1983).
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in
    deep learning", *ICML* (2013). The stored look-ahead point: Bengio, Boulanger-Lewandowski
    and Pascanu, "Advances in optimizing recurrent networks", arXiv:1212.0901 (2012).

    Left out, because they only choose how PyTorch computes:
    ``foreach``, ``differentiable`` and ``fused``.

    Args:
        params: Tensors to optimise, or parameter groups.
        lr: Learning rate, zero or more.
        momentum: :math:`\mu \ge 0`, the share of the last direction that is kept; usually 0.9.
        dampening: :math:`\tau`, the share of the new gradient that is left out of the buffer.
        weight_decay: :math:`\lambda \ge 0`, the weight of
            :math:`\tfrac{1}{2} \lVert\theta\rVert^2` added to the loss.
        nesterov: Whether to look ahead; needs momentum, and no dampening.
        maximize: Whether to climb instead.

    Raises:
        ValueError: If an option is outside its range, or ``nesterov`` lacks momentum or meets
            dampening.
    """

    @accepts(foreach=None, differentiable=False, fused=None)
    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults | {"nesterov": nesterov, "maximize": maximize})

    def update(
        self, p: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], group: dict[str, Any]
    ) -> None:
        """Change one parameter by the equation above.

        Args:
            p: The parameter, changed in place.
            g: Its gradient, only read.
            group: The options, by name.
        """
        momentum = group["momentum"]
        if group["weight_decay"] != 0:
            g = g.add(p, alpha=group["weight_decay"])
        if momentum != 0:
            b = self.state[p].get("momentum_buffer")
            if b is None:
                b = self.state[p]["momentum_buffer"] = g.clone()
            else:
                damped = g if group["dampening"] == 0 else g.mul(1 - group["dampening"])
                # μ b + (1 − τ) g, in one pass over the memory
                torch.add(damped, b, alpha=momentum, out=b)
            g = g.add(b, alpha=momentum) if group["nesterov"] else b
        p.add_(g, alpha=-group["lr"])


class RMSprop(Descent):
    r"""Divide each gradient by the root of the mean of its recent squares.

    Coordinates with steep gradients take small steps and flat ones large steps, all of about
    the size of the rate. With the averages' memory :math:`\alpha`, momentum :math:`\mu` and
    weight decay :math:`\lambda`:

    .. math::
        g_t &\leftarrow g_t + \lambda\,\theta_{t-1} \\
        v_t &= \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2 \\
        \bar g_t &= \alpha\, \bar g_{t-1} + (1 - \alpha)\, g_t
            \qquad\text{(centred only, else 0)} \\
        b_t &= \mu\, b_{t-1} + g_t \Big/ \Big(\sqrt{v_t - \bar g_t^2} + \epsilon\Big) \\
        \theta_t &= \theta_{t-1} - \mathrm{lr}\; b_t

    All averages start at zero. PyTorch adds :math:`\epsilon` after the root; some libraries,
    and Graves' centred form, add it under the root, where the same number does much more:
    :math:`\sqrt{10^{-8}} = 10^{-4}`. The centred difference is the variance of the recent
    gradients. Rounding can push it below zero when they hardly change; it is then taken as zero
    (PyTorch's root is NaN there).

    References: Tieleman and Hinton, "Lecture 6.5: RMSprop", *COURSERA: Neural Networks for
    Machine Learning* (2012). The centred form: Graves, "Generating sequences with recurrent
    neural networks", arXiv:1308.0850 (2013).

    Left out, because they only choose how PyTorch computes:
    ``foreach``, ``capturable`` and ``differentiable``.

    Args:
        params: Tensors to optimise, or parameter groups.
        lr: Learning rate, zero or more.
        alpha: :math:`\alpha \in [0, 1)`: the average looks back over about
            :math:`1 / (1 - \alpha)` steps.
        eps: :math:`\epsilon \ge 0`, in units of the gradient: below it a gradient counts as
            small.
        weight_decay: :math:`\lambda \ge 0`, the weight of
            :math:`\tfrac{1}{2} \lVert\theta\rVert^2` added to the loss.
        momentum: :math:`\mu \ge 0`, the share of the last direction that is kept.
        centered: Whether to divide by the standard deviation instead of the root mean square.
        maximize: Whether to climb instead.

    Raises:
        ValueError: If an option is outside its range.
    """

    @accepts(foreach=None, capturable=False, differentiable=False)
    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            defaults | {"momentum": momentum, "centered": centered, "maximize": maximize},
        )

    def update(
        self, p: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], group: dict[str, Any]
    ) -> None:
        """Change one parameter by the equation above.

        Args:
            p: The parameter, changed in place.
            g: Its gradient, only read.
            group: The options, by name.
        """
        state, alpha = self.state[p], group["alpha"]
        _count(state)  # PyTorch's state has a step count, too
        if group["weight_decay"] != 0:
            g = g.add(p, alpha=group["weight_decay"])
        v = _average(state, "square_avg", p)
        v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
        if group["centered"]:
            mean = _average(state, "grad_avg", p)
            mean.lerp_(g, 1 - alpha)  # α mean + (1 − α) g
            # rounding must not turn a variance negative
            root = v.addcmul(mean, mean, value=-1).clamp_(min=0).sqrt_()
        else:
            root = v.sqrt()
        root.add_(group["eps"])
        if group["momentum"] > 0:
            b = _average(state, "momentum_buffer", p)
            b.mul_(group["momentum"]).addcdiv_(g, root)
            p.add_(b, alpha=-group["lr"])
        else:
            p.addcdiv_(g, root, value=-group["lr"])


class Adam(Descent):
    r"""Momentum and RMSprop together, both corrected for having started at zero.

    With :math:`\beta_1` and :math:`\beta_2` the memories of the two averages and
    :math:`\lambda` the weight decay:

    .. math::
        g_t &\leftarrow g_t + \lambda\,\theta_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad \hat m_t = m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t)
        \\
        \theta_t &= \theta_{t-1}
            - \mathrm{lr}\; \hat m_t \Big/ \Big(\sqrt{\hat v_t} + \epsilon\Big)

    After :math:`t` steps the weights of an average that began at zero add up to
    :math:`1 - \beta^t`, not to one; the hats divide that out, so the first step of a coordinate
    has length lr, however large or small its gradient (as long as it is large beside
    :math:`\epsilon`). As in the paper's Algorithm 1, :math:`\epsilon` is added after the root
    and after the correction. With ``amsgrad`` the largest :math:`v` so far takes the place of
    :math:`v_t`; PyTorch corrects that maximum as well, which the paper does not.

    References: Kingma and Ba, "Adam: a method for stochastic optimization", *ICLR* (2015),
    arXiv:1412.6980. AMSGrad: Reddi, Kale and Kumar, "On the convergence of Adam and beyond",
    *ICLR* (2018), arXiv:1904.09237.

    Left out, because they only choose how PyTorch computes:
    ``foreach``, ``capturable``, ``differentiable`` and ``fused``.

    Args:
        params: Tensors to optimise, or parameter groups.
        lr: Learning rate, zero or more: roughly the length of a coordinate's step.
        betas: :math:`(\beta_1, \beta_2)`, each in :math:`[0, 1)`: an average looks back over
            about :math:`1 / (1 - \beta)` steps.
        eps: :math:`\epsilon \ge 0`, in units of the gradient: below it a gradient counts as
            small.
        weight_decay: :math:`\lambda \ge 0`, the weight of
            :math:`\tfrac{1}{2} \lVert\theta\rVert^2` added to the loss.
        amsgrad: Whether to divide by the largest :math:`v` so far.
        maximize: Whether to climb instead.
        decoupled_weight_decay: Whether to shrink the weights as :class:`AdamW` does.

    Raises:
        ValueError: If an option is outside its range.
    """

    @accepts(foreach=None, capturable=False, differentiable=False, fused=None)
    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(
            params,
            defaults | {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay},
        )

    def update(
        self, p: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], group: dict[str, Any]
    ) -> None:
        """Change one parameter by the equation above.

        Args:
            p: The parameter, changed in place.
            g: Its gradient, only read.
            group: The options, by name.
        """
        state, lr, (beta1, beta2) = self.state[p], group["lr"], group["betas"]
        t = _count(state)
        if group["weight_decay"] != 0:
            if group["decoupled_weight_decay"]:
                p.mul_(1 - lr * group["weight_decay"])
            else:
                g = g.add(p, alpha=group["weight_decay"])
        m = _average(state, "exp_avg", p)
        v = _average(state, "exp_avg_sq", p)
        m.lerp_(g, 1 - beta1)  # β₁ m + (1 − β₁) g
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["amsgrad"]:
            largest = _average(state, "max_exp_avg_sq", p)
            v = torch.maximum(largest, v, out=largest)
        root = v.sqrt().div_((1 - beta2**t) ** 0.5).add_(group["eps"])  # √v̂ + ε
        p.addcdiv_(m, root, value=-lr / (1 - beta1**t))


class AdamW(Adam):
    r"""Adam whose weight decay shrinks the weights themselves, not by way of the gradient.

    .. math::
        \theta_{t-1} &\leftarrow (1 - \mathrm{lr}\,\lambda)\,\theta_{t-1} \\
        \theta_t &= \theta_{t-1}
            - \mathrm{lr}\; \hat m_t \Big/ \Big(\sqrt{\hat v_t} + \epsilon\Big)

    In :class:`Adam` the pull :math:`\lambda\theta` joins the gradient and is then divided by
    :math:`\sqrt{\hat v}` with it, so the weights with large gradients hardly decay. Here all
    weights shrink at the same rate, and the averages :math:`m`, :math:`v` see the loss alone.

    Reference: Loshchilov and Hutter, "Decoupled weight decay regularization", *ICLR* (2019),
    arXiv:1711.05101. Their decay follows the schedule but not the rate :math:`\alpha` itself;
    PyTorch multiplies :math:`\lambda` by the rate.

    Left out, because they only choose how PyTorch computes:
    ``foreach``, ``capturable``, ``differentiable`` and ``fused``.

    Args:
        params: Tensors to optimise, or parameter groups.
        lr: Learning rate, zero or more.
        betas: :math:`(\beta_1, \beta_2)`, each in :math:`[0, 1)`.
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: :math:`\lambda \ge 0`; each step multiplies the weights by
            :math:`1 - \mathrm{lr}\,\lambda`.
        amsgrad: Whether to divide by the largest :math:`v` so far.
        maximize: Whether to climb instead.

    Raises:
        ValueError: If an option is outside its range.
    """

    @accepts(foreach=None, capturable=False, differentiable=False, fused=None)
    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # even if the state that is loaded was Adam's
            group["decoupled_weight_decay"] = True


class StepLR(LRScheduler):
    r"""Multiply the learning rate by ``gamma`` every ``step_size`` steps.

    .. math:: \mathrm{lr}_t = \mathrm{lr}_0\, \gamma^{\lfloor t / s \rfloor}

    with :math:`s` the ``step_size``. A step is whatever you call ``scheduler.step()`` after: an
    epoch or a minibatch. The rate is computed from the first one: another schedule on the same
    optimiser is overwritten, not multiplied.

    Args:
        optimizer: Whose rate to set; each parameter group starts from its own ``lr``.
        step_size: Steps between two drops.
        gamma: Factor of a drop.
        last_epoch: Steps already taken, less one; -1 starts afresh.

    Raises:
        ValueError: If ``step_size`` is below one or ``gamma`` is negative.
    """

    @checked
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        if step_size < 1:
            raise ValueError(
                f"step_size must be at least 1, got {step_size}: it is the number of steps "
                "between drops"
            )
        if gamma < 0:
            raise ValueError(
                f"gamma must not be negative, got {gamma}: it multiplies the learning rate"
            )
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group at this step."""
        return [lr * self.gamma ** (self.last_epoch // self.step_size) for lr in self.base_lrs]


class CosineWithWarmup(LRScheduler):
    r"""Climb linearly from zero to the full rate, then come down on half a cosine.

    With :math:`w` steps of warm-up out of :math:`T`:

    .. math::
        \mathrm{lr}_t = \begin{cases}
            \mathrm{lr}_0\, t / w & t < w \\
            \eta_{\min} + \tfrac{1}{2} (\mathrm{lr}_0 - \eta_{\min})
                \Big(1 + \cos \pi \dfrac{t - w}{T - w}\Big) & w \le t \le T
        \end{cases}

    These are the numbers of Hugging Face's "cosine schedule with warmup"; without warm-up,
    those of :class:`torch.optim.lr_scheduler.CosineAnnealingLR`. With warm-up the very first
    step has rate zero. Both of those let the rate climb again after :math:`T`; here it stays at
    :math:`\eta_{\min}`.

    References: the cosine: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm
    restarts", *ICLR* (2017), arXiv:1608.03983. The warm-up: Goyal et al., "Accurate, large
    minibatch SGD: training ImageNet in 1 hour", arXiv:1706.02677 (2017).

    Args:
        optimizer: Whose rate to set; the ``lr`` of each parameter group is its full rate
            :math:`\mathrm{lr}_0`.
        num_warmup_steps: :math:`w \ge 0`.
        num_training_steps: :math:`T > w`, warm-up included: epochs times minibatches in an
            epoch.
        eta_min: :math:`\eta_{\min}`, the rate at the end.
        last_epoch: Steps already taken, less one; -1 starts afresh.

    Raises:
        ValueError: Unless ``0 <= num_warmup_steps < num_training_steps``.
    """

    @checked
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        num_warmup_steps: int,
        num_training_steps: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= num_warmup_steps < num_training_steps:
            raise ValueError(
                f"wanted 0 <= num_warmup_steps < num_training_steps, got {num_warmup_steps} "
                f"and {num_training_steps}: the warm-up is a part of the training steps"
            )
        if eta_min < 0:
            raise ValueError(f"eta_min must not be negative, got {eta_min}: it is a rate")
        self.num_warmup_steps, self.num_training_steps, self.eta_min = (
            num_warmup_steps,
            num_training_steps,
            eta_min,
        )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group at this step."""
        t, w, T = self.last_epoch, self.num_warmup_steps, self.num_training_steps
        if t < w:
            return [lr * t / w for lr in self.base_lrs]
        return [_cosine(lr, self.eta_min, min(1.0, (t - w) / (T - w))) for lr in self.base_lrs]


class OneCycleLR(LRScheduler):
    r"""One climb to a large rate, one descent to nearly none, with momentum the other way
    round.

    With :math:`c(a, b, s) = b + \tfrac{1}{2}(a - b)(1 + \cos \pi s)`, which goes from :math:`a`
    to :math:`b` as :math:`s` goes from 0 to 1, and :math:`t^* = \rho T - 1` the step of the
    peak:

    .. math::
        \mathrm{lr}_t &= \begin{cases}
            c\big(\mathrm{lr}_{\max} / d, \; \mathrm{lr}_{\max}, \; t / t^*\big) & t < t^* \\
            c\big(\mathrm{lr}_{\max}, \; \mathrm{lr}_{\max} / (d D), \; (t - t^*) / (T - 1 -
            t^*)\big) & t \ge t^*
        \end{cases} \\
        \mu_t &= \text{the same with } \mu_{\max} \to \mu_{\text{base}} \to \mu_{\max}

    The momentum :math:`\mu` is an optimiser's ``momentum``, or its first beta: low while the
    rate is high, since the two multiply each other's effect. Call ``scheduler.step()`` after
    each minibatch.

    The numbers are those of :class:`torch.optim.lr_scheduler.OneCycleLR` with its defaults
    ``anneal_strategy="cos"`` and ``three_phase=False``; all after ``total_steps`` is given by
    name. Left out: other values of these two, and ``epochs`` with ``steps_per_epoch``, whose
    product is ``total_steps``.

    References: Smith and Topin, "Super-convergence: very fast training of neural networks using
    large learning rates", *SPIE* 11006 (2019), arXiv:1708.07120, climb and come down in
    straight lines. The momentum that goes the other way: Smith, "A disciplined approach to
    neural network hyper-parameters: part 1", arXiv:1803.09820 (2018). The cosines and the two
    phases are those of the library fastai: Howard and Gugger, "fastai: a layered API for deep
    learning", *Information* 11 (2020).

    Args:
        optimizer: Whose rate and momentum to set; the rates that it has are replaced.
        max_lr: The rate at the peak, or a list of them, one for each parameter group.
        total_steps: :math:`T`: epochs times minibatches in an epoch.
        pct_start: :math:`\rho \in [0, 1)`, the share of the steps that climb.
        cycle_momentum: Whether to set momentum, too.
        base_momentum: Momentum at the peak of the rate.
        max_momentum: Momentum at both ends.
        div_factor: :math:`d`, the peak rate over the first rate.
        final_div_factor: :math:`D`, the first rate over the last rate.
        last_epoch: Steps already taken, less one; -1 starts afresh.

    Raises:
        ValueError: If an argument is outside its range, there is not one peak for each group,
            the optimiser has no momentum to cycle, or more than ``total_steps`` steps are
            taken.
    """

    @accepts(epochs=None, steps_per_epoch=None, anneal_strategy="cos", three_phase=False)
    @checked
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        *,
        pct_start: float = 0.3,
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        last_epoch: int = -1,
    ) -> None:
        peaks = (
            list(max_lr)
            if isinstance(max_lr, Sequence)
            else [max_lr] * len(optimizer.param_groups)
        )
        if total_steps < 1:
            raise ValueError(
                f"total_steps must be at least 1, got {total_steps}: epochs times minibatches "
                "in an epoch"
            )
        if not 0 <= pct_start < 1:
            raise ValueError(
                f"pct_start must lie in [0, 1), got {pct_start}: it is the share of the steps "
                "that climb"
            )
        if len(peaks) != len(optimizer.param_groups):
            raise ValueError(
                f"got {len(peaks)} max_lr for {len(optimizer.param_groups)} parameter groups: "
                "one for each"
            )
        if min(peaks) < 0 or min(div_factor, final_div_factor) <= 0:
            raise ValueError(
                "wanted max_lr of at least 0, and div_factor and final_div_factor above 0, got "
                f"{max_lr}, {div_factor} and {final_div_factor}"
            )
        if not 0 <= min(base_momentum, max_momentum) <= max(base_momentum, max_momentum) < 1:
            raise ValueError(
                f"base_momentum and max_momentum must lie in [0, 1), got {base_momentum} and "
                f"{max_momentum}: they are shares of the past that are kept"
            )
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError(
                f"{type(optimizer).__name__} has no momentum to cycle: pass "
                "cycle_momentum=False"
            )
        self.total_steps, self.pct_start, self.cycle_momentum = (
            total_steps,
            pct_start,
            cycle_momentum,
        )
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            first = peak / div_factor
            group.update(initial_lr=first, max_lr=peak, min_lr=first / final_div_factor)
            group.update(base_momentum=base_momentum, max_momentum=max_momentum)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group at this step; sets its momentum on the way."""
        t, peak, last = (
            self.last_epoch,
            self.pct_start * self.total_steps - 1,
            self.total_steps - 1,
        )
        if t > self.total_steps:
            raise ValueError(
                f"step {t} of a cycle of {self.total_steps}: total_steps is epochs times "
                "minibatches"
            )
        if t < peak:
            progress, rates, momenta = (
                t / peak,
                ("initial_lr", "max_lr"),
                ("max_momentum", "base_momentum"),
            )
        else:
            progress, rates = (t - peak) / (last - peak), ("max_lr", "min_lr")
            momenta = ("base_momentum", "max_momentum")
        if self.cycle_momentum:
            for group in self.optimizer.param_groups:
                momentum = _cosine(group[momenta[0]], group[momenta[1]], progress)
                if "betas" in group:
                    group["betas"] = (momentum, group["betas"][1])
                else:
                    group["momentum"] = momentum
        return [
            _cosine(group[rates[0]], group[rates[1]], progress)
            for group in self.optimizer.param_groups
        ]


def _cosine(start: float | Tensor, end: float | Tensor, progress: float) -> float | Tensor:
    """From ``start`` to ``end`` on half a cosine as ``progress`` goes from 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def _listed(params: ParamsT) -> list[Any]:
    """What is to be optimised, if it can be."""
    if isinstance(params, Tensor | str) or not isinstance(params, Iterable):
        raise TypeError(f"params must be tensors, as model.parameters(), got {params!r}")
    params = list(params)
    if not params:
        raise ValueError("params is empty, there is nothing to optimise: has the model any?")
    for p in params:
        if not isinstance(p, Tensor | dict | tuple):
            raise TypeError(
                f"params must hold tensors, got a {type(p).__name__}: make it one with "
                "torch.nn.Parameter"
            )
        if isinstance(p, Tensor) and not p.is_leaf:
            raise ValueError(
                f"params has a tensor of shape {tuple(p.shape)} that was computed from others: "
                "optimise those, or its detach().requires_grad_()"
            )
    return params


def _average(state: dict[str, Any], name: str, p: Tensor) -> Tensor:
    """The running average of that name, which starts at zero."""
    if name not in state:
        state[name] = torch.zeros_like(p)
    return state[name]


def _count(state: dict[str, Any]) -> float:
    """Count this step, and return how many there were: a float32 tensor in the state, as
    PyTorch keeps it.
    """
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
    state["step"] += 1
    return state["step"].item()


def _scalar(value: float | Tensor) -> float | Tensor:
    """A tensor of one number without its dimensions."""
    return value.squeeze() if isinstance(value, Tensor) and value.dim() else value


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options of a parameter group that no optimiser can use."""
    for name, values in {"lr": [options.get("lr")], "betas": options.get("betas", ())}.items():
        if any(isinstance(value, Tensor) and value.numel() != 1 for value in values):
            raise ValueError(f"a tensor as {name} must hold one number, got {options[name]}")
    if len({isinstance(beta, Tensor) for beta in options.get("betas", ())}) > 1:
        raise ValueError(
            f"betas must be two numbers or two tensors, got {options['betas']}: convert the "
            "tensor with beta.item()"
        )
    for name, advice in {
        "lr": "to climb, pass maximize=True",
        "momentum": "0 turns it off",
        "weight_decay": "0 turns it off",
        "eps": "it keeps the division away from zero",
    }.items():
        if name in options and not options[name] >= 0:
            raise ValueError(f"{name} must be zero or more, got {options[name]}: {advice}")
    if len(options.get("betas", (0, 0))) != 2:
        raise ValueError(
            "betas must be two shares of the past, such as (0.9, 0.999), got "
            f"{options['betas']}"
        )
    for name, shares in {
        "alpha": [options.get("alpha", 0.0)],
        "betas": options.get("betas", ()),
    }.items():
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(
                f"{name} must lie in [0, 1), got {options[name]}: the share of the past that "
                "is kept"
            )
    if options.get("nesterov") and (options["momentum"] == 0 or options["dampening"] != 0):
        raise ValueError(
            "nesterov looks ahead along the momentum: it needs momentum above 0 and dampening "
            f"0, got momentum {options['momentum']} and dampening {options['dampening']}"
        )
