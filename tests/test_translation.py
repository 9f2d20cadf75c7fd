import json
import math
import random
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from companion import translation
from companion.backpropagation import gradient_check
from companion.data import write_translation_model as script
from companion.data import write_translation_trials as trials
from companion.datasets import sentence_pairs
from companion.layers import count_parameters
from companion.optimization import Adam
from companion.training import History
from companion.translation import (
    BEGIN,
    END,
    PADDING,
    UNKNOWN,
    AdditiveAttention,
    Decoder,
    DotProductAttention,
    Encoder,
    SimilarLengths,
    Translator,
    Vocabulary,
    beam_search,
    bleu,
    bpe,
    dot_product_attention,
    fit_translator,
    greedy,
    pretrained_translator,
    word_vocabulary,
)

TEXTS = ["Turn on the light.", "Turn off  the light!", "Light is on, isn't it?"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# vocabularies


def test_words_carry_the_blank_before_them_and_give_the_text_back():
    words = word_vocabulary(TEXTS)
    assert words.split("Turn on, it's!") == [" Turn", " on", ",", " it", "'", "s", "!"]
    for text in TEXTS:
        assert words.decode(words.encode(text)) == " ".join(text.split())
    assert words.tokens[:5] == ["<padding>", "<unknown>", "<begin>", "<end>", " Turn"]
    assert len(words) == len({word for text in TEXTS for word in words.split(text)}) + 4


def test_rare_and_foreign_words_are_unknown():
    words = word_vocabulary(TEXTS, least=2)
    assert {" Turn", " the", " on"} <= set(words.tokens)
    assert " off" not in words.tokens
    tokens = words.encode("Turn off")
    assert tokens.tolist() == [BEGIN, words.tokens.index(" Turn"), UNKNOWN, END]
    assert words.decode(tokens) == "Turn <unknown>"
    assert word_vocabulary([]).decode(torch.tensor([BEGIN, PADDING, UNKNOWN])) == "<unknown>"


def test_what_comes_after_the_end_is_not_read():
    words = word_vocabulary(TEXTS)
    on = words.tokens.index(" on")
    assert words.decode(torch.tensor([on, on, END, on, PADDING])) == "on on"
    assert words.decode(torch.tensor([], dtype=torch.int64)) == ""
    assert words.encode("").tolist() == [BEGIN, END]


def test_the_most_frequent_pairs_are_put_together_first():
    texts = 5 * ["low"] + 2 * ["lower"] + 6 * ["newest"] + 3 * ["widest"]
    pieces = bpe(texts, 5)
    # of pairs that are as frequent, that of the older pieces goes first: "e s" before "s t"
    merges = [("e", "s"), ("es", "t"), (" ", "l"), ("o", "w"), (" l", "ow")]
    assert pieces.merges == merges
    assert pieces.split("lowest") == [" low", "est"]
    assert pieces.tokens[4:] == [
        *sorted(set(" lowernewestwidest")),
        *map("".join, pieces.merges),
    ]


def test_all_words_are_whole_when_there_is_nothing_left_to_put_together():
    assert bpe(["aaa ab"], 99).split("ab aaa") == [" ab", " aaa"]
    assert bpe([], 9).tokens == bpe(["a"], 0).tokens[:4]
    assert bpe(["ab"], 0).split("ab") == [" ", "a", "b"]


def their_bpe(texts, size):
    """Hugging Face's, with the same words and the same special tokens."""
    theirs = Tokenizer(models.BPE(unk_token="<unknown>"))
    theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]"), "isolated")
    special = ["<padding>", "<unknown>", "<begin>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    return theirs


@pytest.fixture(scope="module")
def corpus():
    """German texts, without the few characters that are a letter only to one of the two."""
    return [
        text for _, text in sentence_pairs().train if re.fullmatch(r"[\w .,:!?()/'-]+", text)
    ]


def test_pieces_are_those_of_the_tokenizers_library(corpus):
    texts = [f" {text}" for text in corpus[:3000] if not re.search("[²³₂º]", text)]
    ours = bpe(texts, 600)
    theirs = their_bpe(texts, len(ours))
    assert theirs.get_vocab_size() == len(ours)
    assert [theirs.id_to_token(n) for n in range(4, len(ours))] == ours.tokens[4:]
    for text in texts[:500]:
        assert theirs.encode(text).tokens == ours.split(text)
    fresh = " Rückwärtsgangwarnleuchte (xy) ÄÖ"
    assert theirs.encode(fresh).ids == ours.encode(fresh)[1:-1].tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.text("ab ", max_size=12), min_size=1, max_size=5))
