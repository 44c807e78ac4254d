"""The library's packages stand in layers: each imports only those that it may, so that none depends on itself through another."""

from plumbline.pipeline.sources import ROOT, direct_imports

MAY_IMPORT = {
    "consistency": {"checking", "data", "graph", "models", "pipeline", "world"},
    "hub_models": {"consistency", "graph", "models", "pipeline"},
    "machine_memory": {"consistency", "graph", "hub_models", "models"},
    "graph": set(),
    "letters": set(),
    "parts_of_gold": set(),
    "reasoning": set(),
    "rows": set(),
    "pipeline": set(),
    "world": {"parts_of_gold", "pipeline", "rows"},
    "models": {"pipeline", "reasoning", "rows"},
    "data": {"checking", "letters", "models", "pipeline", "reasoning", "rows", "world"},
    "checking": {"pipeline", "reasoning", "rows"},
    "judging": {"models", "pipeline", "reasoning", "rows", "world"},
    "labelling": {"checking", "judging", "pipeline", "reasoning", "rows", "world"},
    "rewards": {"judging", "letters", "models", "pipeline", "reasoning", "rows", "world"},
    "methods": {"models", "pipeline", "rewards", "rows"},
    "feedback": {"data", "models", "pipeline", "rows"},
    "evaluation": {"checking", "judging", "models", "parts_of_gold", "pipeline", "reasoning", "rows", "world"},
    "report": {"evaluation", "graph", "models", "parts_of_gold"},
    "studies": {"evaluation", "graph", "pipeline", "report"},
    "tools": {"evaluation", "feedback", "graph", "models", "pipeline", "report", "rewards", "studies"},
}
"""A package or module of plumbline → those that its code may import, besides itself. A reward's kind is loaded by name: rewards/reward.py."""

DIFFERENT_THINGS_OF_ONE_NAME = {"__init__", "sft"}
"""`sft` is a stage and the method that it shares with `align`."""


def _packages() -> dict[str, set[str]]:
    """Each package or module at the top of plumbline → the others that it imports."""
    imports: dict[str, set[str]] = {}
    for file in sorted((ROOT / "plumbline").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module != "plumbline":
            used = {name.split(".")[1] for name in direct_imports(module) if name.startswith("plumbline.")}
            imports.setdefault(module.split(".")[1], set()).update(used - {module.split(".")[1]})
    return imports


def test_a_package_imports_only_what_it_may() -> None:
    wrong = {package: used - MAY_IMPORT[package] for package, used in _packages().items() if used - MAY_IMPORT[package]}
    assert wrong == {}


def test_the_layers_are_free_of_cycles_and_name_nothing_superfluous() -> None:
    from graphlib import TopologicalSorter

    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError
    assert _packages() == MAY_IMPORT


def test_the_library_never_imports_a_stage_and_no_stage_another() -> None:
    for file in [*(ROOT / "plumbline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert not [name for name in direct_imports(module) if name.startswith("stages.")], module


def test_no_two_modules_have_one_name() -> None:
    files = [*(ROOT / "plumbline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    names = [file.stem for file in files if file.stem not in DIFFERENT_THINGS_OF_ONE_NAME]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    packages = {file.parent.name for file in (ROOT / "plumbline").rglob("__init__.py")}
    assert packages & {file.stem for file in (ROOT / "plumbline").rglob("*.py")} == set()


def test_packages_run_no_code_of_their_own() -> None:
    """An `__init__.py` is not a dep of those who import past it, so it may hold no more than a docstring; a method of `rl` is its own."""
    for file in [*(ROOT / "plumbline").rglob("__init__.py"), ROOT / "stages/__init__.py"]:
        if file.parent.parent.name != "online":
            lines = [line for line in file.read_text().splitlines() if line.strip()]
            assert len(lines) <= 1 or (lines[0].startswith('"""') and '"""' in lines[-1]), f"{file} holds code"
