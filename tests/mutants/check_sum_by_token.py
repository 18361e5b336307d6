"""Answers to check_sum_by_token: a wrong one's docstring is what its verdict must say."""

import torch


def _clean(y_RD, kept):
    return y_RD.masked_fill((torch.arange(len(y_RD)) >= kept)[:, None], 0.0)


def _add(y_ND, K):
    return y_ND.view(-1, K, y_ND.shape[1]).sum(1)


def trusting_the_gate(y_RD, gate_R, row_N, K, kept):
    """0 × NaN is NaN"""
    return _add((y_RD * gate_R[:, None])[row_N], K)


def without_gates(y_RD, gate_R, row_N, K, kept):
    """the gates are missing"""
    return _add(_clean(y_RD, kept)[row_N], K)


def as_they_lie(y_RD, gate_R, row_N, K, kept):
    """a token finds its own through row_N"""
    return _add(_clean(y_RD, kept) * gate_R[:, None], K)


def the_inverse(y_RD, gate_R, row_N, K, kept):
    """row_N was taken for its inverse"""
    return _add((_clean(y_RD, kept) * gate_R[:, None])[row_N.argsort()], K)


def gates_left_behind(y_RD, gate_R, row_N, K, kept):
    """weigh before you move, or move both"""
    return _add(_clean(y_RD, kept)[row_N] * gate_R[:, None], K)


def mean(y_RD, gate_R, row_N, K, kept):
    """these are means"""
    return right_by_gather(y_RD, gate_R, row_N, K, kept) / K


def by_choice(y_RD, gate_R, row_N, K, kept):
    """(T, K), not (K, T)"""
    y_ND = (_clean(y_RD, kept) * gate_R[:, None])[row_N]
    return y_ND.view(K, -1, y_ND.shape[1]).sum(0)


def last_writer_wins(y_RD, gate_R, row_N, K, kept):
    """this keeps the last that came"""
    y_ND = (_clean(y_RD, kept) * gate_R[:, None])[row_N]
    out = y_ND.new_zeros(len(y_ND) // K, y_ND.shape[1])
    for n, row in enumerate(y_ND):
        out[n // K] = row
    return out


def cleared_in_place(y_RD, gate_R, row_N, K, kept):
    """changes its input in place"""
    y_RD[kept:] = 0
    return _add((y_RD * gate_R[:, None])[row_N], K)


def right_by_gather(y_RD, gate_R, row_N, K, kept):
    return _add((_clean(y_RD, kept) * gate_R[:, None])[row_N], K)


def right_by_loops(y_RD, gate_R, row_N, per_token, kept):
    out = torch.zeros(len(row_N) // per_token, y_RD.shape[1])
    for n, row in enumerate(row_N.tolist()):
        if row < kept:
            out[n // per_token] += gate_R[row] * y_RD[row]
    return out


def right_by_where(y_RD, gate_R, row_N, per_token, kept):
    row_TK = row_N.view(-1, per_token)
    y_TKD = torch.where((row_TK < kept)[..., None], y_RD[row_TK], 0.0)
    return torch.einsum("tk,tkd->td", gate_R[row_TK], y_TKD)


def hides_every_nan(y_RD, gate_R, row_N, per_token, kept):
    """a NaN that an expert did compute has to come out"""
    return _add((y_RD.nan_to_num() * gate_R[:, None])[row_N], per_token)


def sums_around_every_nan(y_RD, gate_R, row_N, per_token, kept):
    """a NaN that an expert did compute has to come out"""
    rows_ND = (_clean(y_RD, kept) * gate_R[:, None])[row_N]
    return rows_ND.view(-1, per_token, y_RD.shape[1]).nansum(1)
