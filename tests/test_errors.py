"""Likely mistakes with everything that the companion exports end in words.

For each name the table has valid calls, with arguments by name. From each argument mistakes are
made, one at a time. Each must raise a ``TypeError`` or ``ValueError`` of ours, unless ``allow``
says that it is no mistake there.
"""

import linecache
import math
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import companion
from companion import (
    activations,
    backpropagation,
    checks,
    convolution,
    datasets,
    display,
    expectation_maximization,
    language_models,
    layers,
    lstm,
    mixture_of_experts,
    optimization,
    plotting,
    recurrence,
    semi_supervised,
    speech,
    training,
    translation,
    variational_autoencoders,
)
from companion.backpropagation import Variable

COMPANION = Path(companion.__file__).parent


def call(function, allow="", /, **arguments):
    """A valid call, and which mistakes are none: patterns of ``argument:mistake``, in which
    ``*`` is anything.
    """
    return function, allow.split(), arguments


def mistakes(value):
    """Names of mistakes, and what they make of a valid argument."""
    if isinstance(value, Tensor):
        return {**kinds(None, "word", 3), **tensor_mistakes(value)}
    if isinstance(value, bool):
        return kinds(None, "word")
    if isinstance(value, int):
        return {
            **kinds(None, "word", [value], 1.5, math.nan, math.inf, -1, 0),
            "tensor": torch.tensor(value),
        }
    if isinstance(value, float):
        return kinds(None, "word", [value], math.nan, math.inf, -math.inf, -1.0, 2.5, 0)
    if isinstance(value, str):
        return kinds(None, 3, "word", [value])
    if isinstance(value, tuple | list) and all(
        isinstance(entry, int | float) for entry in value
    ):
        entries = {
            f"entry_{name}": type(value)([*value[:-1], wrong])
            for name, wrong in mistakes(value[-1]).items()
        }
        several = {"short": value[:-1], "long": value + value, "none": value[:0]}
        return {**kinds(None, "word", 3.5, math.nan), **several, **entries}
    if isinstance(value, tuple | list) and all(isinstance(entry, Tensor) for entry in value):
        entries = {
            f"entry{place}_{name}": (*value[:place], wrong, *value[place + 1 :])
            for place, entry in enumerate(value)
            for name, wrong in mistakes(entry).items()
        }
        several = {"short": value[:-1], "long": value + value, "none": value[:0]}
        return {**kinds(None, "word", 3), **several, **entries, "tensor": value[0]}
    if isinstance(value, torch.dtype):
        return kinds("float32", 3)
    if isinstance(value, type(None)):
        return kinds("word", 3.5)
    if isinstance(value, nn.Module):
        return {**kinds(None, "word", 3), "class": type(value), "list": [value]}
    return kinds(None, "word", 3)


def kinds(*wrong):
    """Wrong values by the names that the table calls them."""
    return {"in_list" if isinstance(value, list) else str(value): value for value in wrong}


def tensor_mistakes(x):
    made = {
        "list": x.tolist(),
        "array": x.detach().numpy(),
        "more": x[None],
        "complex": x.cfloat(),
    }
    if x.dtype == torch.bool:
        made |= {"long": x.long(), "float": x.float()}
    else:
        made["bool"] = x > 0
    if x.is_floating_point():
        made |= {
            "long": x.long(),
            "dtype": x.float() if x.dtype == torch.float64 else x.double(),
        }
    elif x.dtype != torch.bool:
        made |= {"float": x.float(), "int32": x.int(), "high": x + 1000, "low": x - 1000}
    if x.dim():
        made |= {"less": x[0], "empty": x[:0]}
    for dim in range(x.dim()):
        made[f"larger{dim}"] = torch.cat([x, x.narrow(dim, 0, 1)], dim)
    return made


def ended(error):
    """What is wrong with the end of a mistake, if anything."""
    if error is None:
        return "nothing was said"
    text = " ".join(str(error).split())
    if not isinstance(error, TypeError | ValueError):
        return f"{type(error).__name__}: {text[:150]}"
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    code = last.tb_frame.f_code
    line = linecache.getline(code.co_filename, last.tb_lineno).strip()
    ours = Path(code.co_filename).parent == COMPANION and line.startswith("raise ")
    if not ours or len(text) < 20:
        return f"not our words: {type(error).__name__}: {text[:150]}"
    return None


def bad_endings(make):
    """Each mistake that ended badly, and how many were tried."""
    bad, tried, used = [], 0, set()
    for place in range(len(make())):
        function, allow, arguments = make()[place]
        function(**arguments)  # valid
        for name, value in arguments.items():
            for mistake in mistakes(value):
                function, allow, fresh = make()[place]
                fresh[name] = mistakes(fresh[name])[mistake]
                tried += 1
                try:
                    function(**fresh)
                    error = None
                except Exception as raised:
                    error = raised
                if problem := ended(error):
                    label = f"{name}:{mistake}"
                    patterns = [pattern for pattern in allow if fnmatch(label, pattern)]
                    used |= {(place, pattern) for pattern in patterns}
                    if not patterns:
                        bad.append(f"{label}: {problem}")
        bad += [
            f"{p}: is allowed, but does not happen" for p in allow if (place, p) not in used
        ]
    return bad, tried


X = torch.rand(5, 3)
Y = torch.tensor([0, 1, 2, 1, 0])
MIXED = torch.rand(30, 3)
IMAGES = torch.rand(2, 4, 8, 8)
TOKENS = torch.arange(60) % 7
SENTENCES = torch.tensor([[2, 4, 5, 4, 3], [2, 5, 3, 0, 0]])


def model():
    return language_models.LanguageModel(7, recurrence.RNN(4, 5))


def experts():
    return mixture_of_experts.MixtureOfExperts(3, 3, 2, task="classification")


def sgd():
    return optimization.SGD([torch.nn.Parameter(torch.rand(3))], lr=0.1, momentum=0.9)


def parameters():
    return [nn.Parameter(torch.rand(3))]


def translator():
    words = translation.Vocabulary(["a", "b"])
    attention = translation.DotProductAttention(4, 6)
    decoder = translation.Decoder(6, 3, 4, 6, attention)
    return translation.Translator(translation.Encoder(6, 3, 3), decoder, words, words)


def small_batch():
    return speech.batches([torch.rand(9, 4), torch.rand(7, 4)], ["one", "a b"])[0]


def variable(x):
    return Variable(x.double(), requires_grad=True)


