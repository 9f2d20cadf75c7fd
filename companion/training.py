"""The training loop of the book: minibatches, validation, and a record of what happened.

Everything in the book is trained by :func:`train`, which is given a function that returns the
loss of a minibatch; :func:`fit`, for inputs with targets, is a few lines on it. They work with
the companion's layers and optimisers and with PyTorch's own.
"""

import math
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import distributed as dist

from companion.checks import Unbounded, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "History",
    "Minibatches",
    "accuracy",
    "evaluate",
    "fit",
    "modes_kept",
    "share",
    "train",
]


@dataclass
class History:
    """What happened during a call of :func:`train`.

    Attributes:
        loss: The training loss of each minibatch, one number a step.
        seconds: The time at the end of each step, in seconds since training began; validation
            and the writing of checkpoints are not counted.
        gradient_norm: The Euclidean length of the gradient of all parameters together at each
            step, before it was clipped; empty without ``max_norm``.
        validation_loss: The loss on the validation data after each epoch.
        validation_metric: The metric on the validation data after each epoch.
        steps_per_epoch: How many minibatches make one pass through the training data; where
            that differs, how many made the first.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
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
        if epochs := len(self.validation_loss):
            ends = [len(self.loss) * epoch / epochs for epoch in range(1, epochs + 1)]
            ax.plot(ends, self.validation_loss, "o-", label="validation, each epoch")
            ax.legend()
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        return ax


@checked
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
    if target.shape != said.shape:
        raise ValueError(
            "accuracy needs the number of a class for each example, got targets of shape "
            f"{tuple(target.shape)}, {target.dtype}, for predictions of shape "
            f"{tuple(prediction.shape)}: another task has another metric"
        )
    return (said == target).double().mean().item()


class Minibatches:
    """The minibatches of an epoch: every example once, in a new random order each time.

    Where several processes train together (``torch.distributed``) each gets its :func:`share`
    of every minibatch.

    Args:
        data: Tensors with one example an entry of the first dimension: inputs and targets, say.
        batch_size: Examples in a minibatch; the last of an epoch may be smaller.
        generator: Draws the orders.

    Raises:
        TypeError: If something is not a tensor.
        ValueError: If there are no examples, the tensors differ in number, or ``batch_size`` is
            below one.
    """

    @checked
    def __init__(
        self, data: tuple[Tensor, ...], batch_size: int, generator: torch.Generator
    ) -> None:
        if not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in data):
            raise TypeError(
                "wanted a tuple of tensors, got one of "
                f"{', '.join(type(thing).__name__ for thing in data)}: convert them with "
                "torch.as_tensor, or give batches that are ready as a list"
            )
        sizes = [len(tensor) for tensor in data]
        if len(set(sizes)) != 1 or sizes[0] == 0:
            raise ValueError(
                "wanted tensors with the same number of examples, and at least one, got "
                f"{', '.join(map(str, sizes)) or 'no tensors'}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.data, self.batch_size, self.generator = data, batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.data[0]) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(self.data[0]), generator=self.generator)
        order = order.to(self.data[0].device)
        for batch in [share(part) for part in order.split(self.batch_size)]:
            yield tuple(tensor[batch] for tensor in self.data)


@checked
def share(examples: Tensor) -> Tensor:
    """What this process works on, where several train together: an equal part of the entries of
    the first dimension. Where it is alone, all of them.

    Args:
        examples: What is to be divided; the same in each process.

    Raises:
        ValueError: If it cannot be divided into equal parts, which a mean over the processes
            needs.
    """
    rank, ranks = _processes()
    if len(examples) % ranks:
        raise ValueError(
            f"{ranks} processes cannot share {len(examples)} examples equally: choose a "
            f"minibatch size, and drop examples from the end, so that {ranks} divides each "
            "minibatch"
        )
    return examples.chunk(ranks)[rank]


@checked
def train(
    step: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: tuple[Tensor, ...] | Iterable[Any],
    *,
    model: nn.Module | None = None,
    epochs: int = 1,
    batch_size: int = 64,
    scheduler: Any = None,
    max_norm: Unbounded | None = None,
    validation: Callable[[], float | tuple[float, float]] | None = None,
    stop: Callable[[History], bool] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    r"""Train anything that has a loss by minibatch gradient descent.

    Each step takes one minibatch :math:`B` and moves the parameters :math:`\theta` by the
    optimiser's rule along the gradient of ``step(B)``.

    **Minibatches.** A tuple of tensors is cut into :class:`Minibatches`. Anything else is
    iterated over once an epoch and its items handed to ``step`` as they come: a list, a
    :class:`~torch.utils.data.DataLoader`, an object whose ``__iter__`` begins anew each time.

    **Randomness.** The same seed gives the same numbers: it orders the minibatches and feeds
    whatever draws from PyTorch's global random numbers meanwhile (dropout, say, or a DataLoader
    that shuffles without a generator). When ``train`` returns or fails, the global random state
    (on CPU and CUDA) is as it was, and so is each module's mode. During the steps the whole
    model is in training mode, during validation in evaluation mode. Python's and NumPy's random
    numbers are neither seeded nor kept.

    **Checkpoints.** The model, the optimiser, the scheduler, ``stop``, the random states and
    the history are written to the file ``checkpoint`` before the first epoch and after each.
    Called again with the same arguments, in another process too, training goes on after the
    last finished epoch and ends with the same numbers, bit for bit, as if it had never been
    interrupted (``seconds`` apart); a finished run is only loaded. The file is replaced in one
    step, so that at any moment it holds a whole state; a copy of the one before is kept beside
    it as ``FILE.previous``. More epochs than were first asked for go on from the end; a
    schedule keeps the length, and a parameter group the options, that were saved. Kept are also
    the generators from which minibatches are drawn, if they are found: the ``generator`` of
    ``batches`` and of its sampler. So a DataLoader goes on exactly, with a generator or without
    one; but not where its data set or a sampler of your own draws, in this process, from
    Python's or NumPy's random numbers. Persistent workers, whose random states cannot be had,
    are refused. The data themselves are not compared, only their number.

    **Several processes** (``torch.distributed``, initialised in each, which calls ``train``
    with the same arguments). Who averages the gradients is the model: wrap it in
    :class:`~torch.nn.parallel.DistributedDataParallel`, or in something that does the same, and
    use the wrapped one in ``step``. Who divides the data is whoever cuts them: a tuple of
    tensors is divided by ``train`` (each process gets its :func:`share` of each minibatch);
    batches that are ready are for a sampler to divide, such as
    :class:`~torch.utils.data.distributed.DistributedSampler`, whose ``set_epoch`` is called. If
    ``step`` returns a mean over examples, the numbers are those of one process with whole
    minibatches (dropout apart: process :math:`k` draws from ``seed + k``). The numbers in the
    history are means over the processes. The first shows the bar and writes the checkpoint,
    from which all go on.

    Args:
        step: Maps a minibatch to its loss, one number that depends on the parameters.
        optimizer: Holds the parameters.
        batches: Tensors with one example an entry of the first dimension, or an iterable of
            minibatches.
        model: What is trained: the module whose mode is set and which a checkpoint keeps.
            Several go into a :class:`~torch.nn.ModuleList`. ``step`` may hide anything, so the
            model cannot be found from there.
        epochs: How many passes through the training data.
        batch_size: Examples in a minibatch of a tuple; the last of an epoch may be smaller.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        max_norm: The largest Euclidean length of the gradient of all parameters together; a
            longer one is shortened to it.
        validation: Called after each epoch, without a graph; returns a loss, or a loss and a
            metric, for the history.
        stop: Called with the history after each epoch; training ends when it returns true. If
            it has ``state_dict`` and ``load_state_dict``, a checkpoint keeps its state.
        checkpoint: The file to go on from, if it exists, and to write.
        seed: For the order of the minibatches and the model's own randomness.
        progress: Show a progress bar, which disappears at the end. The environment variable
            ``TQDM_DISABLE`` hides it.

    Returns:
        The losses of all steps and, with ``validation``, of all epochs.

    Raises:
        TypeError: If a tuple holds something else than tensors, or ``step`` returns something
            else than a tensor.
        ValueError: If there are no minibatches, or not in each epoch; a number is out of range;
            the optimiser holds none of the model's parameters; the loss is not one number or
            depends on no parameter; or the checkpoint is damaged, of another run, or cannot be
            written.
        FloatingPointError: If the loss, or a parameter at the end of an epoch, is not finite.
            The checkpoint is still that of the epoch before.
        RuntimeError: If processes have drifted apart, because nobody averages their gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _check_arguments(parameters, batches, model, epochs, scheduler, max_norm, checkpoint)
    model = nn.Module() if model is None else model
    if isinstance(batches, tuple):
        # a generator of its own, so that the minibatches are the same for any model
        batches = Minibatches(batches, batch_size, torch.Generator().manual_seed(seed))
    history, epoch, stopped = History(steps_per_epoch=_length(batches)), 0, False
    rank, _ = _processes()
    with (
        modes_kept(model),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        _bar(epochs * history.steps_per_epoch, progress and rank == 0) as bar,
    ):
        torch.manual_seed(seed + rank)
        if checkpoint is not None:
            parts = {
                "model": model,
                "optimizer": optimizer,
                "scheduler": scheduler,
                "stop": stop,
            }
            file = _Checkpoint(checkpoint, parts, batches, seed=seed, max_norm=max_norm)
            history, epoch, stopped = file.load_or_begin(history, epochs)
            bar.n = bar.initial = len(history.loss)
        while epoch < epochs and not stopped:
            epoch += 1
            model.train()
            _set_epoch(batches, epoch)
            begin = time.perf_counter() - (history.seconds[-1] if history.seconds else 0.0)
            steps = 0
            for steps, batch in enumerate(batches, start=1):
                loss = step(batch)
                _check_loss(loss)
                optimizer.zero_grad()
                loss.backward()
                if max_norm is not None:
                    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
                    history.gradient_norm.append(norm.item())
                value = _mean_over_processes(loss)
                if not math.isfinite(value):
                    raise _not_finite(f"the loss is {value} at step {steps} of epoch {epoch}")
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                history.loss.append(value)
                history.seconds.append(time.perf_counter() - begin)
                bar.update()
            _check_epoch(parameters, steps, epoch)
            history.steps_per_epoch = history.steps_per_epoch or steps
            if validation is not None:
                model.eval()
                measured = _measured(validation)
                history.validation_loss += measured[:1]
                history.validation_metric += measured[1:]
                bar.set_postfix(zip(("loss", "metric"), measured, strict=False))
            stopped = stop is not None and any(_gathered(bool(stop(history))))
            if checkpoint is not None:
                file.save(history, epoch, stopped)
    return history


