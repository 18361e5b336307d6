"""What all tests share: one random state, no clock, no network, the browser, and --quick."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
if beside := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # so that notebooks share the cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(beside)))

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from torch import nn

from moe_lite import routers
from moe_lite.course import recent
from moe_lite.course.tree import HierarchicalRouter
from moe_lite.routers import Router, Scores, TopKRouter

collect_ignore_glob = ["mutants/*"]  # wrong on purpose: run by the test of the checks alone

torch.set_num_threads(1)  # the tensors are tiny: more threads mostly wait for one another

# No clock decides anything here: a busy machine is slow, not wrong.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

QUICK = pytest.StashKey[Counter]()

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Scaled(TopKRouter):
    """A reader's: Mixtral's choice, with gates two and a half times as large."""

    def choose(self, scores, k=None):
        routing = super().choose(scores, k)
        return replace(routing, gate_N=2.5 * routing.gate_N)


class Cosine(Router):
    """A reader's, from scratch: the angle between a token and each expert, whatever their size."""

    def __init__(self, hidden_size, num_experts, top_k=2, **options):
        super().__init__(top_k, **options)
        self.weight = nn.Parameter(torch.randn(num_experts, hidden_size))

    def score(self, x_TD, ids_T=None):
        return Scores.softmax(4 * F.normalize(x_TD) @ F.normalize(self.weight).T)


ROUTERS: dict[str, Callable[..., Router]] = {
    "top-k": lambda D, E, V: TopKRouter(D, E, 2),
    "top-k, undivided": lambda D, E, V: TopKRouter(D, E, 3, renormalize=False),
    "top-k, scaled": lambda D, E, V: TopKRouter(D, E, 2, gate_scale=2.5),
    "top-k, capacity": lambda D, E, V: TopKRouter(D, E, 2, capacity_factor=0.8, priority="gate"),
    "noisy top-k": lambda D, E, V: routers.NoisyTopKRouter(D, E, 2),
    "noisy, all experts": lambda D, E, V: routers.NoisyTopKRouter(D, E, E),
    "switch": lambda D, E, V: routers.SwitchRouter(D, E, capacity_factor=0.8),
    "gshard": lambda D, E, V: routers.GShardRouter(D, E, capacity_factor=1.2),
    "hash": lambda D, E, V: routers.HashRouter(V, E),
    "expert choice": lambda D, E, V: routers.ExpertChoiceRouter(D, E),
    "sigmoid + bias": lambda D, E, V: routers.SigmoidBiasRouter(D, E, 2),
    "sigmoid, undivided": lambda D, E, V: routers.SigmoidBiasRouter(D, E, 2, renormalize=False),
    "a tree": lambda D, E, V: HierarchicalRouter(
        TopKRouter(D, 2, 1), [TopKRouter(D, E // 2, 2) for _ in range(2)]
    ),
    "quantile": lambda D, E, V: recent.QuantileRouter(D, E, 2),
    "threshold": lambda D, E, V: recent.ThresholdRouter(D, E, 2),
    "idle experts": lambda D, E, V: recent.IdleRouter(D, E, 2),
    "relu": lambda D, E, V: recent.ReLURouter(D, E, 2),
    "node-limited": lambda D, E, V: recent.NodeLimitedRouter(D, E, 2),
    "table": lambda D, E, V: recent.TableRouter(D, E, 2, vocab_size=V),
    "pools": lambda D, E, V: recent.PoolRouter(D, E, 2),
    "a reader's, scaled": lambda D, E, V: Scaled(D, E, 2),
    "a reader's, cosine": lambda D, E, V: Cosine(D, E, 2),
}
"""Every router there is, for tokens of width D, E experts and V ids: the one list of the tests."""


@pytest.fixture
def router_list() -> dict[str, Callable[..., Router]]:
    return ROUTERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``any_router`` with each of them, or with a reader's own two."""
    for name, own in (("any_router", False), ("own_router", True)):
        if name in metafunc.fixturenames:
            made = {n: make for n, make in ROUTERS.items() if n.startswith("a reader") or not own}
            metafunc.parametrize(name, made.values(), ids=made)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="an answer in minutes; says what it omits"
    )


class Seeded:
    """Start every test and every example from the same random state, whatever ran before it."""

    @pytest.fixture(autouse=True)
    def _seeded(self) -> None:
        torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Seeded())  # not a fixture of this folder: examples lie elsewhere
    config.addinivalue_line("markers", "slow(what): takes long; --quick leaves it out, and says so")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Look for examples in the package alone, not in the tests.

    Where a test module cannot be imported, the search for examples says "skipped" and leaves half
    a module behind, in which pytest then finds no test to fail.
    """
    return [node for node in (yield) if type(node).__name__ != "DoctestModule"]


@pytest.hookimpl(trylast=True)  # when each folder has set its marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    kept, left = [], Counter()
    for item in items:
        mark = next(filter(None, map(item.get_closest_marker, ("browser", "notebooks", "slow"))), 0)
        if mark:
            left[mark.args[0] if mark.args else mark.name] += 1
        else:
            kept.append(item)
    items[:], config.stash[QUICK] = kept, left


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that writes the summary what --quick left out, where it is not this one."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["left"] = dict(session.config.stash.get(QUICK, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Hear it: each of xdist's workers collects all tests, so one of them is enough."""
    node.config.stash[QUICK] = Counter(getattr(node, "workeroutput", {}).get("left", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "took":
                terminalreporter.write_line(value)
    if left := config.stash.get(QUICK, None):
        parts = ", ".join(f"{count} of {what}" for what, count in left.most_common())
        terminalreporter.write_line(
            f"--quick left out {left.total()} tests: {parts}. `python course.py test` runs all."
        )


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Give the path of this machine's Chromium; without one, skip, or fail where CI=true."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        lack = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lack("no Chromium on this machine (looked on PATH and in $CHROMIUM)")
    return Path(found)
