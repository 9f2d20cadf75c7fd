import copy
import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from test_recurrence import normal
from test_training import processes, results_of_two  # noqa: F401  (a fixture)
from torch import Tensor, nn
from torch.func import functional_call

from companion.backpropagation import gradient_check
from companion.language_models import (
    Embedding,
    LanguageModel,
    NGram,
    bits_per_character,
    fit_truncated,
    sample,
)
from companion.recurrence import RNN

# Embedding


@pytest.mark.parametrize("padding_idx", [None, 0, 3, -1])
def test_an_embedding_is_that_of_torch(padding_idx):
    torch.manual_seed(0)
    ours = Embedding(6, 4, padding_idx, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = nn.Embedding(6, 4, padding_idx, dtype=torch.float64)
    assert torch.equal(ours.weight, theirs.weight)
    assert repr(ours) == repr(theirs)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        ours.weight += 1  # a vector for padding that is not zero
        theirs.weight += 1
    for shape in [(), (1,), (50,), (7, 9), (2, 3, 4), (0,), (3, 0)]:
        tokens = torch.randint(6, shape)
        for kind in (torch.int64, torch.int32):
            results = []
            for module in (ours, theirs):
                vectors = module(tokens.to(kind))
                results.append(
                    (
                        vectors,
                        *torch.autograd.grad(
                            (vectors * normal(*shape, 4)).sum(), module.weight
                        ),
                    )
                )
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_an_embedding_is_a_product_with_one_hot_vectors():
    layer = Embedding(5, 3).double()
    tokens = torch.tensor([[0, 4], [2, 2]])
    torch.testing.assert_close(
        layer(tokens), nn.functional.one_hot(tokens, 5).double() @ layer.weight
    )
    assert gradient_check(
        lambda weight: functional_call(layer, {"weight": weight}, (tokens,)),
        layer.weight.detach(),
    )


def test_strided_tokens_are_looked_up_in_their_order():
    layer = copy.deepcopy(Embedding(6, 2))
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert torch.equal(layer(tokens.T), layer.weight[tokens.T])
    assert torch.equal(layer(tokens[:, ::2]), layer.weight[tokens[:, ::2]])


def test_an_embedding_refuses_what_is_no_table():
    with pytest.raises(
        ValueError, match="at least one token and one number for each, got 0 and 4"
    ):
        Embedding(0, 4)
    with pytest.raises(
        ValueError, match="at least one token and one number for each, got 4 and 0"
    ):
        Embedding(4, 0)
    for padding_idx in (4, -5):
        with pytest.raises(
            ValueError,
            match=rf"one of the 4 tokens, got {padding_idx}: count the padding as a token",
        ):
            Embedding(4, 2, padding_idx)


@pytest.mark.usefixtures("plain_python")
def test_an_embedding_refuses_what_is_no_token():
    for token in (4, -1):
        with pytest.raises(
            ValueError,
            match=rf"tokens from 0 to 3, got {token}: num_embeddings must be the size",
        ):
            Embedding(4, 2)(torch.tensor([[0, token]]))
    with pytest.raises(
        TypeError, match=r"whole numbers, got torch.float32: convert with input.long\(\)"
    ):
        Embedding(4, 2)(torch.ones(3))


# Language models


VOCABULARY = 5


def text_of(length):
    """Tokens of which each is the last but one, or one more: no more can be known of it."""
    g = torch.Generator().manual_seed(0)
    tokens = [0, 1]
    for noise in torch.randint(2, (length - 2,), generator=g).tolist():
        tokens.append((tokens[-2] + noise) % VOCABULARY)
    return torch.tensor(tokens)


@pytest.fixture
def text():
    return text_of(602)


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


def small_model(seed=0, recurrent=RNN, **options):
    torch.manual_seed(seed)
    return LanguageModel(VOCABULARY, recurrent(3, 4), **options)


def test_a_language_model_is_embedding_recurrence_and_a_linear_layer(text):
    model = small_model()
    tokens = text[:40].view(4, 10)
    logits, state = model(tokens)
    outputs, last = model.recurrent(model.embedding.weight[tokens.T])
    torch.testing.assert_close(
        logits, (outputs @ model.head.weight.T + model.head.bias).transpose(0, 1)
    )
    torch.testing.assert_close(state, last)
    assert logits.shape == (4, 10, VOCABULARY)


def test_reading_a_text_in_two_parts_with_the_state_is_reading_it_whole(text):
    model = small_model()
    whole, last = model(text[None, :40])
    first, state = model(text[None, :15])
    second, state = model(text[None, 15:40], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, last)


def test_no_logits_depend_on_later_tokens(text):
    model = small_model()
    changed = text[:20].clone()
    changed[12] = (changed[12] + 1) % VOCABULARY
    before, after = (model(tokens[None])[0][0] for tokens in (text[:20], changed))
    torch.testing.assert_close(before[:12], after[:12], rtol=0, atol=0)
    assert (before[12:] != after[12:]).any(1).all()


def test_dropout_acts_on_the_way_to_the_output_while_training(text):
    model = small_model(dropout=0.5)
    assert not torch.equal(model(text[None, :20])[0], model(text[None, :20])[0])
    model.eval()
    torch.testing.assert_close(model(text[None, :20])[0], small_model()(text[None, :20])[0])


@pytest.mark.parametrize("option", ["bidirectional", "batch_first"])
def test_a_recurrent_layer_that_cannot_read_forward_step_by_step_is_refused(option):
    with pytest.raises(ValueError, match=r"without bidirectional .* and without batch_first"):
        LanguageModel(VOCABULARY, RNN(3, 4, **{option: True}))


def plain_truncated(model, optimizer, text, streams, time, carry, max_norm):
    """One epoch, token by token, with the loss and the clipping written out."""
    length = (len(text) - 1) // streams
    state, losses = None, []
    for start in range(0, length - time + 1, time):
        state = state.detach() if carry and state is not None else None
        loss = 0
        for t in range(start, start + time):
            read = torch.stack([text[k * length + t] for k in range(streams)])
            logits, state = model(read[:, None], state)
            for k in range(streams):
                loss = loss - logits[k, 0].log_softmax(0)[text[k * length + t + 1]] / (
                    streams * time
                )
        optimizer.zero_grad()
        loss.backward()
        norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
        for p in model.parameters():
            p.grad *= min(1.0, max_norm / norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("carry", "max_norm"), [(True, 1.0), (False, 1.0), (True, 0.01), (True, math.inf)]
)
def test_truncated_backpropagation_is_what_it_says_token_by_token(text, carry, max_norm):
    fast, plain = (small_model().double() for _ in range(2))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in (fast, plain)]
    history = fit_truncated(
        fast, optimizers[0], text, batch_size=4, time=7, carry=carry, max_norm=max_norm
    )
    expected = plain_truncated(plain, optimizers[1], text, 4, 7, carry, max_norm)
    assert history.steps_per_epoch == len(expected) == 150 // 7
    torch.testing.assert_close(
        torch.tensor(history.loss), torch.tensor(expected), rtol=1e-5, atol=0
    )
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_state_is_carried_from_chunk_to_chunk_unless_told_otherwise(text):
    def losses(**options):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        return fit_truncated(model, optimizer, text, batch_size=4, time=7, **options).loss

    assert losses() == losses(carry=True) != losses(carry=False)


