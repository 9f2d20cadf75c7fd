import copy
import functools
import inspect
import io
import itertools
import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler as judge_schedules

from companion import optimization
from companion.datasets import Examples, Splits, fashion_mnist
from companion.optimization import (
    SGD,
    Adam,
    AdamW,
    CosineWithWarmup,
    Descent,
    OneCycleLR,
    RMSprop,
    StepLR,
)

OPTIMIZERS = [SGD, RMSprop, Adam, AdamW]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def choices(**values):
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


SGD_CASES = [
    options
    for options in choices(
        momentum=[0.0, 0.9],
        dampening=[0.0, 0.3],
        weight_decay=[0.0, 0.1],
        nesterov=[False, True],
        maximize=[False, True],
    )
    if not options["nesterov"] or (options["momentum"] and not options["dampening"])
]
RMSPROP_CASES = choices(
    alpha=[0.6],
    eps=[0.1],
    weight_decay=[0.0, 0.1],
    momentum=[0.0, 0.9],
    centered=[False, True],
    maximize=[False, True],
)
ADAM_CASES = choices(
    betas=[(0.5, 0.7)],
    eps=[0.1],
    weight_decay=[0.0, 0.1],
    amsgrad=[False, True],
    maximize=[False, True],
)
EVERY_CASE = [
    *[(SGD, options) for options in SGD_CASES],
    *[(RMSprop, options) for options in RMSPROP_CASES],
    *[
        (Adam, options | {"decoupled_weight_decay": way})
        for options in ADAM_CASES
        for way in [False, True]
    ],
    *[(AdamW, options) for options in ADAM_CASES],
]
# a few cases in which, together, every branch that keeps a buffer is taken
RICH_CASES = [
    (SGD, {"lr": 0.05, "momentum": 0.9}),
    (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (
        SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "maximize": True},
    ),
    (
        RMSprop,
        {
            "lr": 0.05,
            "alpha": 0.9,
            "momentum": 0.5,
            "centered": True,
            "weight_decay": 0.1,
            "eps": 1e-3,
        },
    ),
    (Adam, {"lr": 0.05, "betas": (0.8, 0.9), "amsgrad": True, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.05, "betas": (0.8, 0.9), "amsgrad": True, "maximize": True}),
]


def judge(optimizer):
    return getattr(torch.optim, optimizer.__name__)


def parameters(dtype=torch.float64):
    """No dimension, nothing at all, a transposed tensor, and two that do not always have a
    gradient.
    """
    g = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in [(), (0,), (5, 3), (7,), (2, 1, 3)]
    ]
    tensors[2] = tensors[2].T
    return [t.to(dtype).requires_grad_() for t in tensors]


@functools.cache
def noise(t, shape, dtype):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(t), dtype=torch.float64
    ).to(dtype)