TABLE = {
    "activations.GELU": lambda: [
        call(lambda approximate: activations.GELU(approximate)(X), approximate="tanh"),
        call(
            activations.GELU(),
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        ),
    ],
    "activations.HandDerived": lambda: [
        call(
            lambda input, value, gradient: activations.HandDerived.apply(
                input, value, gradient
            ),
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
            value=lambda x: x.exp(),
            gradient=lambda g, y: g * y,
        )
    ],
    "activations.LeakyReLU": lambda: [
        call(
            lambda negative_slope: activations.LeakyReLU(negative_slope)(X),
            "negative_slope:0",
            negative_slope=0.1,
        ),
        call(
            activations.LeakyReLU(),
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        ),
    ],
    "activations.LogSoftmax": lambda: [
        call(lambda dim: activations.LogSoftmax(dim)(X), "dim:-1 dim:0", dim=1),
        call(
            activations.LogSoftmax(dim=1),
            "input:more input:dtype input:empty input:larger?",
            input=X,
        ),
    ],
    "activations.ReLU": lambda: [
        call(
            activations.ReLU(),
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        )
    ],
    "activations.Sigmoid": lambda: [
        call(
            activations.Sigmoid(),
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        )
    ],
    "activations.Softmax": lambda: [
        call(lambda dim: activations.Softmax(dim)(X), "dim:-1 dim:0", dim=1),
        call(
            activations.Softmax(dim=1),
            "input:more input:dtype input:empty input:larger?",
            input=X,
        ),
    ],
    "activations.Tanh": lambda: [
        call(
            activations.Tanh(),
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        )
    ],
    "activations.gelu": lambda: [
        call(
            activations.gelu,
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
            approximate="tanh",
        )
    ],
    "activations.leaky_relu": lambda: [
        call(
            activations.leaky_relu,
            "input:more input:dtype input:less input:empty input:larger? negative_slope:0",
            input=X,
            negative_slope=0.1,
        )
    ],
    "activations.log_softmax": lambda: [
        call(
            activations.log_softmax,
            "input:more input:dtype input:empty input:larger? dim:-1 dim:0",
            input=X,
            dim=1,
        )
    ],
    "activations.relu": lambda: [
        call(
            activations.relu,
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        )
    ],
    "activations.sigmoid": lambda: [
        call(
            activations.sigmoid,
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        )
    ],
    "activations.softmax": lambda: [
        call(
            activations.softmax,
            "input:more input:dtype input:empty input:larger? dim:-1 dim:0",
            input=X,
            dim=1,
        )
    ],
    "activations.tanh": lambda: [
        call(
            activations.tanh,
            "input:more input:dtype input:less input:empty input:larger?",
            input=X,
        )
    ],
    "backpropagation.Variable": lambda: [
        call(
            Variable,
            "data:list data:array data:more data:dtype data:less data:empty data:larger? "
            "requires_grad:None requires_grad:word",
            data=X,
            requires_grad=True,
        ),
        call(
            lambda other: Variable(X) + other,
            "other:3 other:more other:complex other:bool other:long other:dtype other:less",
            other=X,
        ),
        call(
            lambda other: Variable(X) * other,
            "other:nan other:inf other:-inf other:-1.0 other:2.5 other:0",
            other=2.0,
        ),
        call(
            lambda other: Variable(X) / other,
            "other:nan other:inf other:-inf other:-1.0 other:2.5 other:0",
            other=2.0,
        ),
        call(lambda n: Variable(X) ** n, "n:1.5 n:nan n:inf n:-1 n:0", n=2),
        call(
            lambda other: Variable(X) @ other,
            "other:more other:larger?",
            other=torch.rand(3, 2),
        ),
        call(Variable(X).sum, "dim:None dim:in_list dim:-1 dim:0", dim=1, keepdim=True),
        call(Variable(X).mean, "dim:None dim:in_list dim:-1 dim:0", dim=1, keepdim=True),
        call(Variable(X).amax, "dim:None dim:in_list dim:-1 dim:0", dim=1, keepdim=True),
        call(Variable(X).max, "dim:None dim:-1 dim:0", dim=1, keepdim=True),
        call(Variable(X).logsumexp, "dim:in_list dim:-1 dim:0", dim=1, keepdim=True),
        call(lambda shape: Variable(X).reshape(shape), "shape:entry_-1", shape=(3, 5)),
        call(Variable(X).transpose, "dim0:-1 dim0:0 dim1:-1 dim1:0", dim0=0, dim1=1),
        call(
            variable(X).backward, "gradient:None gradient:dtype", gradient=X, retain_graph=True
        ),
    ],
    "backpropagation.cross_entropy": lambda: [
        call(backpropagation.cross_entropy, input=Variable(X), target=Y)
    ],
    "backpropagation.draw_graph": lambda: [
        call(
            backpropagation.draw_graph,
            "names:None ax:None",
            output=variable(X) * 2.0,
            names={"x": X},
            ax=plt.figure().add_subplot(),
        )
    ],
    "backpropagation.gradient_check": lambda: [
        call(
            lambda function, input, **options: backpropagation.gradient_check(
                function, input, **options
            ),
            "input:more input:less input:empty input:larger? step:None step:2.5 rtol:2.5 "
            "rtol:0 atol:2.5 atol:0",
            function=lambda x: (x * x).sum(),
            input=X[:2].double(),
            step=1e-5,
            rtol=1e-5,
            atol=1e-7,
        )
    ],
    "backpropagation.record": lambda: [
        call(
            backpropagation.record,
            "operation:word data:more data:complex data:bool data:long data:dtype data:less "
            "data:empty data:larger?",
            operation="sin",
            data=X,
        ),
    ],
    "backpropagation.sum_to_shape": lambda: [
        call(
            backpropagation.sum_to_shape,
            "g:more g:complex g:bool g:long g:dtype g:empty g:larger? shape:short shape:none",
            g=X,
            shape=(1, 3),
        )
    ],
    "backpropagation.topological_order": lambda: [
        call(backpropagation.topological_order, output=variable(X) * 2.0)
    ],
    "backpropagation.two_layer_gradients": lambda: [
        call(
            backpropagation.two_layer_gradients,
            "y:int32 y:high y:low",
            x=X,
            y=Y,
            W1=torch.rand(3, 4),
            b1=torch.rand(4),
            W2=torch.rand(4, 6),
            b2=torch.rand(6),
        )
    ],
    "checks.accepts": lambda: [call(lambda: checks.accepts(inplace=False))],
    "checks.check_alike": lambda: [
        call(
            lambda input, weight: checks.check_alike("f", input, weight), "*", input=X, weight=X
        )
    ],
    "checks.checked": lambda: [call(checks.checked, "*", function=lambda x: x)],
    "convolution.AdaptiveAvgPool2d": lambda: [
        call(
            lambda output_size: convolution.AdaptiveAvgPool2d(output_size)(IMAGES),
            "output_size:entry_None",
            output_size=(2, 2),
        ),
        call(
            convolution.AdaptiveAvgPool2d(2),
            "input:dtype input:less input:empty input:larger?",
            input=IMAGES,
        ),
    ],
    "convolution.AvgPool2d": lambda: [
        call(
            lambda **options: convolution.AvgPool2d(**options)(IMAGES),
            "kernel_size:short stride:None stride:in_list padding:in_list padding:0 "
            "divisor_override:None",
            kernel_size=(2, 2),
            stride=2,
            padding=1,
            ceil_mode=True,
            count_include_pad=True,
            divisor_override=2,
        ),
        call(
            convolution.AvgPool2d(2),
            "input:dtype input:less input:empty input:larger?",
            input=IMAGES,
        ),
    ],
    "convolution.Conv2d": lambda: [
        call(
            lambda **options: convolution.Conv2d(**options)(IMAGES),
            "kernel_size:in_list stride:short padding:3 dilation:in_list device:None",
            in_channels=4,
            out_channels=6,
            kernel_size=3,
            stride=(1, 1),
            padding="same",
            dilation=1,
            groups=2,
            bias=True,
            device="cpu",
            dtype=torch.float32,
        ),
        call(convolution.Conv2d(4, 6, 3), "input:less input:empty input:larger?", input=IMAGES),
    ],
    "convolution.Convolution": lambda: [
        call(
            lambda **options: convolution.Convolution.apply(*options.values()),
            "x:empty x:larger? weight:larger? bias:None stride:entry_-1 stride:entry_0 "
            "edges:entry_-1 edges:entry_0 dilation:entry_-1 dilation:entry_0",
            x=IMAGES,
            weight=torch.rand(6, 4, 3, 3),
            bias=torch.rand(6),
            stride=(1, 1),
            edges=(0, 0, 0, 0),
            dilation=(1, 1),
        )
    ],
    "convolution.DepthwiseConvolution": lambda: [
        call(
            lambda **options: convolution.DepthwiseConvolution.apply(*options.values()),
            "x:empty x:larger? weight:larger? bias:None edges:entry_-1 edges:entry_0",
            x=IMAGES,
            weight=torch.rand(4, 1, 3, 3),
            bias=torch.rand(4),
            stride=(1, 1),
            edges=(0, 0, 0, 0),
            dilation=(1, 1),
        )
    ],
    "convolution.Flatten": lambda: [
        call(
            convolution.Flatten(),
            "input:more input:complex input:bool input:long input:dtype input:less "
            "input:empty input:larger?",
            input=IMAGES,
        ),
        call(
            lambda start_dim, end_dim: convolution.Flatten(start_dim, end_dim)(IMAGES),
            "start_dim:0 end_dim:-1",
            start_dim=1,
            end_dim=2,
        ),
    ],
    "convolution.LeNet": lambda: [
        call(convolution.LeNet, classes=10),
        call(convolution.LeNet(), "input:empty input:larger?", input=torch.rand(2, 1, 28, 28)),
    ],
    "convolution.MaxPool2d": lambda: [
        call(
            lambda **options: convolution.MaxPool2d(**options)(IMAGES),
            "kernel_size:short stride:None stride:in_list padding:in_list padding:0 "
            "dilation:in_list",
            kernel_size=(2, 2),
            stride=2,
            padding=1,
            dilation=1,
            ceil_mode=True,
        ),
        call(
            convolution.MaxPool2d(2),
            "input:dtype input:less input:empty input:larger?",
            input=IMAGES,
        ),
    ],
    "convolution.MaxPooling": lambda: [
        call(
            lambda x, places: convolution.MaxPooling.apply(x, places),
            "x:more x:complex x:bool x:long x:dtype x:less x:empty x:larger?",
            x=X,
            places=[(slice(None),)],
        )
    ],
    "convolution.adaptive_avg_pool2d": lambda: [
        call(
            convolution.adaptive_avg_pool2d,
            "input:dtype input:less input:empty input:larger? output_size:entry_None",
            input=IMAGES,
            output_size=(2, 2),
        ),
        call(
            convolution.adaptive_avg_pool2d,
            "input:dtype input:less input:empty input:larger?",
            input=IMAGES,
            output_size=2,
        ),
    ],
    "convolution.avg_pool2d": lambda: [
        call(
            convolution.avg_pool2d,
            "input:dtype input:less input:empty input:larger? kernel_size:in_list "
            "stride:None stride:short stride:none padding:in_list padding:0 "
            "divisor_override:None",
            input=IMAGES,
            kernel_size=2,
            stride=(2, 2),
            padding=1,
            ceil_mode=True,
            count_include_pad=True,
            divisor_override=3,
        ),
        call(
            convolution.avg_pool2d,
            "input:dtype input:less input:empty input:larger? kernel_size:short stride:None "
            "stride:in_list padding:short padding:entry_0",
            input=IMAGES,
            kernel_size=(2, 2),
            stride=2,
            padding=(1, 1),
        ),
    ],
    "convolution.conv2d": lambda: [
        call(
            convolution.conv2d,
            "input:less input:empty input:larger? weight:larger? bias:None stride:in_list "
            "padding:in_list padding:0 dilation:in_list",
            input=IMAGES,
            weight=torch.rand(6, 4, 3, 3),
            bias=torch.rand(6),
            stride=2,
            padding=1,
            dilation=1,
            groups=1,
        ),
        call(
            convolution.conv2d,
            "input:less input:empty input:larger? weight:empty weight:larger? stride:short "
            "padding:3 dilation:short",
            input=IMAGES,
            weight=torch.rand(6, 2, 3, 3),
            stride=(1, 1),
            padding="same",
            dilation=(1, 1),
            groups=2,
        ),
    ],
    "convolution.max_pool2d": lambda: [
        call(
            convolution.max_pool2d,
            "input:dtype input:less input:empty input:larger? kernel_size:in_list "
            "stride:None stride:short stride:none padding:in_list padding:0 dilation:in_list",
            input=IMAGES,
            kernel_size=2,
            stride=(2, 2),
            padding=1,
            dilation=1,
            ceil_mode=True,
        ),
        call(
            convolution.max_pool2d,
            "input:dtype input:less input:empty input:larger? kernel_size:short stride:None "
            "stride:in_list dilation:short",
            input=IMAGES,
            kernel_size=(2, 2),
            stride=2,
            dilation=(1, 1),
        ),
    ],
    "convolution.output_size": lambda: [
        call(
            convolution.output_size,
            "padding:0",
            size=9,
            kernel_size=3,
            stride=2,
            padding=1,
            dilation=1,
            ceil_mode=True,
        )
    ],
    "convolution.receptive_field": lambda: [
        call(
            lambda layer: convolution.receptive_field([(5, 1), layer]),
            "layer:short",
            layer=(2, 2, 1),
        ),
        call(convolution.receptive_field, layers=[(5, 1)]),
    ],
    "datasets.blobs": lambda: [
        call(
            datasets.blobs,
            "noise:2.5 noise:0 seed:-1 seed:0",
            n=9,
            classes=3,
            noise=0.1,
            seed=1,
        )
    ],
    "datasets.decode": lambda: [
        call(datasets.decode, "tokens:empty tokens:larger?", tokens=TOKENS)
    ],
    "datasets.docstrings": lambda: [call(datasets.docstrings, "library:word", library=None)],
    "datasets.download": lambda: [
        call(
            datasets.download,
            "name:word timeout:2.5 advice:word",
            name="there.txt",
            urls=["http://127.0.0.1:9/there.txt"],
            sha256="e244f187f696561d5fd7e00f618e7ba641dc52e3c137380f6fa23a854b773aac",
            timeout=1.0,
            progress=False,
            advice="No.",
        )
    ],
    "datasets.encode": lambda: [call(datasets.encode, "text:word", text="text")],
    "datasets.fashion_mnist": lambda: [call(datasets.fashion_mnist, full=False, folder=None)],
    "datasets.moons": lambda: [
        call(datasets.moons, "noise:2.5 noise:0 seed:-1 seed:0", n=9, noise=0.1, seed=1)
    ],
    "datasets.number_words": lambda: [
        call(datasets.number_words, source="en", target="de", words=(1, 6))
    ],
    "datasets.python_documentation": lambda: [
        call(datasets.python_documentation, "file:word", file=None)
    ],
    "datasets.read_idx": lambda: [
        call(
            datasets.read_idx, "name:word", content=b"\0\0\x08\x01\0\0\0\x01\x07", name="seven"
        )
    ],
    "datasets.sentence_pairs": lambda: [
        call(datasets.sentence_pairs, "file:word", target="de", words=(2, 12), file=None)
    ],
    "datasets.read_wave": lambda: [
        call(
            datasets.read_wave,
            "name:word",
            content=b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0"
            b"\x02\0\x10\0data\x08\0\0\0\0\0\0\0\0\0\0\0",
            name="silence",
        )
    ],
    "datasets.speak": lambda: [
        call(
            datasets.speak,
            "text:word pitch:0 gap:0",
            text="one",
            voice="en-us",
            speed=100,
            pitch=50,
            gap=1,
        )
    ],
    "datasets.spirals": lambda: [
        call(
            datasets.spirals,
            "turns:-1.0 turns:2.5 turns:0 noise:2.5 noise:0 seed:-1 seed:0",
            n=9,
            classes=3,
            turns=1.5,
            noise=0.1,
            seed=1,
        )
    ],
    "datasets.spoken_digits": lambda: [
        call(datasets.spoken_digits, full=False, human=False, folder=None)
    ],
    "display.show": lambda: [
        call(
            lambda thing, docstring: display.show(thing, docstring=docstring),
            thing=layers.mse_loss,
            docstring=True,
        )
    ],
    "expectation_maximization.GaussianMixture": lambda: [
        call(
            lambda **options: expectation_maximization.GaussianMixture(**options).fit(MIXED),
            "max_iter:0 tol:0 tol:2.5 reg_covar:0 reg_covar:2.5",
            n_components=2,
            covariance_type="diag",
            tol=0.1,
            reg_covar=0.1,
            max_iter=30,
            n_init=1,
            init_params="random",
            warm_start=False,
        ),
        call(
            lambda **options: expectation_maximization.GaussianMixture(3, **options).fit(MIXED),
            "*:dtype *:None",
            weights_init=torch.full((3,), 1 / 3),
            means_init=MIXED[:3],
            precisions_init=torch.eye(3).expand(3, 3, 3).clone(),
            random_state=None,
        ),
        call(
            lambda X: expectation_maximization.GaussianMixture(2, random_state=0).fit(X),
            "X:dtype X:larger?",
            X=MIXED,
        ),
    ],
    "expectation_maximization.KMeans": lambda: [
        call(
            lambda **options: expectation_maximization.KMeans(**options).fit(MIXED),
            "tol:0 tol:2.5",
            n_clusters=2,
            init="random",
            n_init=1,
            max_iter=30,
            tol=0.1,
        ),
        call(
            lambda init: expectation_maximization.KMeans(3, init=init).fit(MIXED),
            "init:dtype",
            init=MIXED[:3],
        ),
        call(
            lambda X: expectation_maximization.KMeans(2).fit(X),
            "X:dtype X:larger?",
            X=MIXED,
        ),
    ],
    "expectation_maximization.UnconstrainedMixture": lambda: [
        call(
            expectation_maximization.UnconstrainedMixture,
            "*:dtype",
            weights=torch.full((3,), 1 / 3),
            means=MIXED[:3],
            precisions_cholesky=torch.eye(3).expand(3, 3, 3).clone(),
        ),
        call(
            expectation_maximization.UnconstrainedMixture(
                torch.full((3,), 1 / 3), MIXED[:3], torch.eye(3).expand(3, 3, 3)
            ),
            "X:larger0 X:empty",
            X=MIXED,
        ),
    ],
    "expectation_maximization.kmeans_plus_plus": lambda: [
        call(
            expectation_maximization.kmeans_plus_plus,
            "X:dtype X:larger? n_local_trials:None",
            X=MIXED,
            n_clusters=3,
            random_state=None,
            n_local_trials=2,
        ),
    ],
    "language_models.Embedding": lambda: [
        call(
            language_models.Embedding,
            "padding_idx:None padding_idx:-1 padding_idx:0 device:None",
            num_embeddings=7,
            embedding_dim=3,
            padding_idx=1,
            device="cpu",
            dtype=torch.float32,
        ),
        call(
            language_models.Embedding(7, 3),
            "input:more input:int32 input:less input:empty input:larger?",
            input=TOKENS,
        ),
    ],
    "language_models.LanguageModel": lambda: [
        call(
            language_models.LanguageModel,
            "dropout:-1.0 dropout:2.5 dropout:0",
            vocabulary=7,
            recurrent=recurrence.RNN(4, 5, num_layers=2),
            dropout=0.5,
        ),
        call(
            model(),
            "tokens:int32 tokens:larger? state:None",
            tokens=TOKENS[None],
            state=torch.rand(1, 1, 5),
        ),
    ],
    "language_models.NGram": lambda: [
        call(language_models.NGram, order=2, vocabulary=7, smoothing="kneser-ney"),
        call(language_models.NGram(2, 7).fit, "tokens:int32 tokens:larger?", tokens=TOKENS),
        call(
            language_models.NGram(2, 7).fit(TOKENS).probability,
            "tokens:more tokens:int32 tokens:larger?",
            tokens=TOKENS,
        ),
        call(
            language_models.NGram(2, 7).fit(TOKENS).bits,
            "tokens:int32 tokens:larger?",
            tokens=TOKENS,
        ),
    ],
    "language_models.bits_per_character": lambda: [
        call(
            language_models.bits_per_character,
            "tokens:larger?",
            model=model(),
            tokens=TOKENS,
            streams=2,
        )
    ],
    "language_models.fit_truncated": lambda: [
        call(
            language_models.fit_truncated,
            "tokens:larger? epochs:0 max_norm:inf max_norm:2.5 validation:None "
            "validation:larger? seed:-1 seed:0",
            model=(m := model()),
            optimizer=optimization.SGD(m.parameters(), lr=0.1),
            tokens=TOKENS,
            epochs=1,
            batch_size=2,
            time=9,
            max_norm=1.0,
            carry=True,
            validation=TOKENS,
            scheduler=None,
            seed=1,
            progress=False,
        )
    ],
    "language_models.sample": lambda: [
        call(
            language_models.sample,
            "prompt:int32 prompt:larger? length:0 temperature:inf temperature:2.5 "
            "temperature:0 generator:None",
            model=model(),
            prompt=TOKENS,
            length=2,
            temperature=0.5,
            generator=torch.Generator(),
        )
    ],
    "layers.Linear": lambda: [
        call(
            layers.Linear,
            "device:None",
            in_features=3,
            out_features=4,
            bias=True,
            device="cpu",
            dtype=torch.float32,
        ),
        call(layers.Linear(3, 4), "input:more input:less input:empty input:larger?", input=X),
    ],
    "layers.MLP": lambda: [
        call(layers.MLP, "sizes:short sizes:long", sizes=[3, 4, 2], activation=torch.relu),
        call(layers.MLP([3, 4, 2]), "input:more input:less input:empty input:larger?", input=X),
    ],
    "layers.Sequential": lambda: [
        call(lambda module: layers.Sequential(module, module), module=nn.ReLU()),
        call(
            layers.Sequential(layers.Linear(3, 4), activations.ReLU()),
            "input:more input:less input:empty input:larger?",
            input=X,
        ),
        call(
            lambda place: layers.Sequential(nn.ReLU(), nn.ReLU())[place],
            "place:-1 place:0",
            place=1,
        ),
    ],
    "layers.binary_cross_entropy_with_logits": lambda: [
        call(
            layers.binary_cross_entropy_with_logits,
            "input:dtype target:dtype",
            input=X,
            target=X,
        )
    ],
    "layers.count_parameters": lambda: [
        call(layers.count_parameters, module=layers.Linear(3, 4), trainable_only=True)
    ],
    "layers.cross_entropy": lambda: [
        call(
            layers.cross_entropy,
            "input:dtype input:larger? ignore_index:-1 ignore_index:0 label_smoothing:0",
            input=X,
            target=Y,
            ignore_index=-100,
            reduction="sum",
            label_smoothing=0.1,
        )
    ],
    "layers.kaiming_normal_": lambda: [
        call(
            layers.kaiming_normal_,
            "tensor:more tensor:dtype tensor:larger? a:-1.0 a:2.5 a:0 generator:None",
            tensor=X.clone(),
            a=0.1,
            mode="fan_out",
            nonlinearity="relu",
            generator=torch.Generator(),
        )
    ],
    "layers.kaiming_uniform_": lambda: [
        call(
            layers.kaiming_uniform_,
            "tensor:more tensor:dtype tensor:larger? a:-1.0 a:2.5 a:0 generator:None",
            tensor=X.clone(),
            a=0.1,
            mode="fan_out",
            nonlinearity="relu",
            generator=torch.Generator(),
        )
    ],
    "layers.mse_loss": lambda: [
        call(layers.mse_loss, "input:dtype target:dtype", input=X, target=X, reduction="sum")
    ],
    "layers.xavier_normal_": lambda: [
        call(
            layers.xavier_normal_,
            "tensor:more tensor:dtype tensor:larger? gain:2.5 gain:0 generator:None",
            tensor=X.clone(),
            gain=0.5,
            generator=torch.Generator(),
        )
    ],
    "layers.xavier_uniform_": lambda: [
        call(
            layers.xavier_uniform_,
            "tensor:more tensor:dtype tensor:larger? gain:2.5 gain:0 generator:None",
            tensor=X.clone(),
            gain=0.5,
            generator=torch.Generator(),
        )
    ],
    "lstm.GRU": lambda: recurrent(lstm.GRU),
    "lstm.GRUCell": lambda: cell(lstm.GRUCell),
    "lstm.LSTM": lambda: recurrent(lstm.LSTM, states=2),
    "lstm.LSTMCell": lambda: cell(lstm.LSTMCell, states=2),
    "mixture_of_experts.MixtureOfExperts": lambda: [
        call(
            mixture_of_experts.MixtureOfExperts,
            "hidden:short hidden:long hidden:none gate_hidden:short gate_hidden:long "
            "gate_hidden:none min_variance:2.5",
            in_features=3,
            out_features=2,
            n_experts=4,
            task="regression",
            hidden=[4],
            gate_hidden=[4],
            activation=torch.relu,
            min_variance=1e-3,
        ),
        call(experts(), "input:empty input:larger0", input=X),
        call(experts().log_joint, x=X, y=Y),
        call(experts().loss, x=X, y=Y),
        call(experts().responsibilities, x=X, y=Y),
        call(experts().m_step, "lr:2.5", x=X, y=Y, r=torch.rand(5, 2), inner=2, lr=0.1),
        call(
            experts().fit_em,
            "tol:inf tol:-inf tol:-1.0 tol:2.5 tol:0 lr:2.5",
            x=X,
            y=Y,
            max_iter=2,
            tol=1e-3,
            inner=2,
            lr=0.1,
        ),
        call(
            lambda x, y: (m := experts()).fit(
                x, y, optimization.SGD(m.parameters(), lr=0.1), progress=False
            ),
            x=X,
            y=Y,
        ),
    ],
    "mixture_of_experts.SparseMixtureOfExperts": lambda: [
        call(
            mixture_of_experts.SparseMixtureOfExperts,
            in_features=3,
            hidden=4,
            n_experts=5,
            top_k=2,
            activation=torch.relu,
        ),
        call(
            mixture_of_experts.SparseMixtureOfExperts(3, 4, 5),
            "input:more input:less input:larger0",
            input=X,
        ),
    ],
    "mixture_of_experts.irls": lambda: [
        call(
            mixture_of_experts.irls,
            x=X,
            target=torch.rand(5, 3).softmax(1),
            weight=torch.rand(5),
            W=torch.rand(3, 4),
            steps=2,
        )
    ],
    "mixture_of_experts.load_balancing_loss": lambda: [
        call(
            mixture_of_experts.load_balancing_loss,
            "probabilities:dtype probabilities:larger1 chosen:int32 chosen:larger1",
            probabilities=torch.rand(5, 3).softmax(1),
            chosen=Y[:, None],
        )
    ],
    "mixture_of_experts.weighted_least_squares": lambda: [
        call(
            mixture_of_experts.weighted_least_squares,
            "x:larger1 y:larger1",
            x=X,
            y=torch.rand(5, 2),
            weight=torch.rand(5),
        )
    ],
    "optimization.Adam": lambda: optimizer(
        optimization.Adam,
        "betas:entry_0",
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.1,
        amsgrad=True,
        decoupled_weight_decay=True,
    ),
    "optimization.AdamW": lambda: optimizer(
        optimization.AdamW,
        "betas:entry_0",
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.1,
        amsgrad=True,
    ),
    "optimization.CosineWithWarmup": lambda: [
        call(
            optimization.CosineWithWarmup,
            "num_warmup_steps:0 eta_min:2.5 eta_min:0 last_epoch:-1 last_epoch:0",
            optimizer=sgd(),
            num_warmup_steps=2,
            num_training_steps=9,
            eta_min=0.01,
            last_epoch=-1,
        )
    ],
    "optimization.Descent": lambda: [
        call(
            optimization.Descent,
            "params:entry0_bool params:entry0_long",
            params=parameters(),
            defaults={"lr": 0.1},
        )
    ],
    "optimization.OneCycleLR": lambda: [
        call(
            optimization.OneCycleLR,
            "max_lr:in_list max_lr:2.5 max_lr:0 pct_start:0 base_momentum:0 max_momentum:0 "
            "div_factor:2.5 final_div_factor:2.5 last_epoch:-1 last_epoch:0",
            optimizer=sgd(),
            max_lr=0.1,
            total_steps=9,
            pct_start=0.3,
            cycle_momentum=True,
            base_momentum=0.8,
            max_momentum=0.9,
            div_factor=25.0,
            final_div_factor=1e4,
            last_epoch=-1,
        ),
        call(
            optimization.OneCycleLR,
            "max_lr:3.5 max_lr:entry_2.5 max_lr:entry_0",
            optimizer=sgd(),
            max_lr=[0.1],
            total_steps=9,
        ),
    ],
    "optimization.RMSprop": lambda: optimizer(
        optimization.RMSprop, alpha=0.9, eps=1e-8, weight_decay=0.1, momentum=0.9, centered=True
    ),
    "optimization.SGD": lambda: optimizer(
        optimization.SGD, momentum=0.9, dampening=0.0, weight_decay=0.1, nesterov=True
    ),
    "optimization.StepLR": lambda: [
        call(
            optimization.StepLR,
            "gamma:2.5 gamma:0 last_epoch:-1 last_epoch:0",
            optimizer=sgd(),
            step_size=2,
            gamma=0.5,
            last_epoch=-1,
        )
    ],
    "plotting.Player": lambda: [call(plotting.Player, "html:word", html="<p>")],
    "plotting.band": lambda: [
        call(
            plotting.band,
            "x:entry_-1.0 x:entry_2.5 x:entry_0 runs:dtype runs:larger? label:None label:word",
            ax=plt.figure().add_subplot(),
            x=[1.0, 2.0, 3.0],
            runs=X,
            label="a",
        ),
        call(
            plotting.band,
            "x:list x:array x:complex x:bool x:long x:dtype runs:dtype runs:larger?",
            ax=plt.figure().add_subplot(),
            x=X[0],
            runs=X,
        ),
    ],
    "plotting.decision_regions": lambda: [
        call(
            plotting.decision_regions,
            "y:int32 ax:None",
            model=layers.Linear(2, 3),
            x=X[:, :2],
            y=Y,
            ax=plt.figure().add_subplot(),
            resolution=9,
        )
    ],
    "plotting.image_grid": lambda: [
        call(
            plotting.image_grid,
            "images:dtype images:larger? titles:None",
            images=IMAGES[:, :1],
            titles=["a", "b"],
            columns=2,
        )
    ],
    "plotting.network": lambda: [
        call(
            plotting.network,
            "labels:None ax:None",
            sizes=[2, 3],
            labels=["a", "b"],
            ax=plt.figure().add_subplot(),
        )
    ],
    "plotting.player": lambda: [
        call(
            plotting.player,
            "values:short values:long values:entry_-1 values:entry_0 alt:word label:word",
            figure=plt.figure(figsize=(0.5, 0.5)),
            draw=lambda step: None,
            values=[1, 2],
            alt="nothing",
            label="step",
        )
    ],
    "recurrence.RNN": lambda: recurrent(recurrence.RNN, nonlinearity="relu"),
    "recurrence.RNNCell": lambda: cell(recurrence.RNNCell, nonlinearity="relu"),
    "recurrence.Recurrent": lambda: recurrent(recurrence.Recurrent)[:1],
    "recurrence.RecurrentCell": lambda: cell(recurrence.RecurrentCell)[:1],
    "recurrence.first_derivative_only": lambda: [
        call(recurrence.first_derivative_only, backward=lambda ctx, g: g)
    ],
    "semi_supervised.GaussianMixtureClassifier": lambda: [
        *generative(
            semi_supervised.GaussianMixtureClassifier,
            "reg_covar:2.5",
            covariance_type="diag",
            reg_covar=0.1,
        ),
    ],
    "semi_supervised.GenerativeClassifier": lambda: [
        call(
            semi_supervised.GenerativeClassifier,
            "unlabelled_weight:0 max_iter:0 tol:0 tol:2.5 random_state:*",
            unlabelled_weight=0.5,
            hard=False,
            components_per_class=1,
            tol=0.1,
            max_iter=3,
            random_state=1,
            warm_start=False,
        )
    ],
    "semi_supervised.M2": lambda: [
        call(
            lambda **modules: semi_supervised.M2(**modules).loss(X, Y, X, alpha=0.5),
            classifier=layers.Linear(3, 4),
            encoder=layers.Linear(7, 4),
            decoder=layers.Linear(6, 3),
            likelihood=semi_supervised.MultinomialLikelihood(),
        ),
    ],
    "semi_supervised.MultinomialLikelihood": lambda: [
        call(
            semi_supervised.MultinomialLikelihood().log_prob,
            "x:less decoded:more",
            x=X,
            decoded=X.clone(),
        )
    ],
    "semi_supervised.MultinomialNB": lambda: generative(
        semi_supervised.MultinomialNB, "alpha:2.5", alpha=0.5
    ),
    "semi_supervised.SelfTrainingClassifier": lambda: [
        call(
            semi_supervised.SelfTrainingClassifier,
            "threshold:0 max_iter:0 max_iter:None",
            estimator=semi_supervised.MultinomialNB(),
            threshold=0.5,
            max_iter=3,
        ),
        call(
            semi_supervised.SelfTrainingClassifier(semi_supervised.MultinomialNB()).fit,
            "X:dtype X:larger1 y:int32",
            X=X,
            y=Y,
        ),
    ],
    "semi_supervised.entropy_loss": lambda: [
        call(semi_supervised.entropy_loss, "input:dtype input:empty input:larger?", input=X)
    ],
    "semi_supervised.fit_semi_supervised": lambda: [
        call(
            semi_supervised.fit_semi_supervised,
            "unlabelled:more unlabelled:larger0 seed:-1 seed:0 epochs:0",
            model=(linear := layers.Linear(3, 4)),
            optimizer=optimization.SGD(linear.parameters(), lr=0.1),
            loss=lambda x, y, u: layers.cross_entropy(linear(x), y) + linear(u).sum(),
            labelled=(X, Y),
            unlabelled=X,
            epochs=1,
            batch_size=2,
            scheduler=None,
            seed=1,
            progress=False,
        )
    ],
    "semi_supervised.hide_labels": lambda: [
        call(
            semi_supervised.hide_labels,
            "y:int32 y:high y:low y:larger? seed:-1 seed:0",
            y=Y,
            keep=4,
            seed=1,
        )
    ],
    "semi_supervised.pseudo_label_loss": lambda: [
        call(
            semi_supervised.pseudo_label_loss,
            "input:dtype input:empty input:larger? threshold:0",
            input=X,
            threshold=0.5,
        )
    ],
    "speech.Recognizer": lambda: [
        call(speech.Recognizer, channels=4, hidden=5, labels=6),
        call(
            speech.Recognizer(4, 5, 6),
            "lengths:int32 features:larger1",
            features=torch.rand(2, 7, 4),
            lengths=torch.tensor([7, 3]),
        ),
        call(speech.Recognizer(4, 5, 28).loss, batch=small_batch()),
    ],
    "speech.add_noise": lambda: [
        call(
            speech.add_noise,
            "waveform:dtype waveform:empty waveform:larger? snr:-1.0 snr:2.5 snr:0 "
            "generator:None",
            waveform=X[:, 0],
            snr=3.0,
            generator=torch.Generator(),
        )
    ],
    "speech.batches": lambda: [
        call(
            speech.batches,
            "features:entry?_larger0",
            features=[torch.rand(5, 4), torch.rand(3, 4)],
            texts=["one", "two"],
            batch_size=2,
        )
    ],
    "speech.ctc_loss": lambda: [
        call(
            speech.ctc_loss,
            "log_probs:dtype log_probs:larger0 targets:int32 targets:larger1 "
            "input_lengths:int32 input_lengths:list target_lengths:int32 target_lengths:list "
            "log_probs:larger2 blank:0",
            log_probs=torch.rand(6, 2, 5).log_softmax(2),
            targets=torch.tensor([[1, 2, 2], [3, 1, 4]]),
            input_lengths=torch.tensor([6, 5]),
            target_lengths=torch.tensor([3, 2]),
            blank=0,
            reduction="sum",
            zero_infinity=True,
        )
    ],
    "speech.edit_distance": lambda: [
        call(speech.edit_distance, "a:word b:word a:in_list b:in_list", a="one", b="two")
    ],
    "speech.greedy_search": lambda: [
        call(
            speech.greedy_search,
            "log_probs:dtype log_probs:empty log_probs:larger? blank:0",
            log_probs=X,
            blank=1,
        )
    ],
    "speech.hz_to_mel": lambda: [
        call(
            speech.hz_to_mel,
            "frequency:more frequency:dtype frequency:less frequency:empty frequency:larger?",
            frequency=X,
        )
    ],
    "speech.log_mel": lambda: [
        call(
            speech.log_mel,
            "waveform:more waveform:dtype waveform:empty waveform:less waveform:larger?",
            waveform=torch.rand(2, 400),
            sample_rate=8000,
            n_fft=128,
            hop_length=40,
            n_mels=10,
        )
    ],
    "speech.mel_filterbank": lambda: [
        call(
            speech.mel_filterbank,
            "f_min:2.5 f_min:0",
            n_freqs=65,
            f_min=100.0,
            f_max=3000.0,
            n_mels=10,
            sample_rate=8000,
        )
    ],
    "speech.mel_to_hz": lambda: [
        call(speech.mel_to_hz, "mel:more mel:dtype mel:less mel:empty mel:larger?", mel=X)
    ],
    "speech.prefix_beam_search": lambda: [
        call(
            speech.prefix_beam_search,
            "log_probs:dtype log_probs:empty log_probs:larger0 language_model:None weight:-1.0 "
            "weight:2.5 weight:0 bonus:-1.0 bonus:2.5 bonus:0 cutoff:inf cutoff:-inf "
            "cutoff:-1.0 cutoff:2.5 cutoff:0 blank:0",
            log_probs=X.log(),
            beam_width=2,
            blank=0,
            language_model=language_models.NGram(2, 3).fit(torch.tensor([0, 1, 2])),
            weight=0.5,
            bonus=0.1,
            cutoff=-8.0,
        )
    ],
    "speech.pretrained_recognizer": lambda: [call(speech.pretrained_recognizer, noise=False)],
    "speech.spectrogram": lambda: [
        call(
            speech.spectrogram,
            "waveform:more waveform:dtype waveform:empty waveform:less waveform:larger?",
            waveform=torch.rand(2, 400),
            n_fft=128,
            hop_length=40,
        )
    ],
    "speech.standardize": lambda: [
        call(
            speech.standardize,
            "features:dtype features:empty features:larger?",
            features=X,
        )
    ],
    "speech.to_labels": lambda: [call(speech.to_labels, "text:word", text="one")],
    "speech.to_text": lambda: [
        call(speech.to_text, "labels:short labels:long labels:none", labels=[1, 2, 3])
    ],
    "speech.transcribe": lambda: [
        call(
            speech.transcribe,
            "features:short features:long features:entry?_larger0",
            model=speech.Recognizer(4, 5),
            features=[torch.rand(5, 4), torch.rand(3, 4)],
            decode=speech.greedy_search,
        )
    ],
    "speech.word_error_rate": lambda: [
        call(
            speech.word_error_rate,
            references=["one two", "three"],
            hypotheses=["one", "three"],
        )
    ],
    "training.Minibatches": lambda: [
        call(
            training.Minibatches,
            "data:short data:long data:entry0_complex data:entry0_bool data:entry0_long "
            "data:entry0_dtype data:entry0_larger? data:entry1_complex data:entry1_bool "
            "data:entry1_float data:entry1_int32 data:entry1_high data:entry1_low",
            data=(X, Y),
            batch_size=2,
            generator=torch.Generator(),
        )
    ],
    "training.accuracy": lambda: [
        call(
            training.accuracy,
            "prediction:dtype prediction:larger? target:int32 target:high target:low",
            prediction=X,
            target=Y,
        )
    ],
    "training.evaluate": lambda: [
        call(
            training.evaluate,
            "data:entry0_dtype",
            model=layers.Linear(3, 4),
            loss=layers.cross_entropy,
            data=(X, Y),
            metric=training.accuracy,
            batch_size=2,
        )
    ],
    "training.fit": lambda: [
        call(
            training.fit,
            "train:entry0_dtype epochs:0 validation:None validation:entry0_dtype "
            "seed:-1 seed:0",
            model=(linear := layers.Linear(3, 4)),
            optimizer=optimization.SGD(linear.parameters(), lr=0.1),
            loss=layers.cross_entropy,
            train=(X, Y),
            epochs=1,
            batch_size=2,
            validation=(X, Y),
            metric=training.accuracy,
            scheduler=None,
            seed=1,
            progress=False,
        )
    ],
    "training.share": lambda: [
        call(
            training.share,
            "examples:more examples:complex examples:bool examples:long examples:dtype "
            "examples:less examples:empty examples:larger?",
            examples=X,
        )
    ],
    "training.train": lambda: [
        call(
            training.train,
            "batches:word batches:short batches:long batches:entry0_complex "
            "batches:entry0_bool batches:entry0_long batches:entry0_dtype "
            "batches:entry0_larger? batches:entry1_complex batches:entry1_bool "
            "batches:entry1_float batches:entry1_int32 batches:entry1_high "
            "batches:entry1_low epochs:0 max_norm:None max_norm:inf max_norm:2.5 seed:-1 "
            "seed:0",
            step=lambda batch: linear.weight.square().sum(),
            optimizer=optimization.SGD((linear := layers.Linear(3, 4)).parameters(), lr=0.1),
            batches=(X, Y),
            epochs=1,
            batch_size=2,
            max_norm=1.0,
            seed=1,
            progress=False,
        )
    ],
    "training.modes_kept": lambda: [
        call(lambda model: training.modes_kept(model).__enter__(), model=nn.ReLU())
    ],
    "translation.AdditiveAttention": lambda: attention(
        translation.AdditiveAttention, hidden_size=5
    ),
    "translation.Decoder": lambda: [
        call(
            translation.Decoder,
            "attention:None dropout:0",
            vocabulary=6,
            embedding_dim=3,
            hidden_size=4,
            memory_size=6,
            attention=translation.DotProductAttention(4, 6),
            dropout=0.1,
        ),
        call(
            translation.Decoder(6, 3, 4, 6, translation.DotProductAttention(4, 6)),
            "tokens:int32 tokens:larger1 mask:None",
            tokens=SENTENCES,
            memory=torch.rand(2, 5, 6),
            mask=torch.ones(2, 5).bool(),
            state=(torch.rand(1, 2, 4), torch.rand(1, 2, 4)),
        ),
        call(
            translation.Decoder(6, 3, 4, 6).begin,
            "last:empty last:larger0",
            last=torch.rand(2, 6),
        ),
    ],
    "translation.DotProductAttention": lambda: attention(translation.DotProductAttention),
    "translation.Encoder": lambda: [
        call(
            translation.Encoder,
            "dropout:0",
            vocabulary=6,
            embedding_dim=3,
            hidden_size=4,
            bidirectional=True,
            dropout=0.1,
        ),
        call(translation.Encoder(6, 3, 4), "source:int32 source:larger?", source=SENTENCES),
    ],
    "translation.SimilarLengths": lambda: [
        call(
            translation.SimilarLengths,
            pairs=[(SENTENCES[0], SENTENCES[1])],
            batch_size=2,
            generator=torch.Generator(),
        )
    ],
    "translation.Translator": lambda: [
        call(
            translation.Translator,
            encoder=translator().encoder,
            decoder=translator().decoder,
            source=translator().source,
            target=translator().target,
        ),
        call(
            translator(),
            "source:int32 source:larger1 target:int32 target:larger1",
            source=SENTENCES,
            target=SENTENCES,
        ),
        call(translator().read, "source:int32 source:larger?", source=SENTENCES),
        call(
            translator().translate,
            "alpha:2.5 alpha:0",
            texts=["a b"],
            width=2,
            alpha=1.0,
            longest=3,
            batch_size=2,
        ),
    ],
    "translation.Vocabulary": lambda: [
        call(translation.Vocabulary, "merges:None", tokens=["a", "b"], merges=[("a", "b")]),
        call(translator().source.split, "text:word", text="a b"),
        call(translator().source.encode, "text:word", text="a b"),
        call(
            translator().source.decode,
            "tokens:int32 tokens:empty tokens:larger?",
            tokens=SENTENCES[0],
        ),
    ],
    "translation.beam_search": lambda: [
        call(
            translation.beam_search,
            "source:int32 source:larger? alpha:2.5 alpha:0",
            model=translator(),
            source=SENTENCES,
            width=2,
            alpha=1.0,
            longest=3,
        )
    ],
    "translation.bleu": lambda: [
        call(translation.bleu, hypotheses=["a b"], references=[["a c"]])
    ],
    "translation.bpe": lambda: [call(translation.bpe, "merges:0", texts=["a b"], merges=2)],
    "translation.dot_product_attention": lambda: [
        call(
            translation.dot_product_attention,
            "query:larger1 value:larger2 mask:None scale:-1.0 scale:2.5 scale:0",
            query=torch.rand(2, 3, 4),
            key=torch.rand(2, 5, 4),
            value=torch.rand(2, 5, 6),
            mask=torch.ones(2, 5).bool(),
            scale=0.5,
        )
    ],
    "translation.fit_translator": lambda: [
        call(
            translation.fit_translator,
            "epochs:0 max_norm:inf max_norm:2.5 label_smoothing:0 validation:None seed:-1 "
            "seed:0",
            model=(model := translator()),
            optimizer=optimization.SGD(model.parameters(), lr=0.1),
            pairs=[("a", "b")],
            epochs=1,
            batch_size=2,
            max_norm=1.0,
            label_smoothing=0.1,
            validation=[("b", "a")],
            scheduler=None,
            seed=1,
            progress=False,
        )
    ],
    "translation.greedy": lambda: [
        call(
            translation.greedy,
            "source:int32 source:larger?",
            model=translator(),
            source=SENTENCES,
            longest=3,
        )
    ],
    "translation.word_vocabulary": lambda: [
        call(translation.word_vocabulary, texts=["a b"], least=1)
    ],
    "variational_autoencoders.Autoencoder": lambda: [
        call(
            variational_autoencoders.Autoencoder,
            encoder=layers.Linear(3, 2),
            decoder=layers.Linear(2, 3),
        )
    ],
    "variational_autoencoders.Bernoulli": lambda: likelihood(
        variational_autoencoders.Bernoulli(), (X > 0.5).float(), X
    ),
    "variational_autoencoders.DiagonalGaussian": lambda: [
        call(variational_autoencoders.DiagonalGaussian, "least:2.5 least:0", least=0.1),
        *likelihood(variational_autoencoders.DiagonalGaussian(), X, torch.cat([X, X], dim=1)),
    ],
    "variational_autoencoders.Gaussian": lambda: [
        call(variational_autoencoders.Gaussian, "variance:2.5", variance=0.1),
        *likelihood(variational_autoencoders.Gaussian(), X, X),
    ],
    "variational_autoencoders.ProbabilisticPCA": lambda: [
        call(variational_autoencoders.ProbabilisticPCA, n_components=2),
        call(
            variational_autoencoders.ProbabilisticPCA(2).fit,
            "x:dtype x:larger?",
            x=X,
        ),
        call(
            variational_autoencoders.ProbabilisticPCA(2).fit_em,
            "x:dtype x:larger? tol:2.5 tol:0 seed:-1 seed:0",
            x=X,
            max_iter=3,
            tol=0.1,
            seed=1,
        ),
        *[
            call(method, "x:empty x:larger0", x=X)
            for fitted in [variational_autoencoders.ProbabilisticPCA(2).fit(X)]
            for method in (fitted.posterior, fitted.score_samples, fitted.score)
        ],
    ],
    "variational_autoencoders.VAE": lambda: [
        call(
            variational_autoencoders.VAE,
            "likelihood:None",
            encoder=layers.Linear(3, 4),
            decoder=layers.Linear(2, 3),
            likelihood=variational_autoencoders.Gaussian(),
        ),
        call(vae().encode, EXAMPLES, x=X),
        call(vae().decode, CODES, z=X[:, :2]),
        call(vae().sample, CODES, z=X[:, :2]),
        call(vae().terms, ONE_CODE, x=X, q=(X[:, :2], X[:, :2]), noise=X[:, :2]),
        call(
            vae().elbo,
            f"{ONE_CODE} beta:2.5 beta:0",
            x=X,
            q=(X[:, :2], X[:, :2]),
            beta=2.0,
            noise=X[:, :2],
        ),
        call(vae().iwae_bound, EXAMPLES, x=X, samples=3),
        call(
            vae().iwae_bound,
            "x:less q:None noise:None noise:larger0",
            x=X,
            q=(X[:, :2], X[:, :2]),
            noise=torch.rand(3, 5, 2),
        ),
    ],
    "variational_autoencoders.active_units": lambda: [
        call(
            variational_autoencoders.active_units,
            "mean:dtype mean:larger? threshold:2.5 threshold:0",
            mean=X,
            threshold=0.1,
        )
    ],
    "variational_autoencoders.kl_divergence": lambda: [
        call(variational_autoencoders.kl_divergence, mean=X, log_variance=X)
    ],
    "variational_autoencoders.reparameterise": lambda: [
        call(
            variational_autoencoders.reparameterise,
            "noise:None noise:more",
            mean=X,
            log_variance=X,
            noise=X,
        )
    ],
}

