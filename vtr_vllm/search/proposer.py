"""Bayesian optimisation: scikit-optimize's Gaussian process behind ask and tell."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from skopt import Optimizer
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern
from skopt.space import Real
from threadpoolctl import threadpool_limits

Point = tuple[float, ...]

_INITIAL = 8


@dataclass(frozen=True)
class Dimension:
    """A parameter to search: its name and bounds; ``log`` searches its logarithm."""

    name: str
    low: float
    high: float
    log: bool = False


class Proposer:
    """Proposes points that may have a higher value than any seen; the same for the same history.

    ``first`` points are proposed before all others, then quasi-random ones up to eight points
    in all, then those of greatest expected improvement.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, first: Sequence[Point] = ()
    ) -> None:
        self._dimensions = tuple(dimensions)
        self._first = [self._clip(point) for point in first]
        space = [
            Real(d.low, d.high, prior="log-uniform" if d.log else "uniform", name=d.name)
            for d in dimensions
        ]
        with _quiet():
            self._optimizer = Optimizer(
                space,
                base_estimator=_gaussian_process(len(dimensions), seed),
                # counts what is told, the first ones too
                n_initial_points=max(_INITIAL, len(self._first)),
                initial_point_generator="sobol",
                acq_func="EI",
                acq_optimizer="sampling",
                random_state=seed,
            )

    def ask(self, count: int) -> list[Point]:
        """``count`` points to evaluate together, a constant liar standing in for their values."""
        asked, self._first = self._first[:count], self._first[count:]
        if len(asked) < count:
            with _quiet():
                points = self._optimizer.ask(n_points=count - len(asked), strategy="cl_min")
            asked += [tuple(float(x) for x in point) for point in points]
        return asked

    def tell(self, points: Sequence[Point], values: Sequence[float]) -> None:
        """Report what points were worth; larger is better."""
        with _quiet():
            self._optimizer.tell([list(point) for point in points], [-value for value in values])

    def named(self, point: Point) -> Mapping[str, float]:
        """The point's coordinates by parameter name."""
        return {d.name: x for d, x in zip(self._dimensions, point, strict=True)}

    def _clip(self, point: Point) -> Point:
        return tuple(
            min(max(x, d.low), d.high) for d, x in zip(self._dimensions, point, strict=True)
        )


def _gaussian_process(dimensions: int, seed: int) -> GaussianProcessRegressor:
    """The library's own choice (Matern 5/2, noise fitted), fitted from one start: four points asked
    together refit it four times, and the restarts would take longer than the engine."""
    kernel = ConstantKernel(1.0, (0.01, 1000.0)) * Matern(
        length_scale=[1.0] * dimensions, length_scale_bounds=[(0.01, 100.0)] * dimensions, nu=2.5
    )
    return GaussianProcessRegressor(
        kernel=kernel, normalize_y=True, noise="gaussian", n_restarts_optimizer=0, random_state=seed
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, since the engines have the others. And no warnings: a point proposed twice is
    answered from the journal, a length scale at its bound is a parameter without effect, and the
    first points need not be a power of two."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
