"""Check exercises: take the learner's function, name the misconception, accept what is right.

A check compares behaviour, never text. Beside the right answer it computes what each common
mistake would give on the same numbers: an answer equal to one of those is told which mistake
it is, any other sees its numbers beside the expected ones. The first numbers can be done by
hand; random ones follow. An unfilled exercise raises NotImplementedError, and every check
lets that through.

One module for each chapter; ``verdict`` is what they share.
"""

from .balancing import (
    check_balance_loss,
    check_below_one,
    check_diagnose,
    check_masked_balance,
    check_over_batches,
    check_push,
)
from .beyond_one_machine import (
    check_decode_bytes,
    check_distinct_experts,
    check_quantize,
    check_rank_weights,
    check_round_trip,
    check_traffic,
)
from .capacity import (
    check_counted_before,
    check_dropped_token,
    check_first_choices,
    check_looks_ahead,
    check_places,
    check_rank,
)
from .competing_experts import (
    check_gradients,
    check_mixture_error,
    check_product,
    check_responsibilities,
    check_working_experts,
)
from .dispatch_paths import (
    check_block_counts,
    check_expert_blocks,
    check_offsets,
    check_stable_rows,
    check_sum_by_token,
    check_tile_schedule,
)
from .expert_choice import (
    check_causal_groups,
    check_combine,
    check_expert_choice,
    check_experts_per_token,
    check_reads_future,
)
from .fine_grained import (
    check_balanced_step,
    check_biased_choice,
    check_disable_top,
    check_split_experts,
    check_violations,
)
from .hierarchies import (
    check_constrain,
    check_fit_expert,
    check_fit_gate,
    check_leaf_priors,
    check_m_step,
    check_posteriors,
)
from .one_token import (
    check_environment,
    check_first_expert,
    check_load,
    check_networks_used,
    check_path,
)
from .small_mixtral import (
    check_balance_is_used,
    check_global_bug,
    check_moe_layer,
    check_orders_agree,
    check_parameter_count,
    check_softmax_order,
    check_top_k,
)
from .sparsely_gated import (
    check_load_anywhere,
    check_noisy_scores,
    check_prob_in_top_k,
    check_sparse_gates,
    check_top1_gate,
)
from .stability import (
    check_first_weights,
    check_selective_logits,
    check_spacing,
    check_z_gradient,
    check_z_loss,
)
from .verdict import CheckFailed
from .what_experts_learn import (
    check_information,
    check_investigation,
    check_repetition,
    check_saturation,
    check_shuffle_texts,
    check_shuffle_within_words,
    check_what_explains,
)

__all__ = [
    "CheckFailed",
    "check_balance_is_used",
    "check_balance_loss",
    "check_balanced_step",
    "check_below_one",
    "check_biased_choice",
    "check_block_counts",
    "check_causal_groups",
    "check_combine",
    "check_constrain",
    "check_counted_before",
    "check_decode_bytes",
    "check_diagnose",
    "check_disable_top",
    "check_distinct_experts",
    "check_dropped_token",
    "check_environment",
    "check_expert_blocks",
    "check_expert_choice",
    "check_experts_per_token",
    "check_first_choices",
    "check_first_expert",
    "check_first_weights",
    "check_fit_expert",
    "check_fit_gate",
    "check_global_bug",
    "check_gradients",
    "check_information",
    "check_investigation",
    "check_leaf_priors",
    "check_load",
    "check_load_anywhere",
    "check_looks_ahead",
    "check_m_step",
    "check_masked_balance",
    "check_mixture_error",
    "check_moe_layer",
    "check_networks_used",
    "check_noisy_scores",
    "check_offsets",
    "check_orders_agree",
    "check_over_batches",
    "check_parameter_count",
    "check_path",
    "check_places",
    "check_posteriors",
    "check_prob_in_top_k",
    "check_product",
    "check_push",
    "check_quantize",
    "check_rank",
    "check_rank_weights",
    "check_reads_future",
    "check_repetition",
    "check_responsibilities",
    "check_round_trip",
    "check_saturation",
    "check_selective_logits",
    "check_shuffle_texts",
    "check_shuffle_within_words",
    "check_softmax_order",
    "check_spacing",
    "check_sparse_gates",
    "check_split_experts",
    "check_stable_rows",
    "check_sum_by_token",
    "check_tile_schedule",
    "check_top1_gate",
    "check_top_k",
    "check_traffic",
    "check_violations",
    "check_what_explains",
    "check_working_experts",
    "check_z_gradient",
    "check_z_loss",
]