# of a VAE: more or fewer of them are as good
EXAMPLES = "x:more x:less x:empty x:larger0"
CODES = "z:more z:less z:empty z:larger0"
ONE_CODE = "x:less q:None noise:None noise:more"


def vae():
    return variational_autoencoders.VAE(
        layers.Linear(3, 4), layers.Linear(2, 3), variational_autoencoders.Gaussian()
    )


def likelihood(module, x, decoded):
    alone = "decoded:more decoded:dtype decoded:less decoded:empty decoded:larger?"
    return [
        call(module.log_prob, "x:less decoded:more", x=x, decoded=decoded),
        call(module.mean, alone, decoded=decoded),
        call(module.sample, alone, decoded=decoded),
    ]


def generative(cls, allow, **options):
    return [
        call(
            lambda **options: cls(**options).fit(X, Y),
            f"{allow} unlabelled_weight:0 max_iter:0 tol:0 tol:2.5",
            **options,
            unlabelled_weight=0.5,
            tol=0.1,
            max_iter=3,
        ),
        call(cls(**options).fit, "X:dtype X:larger1 y:int32", X=X, y=Y),
        call(cls(**options).fit(X, Y).predict_proba, "X:larger0 X:empty", X=X),
    ]


def optimizer(cls, allow="", **options):
    allow += " params:entry0_bool params:entry0_long *:2.5 *:0"
    return [call(cls, allow, params=parameters(), lr=0.1, **options, maximize=True)]


