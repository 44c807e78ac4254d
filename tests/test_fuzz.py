"""`check` stops every single mistake in params.yaml, and says where it is. `python -m tests.fuzz_params` tries all; here is every eleventh."""

from collections.abc import Iterator

import pytest

from plumbline.graph import REPEATED
from tests.conftest import ROOT
from tests.fuzz_params import Mistake, messages, mistakes, with_memory


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[tuple[Mistake, list[str]]]]:
    """Each mistake with what `check` says of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with_memory(patch)
        yield [(mistake, messages(mistake)) for mistake in [*mistakes()][::11]]


def test_no_single_mistake_in_params_yaml_reaches_a_stage(outcomes: list[tuple[Mistake, list[str]]]) -> None:
    assert len(outcomes) >= 300
    assert {mistake.key.split(".")[0] for mistake, _ in outcomes} >= {*REPEATED, "prepare", "pretrain", "sft", "evaluate"}
    assert {mistake.kind for mistake, _ in outcomes} == {
        "impossible name", "misspelt key", "missing key", "out of range", "unknown reference", "wrong type",
    }  # fmt: skip
    assert [mistake[:4] for mistake, errors in outcomes if not errors] == []


def test_each_message_names_the_key_what_was_expected_and_what_was_found(outcomes: list[tuple[Mistake, list[str]]]) -> None:
    for mistake, errors in outcomes:
        section, *_, key = f"{mistake.key}.{mistake.key}".split(".")
        named = section if mistake.kind == "impossible name" else key
        assert any(named in error for error in errors), (mistake[:4], errors)
        for error in errors:
            assert error.startswith("params.yaml: "), (mistake[:4], error)
            complete = (
                ("expected" in error and "found" in error)
                or "unknown key" in error
                or "there is no" in error
                or ": missing;" in error
            )
            assert complete, (mistake[:4], error)