def run(optimizer, params, steps, scheduler=None):
    """Noisy gradients that depend on the parameters, so that one wrong step spoils all later
    ones.
    """
    for t in steps:
        for i, p in enumerate(params):
            missing = (i == 3 and t % 3 == 1) or (i == 4 and t < 7)
            p.grad = None if missing else p.detach().sin() + noise(t, p.shape, p.dtype) / 2
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same(ours, theirs, our_params, their_params, **tolerance):
    tolerance = tolerance or EXACT
    for p, q in zip(our_params, their_params, strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        assert ours.state.get(p, {}).keys() == theirs.state.get(q, {}).keys()
        for name, value in ours.state.get(p, {}).items():
            # dtype and shape, too
            torch.testing.assert_close(value, theirs.state[q][name], **tolerance)


@pytest.mark.parametrize(("optimizer", "options"), EVERY_CASE)
def test_fifty_steps_agree_with_torch(optimizer, options):
    p, q = parameters(), parameters()
    ours, theirs = optimizer(p, lr=0.05, **options), judge(optimizer)(q, lr=0.05, **options)
    run(ours, p, range(50))
    run(theirs, q, range(50))
    assert_same(ours, theirs, p, q)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps_with_the_defaults_agree_with_torch(optimizer):
    p, q = parameters(), parameters()
    ours, theirs = optimizer(p), judge(optimizer)(q)
    run(ours, p, range(50))
    run(theirs, q, range(50))
    assert_same(ours, theirs, p, q)


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
def test_float32_is_as_precise_as_torch(optimizer, options):
    exact, p, q = parameters(), parameters(torch.float32), parameters(torch.float32)
    run(judge(optimizer)(exact, **options), exact, range(50))
    run(optimizer(p, **options), p, range(50))
    run(judge(optimizer)(q, **options), q, range(50))

    def error(params):
        return max(
            (a.double() - b).abs().max().item()
            for a, b in zip(params, exact, strict=True)
            if a.numel()
        )

    assert error(p) <= 1.5 * error(q) + 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
def test_half_precision_parameters_keep_their_type_and_move_as_torch_moves_them(
    optimizer, options, dtype
):
    p, q = parameters(dtype), parameters(dtype)
    ours, theirs = optimizer(p, **options), judge(optimizer)(q, **options)
    run(ours, p, range(10))
    run(theirs, q, range(10))
    assert_same(
        ours, theirs, p, q, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
def test_gradients_are_only_read_and_no_graph_grows(optimizer, options):
    (p,) = params = [torch.ones(3, requires_grad=True)]
    p.grad = torch.tensor([1.0, -2.0, 0.5])
    ours = optimizer(params, **options)
    for _ in range(3):
        ours.step()
    assert p.grad.tolist() == [1.0, -2.0, 0.5]
    assert p.is_leaf
    assert p.requires_grad
    assert not any(value.requires_grad for value in ours.state[p].values())
    assert all(value.data_ptr() != p.grad.data_ptr() for value in ours.state[p].values())


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
def test_a_parameter_without_a_gradient_is_left_alone(optimizer, options):
    p = torch.ones(3, requires_grad=True)
    ours = optimizer([p], **options)
    ours.step()
    assert p.tolist() == [1.0, 1.0, 1.0]
    assert p not in ours.state


# ---- independent of torch.optim: closed forms and the papers' own formulations


def test_gradient_descent_on_a_parabola_shrinks_the_error_by_the_same_factor_each_step():
    p = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ours = SGD([p], lr=0.1)
    for _ in range(20):
        p.grad = 2 * p.detach()
        ours.step()
    assert p.item() == pytest.approx(3 * 0.8**20, rel=1e-12)


def test_momentum_is_the_heavy_ball_of_polyak():
    p = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ours, x, v = SGD([p], lr=0.1, momentum=0.7), 3.0, 0.0
    for _ in range(30):
        p.grad = p.detach().sin()
        ours.step()
        v = 0.7 * v - 0.1 * math.sin(x)
        x += v
        assert p.item() == pytest.approx(x, rel=1e-12, abs=1e-12)


def test_nesterov_stores_the_look_ahead_point():
    p = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ours, x, v = SGD([p], lr=0.1, momentum=0.7, nesterov=True), 3.0, 0.0
    for _ in range(30):
        p.grad = p.detach().sin()
        ours.step()
        v = 0.7 * v - 0.1 * math.sin(x + 0.7 * v)
        x += v
        assert p.item() == pytest.approx(x + 0.7 * v, rel=1e-12, abs=1e-12)


def test_the_first_buffer_is_the_raw_gradient_whatever_the_dampening():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([1.0, -4.0])
    SGD([p], lr=1.0, momentum=0.9, dampening=0.5).step()
    assert p.tolist() == [-1.0, 4.0]


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_first_step_of_adam_has_the_length_of_the_rate(optimizer, size):
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([size, -3 * size], dtype=torch.float64)
    optimizer([p], lr=0.01, eps=0.0).step()
    torch.testing.assert_close(
        p.detach(), torch.tensor([-0.01, 0.01], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_adam_averages_are_weighted_sums_of_all_past_gradients():
    gradients = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ours, expected = Adam([p], lr=0.1, betas=(0.8, 0.95), eps=0.2), 0.0
    for t in range(1, 13):
        p.grad = gradients[t - 1].clone()
        ours.step()
        ages = torch.arange(t - 1, -1, -1, dtype=torch.float64)
        m, v = (
            ((beta**ages) * gradients[:t] ** power).sum() / (beta**ages).sum()
            for beta, power in [(0.8, 1), (0.95, 2)]
        )
        # ε after the root and after the correction
        expected = expected - 0.1 * m / (v.sqrt() + 0.2)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def test_amsgrad_never_divides_by_less_than_before():
    p = torch.zeros(1, requires_grad=True)
    ours, largest = Adam([p], amsgrad=True, betas=(0.9, 0.5)), 0.0
    for size in [1.0, 5.0, 0.1, 0.0, 2.0]:
        p.grad = torch.tensor([size])
        ours.step()
        assert ours.state[p]["max_exp_avg_sq"].item() >= largest
        largest = ours.state[p]["max_exp_avg_sq"].item()
    assert largest > ours.state[p]["exp_avg_sq"].item()


def test_decoupled_decay_shrinks_all_weights_alike_and_coupled_decay_does_not():
    steep_and_flat = torch.tensor([1e3, 1e-3], dtype=torch.float64)

    def moved(optimizer, weight_decay):
        p = torch.ones(2, dtype=torch.float64, requires_grad=True)
        p.grad = steep_and_flat.clone()
        optimizer([p], lr=0.1, weight_decay=weight_decay).step()
        return p.detach()

    torch.testing.assert_close(
        moved(AdamW, 0.0) - moved(AdamW, 0.5), torch.full((2,), 0.05, dtype=torch.float64)
    )
    coupled = moved(Adam, 0.0) - moved(Adam, 0.5)
    assert coupled.abs().max() < 1e-4  # the first step only sees the sign


def test_rmsprop_centred_survives_a_gradient_that_never_changes():
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    ours, least = RMSprop([p], alpha=0.5, centered=True), 1.0
    for _ in range(100):
        p.grad = torch.full_like(p, 0.1)
        ours.step()
        state = ours.state[p]
        least = min(
            least,
            state["square_avg"].addcmul(state["grad_avg"], state["grad_avg"], value=-1).item(),
        )
    assert least < 0  # rounding took the variance below zero, where torch.optim answers NaN
    assert p.item() < -100  # steps of almost lr · g / ε, all in one direction


def test_rmsprop_adds_epsilon_after_the_root():
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([2.0], dtype=torch.float64)
    RMSprop([p], lr=1.0, alpha=0.75, eps=3.0).step()
    assert p.item() == pytest.approx(-2 / (1 + 3))  # v = (1 − 0.75) · 2² = 1


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
@pytest.mark.parametrize("size", [1e-30, 1e15])
def test_very_small_and_very_large_gradients_give_finite_steps(optimizer, options, size):
    p = torch.ones(3, requires_grad=True)
    ours = optimizer([p], **options)
    q = torch.ones(3, requires_grad=True)
    theirs = judge(optimizer)([q], **options)
    for sign in [1, -1, 1]:
        p.grad = torch.tensor([size, -size, 0.0]) * sign
        q.grad = p.grad.clone()
        ours.step(), theirs.step()
    assert p.isfinite().all()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# ---- a torch.optim.Optimizer in all that is around the equation


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arguments_have_the_names_order_and_defaults_of_torch(optimizer):
    left_out = {"foreach", "fused", "capturable", "differentiable"}
    ours = inspect.signature(optimizer).parameters
    theirs = inspect.signature(judge(optimizer)).parameters
    assert {name: p.default for name, p in ours.items()} == {
        name: p.default for name, p in theirs.items() if name not in left_out
    }
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    assert set(ours) - set(positional) <= {"maximize", "decoupled_weight_decay"}


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
@pytest.mark.parametrize("to_torch", [True, False], ids=["ours to torch", "torch to ours"])
def test_a_state_dict_moves_both_ways_in_the_middle_of_a_run(optimizer, options, to_torch):
    first, second = (optimizer, judge(optimizer)) if to_torch else (judge(optimizer), optimizer)
    p, q = parameters(), parameters()
    stays, leaves = first(p, **options), first(q, **options)
    run(stays, p, range(20))
    run(leaves, q, range(20))
    file = io.BytesIO()
    torch.save(leaves.state_dict(), file)
    file.seek(0)
    arrives = second(q, lr=9.0)
    arrives.load_state_dict(torch.load(file, weights_only=True))
    run(stays, p, range(20, 50))
    run(arrives, q, range(20, 50))
    assert_same(stays, arrives, p, q)
    assert stays.param_groups[0]["lr"] == arrives.param_groups[0]["lr"] == options["lr"]


def test_adamw_decays_in_its_own_way_after_loading_the_state_of_adam():
    p, q = parameters(), parameters()
    for params, module in [(p, optimization), (q, torch.optim)]:
        before = module.Adam(params, weight_decay=0.1)
        run(before, params, range(5))
        after = module.AdamW(params)
        after.load_state_dict(before.state_dict())
        run(after, params, range(5, 20))
    for ours, theirs in zip(p, q, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
def test_a_copy_goes_on_alike(optimizer, options):
    p = parameters()
    ours = optimizer(p, **options)
    run(ours, p, range(5))
    copied = copy.deepcopy(ours)
    q = copied.param_groups[0]["params"]
    run(ours, p, range(5, 10))
    run(copied, q, range(5, 10))
    assert_same(ours, copied, p, q, rtol=0, atol=0)


@pytest.mark.parametrize(("optimizer", "options"), RICH_CASES)
def test_groups_have_options_of_their_own_and_one_more_can_join_in_the_run(optimizer, options):
    p, q = parameters(), parameters()
    pairs = []
    for params, make in [(p, optimizer), (q, judge(optimizer))]:
        groups = [
            {"params": params[:2], "lr": 0.2},
            {"params": params[2:4], "weight_decay": 0.3},
        ]
        o = make(groups, **options)
        run(o, params[:4], range(10))
        o.add_param_group({"params": params[4:], "lr": 0.01, "maximize": True})
        run(o, params, range(10, 50))
        pairs.append(o)
    assert_same(*pairs, p, q)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accepts_a_generator_and_named_parameters(optimizer):
    model = torch.nn.Linear(3, 2)
    assert len(optimizer(model.parameters()).param_groups[0]["params"]) == 2
    assert optimizer(model.named_parameters()).param_groups[0]["param_names"] == [
        "weight",
        "bias",
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step_runs_the_closure_with_gradients_and_returns_its_loss(optimizer):
    p = torch.tensor([3.0], requires_grad=True)
    ours = optimizer([p], lr=0.1)

    def closure():
        ours.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert ours.step(closure).item() == 9.0
    assert p.item() < 3.0
    assert ours.step() is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rate_given_as_a_tensor_is_a_rate(optimizer):
    p, q = parameters(), parameters()
    ours, judge_ = (
        optimizer(p, lr=torch.tensor(0.05, dtype=torch.float64)),
        optimizer(q, lr=0.05),
    )
    run(ours, p, range(10), StepLR(ours, step_size=3))
    run(judge_, q, range(10), StepLR(judge_, step_size=3))
    for a, b in zip(p, q, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize(
    ("optimizer", "option", "buffer"),
    [
        (SGD, {"momentum": 0.9}, None),
        (RMSprop, {"momentum": 0.9}, "momentum_buffer"),
        (Adam, {"amsgrad": True}, "max_exp_avg_sq"),
    ],
)
def test_momentum_and_amsgrad_can_be_turned_on_in_the_run(optimizer, option, buffer):
    p, q = parameters(), parameters()
    ours, theirs = optimizer(p), judge(optimizer)(q)
    for params, o in [(p, ours), (q, theirs)]:
        run(o, params, range(3))
        o.param_groups[0].update(option)
    for tensor, state in theirs.state.items():  # torch makes its buffers at the first step only
        state.update({buffer: torch.zeros_like(tensor)} if buffer else {})
    run(ours, p, range(3, 6))
    run(theirs, q, range(3, 6))
    assert_same(ours, theirs, p, q)


def test_step_counts_exactly_when_the_default_type_is_too_coarse_to_count():
    torch.set_default_dtype(torch.bfloat16)
    try:
        p = torch.ones(1, requires_grad=True)
        ours = Adam([p])
        for _ in range(300):
            p.grad = torch.ones(1)
            ours.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours.state[p]["step"].item() == 300


def test_a_new_optimiser_needs_only_its_equation():
    class SignDescent(Descent):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr, "maximize": False})

        def update(self, p, g, group):
            p.sub_(group["lr"] * g.sign())

    p = torch.tensor([1.0, -1.0], requires_grad=True)
    p.grad = torch.tensor([30.0, -0.2])
    SignDescent([p], lr=0.25).step()
    assert p.tolist() == [0.75, -0.75]


# ---- schedules


def two_groups(module=torch.optim, name="SGD"):
    p, q = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    return getattr(module, name)([{"params": [p]}, {"params": [q], "lr": 0.02}], lr=0.5)


def rates(scheduler, steps):
    """Rate and momentum of each group, before the first step and after each."""
    seen = []
    for t in range(steps + 1):
        groups = scheduler.optimizer.param_groups
        seen.append(
            [[g["lr"], g["betas"][0] if "betas" in g else g["momentum"]] for g in groups]
        )
        assert scheduler.get_last_lr() == [g["lr"] for g in groups]
        scheduler.optimizer.step()
        if t < steps:
            scheduler.step()
    return torch.tensor(seen, dtype=torch.float64)


@pytest.mark.parametrize("step_size", [1, 3, 100])
@pytest.mark.parametrize("gamma", [0.1, 0.9, 1.0])
def test_step_lr_agrees_with_torch(step_size, gamma):
    ours = rates(StepLR(two_groups(), step_size, gamma), 40)
    torch.testing.assert_close(
        ours,
        rates(judge_schedules.StepLR(two_groups(), step_size, gamma), 40),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("eta_min", [0.0, 0.01])
def test_cosine_without_warmup_agrees_with_torch(eta_min):
    ours = rates(CosineWithWarmup(two_groups(), 0, 37, eta_min), 37)
    theirs = rates(judge_schedules.CosineAnnealingLR(two_groups(), 37, eta_min), 37)
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert ours[-1, :, 0].tolist() == [eta_min, eta_min]


@pytest.mark.parametrize("warmup", [1, 10, 36])
def test_cosine_with_warmup_agrees_with_a_ramp_followed_by_torchs_cosine(warmup):
    theirs = two_groups()
    ramp = judge_schedules.LambdaLR(theirs, lambda t: t / warmup)
    cosine = judge_schedules.CosineAnnealingLR(theirs, 37 - warmup, 0.01)
    ramp_then_cosine = judge_schedules.SequentialLR(theirs, [ramp, cosine], [warmup])
    ours = rates(CosineWithWarmup(two_groups(), warmup, 37, 0.01), 37)
    torch.testing.assert_close(ours, rates(ramp_then_cosine, 37), **EXACT)
    assert ours[0, :, 0].tolist() == [0.0, 0.0]
    assert ours[warmup, :, 0].tolist() == pytest.approx([0.5, 0.02], rel=1e-15)


def test_cosine_stays_at_the_bottom_after_the_last_step():
    ours = rates(CosineWithWarmup(two_groups(), 2, 10, 0.001), 30)
    assert (ours[10:, :, 0] == 0.001).all()


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
@pytest.mark.parametrize(
    "options", [{}, {"pct_start": 0.0}, {"pct_start": 0.77, "div_factor": 4.0}]
)
def test_one_cycle_agrees_with_torch(name, total_steps, options):
    ours = rates(
        OneCycleLR(two_groups(optimization, name), 0.3, total_steps, **options), total_steps
    )
    theirs = rates(
        judge_schedules.OneCycleLR(two_groups(name=name), 0.3, total_steps, **options),
        total_steps,
    )
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("max_lr", [[0.3, 0.1], (0.3, 0.1)])
def test_one_cycle_takes_a_peak_for_each_group_and_can_leave_momentum_alone(max_lr):
    options = {"cycle_momentum": False, "final_div_factor": 50.0}
    ours = rates(OneCycleLR(two_groups(), max_lr, 20, **options), 20)
    theirs = rates(judge_schedules.OneCycleLR(two_groups(), list(max_lr), 20, **options), 20)
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert (ours[..., 1] == 0).all()


def test_one_cycle_sets_the_momentum_that_it_is_told():
    options = {"base_momentum": 0.5, "max_momentum": 0.7}
    ours = rates(OneCycleLR(two_groups(), 0.3, 20, **options), 20)
    theirs = rates(judge_schedules.OneCycleLR(two_groups(), 0.3, 20, **options), 20)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_one_cycle_may_peak_at_its_very_first_step():
    # pct_start * total_steps == 1: torch divides by zero here
    ours = rates(OneCycleLR(two_groups(), 0.3, 10, pct_start=0.1), 9)
    assert ours[:, 0, 0].argmax() == 0
    assert ours[0, 0].tolist() == pytest.approx([0.3, 0.85], rel=1e-12)


SCHEDULES = [(StepLR, (4, 0.5)), (CosineWithWarmup, (5, 30)), (OneCycleLR, (0.3, 30))]
MOVES = [
    *[(schedule, schedule, args) for schedule, args in SCHEDULES],
    *[
        (schedule, getattr(judge_schedules, schedule.__name__), args)
        for schedule, args in SCHEDULES[::2]
    ],
    *[
        (getattr(judge_schedules, schedule.__name__), schedule, args)
        for schedule, args in SCHEDULES[::2]
    ],
]


@pytest.mark.parametrize(("first", "second", "args"), MOVES)
def test_a_schedules_state_dict_goes_on_where_it_stopped_in_ours_and_in_torchs(
    first, second, args
):
    first_optimizer, second_optimizer = (
        (optimization if schedule.__module__ == optimization.__name__ else torch.optim).AdamW
        for schedule in [first, second]
    )
    p, q = parameters(), parameters()
    stays, leaves = first_optimizer(p, lr=0.1), first_optimizer(q, lr=0.1)
    stays_schedule, leaves_schedule = first(stays, *args), first(leaves, *args)
    run(stays, p, range(12), stays_schedule)
    run(leaves, q, range(12), leaves_schedule)
    arrives = second_optimizer(q, lr=0.1)
    arrives_schedule = second(arrives, *args)
    arrives.load_state_dict(leaves.state_dict())
    arrives_schedule.load_state_dict(leaves_schedule.state_dict())
    run(stays, p, range(12, 30), stays_schedule)
    run(arrives, q, range(12, 30), arrives_schedule)
    assert_same(stays, arrives, p, q)
    assert stays_schedule.get_last_lr() == pytest.approx(
        arrives_schedule.get_last_lr(), rel=1e-12
    )


@pytest.mark.parametrize(("schedule", "args"), SCHEDULES)
def test_a_schedule_resumes_from_last_epoch(schedule, args):
    optimizer = two_groups()
    through = schedule(optimizer, *args)
    for _ in range(11):
        optimizer.step()
        through.step()
    resumed = schedule(optimizer, *args, last_epoch=10)
    assert resumed.get_last_lr() == through.get_last_lr()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: judge_schedules.StepLR(o, 5),
        lambda o: judge_schedules.CosineAnnealingLR(o, 20),
        lambda o: judge_schedules.OneCycleLR(o, 0.3, 50),
        lambda o: judge_schedules.LinearLR(o),
        lambda o: StepLR(o, 5),
        lambda o: CosineWithWarmup(o, 5, 50),
        lambda o: OneCycleLR(o, 0.3, 50),
    ],
    ids=[
        "StepLR",
        "CosineAnnealingLR",
        "OneCycleLR",
        "LinearLR",
        "our StepLR",
        "CosineWithWarmup",
        "our OneCycleLR",
    ],
)
def test_any_schedule_works_on_our_optimisers_as_on_torchs(optimizer, schedule):
    p, q = parameters(), parameters()
    ours, theirs = optimizer(p, lr=0.1), judge(optimizer)(q, lr=0.1)
    run(ours, p, range(50), schedule(ours))
    run(theirs, q, range(50), schedule(theirs))
    assert_same(ours, theirs, p, q)


# ---- the trials of the chapter

DATA = Path(optimization.__file__).parent / "data"


@pytest.fixture
def script():
    return runpy.run_path(str(DATA / "write_optimization_trials.py"))


@pytest.fixture(scope="module")
def stored():
    return json.loads((DATA / "optimization_trials.json").read_text(encoding="utf-8"))


def test_the_script_of_the_trials_writes_what_is_stored_but_for_the_numbers(
    script, stored, tmp_path
):
    assert stored["settings"] == script["SETTINGS"]
    script["SETTINGS"]["scaling"].update(epochs=1)
    script["SETTINGS"]["decay"].update(epochs=2, pictures=16, batch_size=8, warmup=1)
    few = Splits(*(Examples(x[:16], y[:16]) for x, y in script["flat"](fashion_mnist())))
    script["write"](tmp_path / "trials.json", few)
    fresh = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
    assert fresh.keys() == stored.keys()
    for part, names in {
        "scaling": ["batch_size", "rate"],
        "decay": ["optimizer", "rate", "decay"],
    }.items():
        for one, other in zip(fresh[part], stored[part], strict=True):
            assert [one[name] for name in names] == [other[name] for name in names]
            assert one.keys() == other.keys()
            for name in one.keys() - set(names):
                assert len(one[name]) == len(other[name]) == 3


def test_a_stored_trial_is_what_the_script_computes(script, stored):
    data, i = script["flat"](fashion_mnist()), 2
    trial = next(t for t in stored["scaling"] if t["batch_size"] == 800 and t["rate"] == 0.05)
    assert script["scaling"](data, 800, 0.05, i) == pytest.approx(
        trial["validation"][i], abs=0.01
    )
    trial = next(
        t
        for t in stored["decay"]
        if (t["optimizer"], t["rate"], t["decay"]) == ("Adam", 0.003, 0.003)
    )
    again = script["decay"](data, "Adam", 0.003, 0.003, i)
    for what, number in zip(["validation", "test", "right"], again, strict=True):
        assert number == pytest.approx(trial[what][i], abs=0.02)


# ---- errors


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("lr", [-0.1, float("nan")])
def test_refuses_a_rate_that_is_not_zero_or_more(optimizer, lr):
    with pytest.raises(ValueError, match=f"lr must be .*, got {lr}"):
        optimizer([torch.ones(1)], lr=lr)


@pytest.mark.parametrize(
    ("optimizer", "option"),
    [
        (optimizer, name)
        for optimizer in OPTIMIZERS
        for name in ["momentum", "weight_decay", "eps"]
        if name in inspect.signature(optimizer).parameters
    ],
)
def test_refuses_other_negative_options(optimizer, option):
    with pytest.raises(ValueError, match=f"{option} must be zero or more, got -1.0: "):
        optimizer([torch.ones(1)], **{option: -1.0})


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, 1.5)])
@pytest.mark.parametrize("optimizer", [Adam, AdamW])
def test_refuses_betas_outside_their_range(optimizer, betas):
    with pytest.raises(
        ValueError, match=r"betas must lie in \[0, 1\), got \(.*share of the past that is kept"
    ):
        optimizer([torch.ones(1)], betas=betas)


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_refuses_alpha_outside_its_range(alpha):
    with pytest.raises(ValueError, match=rf"alpha must lie in \[0, 1\), got {alpha}"):
        RMSprop([torch.ones(1)], alpha=alpha)


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}])
def test_refuses_nesterov_without_momentum_or_with_dampening(options):
    with pytest.raises(
        ValueError, match="needs momentum above 0 and dampening 0, got momentum 0"
    ):
        SGD([torch.ones(1)], nesterov=True, **options)