_train = train  # fit has an argument of that name


@checked
def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor] | Iterable[Any],
    *,
    epochs: int = 1,
    batch_size: int = 64,
    validation: tuple[Tensor, Tensor] | Iterable[Any] | None = None,
    metric: Callable[[Tensor, Tensor], float] = accuracy,
    scheduler: Any = None,
    max_norm: Unbounded | None = None,
    stop: Callable[[History], bool] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    r"""Train a model on inputs and targets, by :func:`train`.

    Each epoch visits every training example once, in a new random order. Each step takes one
    minibatch :math:`B` and moves the parameters :math:`\theta` by the optimiser's rule along
    the gradient of

    .. math:: L_B(\theta) = \mathrm{loss}\bigl(f_\theta(x_B),\, y_B\bigr).

    The data follow the model to its device; floating-point data also take its dtype.

    Args:
        model: Maps a minibatch of inputs to predictions.
        optimizer: Holds the model's parameters.
        loss: Maps predictions and targets to one number, a mean over the minibatch.
        train: Inputs and targets, one example an entry of the first dimension; or a
            :class:`~torch.utils.data.DataLoader` or another iterable of minibatches (inputs,
            targets), which is then responsible for their size and order.
        epochs: How many passes through the training data.
        batch_size: Examples in a minibatch; the last of an epoch may be smaller.
        validation: Inputs and targets, or minibatches of them, on which ``loss`` and ``metric``
            are computed after each epoch.
        metric: Maps predictions and targets to a number that is a mean over examples.
        scheduler: Its ``step()`` is called after each step of the optimiser.
        max_norm: The largest length of the gradient, as in :func:`train`.
        stop: Whether to end after an epoch, as in :func:`train`.
        checkpoint: The file to go on from and to write, as in :func:`train`.
        seed: For the order of the minibatches and the model's own randomness.
        progress: Show a progress bar, which disappears at the end. The environment variable
            ``TQDM_DISABLE`` hides it.

    Returns:
        The losses of all steps and, with ``validation``, of all epochs.

    Raises:
        ValueError: If a data set is empty, inputs and targets differ in number, or
            :func:`train` refuses something.
        FloatingPointError: As :func:`train`.
    """
    whole = isinstance(train, tuple)
    if whole:
        train = _follow(model, train, "train")

    def step(batch):
        x, y = batch if whole else _follow(model, batch, "a minibatch")
        return loss(model(x), y)

    if isinstance(validation, tuple):
        validation = _follow(model, validation, "validation")
    measure = None
    if validation is not None:
        measure = lambda: evaluate(model, loss, validation, metric)  # noqa: E731
    return _train(
        step,
        optimizer,
        train,
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        scheduler=scheduler,
        max_norm=max_norm,
        validation=measure,
        stop=stop,
        checkpoint=checkpoint,
        seed=seed,
        progress=progress,
    )


