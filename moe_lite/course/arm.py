"""A robot arm to learn from: the forward dynamics of four joints in space.

Shoulder (turning about the vertical, then up and down), elbow, wrist; three thin rods between
them. Given angles, velocities and torques, physics says how the joints accelerate: 12 numbers in,
4 out. Jordan and Jacobs learned such an arm in 1994; we do not have
theirs, so this is one of our own, in SI units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd, jvp, vmap

AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0))
LENGTHS = (0.0, 0.35, 0.30, 0.20)  # m; the shoulder's two joints are in one place
MASSES = (0.0, 2.5, 1.5, 0.8)  # kg
ROTOR = 0.05  # kg m², of each motor
GRAVITY = 9.81  # m/s²

# How far the sampled states reach. With these ranges linear regression's relative error is 0.31,
# as it was on the arm of 1994; they were set by that, before anything else was tried.
ANGLE, VELOCITY, TORQUES = 2.0, 4.0, (10.0, 10.0, 5.0, 2.0)  # rad, rad/s, N m


@dataclass(frozen=True, eq=False)
class ArmData:
    """Hold states of the arm, standardised by the training part's mean and deviation.

    Shapes: x_TD (T, 12), four angles, four velocities, four torques; y_TO (T, 4), four
            accelerations; float64.
    """

    x_TD: Tensor
    y_TO: Tensor
    test_x_TD: Tensor
    test_y_TO: Tensor

    def relative_error(self, prediction_TO: Tensor) -> Tensor:
        """Divide the test error by that of always answering the mean; (..., T, O) -> (...).

        1 is a learner that knows nothing, 0 one that knows all.

        Source: Jordan & Jacobs 1994, Table 1.
        """
        error = (self.test_y_TO - prediction_TO).square().sum(dim=(-2, -1))
        return error / (self.test_y_TO - self.test_y_TO.mean(dim=0)).square().sum()


def draw(train: int = 15_000, test: int = 5_000, *, seed: int = 0) -> ArmData:
    """Draw states of the arm, uniform in their ranges, and let physics answer.

    Raises: ValueError if there are fewer than 2 training or test states.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 2:
            raise ValueError(f"{name} must be at least 2 states, not {count}")
    rng = torch.Generator().manual_seed(seed)
    reach = torch.tensor([ANGLE] * 4 + [VELOCITY] * 4 + list(TORQUES), dtype=torch.float64)
    x_TD = reach * (2 * torch.rand(train + test, 12, generator=rng, dtype=torch.float64) - 1)
    y_TO = vmap(accelerations)(*x_TD.split(4, dim=-1))
    x_TD, y_TO = ((v - v[:train].mean(dim=0)) / v[:train].std(dim=0) for v in (x_TD, y_TO))
    return ArmData(x_TD[:train], y_TO[:train], x_TD[train:], y_TO[train:])


def accelerations(angle: Tensor, velocity: Tensor, torque: Tensor) -> Tensor:
    """Solve the arm's equation of motion for the joints' accelerations, in rad/s².

    Newton for every bit of mass, seen from the joints: with J how the bits move when the joints
    turn, the torques must supply J^T m (J a + what the bits accelerate anyway + gravity).

    Args:   angle, velocity, torque: (4,) each, in rad, rad/s and N m.
    Source: the projected Newton-Euler (d'Alembert) form of rigid-body dynamics.
    """
    weight_P = _masses(angle)
    jacobian_P3J = jacfwd(places)(angle)
    anyway_P3 = jvp(lambda q: jvp(places, (q,), (velocity,))[1], (angle,), (velocity,))[1]
    anyway_P3 = anyway_P3 + GRAVITY * torch.eye(3, dtype=angle.dtype)[2]
    inertia_JJ = torch.einsum("p,pci,pcj->ij", weight_P, jacobian_P3J, jacobian_P3J)
    inertia_JJ = inertia_JJ + ROTOR * torch.eye(len(AXES), dtype=angle.dtype)
    needed_J = torch.einsum("p,pcj,pc->j", weight_P, jacobian_P3J, anyway_P3)
    return torch.linalg.solve(inertia_JJ, torque - needed_J)


def places(angle: Tensor) -> Tensor:
    """Return where the arm's mass is: (9, 3), in m, from the shoulder; z is up.

    A uniform thin rod moves exactly as 1/6 of its mass at either end and 2/3 in its middle.
    """
    frame, joint = torch.eye(3, dtype=angle.dtype), torch.zeros(3, dtype=angle.dtype)
    found = []
    for axis, length, j in zip(AXES, LENGTHS, range(4), strict=True):
        frame = frame @ _turn(axis, angle[j])
        rod = length * frame[:, 0]
        if length:
            found += [joint, joint + rod / 2, joint + rod]
        joint = joint + rod
    return torch.stack(found)


def energy(angle: Tensor, velocity: Tensor) -> Tensor:
    """Add up kinetic and potential energy, in J: constant where no torque acts."""
    weight_P, speed_P3 = _masses(angle), jvp(places, (angle,), (velocity,))[1]
    kinetic = (weight_P * speed_P3.square().sum(-1)).sum() + ROTOR * velocity.square().sum()
    return kinetic / 2 + GRAVITY * (weight_P * places(angle)[:, 2]).sum()


def _masses(like: Tensor) -> Tensor:
    shares = [m * share for m in MASSES if m for share in (1 / 6, 2 / 3, 1 / 6)]
    return torch.tensor(shares, dtype=like.dtype)


def _turn(axis: tuple[float, float, float], angle: Tensor) -> Tensor:
    """Rotate about an axis by Rodrigues' formula: (3, 3)."""
    x, y, z = axis
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=angle.dtype)
    eye = torch.eye(3, dtype=angle.dtype)
    return eye + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