def test_refuses_the_bad_option_of_a_group_and_stays_as_it_was():
    ours = SGD([torch.ones(1)])
    with pytest.raises(ValueError, match="lr must be zero or more, got -1"):
        ours.add_param_group({"params": [torch.ones(2)], "lr": -1.0})
    assert len(ours.param_groups) == 1
    with pytest.raises(ValueError, match="momentum must be zero or more"):
        SGD([{"params": [torch.ones(1)], "momentum": -0.5}])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_refuses_a_tensor_in_place_of_a_list_of_tensors(optimizer):
    with pytest.raises(
        TypeError, match=r"params must be tensors, as model\.parameters\(\), got tensor"
    ):
        optimizer(torch.ones(3))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_refuses_sparse_gradients(optimizer):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(
        TypeError, match="got a sparse one: build the embedding with sparse=False"
    ):
        optimizer(embedding.parameters()).step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_refuses_complex_parameters(optimizer):
    p = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="got a complex one: optimise its torch"):
        optimizer([p]).step()


def test_an_optimiser_without_an_equation_says_what_it_lacks():
    p = torch.ones(1, requires_grad=True)
    p.grad = torch.ones(1)
    with pytest.raises(NotImplementedError, match="Descent must define update"):
        Descent([p], {"lr": 0.1, "maximize": False}).step()


