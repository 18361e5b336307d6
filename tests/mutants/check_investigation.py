"""Answers to check_investigation: a wrong one's docstring is what its verdict must say."""

import numpy as np
import torch


def _repeated(expert_T, length):
    text_BS = expert_T.view(-1, length)
    return (text_BS[:, 1:] == text_BS[:, :-1]).double().mean().item()


def _shuffled(expert_T, length, seed):
    rng = torch.Generator().manual_seed(seed)
    texts = expert_T.view(-1, length)
    return torch.cat([text[torch.randperm(length, generator=rng)] for text in texts])


def right(expert_TK, ids_T, domain_T, length):
    first_T = expert_TK[:, 0]
    observed = _repeated(first_T, length)
    null = [_repeated(_shuffled(first_T, length, seed), length) for seed in range(39)]
    holds = observed > max(null)
    return {
        "claim": "Neighbouring tokens are sent to the same expert more often than chance.",
        "source": "Jiang et al. 2024, section 5, Table 5",
        "falsified_if": "the share of repeats is not above that of the same texts, shuffled",
        "measure": "share of neighbours with the same first choice",
        "null_is": "the experts of each text in random order",
        "observed": observed,
        "null": null,
        "holds": holds,
        "verdict": f"{observed:.1%} against at most {max(null):.1%}: {holds}",
    }


def right_with_tensors(expert_TK, ids_T, domain_T, length):
    """Asks about topics, and hands over tensors."""

    def bits(label_T):
        count = torch.zeros(8, 8).index_put_(
            (label_T, expert_TK[:, 0]), torch.ones(len(label_T)), accumulate=True
        )
        p = count.double() / count.sum()
        q = p.sum(0) * p.sum(1, keepdim=True)
        return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()

    rng = torch.Generator().manual_seed(0)
    texts = domain_T.view(-1, length)
    null = torch.stack([bits(texts[torch.randperm(len(texts), generator=rng)].flatten())
                        for _ in range(99)])  # fmt: skip
    observed = bits(domain_T)
    p = (1 + int((null >= observed).sum())) / 100
    return {
        "claim": "There is no obvious pattern in the assignment of experts by topic.",
        "source": "Jiang et al. 2024, section 5",
        "falsified_if": "experts tell more about the domain than about shuffled texts' domains",
        "measure": "mutual information of first choice and domain",
        "null_is": "domains dealt out to other texts",
        "observed": observed,
        "null": null,
        "holds": p <= 0.01,
        "verdict": f"p = {p:.2f}",
    }


def no_field(expert_TK, ids_T, domain_T, length):
    """lacks the field 'falsified_if'"""
    return {k: v for k, v in right(expert_TK, ids_T, domain_T, length).items()
            if k != "falsified_if"}  # fmt: skip


def not_filled(expert_TK, ids_T, domain_T, length):
    """the field 'verdict' is not filled in"""
    return right(expert_TK, ids_T, domain_T, length) | {"verdict": "..."}


def cannot_be_false(expert_TK, ids_T, domain_T, length):
    """repeats the claim"""
    found = right(expert_TK, ids_T, domain_T, length)
    return found | {"falsified_if": found["claim"]}


def no_null(expert_TK, ids_T, domain_T, length):
    """at least 19 numbers"""
    return right(expert_TK, ids_T, domain_T, length) | {"null": [0.125]}


def formula(expert_TK, ids_T, domain_T, length):
    """that is a formula's chance"""
    found = right(expert_TK, ids_T, domain_T, length)
    return found | {"null": [0.125] * 30, "holds": found["observed"] > 0.125}


def already_known(expert_TK, ids_T, domain_T, length):
    """the verdict does not follow from the numbers"""
    return right(expert_TK, ids_T, domain_T, length) | {"holds": True}


def wrong_null(expert_TK, ids_T, domain_T, length):
    """of 12 routings dealt at random the claim holds as well; the null is not what"""
    found = right(expert_TK, ids_T, domain_T, length)
    null = [0.5 * value for value in found["null"]]
    return found | {"null": null, "holds": found["observed"] > max(null)}


def copied_number(expert_TK, ids_T, domain_T, length):
    """measure the routing that is handed in"""
    return right(expert_TK, ids_T, domain_T, length) | {"observed": 0.01, "holds": False}


def said_in_words(expert_TK, ids_T, domain_T, length):
    """'holds' must be True or False"""
    return right(expert_TK, ids_T, domain_T, length) | {"holds": "yes"}


def right_with_an_array(expert_TK, ids_T, domain_T, length):
    found = right(expert_TK, ids_T, domain_T, length)
    holds = torch.tensor(found["holds"])
    return found | {"null": np.array([float(x) for x in found["null"]]), "holds": holds}


def not_a_template(expert_TK, ids_T, domain_T, length):
    """return the template, a dict"""
    return 0.3


def nice(expert_TK, ids_T, domain_T, length):
    """the claim never holds, whatever is planted"""
    words = dict.fromkeys(
        ("claim", "source", "measure", "null_is", "verdict"), "Experts are nice, 3 of 3."
    )
    rng = torch.Generator().manual_seed(int(expert_TK.sum()))
    null = torch.rand(20, generator=rng)
    observed = (null.max() * 0.99).item()
    return words | {"falsified_if": "never", "observed": observed, "null": null, "holds": False}


def random_numbers_for_a_null(expert_TK, ids_T, domain_T, length):
    """the null is not this routing's"""
    found = right(expert_TK, ids_T, domain_T, length)
    null = 0.4 + 0.1 * torch.rand(20, generator=torch.Generator().manual_seed(0))
    return found | {"null": null, "holds": found["observed"] > null.max()}


def a_null_of_another_routing(expert_TK, ids_T, domain_T, length):
    """the null is not this routing's"""
    found = right(expert_TK, ids_T, domain_T, length)
    other = torch.randint(8, (600,), generator=torch.Generator().manual_seed(0))
    null = [_repeated(_shuffled(other, 50, seed), 50) for seed in range(39)]
    return found | {"null": null, "holds": found["observed"] > max(null) + 0.2}
