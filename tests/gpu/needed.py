"""Which libraries the measurement needs and this Python lacks, each with its version in requirements.lock.

Prints requirements for pip: those that are missing, or all of them with --all. With --check it prints nothing and fails if any is missing.
It imports nothing that a bare Python does not have.
"""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

try:
    from packaging.requirements import Requirement
except ImportError:  # then transformers is missing as well
    Requirement = None

ROOT = Path(__file__).parents[2]
NAMED = (
    "accelerate", "datasets", "filelock", "hydra-core", "jinja2", "numpy", "omegaconf", "pandas", "peft", "psutil", "pyarrow", "pyyaml",
    "ruamel-yaml", "tokenizers", "tqdm", "transformers", "trl",
)  # fmt: skip
"""The project's direct dependencies that training and sampling import."""


class Locked(NamedTuple):
    """A library in requirements.lock."""

    version: str
    needed_by: set[str]


def read_lock(text: str) -> dict[str, Locked]:
    """Each library with its version and those that need it, which the lock's comments say."""
    locked: dict[str, Locked] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==(\S+)", line):
            name = match[1].lower()
            locked[name] = Locked(match[2], set())
        elif match := re.match(r"\s+#\s+(?:via\s+)?([A-Za-z0-9._-]+)", line):
            locked[name].needed_by.add(match[1].lower())
    return locked


def with_their_needs(names: set[str], locked: dict[str, Locked]) -> set[str]:
    """These libraries and all that they need."""
    while more := {name for name, library in locked.items() if library.needed_by & names} - names:
        names = names | more
    return names


def fits(name: str, ranges: dict[str, str]) -> bool:
    """Whether a library is installed, in the range of pyproject.toml if that names one."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if name not in ranges:
        return True
    return Requirement is not None and Requirement(ranges[name]).specifier.contains(version, prereleases=True)


def needed(everything: bool) -> list[str]:
    """Requirements for pip."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ranges = {re.split(r"[\[<>=~! ]", line)[0].lower(): line for line in dependencies}
    locked = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    names = sorted(with_their_needs(set(NAMED), locked))
    missing = [f"{name}=={locked[name].version}" for name in names if everything or not fits(name, ranges)]
    if not everything and not fits("torch", ranges):
        missing += (ROOT / "requirements-torch.txt").read_text(encoding="utf-8").split()
    return missing


if __name__ == "__main__":
    lines = needed("--all" in sys.argv)
    if "--check" in sys.argv:
        sys.exit(f"missing: {' '.join(lines)}" if lines else 0)
    print(*lines, sep="\n")