@checked
def evaluate(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor] | Iterable[Any],
    metric: Callable[[Tensor, Tensor], float] = accuracy,
    batch_size: int = 1024,
) -> tuple[float, float]:
    """Measure a model on data that it is not trained on.

    The model is put in evaluation mode for the time of the call, and no graph is built.

    Args:
        model: Maps inputs to predictions.
        loss: Maps predictions and targets to one number, a mean over examples.
        data: Inputs and targets, one example an entry of the first dimension; or a
            :class:`~torch.utils.data.DataLoader` or another iterable of minibatches (inputs,
            targets).
        metric: Maps predictions and targets to one number, a mean over examples.
        batch_size: How many examples of a pair of tensors go through the model at once; the
            result does not depend on it.

    Returns:
        The loss and the metric, each a mean over all examples.

    Raises:
        ValueError: If the data set is empty, inputs and targets differ in number, or
            ``batch_size`` is below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(data, tuple):
        x, y = _follow(model, data, "data")
        data = zip(x.split(batch_size), y.split(batch_size), strict=True)
    total, examples = torch.zeros(2, dtype=torch.float64), 0
    with modes_kept(model), torch.no_grad():
        model.eval()
        for batch in data:
            inputs, targets = _follow(model, batch, "a minibatch")
            prediction = model(inputs)
            measured = [float(loss(prediction, targets)), metric(prediction, targets)]
            total += len(inputs) * torch.tensor(measured, dtype=torch.float64)
            examples += len(inputs)
    if examples == 0:
        raise ValueError("data has no minibatches: there is nothing to measure")
    mean_loss, mean_metric = (total / examples).tolist()
    return mean_loss, mean_metric


@contextmanager
@checked
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


def _follow(model, data, name):
    """Inputs and targets on the model's device and, where they are floating-point, in its
    dtype.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(
            f"{name} must be a pair of inputs and targets, got {type(data).__name__}: for "
            "other minibatches write a step for training.train"
        )
    x, y = data
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or 0 in (x.dim(), y.dim()):
        raise TypeError(
            f"{name} must be two tensors with examples along their first dimension, got "
            f"{type(x).__name__} and {type(y).__name__}: convert with torch.as_tensor"
        )
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


