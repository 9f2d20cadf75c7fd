"""Naive Bayes and self-training against scikit-learn."""

from collections.abc import Iterator
from functools import partial

import torch
from sklearn.naive_bayes import MultinomialNB as TheirNB
from sklearn.semi_supervised import SelfTrainingClassifier as TheirSelfTraining

from benchmarks.measure import Row
from companion.semi_supervised import MultinomialNB, SelfTrainingClassifier, hide_labels

__all__ = ["rows"]


def rows() -> Iterator[Row]:
    """A thousand texts of a thousand words, all labelled, and with a hundred labels."""
    texts, words, classes = 1000, 1000, 10
    g = torch.Generator().manual_seed(0)
    y = torch.arange(texts) % classes
    rate = torch.rand(classes, words, generator=g, dtype=torch.float64) ** 4
    X = torch.poisson(rate[y] / 10, generator=g)
    few = hide_labels(y, 100)
    yield Row(
        f"Naive Bayes, {texts:,} texts of {words:,} words, fit and predict",
        partial(probabilities, MultinomialNB(tol=0.0, max_iter=0), X, y),
        partial(probabilities, TheirNB(), X.numpy(), y.numpy()),
        aim=None,
    )
    yield Row(
        f"self-training of naive Bayes, {texts:,} texts of {words:,} words, 100 labels",
        partial(probabilities, SelfTrainingClassifier(MultinomialNB(max_iter=0)), X, few),
        partial(probabilities, TheirSelfTraining(TheirNB()), X.numpy(), few.numpy()),
        aim=None,
    )


def probabilities(model, X, y):
    """What a fitted model says of the texts."""
    return torch.as_tensor(model.fit(X, y).predict_proba(X))
