"""Claims about pairs: which completion of a prompt is preferred to which."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.labelling.pairs import Pair, all_pairs, best_vs_random, best_vs_worst, drawn, kept, strong_vs_weak, unpaired

TEXTS = ["a", "b", "c", "d"]
ANY = [True] * 4


def test_best_is_paired_with_the_worst() -> None:
    assert best_vs_worst([3, 9, 1, 5], TEXTS, ANY, "") == [Pair(1, 2, 8)]
    assert best_vs_worst([3, None, 1, 5], TEXTS, ANY, "") == [Pair(3, 2, 4)]
    assert best_vs_worst([5, 5, 5, 5], TEXTS, ANY, "") == [Pair(0, 1, 0)]
    assert best_vs_worst([3, None, None, None], TEXTS, ANY, "") == []
    assert best_vs_worst([9, 1], ["same", "same"], ANY, "") == []


def test_a_completion_that_was_cut_off_is_never_chosen() -> None:
    choosable = [True, False, True, True]
    assert best_vs_worst([3, 9, 1, 5], TEXTS, choosable, "") == [Pair(3, 2, 4)]
    assert all(pair.chosen != 1 for pair in all_pairs([3, 9, 1, 5], TEXTS, choosable, ""))
    assert best_vs_worst([3, 9], ["a", "b"], [False, False], "") == []


def test_all_pairs_of_k_completions_are_k_times_k_minus_1_over_2_and_distinct() -> None:
    assert len(all_pairs([1, 2, 3, 4], TEXTS, ANY, "")) == 6
    assert len(all_pairs([1, 2, 3, 4], ["a", "b", "b", "a"], ANY, "")) == 1
    assert all_pairs([1, 2], ["a", "b"], ANY, "") == [Pair(1, 0, 1)]


def test_the_best_is_paired_with_a_random_other_that_the_seed_decides() -> None:
    pairs = [best_vs_random([3, 9, 1, 5], TEXTS, ANY, str(seed))[0] for seed in range(60)]
    assert {pair.chosen for pair in pairs} == {1}
    assert {pair.rejected for pair in pairs} == {0, 2, 3}
    assert pairs[5] == best_vs_random([3, 9, 1, 5], TEXTS, ANY, "5")[0]


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(1, 10)), max_size=6), st.randoms())
def test_no_builder_prefers_the_lower_score_or_pairs_a_completion_without_one(
    scores: list[int | None], rng: random.Random
) -> None:
    texts = [rng.choice("abcdef") for _ in scores]
    choosable = [rng.random() < 0.8 for _ in scores]
    for build in (best_vs_worst, best_vs_random, all_pairs):
        for chosen, rejected, margin in build(scores, texts, choosable, "0"):
            better, worse = scores[chosen], scores[rejected]
            assert better is not None
            assert worse is not None
            assert better - worse == margin >= 0
            assert texts[chosen] != texts[rejected]
            assert choosable[chosen]


def test_ties_and_small_margins_are_dropped_or_ties_kept_by_choice() -> None:
    pairs = [Pair(0, 1, 0), Pair(0, 2, 0.5), Pair(0, 3, 2)]
    assert kept(pairs, 1.0, keep_ties=False) == [Pair(0, 3, 2)]
    assert kept(pairs, 0.0, keep_ties=False) == pairs[1:]
    assert kept(pairs, 1.0, keep_ties=True) == [pairs[0], pairs[2]]


def test_the_seed_decides_which_pairs_of_a_prompt_are_drawn() -> None:
    pairs = all_pairs([1, 2, 3, 4], TEXTS, ANY, "")
    draws = {tuple(drawn(pairs, 2, str(seed))) for seed in range(60)}
    assert all(len(draw) == 2 and [pair for pair in pairs if pair in draw] == [*draw] for draw in draws)
    assert len(draws) > 10
    assert drawn(pairs, 2, "5") == drawn(pairs, 2, "5")
    assert drawn(pairs, 0, "5") == drawn(pairs, 6, "5") == pairs


def test_strong_is_chosen_over_weak_without_a_score() -> None:
    assert strong_vs_weak(["s", "s", "w", "w"], ["a", "b", "b", "b"], "s", "w") == [Pair(0, 2, 1.0)]


def test_unpaired_labels_lie_off_the_mean_of_their_prompt() -> None:
    assert unpaired([2, 4, 9, None], 0.0) == [(0, False), (1, False), (2, True)]
    assert unpaired([2, 4, 9, None], 4.0) == [(0, False), (2, True)]
    assert unpaired([5, 5], 0.0) == []