def test_pieces_of_texts_with_repetitions_and_ties_are_those_of_the_library(texts):
    texts = [" " + " ".join(text.split()) for text in texts if text.split()]
    ours = bpe(texts, 6)
    theirs = their_bpe(texts, len(ours))
    assert [theirs.id_to_token(n) for n in range(4, len(ours))] == ours.tokens[4:]
    for text in texts:
        assert theirs.encode(text).tokens == ours.split(text)


def test_vocabularies_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="different from each other, got 'a' twice"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="lies between 0 and 4, got 2 to 5: decode with"):
        Vocabulary(["a"]).decode(torch.tensor([2, 5]))
    with pytest.raises(ValueError, match="least must be at least 1, got 0"):
        word_vocabulary(TEXTS, least=0)
    with pytest.raises(ValueError, match="merges must not be negative, got -1"):
        bpe(TEXTS, -1)


# minibatches


def pairs_of_lengths(lengths):
    return [(torch.full((n,), n), torch.full((m,), n)) for n, m in lengths]


def test_every_pair_is_in_one_minibatch_with_others_of_similar_length():
    draws = random.Random(0)
    lengths = [(draws.randint(1, 20), draws.randint(1, 20)) for _ in range(250)]
    batches = SimilarLengths(pairs_of_lengths(lengths), 16, torch.Generator().manual_seed(0))
    assert len(batches) == len(list(batches)) == 16
    seen, filled = [], 0
    for source, target in batches:
        assert source.shape[0] == target.shape[0] <= 16
        there = [(source != PADDING).sum(1), (target != PADDING).sum(1)]
        seen += zip(*(n.tolist() for n in there), strict=True)
        filled += (source == PADDING).sum().item()
        assert torch.equal(source[:, 0], target[:, 0])  # the two sides stay together
    assert sorted(seen) == sorted(lengths)
    assert filled < 0.1 * sum(n for n, _ in lengths)