@pytest.mark.usefixtures("plain_python")  # many calls
def test_it_learns_what_there_is_to_know_and_carrying_the_state_helps_short_chunks():
    text = text_of(4000)

    def bits(carry):
        torch.manual_seed(0)
        model = LanguageModel(VOCABULARY, RNN(8, 16))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        options = {
            "epochs": 3,
            "batch_size": 8,
            "time": 2,
            "carry": carry,
            "validation": text[3000:],
        }
        return fit_truncated(
            model, optimizer, text[:3000], **options, progress=False
        ).validation_metric[-1]

    assert 1.0 < bits(carry=True) < 1.2  # one bit of noise a token
    assert bits(carry=False) > 1.5  # of the first token in a chunk of two nothing can be known


def test_the_history_has_nats_bits_and_seconds_and_the_schedule_is_followed(text):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    history = fit_truncated(
        model,
        optimizer,
        text,
        epochs=2,
        batch_size=4,
        time=50,
        validation=text,
        scheduler=scheduler,
    )
    assert len(history.loss) == len(history.seconds) == 2 * history.steps_per_epoch == 6
    assert history.seconds == sorted(history.seconds)
    assert optimizer.param_groups[0]["lr"] == 0.5**6
    assert history.validation_metric[-1] == bits_per_character(model, text)
    assert history.validation_loss == pytest.approx(
        [bits * math.log(2) for bits in history.validation_metric]
    )


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_state_and_modes_alone(text):
    models = []
    for seed in (1, 1, 2):
        model = small_model(dropout=0.5)
        model.dropout.eval()
        model.recurrent.train()
        torch.manual_seed(7)
        before = torch.get_rng_state()
        fit_truncated(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            text,
            batch_size=4,
            time=10,
            seed=seed,
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert not model.dropout.training
        assert model.recurrent.training
        models.append(model.head.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_an_interrupted_run_goes_on_from_its_checkpoint(text, tmp_path):
    results = []
    for checkpoint, epochs in [(None, [3]), (tmp_path / "run", [2, 3])]:
        for number in epochs:
            model = small_model(dropout=0.5)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            options = {"epochs": number, "batch_size": 4, "time": 10, "validation": text}
            history = fit_truncated(model, optimizer, text, **options, checkpoint=checkpoint)
        results.append((history, model))
    (whole, one), (again, other) = results
    assert whole.loss == again.loss
    assert whole.gradient_norm == again.gradient_norm
    assert whole.validation_metric == again.validation_metric
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_stop_ends_training_after_an_epoch(text):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"epochs": 9, "batch_size": 4, "time": 10, "stop": lambda h: len(h.loss) > 20}
    history = fit_truncated(model, optimizer, text, **options)
    assert len(history.loss) == 2 * history.steps_per_epoch == 30


def of_streams(rank, folder):
    model = nn.parallel.DistributedDataParallel(small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    history = fit_truncated(model, optimizer, text_of(602), epochs=2, batch_size=4, time=10)
    return history.loss, model.module.state_dict()


def test_two_processes_divide_the_streams(text, tmp_path, processes):  # noqa: F811
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    history = fit_truncated(model, optimizer, text, epochs=2, batch_size=4, time=10)
    for ((losses, state),) in results_of_two(processes, (of_streams,), tmp_path):
        assert losses == pytest.approx(history.loss, rel=1e-5)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def test_no_epochs_change_nothing(text):
    model = small_model()
    history = fit_truncated(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        text,
        epochs=0,
        batch_size=4,
        time=10,
    )
    assert history.loss == []
    assert torch.equal(model.head.weight, small_model().head.weight)


def test_the_state_of_two_tensors_is_cut_off_too(text):
    model = small_model(recurrent=nn.LSTM)
    history = fit_truncated(
        model, torch.optim.SGD(model.parameters(), lr=0.1), text, batch_size=4, time=10
    )
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -1}, r"epochs must not be negative.*got -1, 4, 10"),
        ({"batch_size": 0}, r"at least 1 and max_norm above 0, got 1, 0, 10"),
        ({"time": 0}, r"got 1, 4, 0"),
        ({"max_norm": 0.0}, r"max_norm above 0, got 1, 4, 10 and 0.0"),
        ({"max_norm": math.nan}, r"max_norm must be a number, got nan"),
        (
            {"time": 200},
            r"4 streams of 200 tokens and the one after each need 801 tokens, got 602: shorten",
        ),
        (
            {"batch_size": 700},
            r"700 streams need at least one token each, and one after the last, got 602",
        ),
    ],
)
def test_training_refuses_what_makes_no_sense(text, options, words):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=words):
        fit_truncated(model, optimizer, text, **{"batch_size": 4, "time": 10} | options)


