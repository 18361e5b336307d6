"""What all tests share: one random state, no network, and the browser where there is one."""

import os
import shutil
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

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


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
