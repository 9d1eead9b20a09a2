"""Ridge regression in closed form from additive moments, so that leaving a trajectory out is a subtraction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

PENALTIES = tuple(10.0**power for power in range(-6, 3))


@dataclass(frozen=True)
class Ridge:
    """The affine map x -> x weight + bias; weight (X, Y), bias (Y,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Moments:
    """Count, sums and products of inputs x (N, X) and targets y (N, Y), in float64; they add over batches.

    joint: the Gram matrix of [1, x, y], from which an affine map is fitted and its error computed; inputs: X.
    """

    joint: np.ndarray
    inputs: int

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "Moments":
        """Moments of one batch."""
        return cls.over([(x, y)], "cpu")

    @classmethod
    def over(cls, blocks: Iterable[tuple], device: torch.device | str) -> "Moments":
        """Moments of all blocks (x (N, X), y (N, Y)), summed on `device`."""
        joint = 0
        for x, y in blocks:
            x, y = (torch.as_tensor(part, device=device, dtype=torch.float64) for part in (x, y))
            rows = torch.cat([torch.ones_like(x[:, :1]), x, y], 1)
            joint = joint + rows.T @ rows
        return cls(joint.cpu().numpy(), x.shape[1])

    def __add__(self, other):
        return Moments(self.joint + other.joint, self.inputs)

    def __sub__(self, other):
        return Moments(self.joint - other.joint, self.inputs)

    def __radd__(self, zero):  # so that sum() works
        return self if zero == 0 else NotImplemented

    @property
    def variance(self) -> np.ndarray:
        """Variance of every target, (Y,): the error of the best constant. 0 where it is within rounding."""
        variance, rounding = self._spread()
        return np.where(variance > rounding, variance, 0)[1 + self.inputs:]

    def _spread(self):
        """Variance of each column of the Gram matrix, and what of it may be rounding."""
        squares, mean = self.joint.diagonal() / self.joint[0, 0], self.joint[0] / self.joint[0, 0]
        return squares - mean**2, 1e-12 * np.maximum(squares, 1)

    def fit(self, penalty: float) -> Ridge:
        """The map that minimises mean |x weight + bias - y|^2 + penalty |S weight|^2.

        S are the inputs' standard deviations, so scaling an input changes nothing; the bias is not penalised.
        """
        mean = self.joint[0] / self.joint[0, 0]
        covariance = self.joint / self.joint[0, 0] - np.outer(mean, mean)
        x, y = slice(1, 1 + self.inputs), slice(1 + self.inputs, None)
        deviation = np.sqrt(np.maximum(*self._spread())[x])
        correlation = covariance[x, x] / np.outer(deviation, deviation)
        solution = np.linalg.solve(correlation + penalty * np.eye(self.inputs), covariance[x, y] / deviation[:, None])
        weight = solution / deviation[:, None]
        return Ridge(weight, mean[y] - mean[x] @ weight)

    def mse(self, ridge: Ridge) -> np.ndarray:
        """Mean squared error of an affine map on these data, (Y,)."""
        residual = np.concatenate([ridge.bias[None], ridge.weight, -np.eye(ridge.weight.shape[1])])
        return np.einsum("iy,ij,jy->y", residual, self.joint, residual) / self.joint[0, 0]


def best_ridge(groups: Sequence[Moments], penalties: Sequence[float] = PENALTIES) -> tuple[float, np.ndarray]:
    """The penalty with the lowest error in leave-one-group-out cross-validation, and that error by group (groups, Y).

    groups: one for each trajectory.
    """
    total = sum(groups)
    errors = {p: np.stack([group.mse((total - group).fit(p)) for group in groups]) for p in penalties}
    penalty = min(errors, key=lambda p: errors[p].mean())
    return penalty, errors[penalty]
