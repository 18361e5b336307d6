"""Unusual right answers to check_parameter_count; a docstring is a phrase of what is said."""

import numpy as np
import torch

from moe_lite.course.cost import count_parameters


def as_integers_of_numpy(config):
    count = count_parameters(config)
    return np.array([count.total, count.active])


def as_list_of_tensors(config):
    count = count_parameters(config)
    return [torch.tensor(count.total), torch.tensor([count.active])]