def test_orders_are_new_in_each_epoch_and_repeat_with_the_generator():
    pairs = pairs_of_lengths([(n % 7 + 1, 1) for n in range(100)])
    first, again = (
        SimilarLengths(pairs, 8, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    one, two = (torch.cat([s.sum(1) for s, _ in first]) for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(one, torch.cat([s.sum(1) for s, _ in again]))


@pytest.mark.parametrize(("pairs", "size"), [([], 8), ([(3, 3)], 0)])
def test_minibatches_of_nothing_are_refused(pairs, size):
    with pytest.raises(ValueError, match="at least one pair and a batch_size of at least 1"):
        SimilarLengths(pairs_of_lengths(pairs), size, torch.Generator())


# attention


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


MASK = torch.tensor([[True, True, False, True], [True, False, False, False]])


def by_loops(score, states, memory, mask):
    """Attention one query, one key at a time."""
    contexts, weights = [], []
    for n in range(len(states)):
        for s in states[n]:
            there = [j for j in range(memory.shape[1]) if mask[n, j]]
            scores = [math.exp(score(s, memory[n, j])) for j in there]
            a = torch.zeros(memory.shape[1], dtype=torch.float64)
            for j, e in zip(there, scores, strict=True):
                a[j] = e / sum(scores)
            weights.append(a)
            contexts.append(sum(a[j] * memory[n, j] for j in there))
    shape = (*states.shape[:2], -1)
    return torch.stack(contexts).view(shape), torch.stack(weights).view(shape)


def test_dot_product_attention_is_a_plain_loop():
    states, memory = normal(2, 3, 5), normal(2, 4, 7)
    attention = DotProductAttention(5, 7).double()
    W = attention.query.weight
    wanted = by_loops(lambda s, m: (W @ s @ m).item(), states, memory, MASK)
    torch.testing.assert_close(attention(states, memory, MASK), wanted, rtol=1e-12, atol=1e-12)


def test_additive_attention_is_a_plain_loop():
    states, memory = normal(2, 3, 5), normal(2, 4, 7)
    attention = AdditiveAttention(5, 7, 6).double()
    W_s, W_m, v = attention.query.weight, attention.key.weight, attention.score.weight[0]
    wanted = by_loops(
        lambda s, m: (v @ torch.tanh(W_s @ s + W_m @ m)).item(), states, memory, MASK
    )
    torch.testing.assert_close(attention(states, memory, MASK), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 2, 9, 4)])
def test_dot_product_attention_is_torchs_in_values_and_gradients(shape, masked):
    N, T, S, D = shape
    inputs = [normal(N, T, D), normal(N, S, D), normal(N, S, D + 1)]
    for x in inputs:
        x.requires_grad_()
    mask = torch.rand(N, S) < 0.6 if masked else None
    if masked:
        mask[:, 0] = True
    ours, weights = dot_product_attention(*inputs, mask, scale=0.7)
    attn_mask = mask[:, None].expand(N, T, S) if masked else None
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=attn_mask, scale=0.7)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(N, T, dtype=torch.float64))
    if masked:
        assert not weights.masked_select(~mask[:, None]).any()
    upstream = normal(*ours.shape)
    for a, b in zip(
        *(torch.autograd.grad(x, inputs, upstream) for x in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [DotProductAttention, AdditiveAttention])
def test_gradients_of_attention_agree_with_central_differences(kind):
    attention = kind(3, 4, *([2] if kind is AdditiveAttention else [])).double()

    def context(states, memory):
        return attention(states, memory, MASK)[0]

    assert gradient_check(context, normal(2, 2, 3), normal(2, 4, 4))


def test_attention_stands_huge_scores_and_looks_at_the_largest():
    key = torch.tensor([[[1.0, 0], [0, 1], [1e4, 0]]])
    context, weights = dot_product_attention(key[:, :1], key, key, scale=1e4)
    assert weights.tolist() == [[[0, 0, 1]]]
    assert torch.equal(context, key[:, 2:])


# encoder and decoder


def twelve():
    return Vocabulary(list("abcdefgh"))  # with the special ones


def model_of(vocabulary=None, attention="dot", bidirectional=True, dropout=0.0, hidden=5):
    """A small translator with random weights, in double precision."""
    words = vocabulary or twelve()
    encoder = Encoder(len(words), 3, 4, bidirectional=bidirectional, dropout=dropout)
    size = encoder.memory_size
    kinds = {
        "dot": lambda: DotProductAttention(hidden, size),
        "additive": lambda: AdditiveAttention(hidden, size, 3),
        None: lambda: None,
    }
    decoder = Decoder(len(words), 3, hidden, size, kinds[attention](), dropout=dropout)
    return Translator(encoder, decoder, words, words).double()


def texts_of(*lengths):
    draws = torch.Generator().manual_seed(1)
    return [torch.randint(1, 12, (length,), generator=draws) for length in lengths]


kinds = pytest.mark.parametrize("attention", ["dot", "additive", None])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_encoder_is_an_lstm_over_each_text_alone(bidirectional):
    encoder = model_of(bidirectional=bidirectional).encoder
    theirs = nn.LSTM(3, 4, bidirectional=bidirectional).double()
    theirs.load_state_dict(encoder.recurrent.state_dict())
    texts = texts_of(5, 2, 7)
    memory, last = encoder(pad_sequence(texts, batch_first=True))
    for n, text in enumerate(texts):
        outputs, (h, _) = theirs(encoder.embedding.weight[text][:, None])
        torch.testing.assert_close(memory[n, : len(text)], outputs[:, 0])
        torch.testing.assert_close(last[n], h[:, 0].flatten())
        assert not memory[n, len(text) :].any()


@kinds
def test_a_decoder_step_by_step_gives_what_it_gives_at_once(attention):
    model = model_of(attention=attention)
    source, target = (pad_sequence(texts_of(*n), batch_first=True) for n in [(4, 6), (5, 5)])
    memory, mask, state = model.read(source)
    whole, last, weights = model.decoder(target, memory, mask, state)
    steps = []
    for token in target.T:
        logits, state, looked = model.decoder(token[:, None], memory, mask, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(model(source, target), whole)
    if attention:
        torch.testing.assert_close(looked[:, 0], weights[:, -1])
    else:
        assert weights is None


def test_the_decoder_solves_its_equations():
    model = model_of()
    source, target = torch.tensor([[2, 5, 6, 3]]), torch.tensor([[2, 7]])
    memory, mask, (h, c) = model.read(source)
    d = model.decoder
    begin = torch.tanh(model.encoder(source)[1] @ d.start.weight.T + d.start.bias)
    torch.testing.assert_close(torch.cat([h[0], c[0]], dim=1), begin)
    outputs, _ = d.recurrent(d.embedding(target.T), (h, c))
    for t, s in enumerate(outputs[:, 0]):
        a = torch.softmax(memory[0] @ (d.attention.query.weight @ s), dim=0)
        both = torch.cat([s, a @ memory[0]])
        wanted = d.head(torch.tanh(d.combine.weight @ both + d.combine.bias))
        torch.testing.assert_close(model(source, target)[0, t], wanted)
    assert mask.all()


@kinds
def test_a_text_is_translated_alike_alone_and_beside_a_longer_one(attention):
    model = model_of(attention=attention)
    short, long = texts_of(3, 9)
    target = torch.tensor([[BEGIN, 5, 6, 7]])
    alone = model(short[None], target)
    beside = model(pad_sequence([long, short], batch_first=True), target.expand(2, -1))
    torch.testing.assert_close(beside[1:], alone)


def test_without_attention_only_the_last_states_are_known():
    model = model_of(attention=None)
    memory, mask, state = model.read(torch.tensor([[2, 5, 6, 3]]))
    one, two = (
        model.decoder(torch.tensor([[2, 7]]), m, mask, state)[0] for m in (memory, -memory)
    )
    assert torch.equal(one, two)
    assert not hasattr(model.decoder, "combine")


@kinds
def test_every_parameter_gets_a_gradient_and_padding_none(attention):
    model = model_of(attention=attention)
    source = pad_sequence(texts_of(3, 6), batch_first=True)
    model(source, source).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.encoder.embedding.weight.grad[PADDING].any()


def test_dropout_acts_in_training_only():
    model, source = model_of(dropout=0.5), torch.tensor([[2, 5, 6, 3]])
    assert not torch.equal(model(source, source), model(source, source))
    model.eval()
    assert torch.equal(model(source, source), model(source, source))


def test_texts_of_padding_and_networks_that_do_not_fit_are_refused():
    model = model_of()
    for source in (torch.tensor([[5, 3], [0, 0]]), torch.zeros(0, 3).long()):
        with pytest.raises(ValueError, match="at least one token that is no padding"):
            model.encoder(source)
    words = twelve()
    with pytest.raises(ValueError, match=r"12 and 13 tokens .* built for 12 and 12 tokens"):
        Translator(model.encoder, model.decoder, words, Vocabulary(list("abcdefghi")))
    other = Decoder(12, 3, 5, 9)
    with pytest.raises(ValueError, match=r"memory of 9 numbers, .* with a memory of 8"):
        Translator(model.encoder, other, words, words)


# training


ABC = [("".join(s), " ".join(s[::-1])) for s in product("abc", repeat=3)]


def spelled():
    return Vocabulary([" a", " b", " c", "a", "b", "c"])


def letters_model():
    pieces = bpe([source for source, _ in ABC], 0)
    encoder = Encoder(len(pieces), 8, 16)
    decoder = Decoder(10, 8, 16, 32, DotProductAttention(16, 32))
    return Translator(encoder, decoder, pieces, spelled())


def test_a_translator_learns_to_turn_texts_around():
    model = letters_model()
    history = fit_translator(
        model, Adam(model.parameters(), lr=0.02), ABC, epochs=40, batch_size=9, progress=False
    )
    assert history.loss[0] > 1.5
    assert sum(history.loss[-3:]) / 3 < 0.2
    sources, wanted = zip(*ABC, strict=True)
    assert model.translate(sources) == list(wanted)
    assert model.translate(sources, width=3, batch_size=5) == list(wanted)
    assert model.training


def test_the_loss_is_the_mean_over_all_tokens_but_padding():
    model = letters_model().double()
    pairs = [("abc", "c b a"), ("a", "a"), ("cb", "b c")]
    loss, of_all, tokens = 0.0, 0.0, 0
    for source, target in pairs:
        y = model.target.encode(target)
        log_p = model(model.source.encode(source)[None], y[None, :-1]).log_softmax(-1)[0]
        loss -= sum(log_p[t, y[t + 1]].item() for t in range(len(y) - 1))
        of_all -= log_p.mean(-1).sum().item()
        tokens += len(y) - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    options = {"batch_size": 3, "progress": False}
    history = fit_translator(model, optimizer, pairs, validation=pairs, **options)
    assert history.loss == [pytest.approx(loss / tokens, rel=1e-9)]
    assert history.validation_loss == [pytest.approx(loss / tokens, rel=1e-9)]
    smoothed = fit_translator(model, optimizer, pairs, label_smoothing=0.5, **options)
    assert smoothed.loss == [pytest.approx((loss + of_all) / 2 / tokens, rel=1e-9)]


def test_training_repeats_and_goes_on_from_a_checkpoint(tmp_path):
    def trained(epochs, **options):
        torch.manual_seed(0)
        model = letters_model()
        optimizer = Adam(model.parameters(), lr=0.01)
        return fit_translator(
            model, optimizer, ABC, epochs=epochs, batch_size=9, progress=False, **options
        ).loss

    whole = trained(2)
    trained(1, checkpoint=tmp_path / "c")
    assert trained(2, checkpoint=tmp_path / "c") == whole
    assert trained(2, seed=1) != whole


def test_training_on_nothing_is_refused():
    model = letters_model()
    optimizer = Adam(model.parameters())
    with pytest.raises(ValueError, match="at least one pair"):
        fit_translator(model, optimizer, [])
    with pytest.raises(ValueError, match="validation has no pairs"):
        fit_translator(model, optimizer, ABC, validation=[])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.translate(["a"], batch_size=0)


def test_an_empty_list_of_texts_has_no_translations():
    assert letters_model().translate([]) == []


# writing


def sharp(model, factor=4.0):
    """A model whose choices are clearer than at random."""
    model.decoder.head.weight.data *= factor
    return model


SOURCES = pad_sequence(texts_of(3, 6, 2, 5), batch_first=True)


@kinds
def test_greedy_is_a_plain_loop(attention):
    model = sharp(model_of(attention=attention))
    written, weights = greedy(model, SOURCES, longest=8)
    for n, source in enumerate(SOURCES):
        source, tokens = source[source != PADDING][None], [BEGIN]
        while tokens[-1] != END and len(tokens) < 9:
            tokens.append(model(source, torch.tensor([tokens]))[0, -1].argmax().item())
        steps = len(tokens) - 1
        assert written[n, :steps].tolist() == tokens[1:]
        assert not written[n, steps:].any()
        if attention:
            _, _, looked = model.decoder(torch.tensor([tokens[:-1]]), *model.read(source))
            torch.testing.assert_close(weights[n, :steps, : source.shape[1]], looked[0])
    assert attention or weights is None


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 3.0])
@kinds
def test_a_beam_of_one_is_greedy(attention, alpha):
    for factor in (1.0, 4.0):
        model = sharp(model_of(attention=attention), factor)
        written, _ = greedy(model, SOURCES, longest=7)
        searched, _ = beam_search(model, SOURCES, 1, alpha, longest=7)
        assert torch.equal(searched, written)


