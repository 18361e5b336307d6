"""Who says each claim of :mod:`.claims`, in which words, where, when, and how much of it was read.

Only words that were read are in quotation marks. A saying without a source that could be opened is
a paraphrase, and says so. The rules in :mod:`.claims` are older than this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Read = Literal["text", "abstract", "a copy of the text", "a comment", "secondary source",
               "not read"]  # fmt: skip


@dataclass(frozen=True)
class Saying:
    """Hold one saying: its words, who and where, its date, and what of it was read.

    ``quoted`` words are the source's own; other words are ours for what it says.
    """

    words: str
    who: str
    where: str
    when: str
    read: Read
    quoted: bool = True
    note: str = ""

    def __str__(self) -> str:
        words = f"“{self.words}”" if self.quoted else f"{self.words} (our words)"
        how = "not read" if self.read == "not read" else f"read: {self.read}"
        note = f" {self.note}" if self.note else ""
        return f"{words} {self.who}, {self.where}, {self.when}; {how}.{note}"


HF = ("Sanseviero et al., Hugging Face", "“Mixture of Experts Explained”, huggingface.co/blog/moe",
      "December 2023")  # fmt: skip
ARTICLE = ("An article on mixtures of experts", "not found again", "date not known")


def _article(words: str, note: str = "") -> Saying:
    return Saying(words, *ARTICLE, "secondary source", quoted=False, note=note)


SAYINGS: dict[str, Saying] = {
    "compute": _article(
        "Experts cut the computational overhead by up to 90%.",
        "No such number was found in a paper. The nearest: “over 7x fewer computational "
        "resources”, Tian et al. 2025, abstract (arXiv:2507.17702), which is 86%."),
    "speed": _article(
        "Experts speed up pre-training by up to 400%.",
        "The nearest: “achieve a 4x speedup over the T5-XXL model”, Fedus et al. 2021, abstract "
        "(arXiv:2101.03961); 4 times as fast is 300% faster."),
    "top-2": _article(
        "Top-2 routing cut pre-training times by over 50%.",
        "The table it can be about is Switch's Table 1, read in a copy."),
    "seven": _article("Mixtral uses two of seven experts."),
    "2,048": _article(
        "Switch has 2,048 specialised experts.",
        "The published model of that name is huggingface.co/google/switch-c-2048."),
    "closed": Saying(
        "Dense or small MoE. […] Exact architecture undisclosed.",
        "A gallery of architectures, on GPT-4o", "iamsupersocks.com/llm-architectures.html",
        "March 2026", "text",
        note="Such lists guess. No statement of either vendor was found."),
    "small data": _article("With small data sets a dense model is the better choice."),
    "overfits": Saying(
        "MoEs enable significantly more compute-efficient pretraining, but they’ve historically "
        "struggled to generalize during fine-tuning, leading to overfitting.", *HF, "text"),
    "first token": Saying(
        "In scenarios involving large prompts and batches where computation becomes the limiting "
        "factor, the MoE architecture can be employed to reduce the latency of serving the first "
        "token.", "A training company's blog", "eduinx.in, “Mixture-of-Experts in LLMs”",
        "without a date", "text", note="It does not name the dense model that it compares with."),
    "one GPU": Saying(
        "Only a part of it is active, so it fits on one GPU.", "Questions in forums",
        "answered for example at canitrun.dev/models/mixtral-8x7b: 93.4 GB at 16 bits",
        "without a date",
        "secondary source", quoted=False,
        note="The Hugging Face post says the opposite: “Require high VRAM as all experts are "
        "loaded in memory”."),
    "useless": Saying(
        "I still can't make it better than the baseline dense model. Possibly the nanochat models "
        "are just too small and the overhead is too much.", "karpathy",
        "github.com/karpathy/nanochat/pull/798", "3 July 2026", "a comment",
        note="The same page: better “bpb-per-FLOP”, and it “loses on wall clock”."),
    "softmax": Saying(
        "We apply softmax after top-K selection, not before. If we applied softmax first and then "
        "selected top-K, the gate weights wouldn't sum to 1.0 for the selected experts.",
        "Nano-MoE-JAX, documentation", "carrycooldude.github.io/Nano-MoE-JAX/docs",
        "without a date", "text",
        note="Others teach it the other way round; both say that the order is a choice."),
    "unused": Saying(
        "18.1% of these experts […] were activated less than 0.05% of the time across 150 "
        "calibration prompts. The obvious move: prune them.", "baa.ai",
        "baa.ai/articles/03-expert-pruning-pitfalls.html", "without a date", "text",
        note="The article then tells how that went wrong."),
    "pinned": Saying(
        "Caches the most-frequently-routed experts of CPU-offloaded MoE layers in VRAM.",
        "thecodacus", "github.com/thecodacus/llama.cpp/pull/5", "24 July 2026", "a comment",
        note="Against it: “Static pinning of experts is a dead end”, csantiago78, "
        "ggml-org/llama.cpp pull request 27861, 28 August 2026."),
    "topics": Saying(
        "it's like a team of specialists who take turns based on the topic", "A glossary",
        "trusenta.com.au/gloassary/mixture-of-experts", "without a date", "text"),
    "monosemantic": Saying(
        "experts are neither broad domain specialists (e.g., biology) nor simple token-level "
        "processors. Instead, they function as fine-grained task experts",
        "Herbst, Lee, Wermter", "arXiv:2604.02178", "April 2026", "abstract",
        note="So the paper does not say what our rule tries: that rule is about domains."),
    "committee": Saying(
        "a compact coalition of routed experts that consistently captures the majority of routing "
        "mass across domains, layers, and routing budgets", "Wang et al.", "arXiv:2601.03425",
        "January 2026", "abstract"),
    "noise": Saying("Why do we add noise? That’s for load balancing!", *HF, "text"),
    "balance": Saying(
        "a large auxiliary loss will introduce non-negligible interference gradients into training "
        "and thus impair the model performance", "Wang et al.", "arXiv:2408.15664", "August 2024",
        "abstract", note="Of a large loss; who leaves out “large” makes the claim that is tried."),
    "batch": Saying(
        "the global-batch LBL strategy yields excellent performance gains in both pre-training "
        "perplexity and downstream tasks", "Qiu et al.", "arXiv:2501.11873", "January 2025",
        "abstract"),
    "more": Saying(
        "More experts always help.", "Posts about scaling", "no single source", "2023 to 2026",
        "not read", quoted=False),
    "bfloat16": Saying(
        "Trained in bfloat16 throughout, the sparse model diverges; with the router in float32 it "
        "does not.", "Fedus, Zoph, Shazeer", "arXiv:2101.03961, Table 2", "January 2021",
        "a copy of the text", quoted=False),
    "twice": Saying(
        "our method improves training convergence time by more than 2x", "Zhou et al.",
        "arXiv:2202.09368", "February 2022", "abstract"),
    "bias": Saying(
        "The bias gives better performance and better balance than control by an auxiliary loss.",
        "Wang et al.", "arXiv:2408.15664", "August 2024", "secondary source", quoted=False),
    "fine": Saying(
        "Finer experts and a shared one make a better model at the same arithmetic.", "Dai et al.",
        "arXiv:2401.06066", "January 2024", "a copy of the text", quoted=False),
    "parrots": Saying(
        "the memorization performance consistently increases while the reasoning capabilities "
        "saturate", "Jelassi et al.", "arXiv:2410.19034", "October 2024", "abstract"),
    "twin": Saying(
        "The dense twin is ahead.", "This course",
        "the card of the model that its first edition shipped (2 of 8 experts)", "November 2026",
        "text"),
}  # fmt: skip