def test_bits_per_character_is_the_mean_of_minus_log2_of_the_probabilities(text):
    model = small_model(dropout=0.5)
    p = model.eval()(text[None, :-1])[0][0].softmax(1).gather(1, text[1:, None])
    assert bits_per_character(model, text, streams=1) == pytest.approx(
        -p.log2().mean().item(), rel=1e-6
    )
    assert bits_per_character(model.train(), text, streams=1) == pytest.approx(
        -p.log2().mean().item(), rel=1e-6
    )
    assert model.dropout.training


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(text):
    model = small_model()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    for streams in (1, 16, 601):
        assert bits_per_character(model, text, streams) == pytest.approx(
            math.log2(VOCABULARY), rel=1e-6
        )


@pytest.mark.parametrize("streams", [0, 602])
def test_too_many_streams_for_a_text_are_refused(text, streams):
    with pytest.raises(
        ValueError, match=f"{streams} streams need at least one token each.*got 602 tokens"
    ):
        bits_per_character(small_model(), text, streams)


@pytest.mark.usefixtures("plain_python")  # many calls
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_frequencies_of_samples_are_the_softmax_of_the_logits_over_the_temperature(
    text, temperature
):
    model, prompt = small_model(), text[:9]
    with torch.no_grad():
        model.head.weight *= 4
    expected = (model(prompt[None])[0][0, -1] / temperature).softmax(0)
    g = torch.Generator().manual_seed(0)
    first = torch.cat([sample(model, prompt, 1, temperature, g) for _ in range(600)])
    torch.testing.assert_close(
        first.bincount(minlength=VOCABULARY) / 600, expected.detach(), rtol=0, atol=0.06
    )


