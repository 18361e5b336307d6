"""Answers to check_decode_bytes: a wrong one's docstring is what its verdict must say."""

from moe_lite.course.cost import count_parameters, distinct_experts


def _table(config, count):
    return 0 if config.tie_word_embeddings else count.embedding


def _common(config, count):
    return count.total - count.experts - _table(config, count)


def active(config, batch):
    """a batch needs more experts than one token does"""
    count = count_parameters(config)
    return 2 * (count.active - _table(config, count))


def everything(config, batch):
    """a small batch leaves experts unread"""
    count = count_parameters(config)
    return 2 * (count.total - _table(config, count))


def once_for_each_text(config, batch):
    """the weights are read once for the whole batch"""
    return batch * active(config, batch)


def whole_embedding(config, batch):
    """of the embedding a row per token is read"""
    return right(config, batch) + 2 * count_parameters(config).embedding


def one_byte(config, batch):
    """two bytes for each bf16 number"""
    return right(config, batch) / 2


def float32(config, batch):
    """that is float32"""
    return right(config, batch) * 2


def experts_only(config, batch):
    """attention, routers, norms and output are read as well"""
    count, E = count_parameters(config), config.num_local_experts
    return 2 * count.experts * distinct_experts(E, config.num_experts_per_tok, batch) / E


def right(config, batch):
    count, E = count_parameters(config), config.num_local_experts
    share = distinct_experts(E, config.num_experts_per_tok, batch) / E
    return 2 * (_common(config, count) + share * count.experts)


def right_from_the_sizes(config, batch):
    D, L, E = config.hidden_size, config.num_hidden_layers, config.num_local_experts
    spared = (1 - config.num_experts_per_tok / E) ** batch
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = 2 * D * heads * config.head_dim + E * D + 2 * D
    layer += E * (1 - spared) * 3 * D * config.intermediate_size
    return 2 * (L * layer + D + config.vocab_size * D)


def never_the_same_expert(config, batch):
    """texts agree on experts by chance"""
    count, E, K = count_parameters(config), config.num_local_experts, config.num_experts_per_tok
    return 2 * (_common(config, count) + min(1, K * batch / E) * count.experts)


def twice_the_active_ones(config, batch):
    """a batch needs more experts than one token does"""
    return 2 * count_parameters(config).active
