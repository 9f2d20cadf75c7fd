"""The companion package of the textbook *Deep Learning and Neural Networks*.

One module for each chapter that builds something, and a ground floor of data sets, training
loop, figures, and checks of arguments.
"""

from companion import (
    activations,
    backpropagation,
    checks,
    convolution,
    datasets,
    display,
    exercises,
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

__all__ = [
    "activations",
    "backpropagation",
    "checks",
    "convolution",
    "datasets",
    "display",
    "exercises",
    "expectation_maximization",
    "language_models",
    "layers",
    "lstm",
    "mixture_of_experts",
    "optimization",
    "plotting",
    "recurrence",
    "semi_supervised",
    "speech",
    "training",
    "translation",
    "variational_autoencoders",
]
__version__ = "0.1.0"
