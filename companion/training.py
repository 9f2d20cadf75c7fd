"""The training loop of the book: minibatches, validation, and a record of what happened.

Every chapter trains through :func:`fit`. It works with the companion's layers and optimisers
and with PyTorch's own.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History", "accuracy", "evaluate", "fit", "modes_kept"]


@dataclass
class History:
    """What happened during a call of :func:`fit`.

    Attributes:
        loss: The training loss of each minibatch, one number a step.
        seconds: The time at the end of each step, in seconds since training began; validation
            is not counted.
        validation_loss: The loss on the validation data after each epoch.
        validation_metric: The metric on the validation data after each epoch.
        steps_per_epoch: How many minibatches make one pass through the training data.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_metric: list[float] = field(default_factory=list)
    steps_per_epoch: int = 0

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the training loss over the steps, and the validation loss where there is one.

        Args:
            ax: The axes to draw on; the current ones by default.

        Returns:
            The axes, for further decoration.
        """
        import matplotlib.pyplot as plt

        ax = plt.gca() if ax is None else ax
        ax.plot(
            range(1, len(self.loss) + 1),
            self.loss,
            linewidth=0.8,
            alpha=0.7,
            label="training, each minibatch",
        )
        if self.validation_loss:
            ends = [
                self.steps_per_epoch * epoch
                for epoch in range(1, len(self.validation_loss) + 1)
            ]
            ax.plot(ends, self.validation_loss, "o-", label="validation, each epoch")
            ax.legend()
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        return ax


def accuracy(
    prediction: Float[Tensor, "batch classes *rest"], target: Int[Tensor, "batch *rest"]
) -> float:
    r"""The fraction of examples whose largest score is that of the right class.

    .. math:: \frac1n \sum_{i=1}^n \mathbb 1\bigl[\arg\max_k z_{ik} = y_i\bigr]

    Args:
        prediction: A score (a logit or a probability) for each class, classes along dimension
            1.
        target: The right class of each example.

    Returns:
        A number between 0 and 1.

    Raises:
        ValueError: If the targets are not one class for each example.
    """
    said = prediction.argmax(dim=1)
    if target.shape != said.shape or target.is_floating_point():
        raise ValueError(
            "accuracy needs the number of a class for each example, got targets of shape "
            f"{tuple(target.shape)}, {target.dtype}, for predictions of shape "
            f"{tuple(prediction.shape)}: another task has another metric"
        )
    return (said == target).double().mean().item()


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    *,
    epochs: int = 1,
    batch_size: int = 64,
    validation: tuple[Tensor, Tensor] | None = None,
    metric: Callable[[Tensor, Tensor], float] = accuracy,
    scheduler: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    r"""Train a model by minibatch gradient descent.

    Each epoch visits every training example once, in a new random order. Each step takes one
    minibatch :math:`B` and moves the parameters :math:`\theta` by the optimiser's rule along
    the gradient of

    .. math:: L_B(\theta) = \mathrm{loss}\bigl(f_\theta(x_B),\, y_B\bigr).

    The data follow the model to its device; floating-point data also take its dtype. The same
    seed gives the same numbers: it orders the minibatches and feeds whatever is random inside
    the model (dropout, say). When ``fit`` returns, the global random state (on CPU and CUDA) is
    as it was, and each module in training or evaluation mode. During the steps the whole model
    is in training mode.

    Args:
        model: Maps a minibatch of inputs to predictions.
        optimizer: Holds the model's parameters.
        loss: Maps predictions and targets to one number, a mean over the minibatch.
        train: Inputs and targets, one example an entry of the first dimension.
        epochs: How many passes through the training data.
        batch_size: Examples in a minibatch; the last of an epoch may be smaller.
        validation: Inputs and targets on which ``loss`` and ``metric`` are computed after each
            epoch.
        metric: Maps predictions and targets to a number that is a mean over examples.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        seed: For the order of the minibatches and the model's own randomness.
        progress: Show a progress bar, which disappears at the end. The environment variable
            ``TQDM_DISABLE`` hides it.

    Returns:
        The losses of all steps and, with ``validation``, of all epochs.

    Raises:
        ValueError: If a data set is empty, inputs and targets differ in number, ``epochs`` or
            ``batch_size`` is out of range, the optimiser holds none of the model's parameters,
            or the loss is not one number.
    """
    from tqdm.auto import tqdm

    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(id(parameter) for parameter in model.parameters()):
        raise ValueError(
            "the optimizer holds none of the model's parameters: build it from "
            "model.parameters()"
        )
    x, y = _follow(model, train, "train")
    if validation is not None:
        validation = _follow(model, validation, "validation")

    history = History(steps_per_epoch=-(-len(x) // batch_size))
    hidden = not progress or "TQDM_DISABLE" in os.environ
    bar = tqdm(
        total=epochs * history.steps_per_epoch,
        desc="training",
        unit="step",
        leave=False,
        disable=hidden,
    )
    # its own, so that the minibatches are the same for any model
    order = torch.Generator().manual_seed(seed)
    with (
        bar,
        modes_kept(model),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(seed)
        for _ in range(epochs):
            model.train()
            begin = time.perf_counter() - (history.seconds[-1] if history.seconds else 0.0)
            for batch in torch.randperm(len(x), generator=order).to(x.device).split(batch_size):
                value = loss(model(x[batch]), y[batch])
                if value.ndim:
                    raise ValueError(
                        f"the loss must be one number, got shape {tuple(value.shape)}: take "
                        "its mean"
                    )
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                history.loss.append(value.item())
                history.seconds.append(time.perf_counter() - begin)
                bar.update()
            if validation is not None:
                measured = evaluate(model, loss, validation, metric)
                history.validation_loss.append(measured[0])
                history.validation_metric.append(measured[1])
                bar.set_postfix(loss=measured[0], metric=measured[1])
    return history


def evaluate(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    metric: Callable[[Tensor, Tensor], float] = accuracy,
    batch_size: int = 1024,
) -> tuple[float, float]:
    """Measure a model on data that it is not trained on.

    The model is put in evaluation mode for the time of the call, and no graph is built.

    Args:
        model: Maps inputs to predictions.
        loss: Maps predictions and targets to one number, a mean over examples.
        data: Inputs and targets, one example an entry of the first dimension.
        metric: Maps predictions and targets to one number, a mean over examples.
        batch_size: How many examples go through the model at once; the result does not depend
            on it.

    Returns:
        The loss and the metric, each a mean over all examples.

    Raises:
        ValueError: If the data set is empty, inputs and targets differ in number, or
            ``batch_size`` is below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    x, y = _follow(model, data, "data")
    total = torch.zeros(2, dtype=torch.float64)
    with modes_kept(model), torch.no_grad():
        model.eval()
        for inputs, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
            prediction = model(inputs)
            measured = [float(loss(prediction, targets)), metric(prediction, targets)]
            total += len(inputs) * torch.tensor(measured, dtype=torch.float64)
    mean_loss, mean_metric = (total / len(x)).tolist()
    return mean_loss, mean_metric


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into the mode that it has now, training or evaluation, whatever
    happens meanwhile.

    Args:
        model: The model whose modules are meant; use it as ``with modes_kept(model): ...``.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _follow(model: nn.Module, data: tuple[Tensor, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets on the model's device and, where they are floating-point, in its
    dtype.
    """
    x, y = data
    if len(x) != len(y):
        raise ValueError(
            f"{name} has {len(x)} inputs but {len(y)} targets: there must be one target for "
            "each input"
        )
    if len(x) == 0:
        raise ValueError(f"{name} is empty: there is nothing to learn from or to measure")
    # a model without parameters takes the data as they are
    parameter = next(model.parameters(), x)
    x, y = (
        t.to(parameter) if t.is_floating_point() else t.to(parameter.device) for t in (x, y)
    )
    return x, y
