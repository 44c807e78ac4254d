"""Chooses a recipe: copies conf/recipe/<name>.yaml over params.yaml, unless that holds edits which would be lost."""

import argparse
import shutil
import sys

from stages.pipeline.composing import CONF, PARAMS

RECIPES = CONF / "recipe"


def recipes() -> dict[str, str]:
    """Every recipe's name and the first line of its header."""
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in sorted(RECIPES.glob("*.yaml"))}


def choose(name: str, *, force: bool) -> str:
    """Makes `name` the recipe in params.yaml and says what happened.

    Raises:
        ValueError: there is no such recipe, or params.yaml holds edits and `force` is off.
    """
    if name not in recipes():
        raise ValueError(f"there is no recipe {name!r}; there are: {', '.join(recipes())}")
    source = RECIPES / f"{name}.yaml"
    if PARAMS.exists():
        current = PARAMS.read_bytes()
        if current == source.read_bytes():
            return f"params.yaml is the recipe {name} already."
        if not force and not any(file.read_bytes() == current for file in RECIPES.glob("*.yaml")):
            raise ValueError(
                "params.yaml holds your own edits, which this would overwrite. Keep them first (cp params.yaml conf/recipe/mine.yaml), or "
                f"run `make recipe NAME={name} FORCE=1`."
            )
    shutil.copyfile(source, PARAMS)
    return f"params.yaml is now the recipe {name}: `make repro` runs it; stages that it shares with an earlier one are not run again."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="a file of conf/recipe without .yaml; none lists them")
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
