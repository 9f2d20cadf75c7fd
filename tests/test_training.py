import copy
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset

from companion.training import History, Minibatches, accuracy, evaluate, fit, share, train

mse = nn.functional.mse_loss


@pytest.fixture
def line():
    """Points on the line y = 2x - 1, and a model that can learn it."""
    x = torch.linspace(-1, 1, 50)[:, None]
    torch.manual_seed(0)
    return nn.Linear(1, 1), (x, 2 * x - 1)


def no_metric(prediction, target):
    return 0.0


def test_gradient_descent_on_a_convex_problem_finds_the_closed_form(line):
    model, data = line
    history = fit(
        model, torch.optim.SGD(model.parameters(), lr=0.3), mse, data, epochs=200, batch_size=50
    )
    torch.testing.assert_close(model.weight.item(), 2.0, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.bias.item(), -1.0, rtol=0, atol=1e-5)
    assert len(history.loss) == len(history.seconds) == 200
    assert history.seconds == sorted(history.seconds)
    assert history.validation_loss == []


def test_one_full_batch_step_is_the_step_done_by_hand(line):
    model, (x, y) = line
    weight, bias = model.weight.item(), model.bias.item()
    error = weight * x + bias - y
    history = fit(
        model, torch.optim.SGD(model.parameters(), lr=0.1), mse, (x, y), batch_size=50
    )
    assert history.loss == [pytest.approx(error.square().mean().item(), rel=1e-6)]
    assert model.weight.item() == pytest.approx(
        weight - 0.1 * (2 * error * x).mean().item(), rel=1e-5
    )
    assert model.bias.item() == pytest.approx(bias - 0.1 * (2 * error).mean().item(), rel=1e-5)


def test_each_epoch_visits_every_example_once_in_a_new_order():
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            seen.append(x.flatten().tolist())
            return self.scale * x

    model, x = Recorder(), torch.arange(10.0)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    history = fit(model, optimizer, mse, (x, x), epochs=2, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    first, second = (
        [example for batch in epoch for example in batch] for epoch in (seen[:3], seen[3:])
    )
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != list(range(10))
    assert history.steps_per_epoch == 3


def dropout_run(seed, global_seed, p=0.5):
    """The losses and the minibatches of a run; the global seed is set after the weights are
    drawn.
    """
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(p), nn.Linear(20, 2))
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(global_seed)
    x = torch.arange(60.0).reshape(20, 3) / 60
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(
        model, optimizer, mse, (x, x[:, :2]), batch_size=4, seed=seed, metric=no_metric
    )
    return history.loss, torch.cat(seen)


def test_the_same_seed_gives_the_same_numbers_whatever_the_global_one_is_and_another_others():
    (losses, order), (again, order_again), (other, other_order) = (
        dropout_run(*seeds) for seeds in [(1, 7), (1, 8), (2, 7)]
    )
    assert losses == again
    assert torch.equal(order, order_again)
    assert losses != other
    assert not torch.equal(order, other_order)


def test_the_minibatches_do_not_depend_on_what_is_random_in_the_model():
    assert torch.equal(dropout_run(1, 7, p=0.5)[1], dropout_run(1, 7, p=0.0)[1])


def test_time_spent_on_validation_is_not_counted(line):
    def slow(prediction, target):
        time.sleep(0.2)
        return 0.0

    model, data = line
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(model, optimizer, mse, data, epochs=3, validation=data, metric=slow)
    assert history.seconds == sorted(history.seconds)
    assert history.seconds[-1] < 0.2


def test_the_global_random_state_and_the_mode_are_left_as_they_were(line):
    model, data = line
    model.eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        mse,
        data,
        validation=data,
        metric=no_metric,
    )
    assert torch.equal(torch.rand(2), expected)
    assert not model.training