def log_probabilities(model, source, texts):
    """Of texts of one length, their first token left out."""
    texts = torch.tensor(texts)
    source = source[source != PADDING].expand(len(texts), -1)
    log_p = model(source, texts[:, :-1]).log_softmax(-1)
    return log_p.gather(2, texts[:, 1:, None])[..., 0].sum(1).tolist()


def exhaustive(model, source, alpha, longest):
    """The best of all translations that come to their end."""
    inner = [n for n in range(len(model.target)) if n != END]
    scored = []
    for length in range(longest):
        texts = [[BEGIN, *inside, END] for inside in product(inner, repeat=length)]
        scores = log_probabilities(model, source, texts)
        scored += [
            (score / (length + 1) ** alpha, text[1:])
            for score, text in zip(scores, texts, strict=True)
        ]
    return max(scored)


def test_a_beam_that_is_wide_enough_finds_what_exhaustive_search_finds():
    lengths = set()
    for seed, alpha in product(range(2), [0.0, 0.6, 1.0]):
        torch.manual_seed(seed)
        model = sharp(model_of(Vocabulary(["a"])), 8.0)
        source = torch.tensor([[BEGIN, 4, 4, END], [BEGIN, 4, END, PADDING]])
        written, scores = beam_search(model, source, 5**4, alpha, longest=4)
        for n in range(2):
            score, tokens = exhaustive(model, source[n], alpha, 4)
            lengths.add(len(tokens))
            assert scores[n].item() == pytest.approx(score, rel=1e-9)
            assert written[n, : len(tokens)].tolist() == tokens
    assert len(lengths) > 1  # the search has something to decide


