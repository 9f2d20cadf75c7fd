import math
import time

import pytest
import torch
from torch import nn

from companion.training import History, accuracy, evaluate, fit

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
    with pytest.raises(
        ValueError, match=r"the number of a class for each example, got targets of shape \(4"
    ):
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


def test_a_loss_that_diverges_is_recorded_rather_than_hidden(line):
    model, data = line
    history = fit(
        model, torch.optim.SGD(model.parameters(), lr=1e6), mse, data, epochs=40, batch_size=50
    )
    assert not math.isfinite(history.loss[-1])


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