def test_at_temperature_zero_the_likeliest_token_is_taken_and_fed_back(text):
    model, written = small_model(dropout=0.5).eval(), text[:3]
    for _ in range(12):
        written = torch.cat([written, model(written[None])[0][0, -1].argmax(0, keepdim=True)])
    assert torch.equal(sample(model.train(), text[:3], 12, 0.0), written[3:])
    assert model.dropout.training


def test_samples_repeat_with_their_generator_and_may_be_empty(text):
    model = small_model()
    one, two = (
        sample(model, text[:3], 30, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert sample(model, text[:3], 0).shape == (0,)


@pytest.mark.parametrize(
    ("prompt", "length", "temperature", "words"),
    [
        (0, 5, 1.0, "got 0 tokens"),
        (3, -1, 1.0, "3 tokens, -1"),
        (3, 5, -0.5, "and -0.5"),
        (3, 5, math.nan, "temperature must be a number, got nan"),
    ],
)
def test_sampling_refuses_what_makes_no_sense(text, prompt, length, temperature, words):
    with pytest.raises(ValueError, match=words):
        sample(small_model(), text[:prompt], length, temperature)


class Fixed(nn.Module):
    """A model whose logits for the next token are always the same."""

    def __init__(self, p):
        super().__init__()
        self.z = nn.Parameter(torch.tensor(p, dtype=torch.float64).log())

    def forward(self, tokens, state=None):
        return self.z.expand(*tokens.shape, -1), state


def kept(p, temperature, top_k, top_p):
    """The distribution to draw from, by trying every set of tokens from small to large."""
    weights = [q ** (1 / temperature) for q in p]
    candidates = sorted(range(len(p)), key=lambda k: (-weights[k], k))[:top_k]
    total = sum(weights[k] for k in candidates)
    enough = [
        chosen
        for size in range(1, len(candidates) + 1)
        for chosen in combinations(candidates, size)
        if sum(weights[k] for k in chosen) / total >= top_p - 1e-12
    ]
    nucleus = min(
        enough, key=lambda chosen: (len(chosen), -sum(weights[k] for k in chosen), chosen)
    )
    total = sum(weights[k] for k in nucleus)
    return torch.tensor([weights[k] / total if k in nucleus else 0.0 for k in range(len(p))])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 9])
