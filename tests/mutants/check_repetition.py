"""Answers to check_repetition: a wrong one's docstring is what its verdict must say.

Also true of across_texts: across_by_tokens, viewed_across.
Also true of one_pair_too_many: across_by_tokens.
Also true of across_by_tokens: across_texts, one_pair_too_many, viewed_across.
Also true of viewed_across: across_texts, across_by_tokens.
"""


def across_texts(expert_T, length):
    """are no neighbours"""
    return (expert_T[1:] == expert_T[:-1]).float().mean().item()


def one_pair_too_many(expert_T, length):
    """has S - 1 pairs"""
    text_BS = expert_T.view(-1, length)
    return (text_BS[:, 1:] == text_BS[:, :-1]).float().sum().item() / len(expert_T)


def across_by_tokens(expert_T, length):
    """T tokens in B texts have T - B pairs"""
    return (expert_T[1:] == expert_T[:-1]).float().sum().item() / len(expert_T)


def changes(expert_T, length):
    """how often the expert changes"""
    return 1 - right(expert_T, length)


def down(expert_T, length):
    """the same place of neighbouring texts"""
    text_BS = expert_T.view(-1, length)
    return (text_BS[1:] == text_BS[:-1]).float().mean().item()


def above_chance(expert_T, length):
    """chance is for later"""
    return right(expert_T, length) - 1 / (1 + expert_T.max().item())


def two_later(expert_T, length):
    """the one after the next"""
    text_BS = expert_T.view(-1, length)
    return (text_BS[:, 2:] == text_BS[:, :-2]).float().mean().item()


def counted(expert_T, length):
    """that is a count"""
    text_BS = expert_T.view(-1, length)
    return (text_BS[:, 1:] == text_BS[:, :-1]).sum()


def viewed_across(expert_T, length):
    """view the experts as (texts, length)"""
    text_BS = expert_T.view(length, -1)
    return (text_BS[:, 1:] == text_BS[:, :-1]).float().mean().item()


def right(expert_T, length):
    text_BS = expert_T.view(-1, length)
    return (text_BS[:, 1:] == text_BS[:, :-1]).float().mean().item()


def right_by_loop(expert_T, length):
    experts, same, pairs = expert_T.tolist(), 0, 0
    for t in range(1, len(experts)):
        if t % length:
            same += experts[t] == experts[t - 1]
            pairs += 1
    return same / pairs


def right_by_mask(expert_T, length):
    inside = expert_T.new_tensor([t % length > 0 for t in range(1, len(expert_T))]).bool()
    return (expert_T[1:] == expert_T[:-1])[inside].double().mean()
