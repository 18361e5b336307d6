"""Answers to check_parameter_count: each wrong one says in its docstring what it must be told."""


def _count(c, *, kv_heads=None, head_dim=None, matrices=3, norms=None, routers=None, head=None):
    """Count (shared, one expert of every layer), with one thing counted otherwise."""
    D, L = c.hidden_size, c.num_hidden_layers
    width = (head_dim or c.head_dim) * D
    attention = 2 * width * (c.num_attention_heads + (kv_heads or c.num_key_value_heads))
    shared = L * attention + c.vocab_size * D
    shared += L * c.num_local_experts * D if routers is None else routers
    shared += (2 * L + 1) * D if norms is None else norms
    shared += (0 if c.tie_word_embeddings else c.vocab_size * D) if head is None else head
    return shared, L * matrices * D * c.intermediate_size


def _both(c, **otherwise):
    shared, expert = _count(c, **otherwise)
    return shared + c.num_local_experts * expert, shared + c.num_experts_per_tok * expert


def eight_times_seven(c):
    """attention and embeddings are shared"""
    shared, expert = _count(c, routers=0)
    return c.num_local_experts * (shared + expert), c.num_experts_per_tok * (shared + expert)


def eight_blocks(c):
    """attention and embeddings are shared"""
    total, active = _both(c)
    attention = c.num_hidden_layers * 2 * c.hidden_size * c.head_dim
    attention *= c.num_attention_heads + c.num_key_value_heads
    return total + (c.num_local_experts - 1) * attention, active


def no_routers(c):
    """the routers are missing"""
    return _both(c, routers=0)


def no_norms(c):
    """the norms are missing"""
    return _both(c, norms=0)


def no_last_norm(c):
    """the last norm is missing"""
    return _both(c, norms=2 * c.num_hidden_layers * c.hidden_size)


def keys_like_queries(c):
    """they have num_key_value_heads"""
    return _both(c, kv_heads=c.num_attention_heads)


def two_matrices(c):
    """each expert has three matrices"""
    return _both(c, matrices=2)


def one_expert_each(c):
    """each layer has num_local_experts experts"""
    shared, expert = _count(c)
    return shared + expert, shared + expert


def width_over_heads(c):
    """config.head_dim may differ"""
    return _both(c, head_dim=c.hidden_size // c.num_attention_heads)


def no_head(c):
    """the output head is missing"""
    return _both(c, head=0)


def tied_counted_twice(c):
    """tied embeddings are one matrix"""
    return _both(c, head=c.vocab_size * c.hidden_size)


def all_active(c):
    """every expert is counted as active"""
    total, _ = _both(c)
    return total, total


def one_active(c):
    """one expert is counted as active"""
    shared, expert = _count(c)
    return shared + c.num_local_experts * expert, shared + expert


def a_share_of_everything(c):
    """that is K/E of everything"""
    total, _ = _both(c)
    return total, total * c.num_experts_per_tok // c.num_local_experts


def routers_idle(c):
    """the routers are missing from the active ones"""
    return _both(c)[0], _both(c, routers=0)[1]


def two_rows_of_each_router(c):
    """only K rows of each router are counted"""
    rows = c.num_hidden_layers * c.num_experts_per_tok * c.hidden_size
    return _both(c)[0], _both(c, routers=rows)[1]


def no_input_embedding(c):
    """the input embedding is missing from the active ones"""
    total, active = _both(c)
    return total, active - c.vocab_size * c.hidden_size


def off_by_a_bias(c):
    """off by +3"""
    total, active = _both(c)
    return total + c.num_local_experts, active


def total_only(c):
    """return two numbers: total, active"""
    return _both(c)[0]


def right_part_by_part(c):
    return _both(c)


def right_from_shapes(c):
    D, A, E = c.hidden_size, c.head_dim, c.num_local_experts
    H, H_kv, F = c.num_attention_heads, c.num_key_value_heads, c.intermediate_size
    layer = [(D, H * A), (D, H_kv * A), (D, H_kv * A), (H * A, D), (E, D), (D, 1), (D, 1)]
    layer += [(F, D), (F, D), (D, F)] * E
    whole = layer * c.num_hidden_layers + [(c.vocab_size, D), (D, 1)]
    if not c.tie_word_embeddings:
        whole += [(D, c.vocab_size)]
    total = sum(rows * columns for rows, columns in whole)
    return total, total - c.num_hidden_layers * (E - c.num_experts_per_tok) * 3 * D * F