@pytest.mark.parametrize(
    ("schedule", "args", "options", "words"),
    [
        (StepLR, (0,), {}, "step_size must be at least 1, got 0"),
        (StepLR, (2, -0.5), {}, "gamma must not be negative, got -0.5"),
        (
            CosineWithWarmup,
            (10, 10),
            {},
            "wanted 0 <= num_warmup_steps < num_training_steps, got 10 and 10",
        ),
        (
            CosineWithWarmup,
            (-1, 10),
            {},
            "got -1 and 10: the warm-up is a part of the training steps",
        ),
        (
            OneCycleLR,
            (0.1, 0),
            {},
            "total_steps must be at least 1, got 0: epochs times minibatches",
        ),
        (OneCycleLR, (0.1, 9), {"pct_start": 1.0}, r"pct_start must lie in \[0, 1\), got 1.0"),
        (
            OneCycleLR,
            (0.1, 9),
            {"pct_start": -0.1},
            r"pct_start must lie in \[0, 1\), got -0.1",
        ),
        (OneCycleLR, ([0.1], 9), {}, "got 1 max_lr for 2 parameter groups: one for each"),
    ],
)
def test_schedules_refuse_what_makes_no_sense(schedule, args, options, words):
    with pytest.raises(ValueError, match=words):
        schedule(two_groups(), *args, **options)


