"""The arm obeys physics: energy stays, a pendulum swings as a pendulum, numbers are checked."""

import math

import pytest
import torch
from torch.func import jvp

from moe_lite.course import arm

STATE = [torch.tensor(v).double() for v in ([0.3, 0.5, -0.7, 0.2], [1.0, -2.0, 0.5, 1.0])]


def test_without_torque_no_energy_is_made():
    """The energy's slope along the motion is 0, and with a torque it is the power put in."""
    angle, velocity = STATE
    for torque in (torch.zeros(4).double(), torch.tensor([1.0, -2.0, 3.0, 0.5]).double()):
        accelerated = arm.accelerations(angle, velocity, torque)
        _, power = jvp(arm.energy, (angle, velocity), (velocity, accelerated))
        torch.testing.assert_close(power, torque @ velocity)


def test_a_rigid_arm_swings_as_a_rod(monkeypatch):
    """One rod alone, held at its end, under gravity: 3 g cos(q) / (2 l), if the motor weighs 0."""
    monkeypatch.setattr(arm, "MASSES", (0.0, 2.0, 0.0, 0.0))
    monkeypatch.setattr(arm, "LENGTHS", (0.0, 0.5, 0.0, 0.0))
    monkeypatch.setattr(arm, "ROTOR", 1e-9)
    angle = torch.tensor([0.4, 0.3, 0.0, 0.0]).double()
    found = arm.accelerations(angle, torch.zeros(4).double(), torch.zeros(4).double())
    fall = 1.5 * arm.GRAVITY / 0.5 * math.cos(0.3)  # turning about +y lowers the rod
    torch.testing.assert_close(found[1].item(), fall, rtol=1e-6, atol=0)
    assert abs(found[0]) < 1e-6


def test_the_data_are_standardised_and_repeat():
    one, two = arm.draw(300, 100, seed=3), arm.draw(300, 100, seed=3)
    assert one.x_TD.shape == (300, 12) and one.test_y_TO.shape == (100, 4)
    torch.testing.assert_close(one.y_TO.mean(0), torch.zeros(4).double())
    torch.testing.assert_close(one.x_TD.std(0), torch.ones(12).double())
    assert torch.equal(one.test_x_TD, two.test_x_TD)
    assert not torch.equal(one.x_TD, arm.draw(300, 100, seed=4).x_TD)


def test_relative_error_is_one_for_the_mean_and_zero_for_the_truth():
    data = arm.draw(50, 40)
    truth = data.test_y_TO
    errors = data.relative_error(torch.stack([truth, truth.mean(0).expand_as(truth)]))
    torch.testing.assert_close(errors, torch.tensor([0.0, 1.0]).double())


def test_too_few_states():
    with pytest.raises(ValueError, match="test must be at least 2 states, not 1"):
        arm.draw(10, 1)
