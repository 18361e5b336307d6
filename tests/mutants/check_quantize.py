"""Answers to check_quantize: a wrong one's docstring is what its verdict must say.

Also true of one_scale: four_bits, columns, largest_signed.
Also true of truncated: largest_signed.
Also true of wraps_around: four_bits, largest_signed.
Also true of four_bits: largest_signed.
Also true of columns: one_scale, four_bits, largest_signed.
"""

import torch


def one_scale(w):
    """one scale for the whole matrix"""
    scale = w.abs().max().view(1, 1) / 127
    return (w / scale).round().to(torch.int8), scale


def truncated(w):
    """cut off towards zero instead of rounded"""
    scale = (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return (w / scale).to(torch.int8), scale


def wraps_around(w):
    """int8 ends at 127"""
    scale = (w.abs().amax(1, keepdim=True) / 128).clamp(min=1e-12)
    return (w / scale).round().to(torch.int16).to(torch.int8), scale


def zero_row(w):
    """a row of zeros was divided by its largest value"""
    scale = w.abs().amax(1, keepdim=True) / 127
    return (w / scale).nan_to_num().round().to(torch.int8), scale / scale.sign()


def four_bits(w):
    """not the whole range of int8"""
    scale = (w.abs().amax(1, keepdim=True) / 7).clamp(min=1e-12)
    return (w / scale).round().to(torch.int8), scale


def still_float(w):
    """q has to be int8"""
    scale = (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return (w / scale).round(), scale


def columns(w):
    """return a tensor of shape (2, 1)"""
    scale = (w.abs().amax(0, keepdim=True) / 127).clamp(min=1e-12)
    return (w / scale).round().to(torch.int8), scale


def largest_signed(w):
    """steps away from w"""
    scale = (w.amax(1, keepdim=True) / 127).abs().clamp(min=1e-12)
    return (w / scale).round().clamp(-128, 127).to(torch.int8), scale


def right_by_row(w):
    scale = (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return (w / scale).round().to(torch.int8), scale


def right_with_a_loop(w):
    q, scale = torch.zeros(w.shape, dtype=torch.int8), torch.ones(len(w), 1)
    for i, row in enumerate(w):
        if row.any():
            scale[i] = row.abs().max() / 127
            q[i] = torch.round(row / scale[i]).clamp(-127, 127).to(torch.int8)
    return q, scale