def _check_arguments(parameters, batches, model, epochs, scheduler, max_norm, checkpoint):
    """Refuse what cannot be trained, before anything is changed."""
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}")
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise TypeError(
            f"scheduler must have a step(), got {scheduler!r}: build one from the optimizer, "
            "as in StepLR(optimizer, step_size=10)"
        )
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}: None clips nothing")
    if isinstance(batches, Tensor):
        raise TypeError(
            "wanted a tuple of tensors or an iterable of minibatches, got a tensor: write "
            "(x,) to have it cut into minibatches"
        )
    if isinstance(batches, Iterator) and epochs > 1:
        raise ValueError(
            f"a {type(batches).__name__} can be read only once, which is one epoch and not "
            f"{epochs}: give a list, a DataLoader or an object whose __iter__ begins anew"
        )
    owned = set() if model is None else {id(parameter) for parameter in model.parameters()}
    missing = sum(id(parameter) not in owned for parameter in parameters)
    if model is not None and missing == len(parameters):
        raise ValueError(
            "the optimizer holds none of the model's parameters: build it from "
            "model.parameters()"
        )
    if checkpoint is not None and missing:
        raise ValueError(
            f"a checkpoint would lack {missing} of the optimizer's {len(parameters)} "
            "parameters: give all that is trained as model, several modules as an "
            "nn.ModuleList"
        )
    if checkpoint is not None and getattr(batches, "persistent_workers", False):
        raise ValueError(
            "persistent workers keep random states that a checkpoint cannot reach: build the "
            "DataLoader with persistent_workers=False"
        )