def attention(cls, **sizes):
    return [
        call(cls, query_size=4, memory_size=6, **sizes),
        call(
            cls(4, 6, **sizes),
            "states:larger1 mask:None",
            states=torch.rand(2, 3, 4),
            memory=torch.rand(2, 5, 6),
            mask=torch.ones(2, 5).bool(),
        ),
    ]


def recurrent(cls, states=1, **options):
    state = torch.rand(1, 2, 4)
    return [
        call(
            cls,
            "dropout:0 device:None",
            input_size=3,
            hidden_size=4,
            num_layers=2,
            bias=True,
            batch_first=True,
            dropout=0.5,
            bidirectional=True,
            device="cpu",
            dtype=torch.float32,
            **options,
        ),
        call(
            cls(3, 4),
            "input:larger0 hx:None",
            input=torch.rand(5, 2, 3),
            hx=state if states == 1 else (state, state),
        ),
    ]


def cell(cls, states=1, **options):
    state = torch.rand(2, 4)
    return [
        call(
            cls,
            "device:None",
            input_size=3,
            hidden_size=4,
            bias=True,
            device="cpu",
            dtype=torch.float32,
            **options,
        ),
        call(
            cls(3, 4),
            "hx:None",
            input=torch.rand(2, 3),
            hx=state if states == 1 else (state, state),
        ),
    ]


# what takes no argument, or whatever it is given
ANYTHING = {
    "checks.Unbounded",
    "datasets.BagsOfWords",
    "datasets.Examples",
    "datasets.Pairs",
    "datasets.Recordings",
    "datasets.Speech",
    "datasets.Splits",
    "datasets.Texts",
    "datasets.cache_folder",
    "datasets.digits",
    "datasets.photographs",
    "datasets.recorded_digits",
    "display.Source",
    "exercises.check",  # says in its own way what does not agree: see its tests
    "lstm.pretrained_language_model",
    "plotting.set_style",
    "speech.Batch",
    "training.History",
    "translation.Bleu",
    "translation.pretrained_translator",
}


def test_the_table_has_a_line_for_every_name():
    names = {
        f"{module}.{name}"
        for module in companion.__all__
        for exports in [import_module(f"companion.{module}")]
        for name in exports.__all__
        if callable(getattr(exports, name))
    }
    assert names == TABLE.keys() | ANYTHING


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_ends_in_our_words(name, plain_python, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    (tmp_path / "there.txt").write_text("there")
    bad, _ = bad_endings(TABLE[name])
    plt.close("all")
    assert not bad, "\n".join([name, *bad])
