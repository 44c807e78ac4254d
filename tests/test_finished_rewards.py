"""A reward that a judge gives is finished, and so its connections closed, however training ends."""

from pathlib import Path
from typing import Any

import pytest
import test_ppo_align
from aligning import run_align, write_inputs
from test_ppo_align import artifacts as of_ppo  # noqa: F401

from plumbline.rewards import reward as rewards


class Failing:
    """A reward whose judge fails."""

    def __init__(self) -> None:
        self.finished = False

    def __call__(self, prompts: Any, completions: Any) -> list[float]:
        raise ConnectionError("the judge is gone")

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_a_reward_is_finished_when_training_fails(
    method: str,
    tmp_path: Path,
    of_ppo: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reward = Failing()
    monkeypatch.setattr(rewards, "load_reward", lambda *_: reward)
    with pytest.raises(ConnectionError):
        if method == "ppo":
            test_ppo_align.run_align(of_ppo)
        else:
            run_align(write_inputs(tmp_path / "groups"), method)
    assert reward.finished