def _check_loss(loss):
    """Refuse what has no gradient, or several."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"step must return the loss as a tensor, got {type(loss).__name__}: without "
            ".item() or float()"
        )
    if loss.ndim:
        raise ValueError(
            f"the loss must be one number, got shape {tuple(loss.shape)}: take its mean"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss depends on no parameter: compute it from what the model returns, without "
            "detach() or no_grad()"
        )


def _check_epoch(parameters, steps, epoch):
    """Refuse to go on from an epoch that went wrong."""
    if steps == 0:
        raise ValueError(
            f"there was no minibatch in epoch {epoch}: batches must not be empty, and must "
            "begin anew in each epoch"
        )
    norm = nn.utils.get_total_norm([parameter.detach() for parameter in parameters]).item()
    if not math.isfinite(norm):
        raise _not_finite(f"a parameter is not finite at the end of epoch {epoch}")
    norms = _gathered(norm)
    if not math.isclose(min(norms), max(norms), rel_tol=1e-6):
        raise RuntimeError(
            f"the parameters of {len(norms)} processes have drifted apart in epoch {epoch}: "
            "wrap the model in DistributedDataParallel, which averages the gradients"
        )


def _not_finite(what):
    return FloatingPointError(
        f"{what}: try a lower learning rate, or clip the gradient (max_norm=1.0), and look for "
        "inf and nan in the data (x.isfinite().all())"
    )


def _measured(validation):
    """The loss and, if there is one, the metric, each a mean over the processes."""
    with torch.no_grad():
        measured = validation()
    numbers = measured if isinstance(measured, tuple) else (measured,)
    of_all = _gathered([float(number) for number in numbers])
    return [sum(column) / len(column) for column in zip(*of_all, strict=True)]


def _bar(total, shown):
    """A bar that disappears; ``total`` is 0 where nobody knows how many steps there will be."""
    from tqdm.auto import tqdm

    hidden = not shown or "TQDM_DISABLE" in os.environ
    return tqdm(total=total or None, desc="training", unit="step", leave=False, disable=hidden)


def _length(batches):
    try:
        return len(batches)
    except TypeError:  # it cannot be known
        return 0


def _sources(batches):
    """Where minibatches come from: the iterable itself and, of a DataLoader, its samplers."""
    sampler = getattr(batches, "batch_sampler", None)
    inner = [getattr(source, "sampler", None) for source in (batches, sampler)]
    return {id(source): source for source in (batches, sampler, *inner)}.values()


def _set_epoch(batches, epoch):
    """Tell the epoch, counted from zero, to samplers that make their order from it."""
    for source in _sources(batches):
        if hasattr(source, "set_epoch"):
            source.set_epoch(epoch - 1)


def _processes():
    """Which process this is, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gathered(thing):
    """The things of all processes, in each of them; everybody waits for the last."""
    things = [thing] * _processes()[1]
    if len(things) > 1:
        dist.all_gather_object(things, thing)
    return things


def _mean_over_processes(loss):
    ranks = _processes()[1]
    if ranks == 1:
        return loss.item()
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / ranks


