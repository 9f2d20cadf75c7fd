"""Attention against PyTorch's, and BLEU against sacrebleu's."""

import random
from collections.abc import Iterator

import sacrebleu
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import Row, forward_backward
from companion.translation import bleu, dot_product_attention

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """32 queries on 32 keys of 128 numbers, with padding; a thousand short texts."""
    g = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(32, 32, 128, generator=g) for _ in range(4))
    lengths = torch.randint(8, 33, (32, 1), generator=g)
    mask = torch.arange(32) < lengths
    leaves = [x.requires_grad_() for x in (q, k, v)]
    yield Row(
        "attention, batch 32, 32 × 32, 128, with a mask, forward and backward",
        forward_backward(
            lambda: dot_product_attention(q, k, v, mask, 128**-0.5)[0], leaves, upstream
        ),
        forward_backward(
            # with a dimension for heads, for which it has its fast kernel
            lambda: scaled_dot_product_attention(
                *(x[:, None] for x in (q, k, v, mask[:, None]))
            )[:, 0],
            leaves,
            upstream,
        ),
        aim=1.5,
    )
    draws = random.Random(0)
    texts = [
        [" ".join(draws.choices("abcdefghij", k=draws.randint(3, 20))) for _ in range(1000)]
        for _ in range(2)
    ]
    yield Row(
        "BLEU of 1,000 texts of 3 to 20 tokens",
        lambda: torch.tensor(bleu(texts[0], texts[1:]).score),
        lambda: torch.tensor(
            sacrebleu.corpus_bleu(
                texts[0], texts[1:], tokenize="none", smooth_method="none", force=True
            ).score
        ),
        aim=2.0,
        threads=(1,),
    )
