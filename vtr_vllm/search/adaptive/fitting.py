"""From prompts and scores to predictors, with scikit-learn; every prediction used is of prompts that
the predictor had not seen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold

from vtr_vllm.adaptive import Predictor, Prompt, features
from vtr_vllm.adaptive.features import OF_WORDS, WIDTH
from vtr_vllm.adaptive.predictor import FloatArray
from vtr_vllm.errors import ConfigurationError

Features = Any
"""Sparse [n, WIDTH], a row a prompt."""

_FOLDS = 10
_STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse strengths of the penalty that are tried."""
_RIDGE = 0.3


def matrix(prompts: Sequence[Prompt]) -> Features:
    """The features of prompts."""
    rows = [features(prompt) for prompt in prompts]
    ends = np.cumsum([0, *map(len, rows)])
    places = np.fromiter((place for row in rows for place in row), np.int64, count=ends[-1])
    values = np.fromiter((v for row in rows for v in row.values()), np.float64, count=ends[-1])
    return csr_array((values, places, ends), shape=(len(rows), WIDTH))


def only_words(found: Features) -> Features:
    """The same without what images show."""
    return _masked(found, slice(0, OF_WORDS))


def only_images(found: Features) -> Features:
    """The same without words and their number."""
    return _masked(found, slice(OF_WORDS, WIDTH))


def rough_predictions(
    found: Features, scores: FloatArray, groups: Sequence[int], seed: int
) -> FloatArray:
    """Scores of many schedules at once ``[n, schedules]``, by ridge regression across folds."""
    predicted = np.empty_like(scores)
    for train, test in _folds(groups, seed):
        model = Ridge(alpha=_RIDGE).fit(found[train], scores[train])
        predicted[test] = model.predict(found[test]).reshape(len(test), -1)
    return predicted


def fit(
    found: Features, scores: FloatArray, groups: Sequence[int], seed: int
) -> tuple[Predictor, FloatArray]:
    """A predictor of scores in [0, 1] ``[n, members]``, and what it says across folds, ``[n, members]``.

    The strength of the penalty is that of the least log-loss across folds. Prompts of one group, which
    show the same images, are in one fold. Raises ConfigurationError where all are of one group.
    """
    across = {strength: _across(found, scores, groups, strength, seed) for strength in _STRENGTHS}
    best = min(_STRENGTHS, key=lambda strength: _log_loss(across[strength], scores))
    weights, bias = _regressions(found, scores, best)
    used = np.flatnonzero(np.abs(weights).max(axis=1) > 0)
    return Predictor(tuple(map(int, used)), weights[used], bias), across[best]


def predictions(predictor: Predictor, prompts: Sequence[Prompt]) -> FloatArray:
    """``[n, members]``, as a server makes them."""
    return np.array([predictor.predict(features(prompt)) for prompt in prompts])


def _across(
    found: Features, scores: FloatArray, groups: Sequence[int], strength: float, seed: int
) -> FloatArray:
    predicted = np.empty_like(scores)
    for train, test in _folds(groups, seed):
        weights, bias = _regressions(found[train], scores[train], strength)
        predicted[test] = _sigmoid(found[test] @ weights + bias)
    return predicted


def _regressions(
    found: Features, scores: FloatArray, strength: float
) -> tuple[FloatArray, FloatArray]:
    """Weights ``[WIDTH, members]`` and bias ``[members]``."""
    weights = np.zeros((WIDTH, scores.shape[1]))
    bias = np.empty(scores.shape[1])
    for member, score in enumerate(scores.T):
        if score.min() == score.max():  # nothing to tell apart; as if one more of each were seen
            mean = (score.sum() + 0.5) / (len(score) + 1)
            bias[member] = np.log(mean / (1 - mean))
            continue
        # a score between right and wrong is a part of both
        rows, labels = np.tile(np.arange(len(score)), 2), np.repeat([1, 0], len(score))
        shares = np.concatenate([score, 1 - score])
        some = shares > 0
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(found[rows[some]], labels[some], sample_weight=shares[some])
        weights[:, member], bias[member] = model.coef_[0], model.intercept_[0]
    return weights, bias


def _folds(groups: Sequence[int], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError(
            "all items of a family's data share images; give items of others too, so that what a"
            " predictor says of an image that it has not seen can be told"
        )
    folds = KFold(min(_FOLDS, len(names)), shuffle=True, random_state=seed)
    return [
        (np.flatnonzero(np.isin(members, train)), np.flatnonzero(np.isin(members, test)))
        for train, test in folds.split(names)
    ]


def _log_loss(predicted: FloatArray, scores: FloatArray) -> float:
    sure = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-(scores * np.log(sure) + (1 - scores) * np.log(1 - sure)).mean())


def _sigmoid(logits: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))


def _masked(found: Features, kept: slice) -> Features:
    mask = np.zeros(WIDTH)
    mask[kept] = 1.0
    return csr_array(found.multiply(mask))