def test_a_model_is_in_training_mode_for_steps_and_in_evaluation_mode_for_validation():
    modes = []

    class Spy(nn.Linear):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model, x = Spy(1, 1), torch.ones(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(
        model,
        optimizer,
        mse,
        (x, x),
        epochs=2,
        batch_size=4,
        validation=(x, x),
        metric=no_metric,
    )
    assert modes == [(True, True), (False, False)] * 2
    assert model.training


def test_validation_is_recorded_after_each_epoch(line):
    model, data = line
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(
        model, optimizer, mse, data, epochs=3, validation=data, metric=lambda p, t: 7.0
    )
    assert len(history.validation_loss) == 3
    assert history.validation_loss[-1] == pytest.approx(
        evaluate(model, mse, data, no_metric)[0]
    )
    assert history.validation_metric == [7.0, 7.0, 7.0]


def test_the_scheduler_steps_after_each_step_of_the_optimizer(line):
    model, data = line
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    fit(model, optimizer, mse, data, epochs=2, batch_size=25, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.5**4


def test_data_follow_the_dtype_of_the_model_and_labels_stay_integers():
    model = nn.Linear(2, 3, dtype=torch.float64)
    x, y = torch.rand(8, 2), torch.arange(8) % 3
    fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.functional.cross_entropy,
        (x, y),
        validation=(x, y),
    )
    seen = []
    evaluate(model, lambda p, t: seen.append((p.dtype, t.dtype)) or 0.0, (x, x), no_metric)
    assert seen == [(torch.float64, torch.float64)]


def test_each_module_keeps_its_mode_even_if_training_is_interrupted(line):
    def interrupted(prediction, target):
        raise KeyboardInterrupt

    data = line[1]
    model = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(model, optimizer, mse, data, validation=data, metric=interrupted)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_a_model_without_parameters_can_be_evaluated():
    x = torch.rand(5, 2)
    assert evaluate(nn.Identity(), mse, (x, x), no_metric) == (0.0, 0.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(nn.Identity(), mse, (x, x), no_metric, batch_size=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_data_follow_the_model_to_its_device():
    model = nn.Linear(2, 3, device="cuda")
    x, y = torch.rand(8, 2), torch.arange(8) % 3
    fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.functional.cross_entropy,
        (x, y),
        validation=(x, y),
    )
    assert model.weight.is_cuda


def test_zero_epochs_train_nothing(line):
    model, data = line
    before = model.weight.item()
    history = fit(model, torch.optim.SGD(model.parameters(), lr=0.1), mse, data, epochs=0)
    assert history.loss == []
    assert model.weight.item() == before


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_evaluate_does_not_depend_on_the_batch_size(batch_size):
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.float64)
    x, y = torch.rand(10, 4, dtype=torch.float64), torch.arange(10) % 3
    loss, metric = evaluate(model, nn.functional.cross_entropy, (x, y), batch_size=batch_size)
    assert loss == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-12)
    assert metric == pytest.approx((model(x).argmax(1) == y).double().mean().item(), rel=1e-12)


def test_accuracy_counts_the_right_answers():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    assert accuracy(scores, torch.tensor([1, 0, 1, 0])) == 0.75
    assert (
        accuracy(
            torch.zeros(2, 3, 5).index_fill_(1, torch.tensor(2), 1.0), torch.full((2, 5), 2)
        )
        == 1.0
    )


@pytest.mark.parametrize("target", [torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4)])
def test_accuracy_refuses_targets_that_are_not_one_class_for_each_example(target, plain_python):
    words = (
        r"a class for each example, got targets of shape \(4|whole numbers, got torch.float32"
    )
    with pytest.raises((TypeError, ValueError), match=words):
        accuracy(torch.rand(4, 3), target)


def test_the_progress_bar_leaves_nothing_behind_and_can_be_switched_off(
    line, capsys, monkeypatch
):
    model, data = line
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fit(model, optimizer, mse, data)
    shown = capsys.readouterr().err
    assert "training" in shown
    # the last thing written is a line of blanks over the bar
    assert shown.split("\r")[-2].strip() == ""
    fit(model, optimizer, mse, data, progress=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    fit(model, optimizer, mse, data)
    assert capsys.readouterr() == ("", "")


def test_the_history_plots_itself(figure):
    history = History(loss=[3.0, 2.0, 1.0, 0.5], validation_loss=[2.5, 0.7], steps_per_epoch=2)
    ax = history.plot(figure.add_subplot())
    steps, epochs = ax.lines
    assert list(steps.get_xdata()) == [1, 2, 3, 4]
    assert list(steps.get_ydata()) == history.loss
    assert list(epochs.get_xdata()) == [2, 4]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    # on the current axes, with no line for validation
    assert len(History(loss=[1.0]).plot().lines) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": -1}, "epochs must not be negative, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"train": (torch.ones(3, 1), torch.ones(2, 1))}, "train has 3 inputs but 2 targets"),
        ({"train": (torch.ones(0, 1), torch.ones(0, 1))}, "train is empty"),
        ({"validation": (torch.ones(0, 1), torch.ones(0, 1))}, "validation is empty"),
        (
            {"loss": lambda p, t: (p - t).square()},
            r"one number, got shape \(50, 1\): take its mean",
        ),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
            "none of the model's parameters",
        ),
    ],
)
def test_bad_input_is_refused_with_words(line, change, words):
    model, data = line
    arguments = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss": mse,
        "train": data,
    } | change
    with pytest.raises(ValueError, match=words):
        fit(model, **arguments)


# train


def plain_loop(model, optimizer, data, epochs, batch_size, scheduler, seed):
    """What fit does to a model in training mode, without anything around it."""
    order, losses = torch.Generator().manual_seed(seed), []
    torch.manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(data[0]), generator=order).split(batch_size):
            loss = mse(model(data[0][batch]), data[1][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return losses


class Run:
    """A model with dropout, its optimiser and its schedule, and data: always the same ones."""

    def __init__(self, device="cpu"):
        self.x = torch.randn(42, 3, generator=torch.Generator().manual_seed(1)).to(device)
        self.y = self.x[:, :2] ** 2
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 2))
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 5, gamma=0.9)
        self.steps = 0
        self.interrupt = lambda steps: None

    def step(self, batch):
        self.steps += 1
        self.interrupt(self.steps)
        return mse(self.model(batch[0]), batch[1])

    def train(self, batches=None, **options):
        """Five minibatches of ten or fewer an epoch, four epochs."""
        options = {
            "model": self.model,
            "epochs": 4,
            "batch_size": 10,
            "scheduler": self.scheduler,
            "validation": lambda: mse(self.model(self.x), self.y).item(),
            "progress": False,
        } | options
        batches = (self.x, self.y) if batches is None else batches
        return train(self.step, self.optimizer, batches, **options)

    def numbers(self):
        """All that training has changed."""
        return [
            *self.model.state_dict().values(),
            *(v for state in self.optimizer.state.values() for v in state.values()),
            torch.tensor(self.scheduler.get_last_lr()),
        ]