def test_one_cycle_refuses_an_optimiser_without_momentum():
    optimizer = torch.optim.Adagrad([torch.ones(1, requires_grad=True)])
    with pytest.raises(
        ValueError, match="Adagrad has no momentum to cycle: pass cycle_momentum=False"
    ):
        OneCycleLR(optimizer, 0.1, 10)


def test_one_cycle_refuses_to_go_on_after_the_end():
    scheduler = OneCycleLR(two_groups(), 0.1, 3)
    for _ in range(3):
        scheduler.optimizer.step()
        scheduler.step()
    with pytest.raises(
        ValueError, match="step 4 of a cycle of 3: total_steps is epochs times minibatches"
    ):
        scheduler.step()


@pytest.mark.parametrize("optimizer", [SGD, RMSprop, Adam, AdamW])
def test_a_state_saved_before_an_option_existed_loads_and_goes_on(optimizer):
    p = torch.ones(3, requires_grad=True)
    saved = getattr(torch.optim, optimizer.__name__)([p], lr=0.1).state_dict()
    for group in saved["param_groups"]:
        group.pop("maximize", None)
    ours = optimizer([p], lr=0.5)
    ours.load_state_dict(saved)
    p.grad = torch.ones(3)
    ours.step()
    q = torch.ones(3, requires_grad=True)
    q.grad = torch.ones(3)
    judge(optimizer)([q], lr=0.1).step()  # the saved rate, and no maximize
    torch.testing.assert_close(p, q)


