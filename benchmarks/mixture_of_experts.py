"""The sparse layer against the same sum with every expert computed."""

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, forward_backward
from companion.mixture_of_experts import SparseMixtureOfExperts

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """Eight experts of 128 numbers and 512 hidden units, of which one or two are chosen, for a
    thousand tokens.
    """
    g = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(1024, 128, generator=g), torch.randn(1024, 128, generator=g)
    for top_k, aim in [(1, 0.25), (2, 0.4)]:
        torch.manual_seed(0)
        layer = SparseMixtureOfExperts(128, 512, 8, top_k)
        leaves = [*layer.parameters()]
        yield Row(
            (
                f"{top_k} of 8 experts 128 → 512 → 128 chosen, 1,024 tokens, against all 8, "
                "forward and backward"
            ),
            forward_backward(lambda layer=layer: layer(x)[0], leaves, upstream),
            forward_backward(lambda layer=layer: _all_computed(layer, x), leaves, upstream),
            aim=aim,
        )


def _all_computed(layer, x):
    """What the layer says, found by computing every expert for every token."""
    _, chosen, weight = layer.route(x)
    weights = torch.zeros(len(x), len(layer.experts)).scatter(1, chosen, weight)
    said = torch.stack([expert(x) for expert in layer.experts], dim=1)
    return (weights[:, :, None] * said).sum(dim=1)
