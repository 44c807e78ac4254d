"""Chooses a recipe: copies conf/recipe/<name>.yaml over params.yaml, unless that would lose edits.

A recipe whose model and data come from the hub may have copies of both for machines without a connection: conf/model/<model>_local.yaml and
conf/data/<data>_local.yaml. `--local FOLDER` chooses these, with FOLDER as `inputs`.
"""

import argparse
import re
import sys

from plumbline.pipeline.composing import CONF
from plumbline.pipeline.params import PARAMS

RECIPES = CONF / "recipe"
LOCAL = "_local"


def recipes() -> dict[str, str]:
    """Every recipe's name with its title, the first line of the file."""
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in sorted(RECIPES.glob("*.yaml"))}


def with_local_copies(recipe: str, folder: str) -> str:
    """The text of a recipe that reads local copies of its model and its data, the data below `folder`.

    Raises:
        ValueError: there are no such copies.
    """
    for group in ("model", "data"):
        name = value_of(group, recipe) + LOCAL
        if not (CONF / group / f"{name}.yaml").is_file():
            raise ValueError(f"expected a recipe with local copies, found no conf/{group}/{name}.yaml")
        recipe = with_value(group, name, recipe)
    return with_value("inputs", folder, recipe)


def value_of(key: str, recipe: str) -> str:
    """The value of a key at the top of a recipe, as its text has it; empty if it has none."""
    found = re.search(rf"^{key}: *(\S+)", recipe, re.MULTILINE)
    return found[1] if found else ""


def with_value(key: str, value: str, recipe: str) -> str:
    """The text of a recipe with another value of a key at its top; comments stay in their column if there is room."""

    def line(found: re.Match[str]) -> str:
        width = len(found[0])
        return f"{key}: {value} ".ljust(width)

    return re.sub(rf"^{key}: *\S+ *", line, recipe, count=1, flags=re.MULTILINE)


def is_unedited(params: str) -> bool:
    """Whether the text of params.yaml is a recipe as its file has it, or one that reads local copies."""
    for file in RECIPES.glob("*.yaml"):
        recipe = file.read_text(encoding="utf-8")
        if params == recipe or (
            value_of("model", params) == value_of("model", recipe) + LOCAL
            and params == with_local_copies(recipe, value_of("inputs", params))
        ):
            return True
    return False


def choose(name: str, *, force: bool, local: str | None = None) -> str:
    """Makes `name` the recipe in params.yaml and returns a message that says what happened.

    local: the folder with copies of its data, if the recipe is to read copies.

    Raises:
        ValueError: there is no such recipe, local copies are asked for and it has none, or params.yaml holds edits and `force` is off.
    """
    if name not in recipes():
        raise ValueError(f"expected one of the recipes {', '.join(recipes())}, found {name!r}")
    recipe = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    if local is not None:
        recipe = with_local_copies(recipe, local)
    if PARAMS.exists():
        current = PARAMS.read_text(encoding="utf-8")
        if current == recipe:
            return f"params.yaml already holds the recipe {name}."
        if not force and not is_unedited(current):
            raise ValueError(
                "expected params.yaml to be a recipe without edits, found edits that would be lost; keep them "
                f"(cp params.yaml conf/recipe/mine.yaml) or overwrite them (make recipe NAME={name} FORCE=1)"
            )
    PARAMS.write_text(recipe, encoding="utf-8")
    return f"params.yaml now holds the recipe {name}; `make repro` runs it, except for stages that an earlier recipe has run."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a file of conf/recipe without .yaml; leave it out to list them")
    parser.add_argument("--force", action="store_true", help="overwrite edits in params.yaml")
    parser.add_argument(
        "--local", metavar="FOLDER", help="read copies of the recipe's model and data, the data below this folder"
    )
    arguments = parser.parse_args()
    if arguments.name is None:
        width = max(map(len, recipes()))
        for name, title in recipes().items():
            print(f"{name:{width}}  {title}")
        return
    try:
        print(choose(arguments.name, force=arguments.force, local=arguments.local))
    except ValueError as error:
        sys.exit(f"recipe: {error}")


if __name__ == "__main__":
    main()
