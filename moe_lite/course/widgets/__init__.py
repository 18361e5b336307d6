"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .balance_simplex import BalanceSimplex
from .bias_controller import BiasController
from .competition import CompetitionExplorer
from .cost_calculator import CostCalculator
from .expert_queues import ExpertQueues
from .expert_tiles import ExpertTiles
from .fact_grid import FactGrid
from .logit_histogram import LogitHistogram
from .noisy_gate import NoisyGate
from .routing_explorer import RoutingExplorer
from .rows_or_columns import RowsOrColumns
from .traffic_matrix import TrafficMatrix
from .tree_explorer import TreeExplorer

__all__ = [
    "BalanceSimplex",
    "BiasController",
    "CompetitionExplorer",
    "CostCalculator",
    "ExpertQueues",
    "ExpertTiles",
    "FactGrid",
    "LogitHistogram",
    "NoisyGate",
    "RoutingExplorer",
    "RowsOrColumns",
    "TrafficMatrix",
    "TreeExplorer",
]