def plain_beam(model, source, width, alpha, longest):
    """One text, hypotheses in a list."""
    alive, done = [[BEGIN]], []
    for length in range(1, longest + 1):
        continued = [[*text, k] for text in alive for k in range(len(model.target))]
        scores = log_probabilities(model, source, continued)
        best = sorted(zip(scores, continued, strict=True), reverse=True)[: width - len(done)]
        done += [(score / length**alpha, text[1:]) for score, text in best if text[-1] == END]
        alive = [text for _, text in best if text[-1] != END]
        if not alive:
            break
    return max(done or [(score / longest**alpha, text[1:]) for score, text in best])


@pytest.mark.parametrize(("width", "alpha"), [(2, 0.0), (3, 1.0), (5, 0.6)])
@kinds
def test_beam_search_is_a_plain_search_text_by_text(attention, width, alpha):
    for seed in range(4):
        torch.manual_seed(seed)
        model = sharp(model_of(attention=attention))
        model.decoder.head.bias.data[END] += 1.5  # some end early, and their places are lost
        written, scores = beam_search(model, SOURCES, width, alpha, longest=5)
        for n, source in enumerate(SOURCES):
            score, tokens = plain_beam(model, source, width, alpha, 5)
            assert scores[n].item() == pytest.approx(score, rel=1e-9)
            assert written[n, : len(tokens)].tolist() == tokens
            assert not written[n, len(tokens) :].any()