def assert_same(runs, histories):
    """Bit for bit."""
    one, other = histories
    assert one.loss == other.loss
    assert one.gradient_norm == other.gradient_norm
    assert one.validation_loss == other.validation_loss
    assert one.validation_metric == other.validation_metric
    assert len(one.seconds) == len(other.seconds)
    assert other.seconds == sorted(other.seconds)
    for a, b in zip(*(run.numbers() for run in runs), strict=True):
        assert torch.equal(a, b)


def test_the_numbers_are_those_of_a_plain_loop_bit_for_bit():
    ours, plain, short = Run(), Run(), Run()
    history = ours.train(seed=3)
    losses = plain_loop(
        plain.model, plain.optimizer, (plain.x, plain.y), 4, 10, plain.scheduler, seed=3
    )
    assert history.loss == losses
    assert all(map(torch.equal, ours.numbers(), plain.numbers()))
    options = {"epochs": 4, "batch_size": 10, "scheduler": short.scheduler, "seed": 3}
    data = (short.x, short.y)
    history = fit(short.model, short.optimizer, mse, data, **options, progress=False)
    assert history.loss == losses
    assert all(map(torch.equal, short.numbers(), plain.numbers()))


def test_a_seed_means_this_order_of_the_minibatches_and_no_other():
    batches = Minibatches((torch.arange(7),), 3, torch.Generator().manual_seed(0))
    orders = [[batch[0].tolist() for batch in batches] for _ in range(2)]
    assert len(batches) == 3
    assert orders == [[[4, 0, 5], [3, 2, 6], [1]], [[6, 2, 4], [0, 3, 5], [1]]]


