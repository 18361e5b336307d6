"""What all tests share: one random state, no clock, no network, the browser, and --quick."""

import os
import shutil
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers

import pytest
import torch
from hypothesis import HealthCheck, settings

collect_ignore_glob = ["mutants/*"]  # wrong on purpose: run by the test of the checks alone

torch.set_num_threads(1)  # the tensors are tiny: more threads mostly wait for one another

# No clock decides anything here: a busy machine is slow, not wrong.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

QUICK = pytest.StashKey[Counter]()

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="an answer in minutes; says what it omits")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow(what): takes long; --quick leaves it out, and says so")


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


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if left := config.stash.get(QUICK, None):
        parts = ", ".join(f"{count} of {what}" for what, count in left.most_common())
        terminalreporter.write_line(
            f"--quick left out {left.total()} tests: {parts}. `python course.py test` runs all."
        )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Give the path of this machine's Chromium; without one, skip, or fail where CI=true."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        lack = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lack("no Chromium on this machine (looked on PATH and in $CHROMIUM)")
    return Path(found)
