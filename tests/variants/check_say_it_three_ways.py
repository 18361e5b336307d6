"""Unusual right answers to check_say_it_three_ways."""

import torch


def as_a_tensor(slow, fast):
    return torch.tensor([slow / fast, 100 * slow / fast - 100, 100 - 100 * fast / slow]).double()


def as_a_dict(slow, fast):
    times = slow / fast
    return {"times": times, "faster": 100 * (times - 1), "saved": 100 * (1 - 1 / times)}