class Twice:
    """Can be read again and again, but has no length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        yield from self.items


def test_batches_may_be_whatever_gives_batches():
    run = Run()
    ready = list(zip(run.x.split(10), run.y.split(10), strict=True))
    # with a generator, or the loader draws a number from where dropout does
    options = {"batch_size": 10, "generator": torch.Generator()}
    loader = DataLoader(TensorDataset(run.x, run.y), **options)
    histories = [Run().train(batches) for batches in (ready, Twice(ready), loader)]
    for history in histories:
        assert history.loss == histories[0].loss
        assert history.steps_per_epoch == 5
        assert len(history.loss) == 20
    assert Run().train(iter(ready), epochs=1).loss == histories[0].loss[:5]


def test_what_is_handed_to_step_is_the_batch_itself():
    weight, seen = torch.zeros(1, requires_grad=True), []

    def step(batch):
        seen.append(batch)
        return weight.sum()

    optimizer = torch.optim.SGD([weight], lr=1.0)
    train(step, optimizer, ["one", {"two": 2}], epochs=2, progress=False)
    assert seen == ["one", {"two": 2}] * 2
    assert weight.item() == -4.0
    train(step, optimizer, (torch.arange(3), torch.arange(3), -torch.arange(3)), batch_size=2)
    for batch, size in zip(seen[-2:], (2, 1), strict=True):
        assert isinstance(batch, tuple)
        assert [len(tensor) for tensor in batch] == [size] * 3
        assert torch.equal(batch[0], batch[1])
        assert torch.equal(batch[0], -batch[2])


def test_fit_and_evaluate_take_loaders_of_another_dtype():
    torch.manual_seed(0)
    x, y = torch.randn(25, 3), torch.arange(25) % 2
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    losses = []
    for data in (loader, list(zip(x.double().split(10), y.split(10), strict=True))):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"epochs": 2, "validation": data, "progress": False}
        history = fit(model, optimizer, nn.functional.cross_entropy, data, **options)
        whole = evaluate(model, nn.functional.cross_entropy, (x, y))
        assert evaluate(model, nn.functional.cross_entropy, data) == pytest.approx(
            whole, rel=1e-12
        )
        assert (history.validation_loss[-1], history.validation_metric[-1]) == pytest.approx(
            whole, rel=1e-12
        )
        losses.append(history.loss)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


@pytest.mark.parametrize("max_norm", [0.05, 1e6, math.inf])
def test_a_long_gradient_is_shortened_and_its_length_recorded(line, max_norm):
    model, (x, y) = line
    start = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    error = start[0] * x + start[1] - y
    gradient = torch.stack([(2 * error * x).mean(), (2 * error).mean()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    history = fit(model, optimizer, mse, (x, y), batch_size=50, max_norm=max_norm)
    assert history.gradient_norm == [pytest.approx(gradient.norm().item(), rel=1e-5)]
    moved = start - torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    shortened = gradient * min(1.0, max_norm / gradient.norm().item())
    torch.testing.assert_close(moved, shortened, rtol=1e-4, atol=1e-6)


def test_validation_gives_a_loss_or_a_loss_and_a_metric_and_sees_the_model_at_rest():
    run, seen = Run(), []

    def validation():
        seen.append((run.model[1].training, torch.is_grad_enabled()))
        return np.float64(len(seen)), 10 * len(seen)

    history = run.train(validation=validation)
    assert seen == [(False, False)] * 4
    assert history.validation_loss == [1.0, 2.0, 3.0, 4.0]
    assert history.validation_metric == [10.0, 20.0, 30.0, 40.0]
    history = Run().train(validation=lambda: 7)
    assert history.validation_loss == [7.0] * 4
    assert history.validation_metric == []


def test_stop_is_asked_after_each_epoch_with_its_validation():
    seen = []

    def stop(history):
        seen.append((len(history.loss), len(history.validation_loss)))
        return len(seen) == 3

    history = Run().train(stop=stop, epochs=10)
    assert seen == [(5, 1), (10, 2), (15, 3)]
    assert len(history.loss) == 15
    whole = Run().train()
    assert history.loss == whole.loss[:15]


def test_without_a_model_tensors_are_trained_and_the_random_state_put_back():
    mean = torch.zeros(2, requires_grad=True)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) + 5
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    history = train(
        lambda batch: (batch[0] - mean + 0.01 * torch.randn(2)).square().sum(1).mean(),
        torch.optim.SGD([mean], lr=0.1),
        (x,),
        epochs=20,
        batch_size=100,
        progress=False,
    )
    assert torch.equal(torch.rand(2), expected)
    torch.testing.assert_close(mean.detach(), x.mean(0), rtol=0.02, atol=0)
    assert len(history.loss) == 20


def test_the_history_plots_itself_where_nobody_knew_how_many_steps_there_would_be(figure):
    history = Run().train(Twice([(torch.ones(2, 3), torch.ones(2, 2))] * 3))
    steps, epochs = history.plot(figure.add_subplot()).lines
    assert len(steps.get_xdata()) == 12
    assert list(epochs.get_xdata()) == [3, 6, 9, 12]


def test_a_bar_without_a_known_end_is_shown_too(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    Run().train(Twice([(torch.ones(2, 3), torch.ones(2, 2))]), progress=True)
    assert "training: 0step" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1])
def test_a_loss_that_is_not_finite_stops_training_before_the_step(place):
    run = Run()
    run.x[0, 0] = (math.inf, math.nan)[place]
    run.model[1].p = 0.0
    before = copy.deepcopy(run.numbers())
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is (nan|inf) at step 1 of epoch 1: try a lower learning rate, or clip "
        r"the gradient \(max_norm=1.0\), and look for inf and nan in the data",
    ):
        run.train([(run.x, run.y)])
    assert all(map(torch.equal, run.numbers(), before))


def test_a_loss_that_diverges_stops_training_and_says_where(line):
    model, data = line
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    with pytest.raises(
        FloatingPointError, match="loss is inf at step 1 of epoch 4: try a lower"
    ):
        fit(model, optimizer, mse, data, epochs=40, batch_size=50, progress=False)
    assert not model.training


def test_a_parameter_that_is_not_finite_at_the_end_of_an_epoch_stops_training_too(tmp_path):
    weight = nn.Parameter(torch.ones(2))
    model, file = nn.ParameterList([weight]), tmp_path / "run"
    # the second is 0, and its slope is not finite
    losses = iter([lambda: weight.sum(), lambda: (weight - weight.detach()).sqrt().sum()])
    with pytest.raises(
        FloatingPointError, match="parameter is not finite at the end of epoch 2"
    ):
        train(
            lambda batch: next(losses)(),
            torch.optim.SGD([weight], lr=0.1),
            [None],
            model=model,
            epochs=5,
            checkpoint=file,
        )
    assert torch.load(file, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": -1}, ValueError, "epochs must not be negative, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (
            {"max_norm": 0.0},
            ValueError,
            "max_norm must be above 0, got 0.0: None clips nothing",
        ),
        ({"max_norm": math.nan}, ValueError, "max_norm must be a number or None, got nan"),
        ({"batches": torch.ones(3)}, TypeError, r"got a tensor: write \(x,\) to have it cut"),
        (
            {"batches": (torch.ones(3), [1, 2, 3])},
            TypeError,
            "data must be a sequence, each entry a Tensor, got",
        ),
        (
            {"batches": (torch.ones(3), torch.ones(2))},
            ValueError,
            "same number of examples, and at least one, got 3, 2",
        ),
        ({"batches": (torch.ones(0),)}, ValueError, "and at least one, got 0"),
        ({"batches": ()}, ValueError, "and at least one, got no tensors"),
        (
            {"batches": iter([1, 2])},
            ValueError,
            "a list_iterator can be read only once, which is one epoch and not 4: give a list",
        ),
        ({"batches": []}, ValueError, "no minibatch in epoch 1: batches must not be empty"),
        (
            {"model": nn.Linear(1, 1)},
            ValueError,
            "the optimizer holds none of the model's parameters",
        ),
        (
            {"model": None, "checkpoint": "run"},
            ValueError,
            "would lack 4 of the optimizer's 4 parameters: give all that is trained as model",
        ),
        (
            {"checkpoint": "no/such/run"},
            ValueError,
            "there is no folder no/such for the checkpoint: make it",
        ),
    ],
)
def test_train_refuses_what_makes_no_sense(options, error, words, plain_python):
    run, options = Run(), dict(options)
    with pytest.raises(error, match=words):
        run.train(options.pop("batches", None), **options)


def test_batches_that_are_used_up_after_one_epoch_are_refused_in_the_second():
    once = iter([(torch.ones(2, 3), torch.ones(2, 2))])

    class Once:
        def __iter__(self):
            return once

    with pytest.raises(ValueError, match=r"no minibatch in epoch 2: .* must begin anew"):
        Run().train(Once())


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (
            lambda w: w,
            ValueError,
            r"the loss must be one number, got shape \(2,\): take its mean",
        ),
        (lambda w: w.sum().item(), TypeError, "the loss as a tensor, got float: without .item"),
        (
            lambda w: w.sum().detach(),
            ValueError,
            "the loss depends on no parameter: compute it",
        ),
    ],
)
def test_step_must_return_one_number_with_a_graph(loss, error, words, plain_python):
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(error, match=words):
        train(lambda batch: loss(weight), torch.optim.SGD([weight], lr=0.1), [1])


@pytest.mark.parametrize("batch", [{"x": 1, "y": 2}, [1, 2, 3], torch.ones(2)])
def test_fit_and_evaluate_say_what_a_minibatch_must_be(batch, line):
    model, _ = line
    words = (
        r"a minibatch must be a pair of inputs and targets, got (dict|list|Tensor): for other"
    )
    with pytest.raises(ValueError, match=words):
        fit(model, torch.optim.SGD(model.parameters()), mse, [batch], progress=False)
    with pytest.raises(ValueError, match=words):
        evaluate(model, mse, [batch], no_metric)
    with pytest.raises(
        ValueError, match="data has no minibatches: there is nothing to measure"
    ):
        evaluate(model, mse, [], no_metric)


# Checkpoints


class Patience:
    """Stops when the validation loss has not fallen for so many epochs; keeps count itself."""

    def __init__(self, epochs):
        self.epochs, self.best, self.since = epochs, math.inf, 0

    def __call__(self, history):
        self.since += 1
        if history.validation_loss[-1] < self.best:
            self.best, self.since = history.validation_loss[-1], 0
        return self.since >= self.epochs

    def state_dict(self):
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state):
        self.best, self.since = state["best"], state["since"]


def interrupted_at(*steps):
    """Something to do before each step, which at those of all runs raises an exception."""
    count = iter(range(1, 10**6))

    def interrupt(_):
        if next(count) in steps:
            raise InterruptedError

    return interrupt


def run_to_the_end(file, steps=(), device="cpu", batches=lambda run: None, **options):
    """Train with interruptions before these steps, each time with everything made anew."""
    interrupt = interrupted_at(*steps)
    while True:
        run = Run(device)
        run.interrupt = interrupt
        torch.manual_seed(len(steps))  # the global one plays no part
        try:
            return run, run.train(batches(run), checkpoint=file, **options)
        except InterruptedError:
            assert run.steps


def shuffling_loader(run, own):
    generator = torch.Generator().manual_seed(5) if own else None
    return DataLoader(
        TensorDataset(run.x, run.y), batch_size=10, shuffle=True, generator=generator
    )


BATCHES = {
    "tensors": lambda run: None,
    "list": lambda run: list(zip(run.x.split(10), run.y.split(10), strict=True)),
    "loader": lambda run: shuffling_loader(run, own=False),
    "loader with a generator": lambda run: shuffling_loader(run, own=True),
    "sampler with a generator": lambda run: DataLoader(
        TensorDataset(run.x, run.y),
        batch_size=10,
        sampler=RandomSampler(run.x, generator=torch.Generator().manual_seed(5)),
    ),
    "without a length": lambda run: Twice(BATCHES["list"](run)),
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_an_interrupted_run_ends_with_the_numbers_of_one_that_was_not(
    tmp_path, batches, device
):
    options = {"device": device, "batches": batches, "max_norm": 0.3}
    whole = run_to_the_end(None, **options)
    # in the first epoch, at the end of the second, twice in the third, in the last
    for steps in ((3, 12), (15, 18, 24)):
        again = run_to_the_end(tmp_path / f"run {steps}", steps, **options)
        assert_same(*zip(whole, again, strict=True))


def test_a_finished_run_is_only_loaded_and_more_epochs_go_on_from_its_end(tmp_path):
    file = tmp_path / "run"
    whole = run_to_the_end(None, epochs=6)
    run_to_the_end(file, epochs=4)
    loaded = run_to_the_end(file, epochs=4)
    assert loaded[0].steps == 0
    longer = run_to_the_end(file, epochs=6)
    assert longer[0].steps == 10
    assert_same(*zip(whole, longer, strict=True))
    assert loaded[1].loss == whole[1].loss[:20]


def test_what_stop_remembers_is_kept_and_a_stopped_run_stays_stopped(tmp_path):
    file, options = tmp_path / "run", {"epochs": 50, "stop": None}
    runs = []
    for name, steps in ((None, ()), (file, range(7, 400, 8)), (file, ())):
        interrupt = interrupted_at(*steps)
        while True:
            run = Run()
            run.interrupt = interrupt
            options["stop"] = Patience(3)
            try:
                runs.append((run, run.train(checkpoint=name, **options)))
                break
            except InterruptedError:
                pass
    whole, again, loaded = runs
    assert 20 < len(whole[1].loss) < 250
    assert whole[1].validation_loss[-3:] > [min(whole[1].validation_loss)] * 3
    assert_same(*zip(whole, again, strict=True))
    assert_same(*zip(whole, loaded, strict=True))
    assert loaded[0].steps == 0


def test_the_time_of_an_interrupted_run_goes_on_too(tmp_path):
    run = Run()
    run.interrupt = lambda steps: time.sleep(0.02)
    seconds = run.train(epochs=1, checkpoint=tmp_path / "run").seconds
    assert seconds[-1] > 0.1
    assert run_to_the_end(tmp_path / "run")[1].seconds[5] > seconds[-1]


def run_until_killed(file, place, epoch, connection):
    """A process of its own: trains, and reports when it has come to a place in an epoch."""

    def wait(*_):
        connection.send(place)
        time.sleep(600)

    run = Run()
    if place == "step":
        done = torch.load(file, weights_only=True)["epoch"] if file.exists() else 0
        run.interrupt = lambda steps: wait() if steps == 5 * (epoch - 1 - done) + 3 else None
    save, replace = torch.save, Path.replace

    def half_saved(state, stream):
        if place == "half written" and state["epoch"] == epoch:
            save(state, half := file.with_name("half"))
            stream.write(half.read_bytes()[:2000])
            stream.flush()
            wait()
        save(state, stream)

    def not_replaced(new, target):
        if place == "written" and torch.load(new, weights_only=True)["epoch"] == epoch:
            wait()
        return replace(new, target)

    torch.save, Path.replace = half_saved, not_replaced
    run.train(checkpoint=file)


@pytest.fixture(scope="module")
def processes():
    """Where processes come from: one that has imported PyTorch already, where there is such."""
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "companion.training"])
    return context


def test_a_killed_process_loses_no_more_than_its_epoch(tmp_path, processes):
    file = tmp_path / "run"
    whole = run_to_the_end(None)
    for place, epoch in [("step", 2), ("half written", 2), ("written", 3), ("step", 4)]:
        ours, theirs = processes.Pipe()
        process = processes.Process(target=run_until_killed, args=(file, place, epoch, theirs))
        process.start()
        assert ours.poll(300)
        assert ours.recv() == place
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert torch.load(file, weights_only=True)["epoch"] == epoch - 1
    again = run_to_the_end(file)
    assert again[0].steps == 5
    assert_same(*zip(whole, again, strict=True))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.previous", "half"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:0], "File is not a zip file"),
        (lambda content: content[: len(content) // 2], "File is not a zip file"),
        (lambda content: content[:-1], "File is not a zip file"),
        (
            lambda content: content.replace(b"history", b"histery", 1),
            r"the checksum of \S* is another",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_there(tmp_path, damage, words):
    file, previous = tmp_path / "run", tmp_path / "run.previous"
    whole = run_to_the_end(None)
    run_to_the_end(file, epochs=3)
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    run = Run()
    before = copy.deepcopy(run.numbers())
    with pytest.raises(
        ValueError,
        match=rf"run is damaged or no checkpoint \({words}\), and was left as it is: put "
        r"\S*run.previous, the state of one epoch before, in its place, or delete it",
    ):
        run.train(checkpoint=file)
    assert file.read_bytes() == damaged
    assert all(map(torch.equal, run.numbers(), before))
    previous.replace(file)
    again = run_to_the_end(file)
    assert again[0].steps == 10
    assert_same(*zip(whole, again, strict=True))


def test_a_scheduler_that_cannot_step_is_refused():
    with pytest.raises(
        TypeError, match=r"scheduler must have a step\(\), got 0.5: build one from"
    ):
        Run().train(scheduler=0.5)


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    for name, content in [("weights", Run().model.state_dict()), ("list", [1])]:
        torch.save(content, tmp_path / name)
        with pytest.raises(
            ValueError, match=r"it was not written by train\), and was left as it is: delete it"
        ):
            Run().train(checkpoint=tmp_path / name)
    with pytest.raises(ValueError, match=r"damaged or no checkpoint \(.*Is a directory"):
        Run().train(checkpoint=tmp_path)


def test_a_state_that_could_not_be_loaded_is_not_written(tmp_path):
    run = Run()
    run.optimizer.param_groups[0]["lr"] = np.float64(0.1)
    with pytest.raises(
        ValueError, match=r"could not be loaded again: wanted tensors.* Python's with float\(\)"
    ):
        run.train(checkpoint=tmp_path / "run")
    assert run.steps == 0
    assert not (tmp_path / "run").exists()


def another_model(run):
    run.model[0] = nn.Linear(3, 20, dtype=torch.float64)
    run.optimizer = torch.optim.Adam(run.model.parameters(), lr=0.01)
    run.scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 5, gamma=0.9)


def deeper_model(run):
    run.model.append(nn.Linear(2, 2))


def another_optimizer(run):
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.01)


def another_rate(run):
    run.optimizer = torch.optim.Adam(run.model.parameters(), lr=0.02)


def two_groups(run):
    groups = [{"params": part.parameters()} for part in (run.model[0], run.model[2])]
    run.optimizer = torch.optim.Adam(groups, lr=0.01)


def more_data(run):
    run.x, run.y = torch.cat([run.x, run.x[:1]]), torch.cat([run.y, run.y[:1]])


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (
            another_model,
            {},
            r"model's 0.weight was torch.float32 of shape \(20, 3\) and is now torch.float64",
        ),
        (deeper_model, {}, r"model's 3.weight was missing and is now torch.float32 of shape"),
        (another_optimizer, {}, "optimizer was Adam and is now SGD"),
        (another_rate, {}, "optimizer's lr was 0.01 and is now 0.02"),
        (two_groups, {}, r"parameters in each group was \[4\] and is now \[2, 2\]"),
        (more_data, {}, r"examples was \[\(42, 3\), \(42, 2\)\] and is now \[\(43, 3\), \(43"),
        (None, {"batch_size": 9}, "batch_size was 10 and is now 9"),
        (None, {"batches": [0, 0]}, "batches was Minibatches of 5 and is now list of 2"),
        (None, {"seed": 1}, "seed was 0 and is now 1"),
        (None, {"max_norm": 1.0}, "max_norm was None and is now 1.0"),
        (None, {"scheduler": None}, "scheduler was StepLR and is now missing"),
        (None, {"stop": Patience(1)}, "stop was missing and is now Patience"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, options, words):
    file, options = tmp_path / "run", dict(options)
    Run().train(checkpoint=file, epochs=1)
    run = Run()
    if change is not None:
        change(run)
    before = copy.deepcopy(run.numbers())
    with pytest.raises(ValueError, match=rf"the checkpoint of another run: {words}.* name ano"):
        run.train(options.pop("batches", None), checkpoint=file, **options)
    assert all(map(torch.equal, run.numbers(), before))


def test_a_checkpoint_with_more_epochs_than_are_wanted_is_refused(tmp_path):
    Run().train(checkpoint=tmp_path / "run", epochs=2)
    with pytest.raises(
        ValueError, match="run has 2 epochs behind it, more than the 1 wanted: ask for at least"
    ):
        Run().train(checkpoint=tmp_path / "run", epochs=1)


def test_the_size_of_a_data_set_is_compared_and_persistent_workers_are_refused(tmp_path):
    file, run = tmp_path / "run", Run()
    whole, part = (TensorDataset(run.x[:size], run.y[:size]) for size in (42, 41))
    run.train(DataLoader(whole, batch_size=10), checkpoint=file, epochs=1)
    with pytest.raises(ValueError, match="another run: examples was 42 and is now 41"):
        Run().train(DataLoader(part, batch_size=10), checkpoint=file)
    with pytest.raises(ValueError, match="DataLoader with persistent_workers=False"):
        run.train(DataLoader(whole, num_workers=1, persistent_workers=True), checkpoint=file)


def test_what_was_written_last_survives_a_loss_that_is_not_finite(tmp_path):
    file, run = tmp_path / "run", Run()
    run.train(checkpoint=file, epochs=2)
    content, run = file.read_bytes(), Run()

    def blow_up(steps):
        if steps == 3:
            run.model[0].weight.data.fill_(math.inf)

    run.interrupt = blow_up
    with pytest.raises(FloatingPointError, match="at step 3 of epoch 3"):
        run.train(checkpoint=file)
    assert file.read_bytes() == content
    whole, again = run_to_the_end(None), run_to_the_end(file)
    assert_same(*zip(whole, again, strict=True))


def test_fit_goes_on_from_a_checkpoint_too(tmp_path):
    file, results = tmp_path / "run", []
    for checkpoint, epochs in [(None, [3]), (file, [1, 2, 3])]:
        for number in epochs:
            run = Run()
            history = fit(
                run.model,
                run.optimizer,
                mse,
                (run.x, run.y),
                epochs=number,
                validation=(run.x, run.y),
                metric=lambda p, t: (p - t).abs().max().item(),
                scheduler=run.scheduler,
                stop=lambda history: False,
                max_norm=0.5,
                checkpoint=checkpoint,
                progress=False,
            )
        results.append((run, history))
    assert_same(*zip(*results, strict=True))


# Processes that train together


def one_of_two(rank, folder, tests):
    """A process that runs functions and writes what they return."""
    file = folder / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.save([test(rank, folder) for test in tests], folder / f"result {rank}")
    dist.destroy_process_group()


def results_of_two(processes, tests, folder):
    """What the functions return in the first process, and what in the second."""
    team = [processes.Process(target=one_of_two, args=(r, folder, tests)) for r in range(2)]
    for process in team:
        process.start()
    for process in team:
        process.join(300)
        assert process.exitcode == 0
    return [torch.load(folder / f"result {rank}") for rank in range(2)]


def without_dropout(wrapped):
    """A run whose model averages the gradients of all processes, or does not."""
    run = Run()
    run.model[1].p = 0.0
    if wrapped:
        run.model = nn.parallel.DistributedDataParallel(run.model)
    return run


def result(run, history):
    return {
        "history": vars(history),
        "parameters": [parameter.detach() for parameter in run.model.parameters()],
    }


def of_tensors(rank, folder):
    run = without_dropout(wrapped=True)
    # means of different numbers
    validation = lambda: (float(rank), mse(run.model(run.x), run.y).item())  # noqa: E731
    return result(run, run.train(max_norm=0.3, validation=validation))


def of_a_loader(rank, folder):
    run = without_dropout(wrapped=True)
    data = TensorDataset(run.x, run.y)
    sampler = DistributedSampler(data, shuffle=True, seed=2)
    return result(run, run.train(DataLoader(data, batch_size=5, sampler=sampler)))


def with_dropout_from_a_checkpoint(rank, folder):
    results = []
    for checkpoint, steps in ((None, [()]), (folder / "run", [(8,), ()])):
        for interruptions in steps:
            run = Run()
            run.model = nn.parallel.DistributedDataParallel(run.model)
            run.interrupt = interrupted_at(*interruptions)
            try:
                results.append(result(run, run.train(checkpoint=checkpoint)))
            except InterruptedError:
                dist.barrier()
    return results


def of_a_stop_that_one_process_wants(rank, folder):
    run = without_dropout(wrapped=True)
    return len(run.train(stop=lambda history: rank == 1).loss)


def of_what_cannot_be(rank, folder):
    words = []
    for options in ({"model": None}, {"batch_size": 9}):
        try:
            without_dropout(wrapped=False).train(**options)
        except (RuntimeError, ValueError) as error:
            words.append(str(error))
    return words


def of_random_numbers(rank, folder):
    run, drawn = without_dropout(wrapped=True), []
    run.interrupt = lambda steps: drawn.append(torch.rand(()).item())
    run.train(seed=4)
    return drawn


def of_a_bar(rank, folder):
    import contextlib
    import io

    os.environ.pop("TQDM_DISABLE", None)
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        without_dropout(wrapped=True).train(progress=True)
    return "training" in shown.getvalue()


def test_two_processes_train_as_one_with_the_whole_minibatch(tmp_path, processes):
    tests = (
        of_tensors,
        of_a_loader,
        with_dropout_from_a_checkpoint,
        of_a_stop_that_one_process_wants,
        of_what_cannot_be,
        of_a_bar,
        of_random_numbers,
    )
    one, other = results_of_two(processes, tests, tmp_path)

    run = without_dropout(wrapped=False)
    alone = run.train(max_norm=0.3)
    for theirs in (one[0], other[0]):
        for name in ("loss", "gradient_norm"):
            assert theirs["history"][name] == pytest.approx(getattr(alone, name), rel=1e-5)
        assert theirs["history"]["validation_loss"] == [0.5] * 4
        assert theirs["history"]["validation_metric"] == pytest.approx(
            alone.validation_loss, rel=1e-5
        )
        for ours, of_two in zip(run.model.parameters(), theirs["parameters"], strict=True):
            torch.testing.assert_close(ours, of_two, rtol=1e-5, atol=1e-6)

    # each process reads its half of the minibatches, in another order in each epoch
    run = without_dropout(wrapped=False)
    samplers = [DistributedSampler(run.x, 2, rank, seed=2) for rank in range(2)]
    halves = []
    for epoch in range(4):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [torch.tensor(list(sampler)).split(5) for sampler in samplers]
        halves += [torch.cat(pair) for pair in zip(*parts, strict=True)]
    order = iter(halves)

    class Epoch:
        def __iter__(self):
            return ((run.x[i], run.y[i]) for i in [next(order) for _ in range(5)])

    alone = run.train(Epoch())
    for theirs in (one[1], other[1]):
        assert theirs["history"]["loss"] == pytest.approx(alone.loss, rel=1e-5)

    for whole, again in (one[2], other[2]):
        assert whole["history"]["loss"] == again["history"]["loss"]
        assert all(map(torch.equal, whole["parameters"], again["parameters"]))
    assert one[2][0]["history"]["loss"] == other[2][0]["history"]["loss"]

    assert one[3] == other[3] == 5
    for drifted, unequal in (one[4], other[4]):
        assert "parameters of 2 processes have drifted apart in epoch 1: wrap" in drifted
        assert "2 processes cannot share 9 examples equally: choose a minibatch" in unequal
    assert (one[5], other[5]) == (True, False)

    for drawn, seed in ((one[6], 4), (other[6], 5)):
        torch.manual_seed(seed)
        assert drawn == [torch.rand(()).item() for _ in range(20)]


def test_one_process_alone_has_all_to_itself():
    examples = torch.arange(7)
    assert torch.equal(share(examples), examples)
