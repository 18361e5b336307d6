"""Answers to check_replicas: a wrong one's docstring is what its verdict must say."""

import heapq

import numpy as np
import torch


def _greedy(load_E, spare, pick):
    copies_E = [1] * len(load_E)
    for _ in range(spare):
        share_E = [load / n for load, n in zip(load_E, copies_E, strict=True)]
        copies_E[share_E.index(pick(share_E))] += 1
    return copies_E


def all_to_the_busiest(load_E, spare):
    """one that has been doubled has half of it left"""
    copies_E = [1] * len(load_E)
    copies_E[load_E.index(max(load_E))] += spare
    return copies_E


def in_order_of_load(load_E, spare):
    """needs more than one copy more"""
    copies_E, ranked = [1] * len(load_E), sorted(range(len(load_E)), key=lambda e: -load_E[e])
    for n in range(spare):
        copies_E[ranked[n % len(load_E)]] += 1
    return copies_E


def in_proportion(load_E, spare):
    """leave an expert that is seldom chosen without a copy"""
    places = len(load_E) + spare
    return [round(places * load / sum(load_E)) for load in load_E]


def without_the_first(load_E, spare):
    """each expert is held once before"""
    return [n - 1 for n in _greedy(load_E, spare, max)]


def evenly(load_E, spare):
    """the loads were not looked at"""
    E = len(load_E)
    return [1 + spare // E + (e < spare % E) for e in range(E)]


def help_the_idle(load_E, spare):
    """the one with the least to do gets help"""
    return _greedy(load_E, spare, min)


def work_of_a_copy(load_E, spare):
    """this is what each copy has to do"""
    return [load / n for load, n in zip(load_E, _greedy(load_E, spare, max), strict=True)]


def one_too_many(load_E, spare):
    """not, one by one, a copy for the expert with the most load per copy"""
    return _greedy(load_E, spare + 1, max)


def right_with_a_heap(load_E, spare):
    heap = [(-load, e, 1) for e, load in enumerate(load_E)]
    heapq.heapify(heap)
    for _ in range(spare):
        _, e, n = heap[0]
        heapq.heapreplace(heap, (-load_E[e] / (n + 1), e, n + 1))
    return [n for _, _, n in sorted(heap, key=lambda entry: entry[1])]


def right_by_arrays(load_E, spare):
    copies_E = np.ones(len(load_E), dtype=int)
    for _ in range(spare):
        copies_E[np.argmax(np.array(load_E) / copies_E)] += 1
    return copies_E.tolist()


def right_by_tensors(load_E, spare):
    load, copies_E = torch.tensor(load_E), torch.ones(len(load_E), dtype=torch.long)
    for _ in range(spare):
        copies_E[(load / copies_E).argmax()] += 1
    return copies_E.tolist()
