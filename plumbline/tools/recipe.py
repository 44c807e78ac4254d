"""Chooses a recipe: copies conf/recipe/<name>.yaml over params.yaml, unless that would lose edits."""

import argparse
import shutil
import sys

from plumbline.pipeline.composing import CONF
from plumbline.pipeline.params import PARAMS

RECIPES = CONF / "recipe"


def recipes() -> dict[str, str]:
    """Every recipe's name with its title, the first line of the file."""
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in sorted(RECIPES.glob("*.yaml"))}


def choose(name: str, *, force: bool) -> str:
    """Makes `name` the recipe in params.yaml and returns a message that says what happened.

    Raises:
        ValueError: there is no such recipe, or params.yaml holds edits and `force` is off.
    """
    if name not in recipes():
        raise ValueError(f"expected one of the recipes {', '.join(recipes())}, found {name!r}")
    source = RECIPES / f"{name}.yaml"
    if PARAMS.exists():
        current = PARAMS.read_bytes()
        if current == source.read_bytes():
            return f"params.yaml already holds the recipe {name}."
        if not force and not any(file.read_bytes() == current for file in RECIPES.glob("*.yaml")):
            raise ValueError(
                "expected params.yaml to be a recipe without edits, found edits that would be lost; keep them "
                f"(cp params.yaml conf/recipe/mine.yaml) or overwrite them (make recipe NAME={name} FORCE=1)"
            )
    shutil.copyfile(source, PARAMS)
    return f"params.yaml now holds the recipe {name}; `make repro` runs it, except for stages that an earlier recipe has run."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="a file of conf/recipe without .yaml; leave it out to list them")
    parser.add_argument("--force", action="store_true", help="overwrite edits in params.yaml")
    arguments = parser.parse_args()
    if arguments.name is None:
        width = max(map(len, recipes()))
        for name, title in recipes().items():
            print(f"{name:{width}}  {title}")
        return
    try:
        print(choose(arguments.name, force=arguments.force))
    except ValueError as error:
        sys.exit(f"recipe: {error}")


if __name__ == "__main__":
    main()