def test_a_tail_is_cut_off_as_a_search_over_all_sets_of_tokens_finds(
    monkeypatch, temperature, top_p, top_k
):
    drawn, p = [], [0.1, 0.35, 0.05, 0.3, 0.2]
    monkeypatch.setattr(
        Tensor, "multinomial", lambda p, n, generator: drawn.append(p) or p.argmax(0)[None]
    )
    sample(Fixed(p), torch.tensor([0]), 1, temperature, top_k=top_k, top_p=top_p)
    expected = kept(p, temperature, top_k, top_p)
    torch.testing.assert_close(drawn[0], expected.double(), rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("plain_python")  # many calls
def test_the_frequencies_of_samples_from_a_nucleus_are_those_of_its_tokens():
    p, g = [0.1, 0.35, 0.05, 0.3, 0.2], torch.Generator().manual_seed(0)
    written = sample(Fixed(p), torch.tensor([0]), 4000, generator=g, top_k=4, top_p=0.8)
    share = written.bincount(minlength=5) / 4000
    expected = torch.tensor([0.0, 0.35, 0.0, 0.3, 0.2]) / 0.85
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)


def test_of_equally_likely_tokens_exactly_so_many_are_kept_the_first_ones():
    p = [0.05, 0.19, 0.19, 0.19, 0.19, 0.19]
    written = sample(Fixed(p), torch.tensor([0]), 300, top_k=2)
    assert set(written.tolist()) == {1, 2}
    written = sample(Fixed(p), torch.tensor([0]), 300, top_p=0.5)
    assert set(written.tolist()) == {1, 2, 3}


def test_one_token_or_hardly_any_probability_is_the_likeliest_token(text):
    model, greedy = small_model(), sample(small_model(), text[:3], 20, 0.0)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"top_k": 3, "top_p": 1e-9}):
        assert torch.equal(sample(model, text[:3], 20, 5.0, **options), greedy)
    assert torch.equal(sample(model, text[:3], 20, 0.0, top_k=3, top_p=0.5), greedy)


def test_all_tokens_and_all_probability_change_nothing_and_leave_the_tail_in_reach(text):
    p = [1 - 3e-9, 1e-9, 1e-9, 1e-9]
    whole = sample(Fixed(p), torch.tensor([0]), 200, 8.0, torch.Generator().manual_seed(1))
    for options in ({"top_k": 4}, {"top_k": 90}, {"top_p": 1.0}):
        g = torch.Generator().manual_seed(1)
        assert torch.equal(sample(Fixed(p), torch.tensor([0]), 200, 8.0, g, **options), whole)
    assert len(whole.unique()) == 4


def test_all_probability_keeps_tokens_that_rounding_would_lose(monkeypatch):
    drawn, p = [], [1.0, 1e-17, 1e-18]
    monkeypatch.setattr(
        Tensor, "multinomial", lambda p, n, generator: drawn.append(p) or p.argmax(0)[None]
    )
    sample(Fixed(p), torch.tensor([0]), 1, top_p=1.0)
    assert (drawn[0] > 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "got 0 and 1.0"),
        ({"top_k": -3}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "above 0 and at most 1, got None and 0.0"),
        ({"top_p": 1.5}, "got None and 1.5"),
        ({"top_p": math.nan}, "top_p must be a finite number, got nan"),
    ],
)
def test_a_tail_that_leaves_no_token_is_refused(text, options, words):
    with pytest.raises(ValueError, match=words):
        sample(small_model(), text[:3], 5, **options)


def witten_bell(text, start, history, token, vocabulary):
    """Pr(token | history), as the recursion is written, with counts by search from ``start``
    on.
    """
    if history is None:
        return 1 / vocabulary
    n = len(history)
    followers = [text[i] for i in range(start, len(text)) if text[i - n : i] == history]
    shorter = witten_bell(text, start, history[1:] if history else None, token, vocabulary)
    if not followers:
        return shorter
    different = len(set(followers))
    return (followers.count(token) + different * shorter) / (len(followers) + different)


