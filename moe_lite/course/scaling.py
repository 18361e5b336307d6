"""Published scaling laws of mixtures of experts: those whose numbers we have read.

Krajewski et al.'s law is here with its fitted coefficients. Of the others the form was read, or
the abstract, and not the fitted numbers, so they have no curve: a law from memory is none.
"""

from __future__ import annotations

from dataclasses import dataclass

READ = {
    "Krajewski et al. 2024 (arXiv:2402.07871)": "form and Table 1's coefficients read, in a copy",
    "Clark et al. 2022 (arXiv:2202.01169)": "abstract read; bilinear in log N and log E",
    "Ludziejewski et al. 2025 (arXiv:2502.05172)": "abstract and form read, no coefficients",
    "Abnar et al. 2025 (arXiv:2501.12370)": "abstract read, no coefficients",
    "Tian et al. 2025 (arXiv:2507.17702)": "abstract read, granularity 8 to 12 from a summary",
}


@dataclass(frozen=True)
class Law:
    """Hold one fit of loss = c + (g / G**gamma + a) / N**alpha + b / D**beta.

    N parameters without embeddings and D tokens; G the granularity, how many experts a feed-forward
    network was cut into. A dense model has no g. Source: Krajewski et al. 2024, section 5, Table 1.
    """

    a: float
    alpha: float
    b: float
    beta: float
    c: float
    g: float = 0.0
    gamma: float = 0.0

    def loss(self, N: float, D: float, G: float = 1.0) -> float:
        """Return the loss in nats for N parameters, D tokens and granularity G.

        Raises: ValueError if a number is not above 0.
        """
        if min(N, D, G) <= 0:
            raise ValueError(f"parameters, tokens and granularity are above 0, not {N}, {D}, {G}")
        return self.c + (self.g / G**self.gamma + self.a) / N**self.alpha + self.b / D**self.beta


MOE = Law(a=18.1, alpha=0.115, b=30.8, beta=0.147, c=0.47, g=2.1, gamma=0.58)
DENSE = Law(a=16.3, alpha=0.126, b=26.7, beta=0.127, c=0.47)
EXPERTS = 64  # the expansion that the MoE fit was made at: 64 times the feed-forward parameters