def test_betas_are_two(plain_python):
    with pytest.raises(
        TypeError, match=r"betas must be \(a finite number or a Tensor, .*\), got"
    ):
        Adam([torch.ones(1, requires_grad=True)], betas=(0.9,))
    group = {"params": [torch.ones(1, requires_grad=True)], "betas": (0.9,)}
    with pytest.raises(ValueError, match="betas must be two shares of the past"):
        Adam([group])


@pytest.mark.parametrize("optimizer", [SGD, RMSprop, Adam, AdamW])
def test_refuses_a_parameter_that_stands_twice_in_a_group(optimizer):
    p, q = parameters()[:2]
    for params in [[p, q, p], iter([p, p]), [("one", p), ("two", p)], [{"params": [p, p]}]]:
        with pytest.raises(
            ValueError, match=r"stands twice in one group.*change it twice: name"
        ):
            optimizer(params)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer([{"params": [p]}, {"params": [p]}])


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
@pytest.mark.parametrize("place", [0, 1])
def test_refuses_a_tensor_as_one_of_two_betas(optimizer, place):
    betas = [0.9, 0.99]
    betas[place] = torch.tensor(betas[place])
    with pytest.raises(ValueError, match=r"two numbers or two tensors, got .*beta\.item\(\)"):
        optimizer(parameters(), betas=tuple(betas))


@pytest.mark.parametrize(
    "options", [{"lr": torch.ones(2)}, {"betas": (torch.ones(2) / 2, torch.ones(2) / 2)}]
)
def test_refuses_a_tensor_of_several_numbers_as_an_option(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"a tensor as {name} must hold one number, got"):
        Adam(parameters(), **options)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_takes_tensors_of_one_number_with_any_dimensions_as_torch_does(name):
    def stepped(cls):
        p = parameters()
        betas = torch.tensor([[0.8]]).double(), torch.tensor([0.9]).double()
        run(cls(p, lr=torch.tensor([0.1]).double(), betas=betas), p, range(4))
        return p

    ours, theirs = (stepped(getattr(m, name)) for m in (optimization, torch.optim))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