def kneser_ney(text, start, history, token, vocabulary, longest=True):
    """The same with absolute discounts, and different predecessors in place of occurrences for
    shorter histories.
    """
    if history is None:
        return 1 / vocabulary
    n = len(history)
    grams = [tuple(text[i - n : i + 1]) for i in range(start, len(text))]
    if not longest:
        longer = {tuple(text[i - n - 1 : i + 1]) for i in range(start, len(text))}
        grams = [gram[1:] for gram in longer]
    shorter = kneser_ney(
        text, start, history[1:] if history else None, token, vocabulary, longest=False
    )
    followers = [gram[-1] for gram in grams if list(gram[:-1]) == history]
    if not followers:
        return shorter
    times = Counter(Counter(grams).values())
    discount = (times[1] + 1) / (times[1] + 2 * times[2] + 2)
    kept = max(followers.count(token) - discount, 0)
    return (kept + discount * len(set(followers)) * shorter) / len(followers)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("judge", [witten_bell, kneser_ney])
def test_an_n_gram_is_the_recursion_of_its_smoothing(text, order, judge):
    train, held_out = text[:80], text[300:330]
    p = (
        NGram(order, VOCABULARY + 1, judge.__name__.replace("_", "-"))
        .fit(train)
        .probability(held_out)
    )
    padded = [0] * (order - 1) + train.tolist()
    tokens = [0] * (order - 1) + held_out.tolist()
    for t, expected in enumerate(p.tolist()):
        history, token = tokens[t : t + order - 1], tokens[t + order - 1]
        assert expected == pytest.approx(
            judge(padded, order - 1, history, token, VOCABULARY + 1), rel=1e-12
        )


@pytest.mark.parametrize("smoothing", ["witten-bell", "kneser-ney"])
def test_the_probabilities_of_all_next_tokens_add_up_to_one(text, smoothing):
    model = NGram(4, VOCABULARY + 1, smoothing).fit(text)
    for context in ([0, 1, 1], [5, 5, 5], [4, 0, 5]):
        rows = torch.tensor([[*context, token] for token in range(VOCABULARY + 1)])
        assert model.probability(rows)[:, -1].sum() == pytest.approx(1, abs=1e-12)


def test_a_unigram_of_a_long_text_needs_its_entropy_and_a_trigram_less(text):
    share = text.bincount() / len(text)
    entropy = -(share * share.log2()).sum().item()
    assert NGram(1, VOCABULARY).fit(text).bits(text) == pytest.approx(entropy, abs=0.01)
    assert 1.0 < NGram(3, VOCABULARY).fit(text[:400]).bits(text[400:]) < 1.3 < 2.2 < entropy


def test_fit_returns_the_model_and_counts_afresh(text):
    model = NGram(2, VOCABULARY)
    assert model.fit(text) is model
    once = model.probability(text)
    torch.testing.assert_close(model.fit(text).probability(text), once, rtol=0, atol=0)
    assert once.dtype == torch.float64


@pytest.mark.parametrize(("order", "vocabulary"), [(0, 5), (2, 0), (10, 97)])
def test_an_n_gram_of_an_impossible_size_is_refused(order, vocabulary):
    with pytest.raises(ValueError, match=rf"below 2 \*\* 63, got {order} and {vocabulary}"):
        NGram(order, vocabulary)


def test_an_unknown_smoothing_is_refused():
    with pytest.raises(
        ValueError, match="smoothing must be 'witten-bell' or 'kneser-ney', got 'laplace'"
    ):
        NGram(2, 5, "laplace")


def test_an_n_gram_says_what_is_wrong_with_a_text(text):
    with pytest.raises(ValueError, match="nothing to count in an empty text"):
        NGram(2, 5).fit(text[:0])
    with pytest.raises(ValueError, match="call fit with a text first"):
        NGram(2, 5).probability(text)
    with pytest.raises(
        ValueError, match=r"expected tokens from 0 to 3, got 0 to 4: give vocabulary"
    ):
        NGram(2, 4).fit(text)
    with pytest.raises(ValueError, match=r"expected tokens from 0 to 4, got -1 to 2"):
        NGram(2, 5).fit(text).probability(torch.tensor([2, -1]))