def test_a_text_that_does_not_end_is_cut():
    model = sharp(model_of())
    model.decoder.head.bias.data[END] = -1e4
    written, scores = beam_search(model, SOURCES, 3, longest=4)
    assert written.shape == greedy(model, SOURCES, 4)[0].shape == (4, 4)
    assert scores.isfinite().all()
    assert not (written == END).any()


def test_the_search_has_no_gradient_and_leaves_the_mode_as_it_was():
    model = model_of(dropout=0.5).train()
    first, again = (beam_search(model, SOURCES, 3) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert model.training
    assert not first[1].requires_grad


@pytest.mark.parametrize(
    ("width", "alpha", "longest"), [(0, 1.0, 5), (2, -1.0, 5), (2, 1.0, 0)]
)
def test_a_search_that_makes_no_sense_is_refused(width, alpha, longest):
    with pytest.raises(ValueError, match="width and longest must be at least 1 and alpha"):
        beam_search(model_of(), SOURCES, width, alpha, longest)
    if not longest:
        with pytest.raises(ValueError, match="longest must be at least 1, got 0"):
            greedy(model_of(), SOURCES, 0)


# BLEU

corpora = st.integers(1, 6).flatmap(
    lambda size: st.tuples(
        *(
            st.lists(
                st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join),
                min_size=size,
                max_size=size,
            )
            for _ in range(4)
        )
    )
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(corpus=corpora, humans=st.integers(1, 3))
def test_bleu_is_sacrebleus(corpus, humans):
    hypotheses, *references = corpus
    ours = bleu(hypotheses, references[:humans])
    theirs = sacrebleu.corpus_bleu(
        hypotheses, references[:humans], tokenize="none", smooth_method="none", force=True
    )
    assert ours.score == pytest.approx(theirs.score, abs=1e-9)
    assert ours.bp == pytest.approx(theirs.bp, abs=1e-12)
    assert ours.precisions == pytest.approx(theirs.precisions, abs=1e-9)
    assert (ours.sys_len, ours.ref_len) == (theirs.sys_len, theirs.ref_len)


def test_bleu_of_real_texts_is_sacrebleus():
    test = sentence_pairs().test
    hypotheses, references = [source for source, _ in test], [target for _, target in test]
    half = [b if n % 2 else a for n, (a, b) in enumerate(test)]
    for texts in (hypotheses, half, references):
        theirs = sacrebleu.corpus_bleu(
            texts, [references], tokenize="none", smooth_method="none", force=True
        )
        assert bleu(texts, [references]).score == pytest.approx(theirs.score, abs=1e-9)
    assert bleu(references, [references]).score == pytest.approx(100)


def test_bleu_by_hand():
    found = bleu(["the cat sat on a mat"], [["the cat sat on the mat today"]])
    assert found.precisions == pytest.approx([500 / 6, 60, 50, 100 / 3])
    assert found.bp == pytest.approx(math.exp(-1 / 6))
    assert found.score == pytest.approx(100 * math.exp(-1 / 6) * (1 / 12) ** 0.25)
    assert bleu(["the the the the"], [["the cat"]]).precisions[0] == 25
    assert bleu(["a b c"], [["a b c"]]).score == 0  # no run of four


def test_bleu_refuses_texts_without_a_translation():
    with pytest.raises(ValueError, match=r"each of 2 hypotheses .* got lists of 1, 2"):
        bleu(["a", "b"], [["a"], ["a", "b"]])
    with pytest.raises(ValueError, match=r"each of 1 hypotheses .* got lists of none"):
        bleu(["a"], [])
    with pytest.raises(ValueError, match="each of 0 hypotheses"):
        bleu([], [[]])


def test_counts_of_runs_are_right_for_texts_shorter_than_the_run():
    assert bleu(["a"], [["a"]]).precisions == [100, 0, 0, 0]
    assert Counter(bleu(["a b"], [["b a"]]).precisions) == Counter([100, 0, 0, 0])


# what is shipped

DATA = Path(translation.__file__).parent / "data"


@pytest.fixture(scope="module")
def shipped():
    return pretrained_translator()


def parted(text):
    return " ".join(token.strip() for token in word_vocabulary([]).split(text))


def test_the_shipped_translator_is_small_and_of_the_script(shipped):
    path = DATA / "translation_model.safetensors"
    assert path.stat().st_size < 5e6
    with safe_open(path, "pt") as stored:
        about = stored.metadata()
    assert "Apache License 2.0" in about["licence"]
    english, german = script.vocabularies()
    assert english.tokens == shipped.source.tokens
    assert german.merges == shipped.target.merges
    fresh = script.untrained(english, german).state_dict()
    assert {n: x.shape for n, x in fresh.items()} == {
        n: x.shape for n, x in shipped.state_dict().items()
    }
    assert not shipped.training
    validation = sentence_pairs(words=(1, 12)).validation
    losses = json.loads(about["validation_loss"])
    assert len(losses) == script.EPOCHS
    optimizer = torch.optim.SGD(shipped.parameters(), lr=1e-12)
    history = fit_translator(
        shipped, optimizer, validation[:1], validation=validation, progress=False
    )
    assert history.validation_loss[0] == pytest.approx(losses[-1], abs=0.002)


def test_the_shipped_translator_scores_what_the_chapter_says(shipped):
    test = sentence_pairs().test[::3]
    said = [parted(text) for text in shipped.translate([english for english, _ in test])]
    assert 20 < bleu(said, [[parted(german) for _, german in test]]).score < 30
    assert shipped.translate(["Select the apps you want to track"]) == [
        "Wähle die Apps aus, die du verfolgen möchtest"
    ]


def test_the_script_of_the_translator_writes_what_is_loaded(tmp_path, monkeypatch, shipped):
    def trained(checkpoint):
        return shipped, History([1.0], [2.0], validation_loss=[0.5])

    monkeypatch.setattr(script, "trained", trained)
    script.write(tmp_path / "translation_model.safetensors")
    written, stored = (
        load_file(folder / "translation_model.safetensors") for folder in (tmp_path, DATA)
    )
    assert all(torch.equal(written[name], stored[name]) for name in stored)


def test_every_trial_is_as_large_as_the_whole_and_lacks_what_it_says():
    words = twelve()
    sizes = {
        name: count_parameters(trials.model_of(name, words, words, 64))
        for name in trials.TRIALS
    }
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    for name, (direction, attention, _) in trials.TRIALS.items():
        model = trials.model_of(name, words, words, 16)
        assert model.encoder.recurrent.bidirectional == (direction == "both")
        assert (model.decoder.attention is not None) == attention
    assert trials.turned("a b c", "backward") == "c b a"
    assert trials.turned("a b c", "forward") == "a b c"


def test_without_a_teacher_the_decoder_reads_what_it_wrote():
    model, source = sharp(model_of()), torch.tensor([[2, 5, 6, 3]])
    written, _ = greedy(model, source, longest=5)
    own = torch.cat([torch.tensor([[BEGIN]]), written], dim=1)
    losses = [trials.loss_of(model, source, own, taught).item() for taught in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    other = own.clone()
    other[0, 1] = 4 + (own[0, 1] == 4)
    losses = [
        trials.loss_of(model, source, other, teacher=teacher).item()
        for teacher in (True, False)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_a_stored_trial_begins_as_it_does_now():
    stored = json.loads((DATA / "translation_trials.json").read_text(encoding="utf-8"))
    assert stored["numbers"].keys() == trials.TRIALS.keys()
    assert stored["sentences"].keys() == set(trials.SENTENCE_TRIALS)
    _, history = trials.trained("forward", "numbers", seed=1, epochs=1)
    before = stored["numbers"]["forward"][1]["loss of first epoch"]
    assert sum(history.loss) / len(history.loss) == pytest.approx(before, abs=0.02)


def test_an_interrupted_script_of_trials_goes_on(tmp_path, monkeypatch):
    stored = json.loads((DATA / "translation_trials.json").read_text(encoding="utf-8"))
    last = stored["sentences"]["both"].pop()
    (tmp_path / "trials.json").write_text(json.dumps(stored), encoding="utf-8")
    asked = []

    def trained(*trial):
        asked.append(trial)
        return None, History([last["loss of first epoch"]], steps_per_epoch=1)

    monkeypatch.setattr(trials, "trained", trained)
    monkeypatch.setattr(trials, "scores", lambda model: {**last})
    trials.write(tmp_path / "trials.json")
    assert asked == [("both", "sentences", 2)]
    written = (tmp_path / "trials.json").read_text(encoding="utf-8")
    assert written == (DATA / "translation_trials.json").read_text(encoding="utf-8")