class _Checkpoint:
    """The file from which training goes on: what belongs into it, and whose it is.

    Args:
        file: The file.
        parts: The model and the rest, by name; what has a state goes into the file.
        batches: Their generators go into it too.
        settings: Further numbers in which a run may differ from another.
    """

    def __init__(self, file, parts, batches, **settings):
        self.file = Path(file)
        self.previous = self.file.with_name(f"{self.file.name}.previous")
        if not self.file.parent.is_dir():
            raise ValueError(
                f"there is no folder {self.file.parent} for the checkpoint: make it"
            )
        self.parts = {name: part for name, part in parts.items() if hasattr(part, "state_dict")}
        generators = [getattr(source, "generator", None) for source in _sources(batches)]
        self.generators = list({id(g): g for g in generators if g is not None}.values())
        optimizer = parts["optimizer"]
        about = {
            **settings,
            **{name: type(part).__name__ for name, part in self.parts.items()},
            **{f"optimizer's {name}": value for name, value in optimizer.defaults.items()},
            "parameters in each group": [len(g["params"]) for g in optimizer.param_groups],
            **{
                f"model's {name}": f"{value.dtype} of shape {tuple(value.shape)}"
                for name, value in parts["model"].state_dict().items()
                if isinstance(value, Tensor)
            },
            "batches": f"{type(batches).__name__} of {_length(batches)}",
            "batch_size": getattr(batches, "batch_size", None),
            "examples": [tuple(tensor.shape) for tensor in getattr(batches, "data", ())]
            or _length(getattr(batches, "dataset", None)),
            "generators": len(self.generators),
            "processes": _processes()[1],
        }
        self.about = {name: str(value) for name, value in about.items()}

    def load_or_begin(self, history, epochs):
        """Put everything back as it is in the file; where there is none, write the first."""
        if not self.file.exists():
            self.save(history, 0, False)
            return history, 0, False
        saved = self._read()
        for name in saved["about"] | self.about:
            then, now = (about.get(name, "missing") for about in (saved["about"], self.about))
            if then != now:
                raise ValueError(
                    f"{self.file} is the checkpoint of another run: {name} was {then} and is "
                    f"now {now}. Train as then, or name another file. To begin that one with "
                    "these weights, load them into the model first: "
                    f"torch.load({str(self.file)!r}, weights_only=True)['model']"
                )
        if saved["epoch"] > epochs:
            raise ValueError(
                f"{self.file} has {saved['epoch']} epochs behind it, more than the {epochs} "
                "wanted: ask for at least as many, or name another file"
            )
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        random = saved["random"][_processes()[0]]
        torch.set_rng_state(random["cpu"])
        for device, state in zip(
            range(torch.cuda.device_count()), random["cuda"], strict=False
        ):
            torch.cuda.set_rng_state(state, device)
        for generator, state in zip(self.generators, random["generators"], strict=True):
            generator.set_state(state)
        return History(**saved["history"]), saved["epoch"], saved["stopped"]

    def save(self, history, epoch, stopped):
        """Write everything. Several processes wait for the first, which does it."""
        random = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "generators": [generator.get_state() for generator in self.generators],
        }
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "about": self.about,
            "epoch": epoch,
            "stopped": stopped,
            "history": asdict(history),
            "random": _gathered(random),
        }
        if _processes()[0] == 0:
            self._replace(state)
        _gathered(None)

    def _replace(self, state):
        """Whoever looks, whenever, finds the old state or the new, and finds it whole."""
        new = self.file.with_name(f"{self.file.name}.new")
        with new.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            _checked_load(new)
        except pickle.UnpicklingError as error:
            raise ValueError(
                "the state of the optimizer, the scheduler or stop could not be loaded again: "
                "wanted tensors, numbers and strings of Python in it, got another type; turn "
                f"NumPy's numbers into Python's with float() ({_first_line(error)})"
            ) from error
        if self.file.exists():
            shutil.copyfile(self.file, self.previous)
        new.replace(self.file)
        if os.name == "posix":  # until the folder is on the disk the new name is not
            folder = os.open(self.file.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def _read(self):
        try:
            saved = _checked_load(self.file)
            if not isinstance(saved, dict) or "about" not in saved:
                raise pickle.UnpicklingError("it was not written by train")
        except (OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            before = f"put {self.previous}, the state of one epoch before, in its place, or "
            raise ValueError(
                f"{self.file} is damaged or no checkpoint ({_first_line(error)}), and was left "
                f"as it is: {before if self.previous.exists() else ''}delete it to begin anew"
            ) from error
        return saved


def _checked_load(file):
    """What is in a file, after every byte has been held against its checksum."""
    with zipfile.ZipFile(file) as archive:
        if record := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {record} is another")
    return torch.load(file, map_location="cpu", weights_only=True)


def _first_line(error):
    return str(error).partition("\n")[0]
