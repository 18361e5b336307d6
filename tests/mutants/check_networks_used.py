"""Answers to check_networks_used: a wrong one's docstring is a phrase of its verdict."""

import torch


def _met(trace, tokens):
    return [
        (layer, e)
        for layer, r in enumerate(trace.layers)
        for t in tokens
        for e in r.expert_N[r.token_N == t].tolist()
    ]


def every_pair(trace, tokens):
    """a network that two tokens share is counted twice"""
    return len(_met(trace, tokens))


def forgets_the_layer(trace, tokens):
    """are two networks"""
    return len({e for _, e in _met(trace, tokens)})


def all_of_them(trace, tokens):
    """every expert of every layer is counted"""
    return sum(r.num_experts for r in trace.layers)


def last_layer(trace, tokens):
    """this is the last layer alone"""
    end = len(trace.layers) - 1
    return len({e for layer, e in _met(trace, tokens) if layer == end})


def first_choices(trace, tokens):
    """only first choices are counted"""
    return len(
        {
            (layer, r.expert_N[r.token_N == t][0].item())
            for layer, r in enumerate(trace.layers)
            for t in tokens
        }
    )


def right_by_set(trace, tokens):
    return len(set(_met(trace, tokens)))


def right_by_layer(trace, tokens):
    wanted = torch.tensor(list(tokens))
    return sum(len(r.expert_N[torch.isin(r.token_N, wanted)].unique()) for r in trace.layers)
