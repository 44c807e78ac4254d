"""Values of PPO that cannot run are named, with values that can."""

from typing import Any

import pytest
from ppo_tiny import tiny_config

from plumbline.methods.online.ppo.settings import require_divisible


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"top_k": 50}, "top_k, top_p: expected 0 and 1.0, the whole distribution"),
        ({"top_p": 0.9}, "top_k, top_p: expected 0 and 1.0, the whole distribution"),
        ({"episodes": 100}, "episodes: expected a multiple of rollout_batch_size 8, found 100. Set episodes to 96 or 104"),
        ({"batch_size": 3}, "rollout_batch_size: expected a multiple of batch_size 3, found 8. Set rollout_batch_size to 6 or 9, or "
                            "batch_size to 2"),
        ({"batch_size": 0}, "episodes, rollout_batch_size, batch_size, micro_batch_size: expected at least 1"),
        ({"temperature": 0.0}, "temperature: expected above 0"),
        ({"schedule": "linaer"}, "schedule: expected constant, linear or cosine, found linaer"),
        ({"target_kl": 6.0, "beta": 0.0}, "target_kl: expected null, or above 0 with a beta above 0"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty: expected 0 or above"),
        ({"lora_output": "both"}, "lora_output: expected merged or adapter"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_run_is_named_with_what_to_write(changes: dict[str, Any], complaint: str) -> None:
    (problem,) = tiny_config(**changes).problems()
    assert problem.startswith(complaint)


def test_all_problems_come_at_once() -> None:
    assert tiny_config().problems() == []
    problems = tiny_config(top_k=5, episodes=100, temperature=-1.0).problems()
    assert [problem.split(":")[0] for problem in problems] == ["top_k, top_p", "episodes", "temperature"]


def test_a_minibatch_that_does_not_divide_among_processes_is_refused() -> None:
    require_divisible(tiny_config(), processes=2)
    with pytest.raises(ValueError, match="Set it to 6, and rollout_batch_size to a multiple of that, 12"):
        require_divisible(tiny_config(), processes=3)
