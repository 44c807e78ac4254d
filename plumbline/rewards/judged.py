"""A judge's rating as the reward: direct RLAIF (arXiv:2309.00267), without a reward model to train or to go stale.

A rating runs from 1 to 10; the reward is (rating − 1) / 9, in [0, 1]. The paper takes the mean over the probabilities of the ten ratings,
scaled to [−1, 1]; here the reward is the rating that the reply ends in, so that any judge will do.

A rating that cannot be read after all of the judge's attempts never gets a default. While the unreadable verdicts of the call, and of all
calls so far, are within the judge's `gate.unparsed_fraction`, such a completion counts as the worst of the call and is counted as
`judge_unparsed`. Beyond that limit, scoring stops. Calls with fewer verdicts than `gate.minimum`, such as that of a sample's last shard, are held to
the limit together; if none of the ratings of such a call can be read, they count as the worst there is. Replies that cost money come from the
judge's store if they have been bought before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from plumbline.judging.building import load_judge
from plumbline.judging.gate import GateError, Quality, failures
from plumbline.judging.judge import Judge, Rating
from plumbline.judging.judges import GateLimits, is_dry_run, judge_config
from plumbline.judging.templates import template_digest
from plumbline.rows import Message, prompt_key

LEAST, MOST = 1.0, 10.0


class JudgeReward:
    """A judge's rating of each completion, from 0 to 1; equal questions of a call are asked once. `outcomes` counts `read` and `unparsed`.

    Raises (when called):
        GateError: too many verdicts could not be read, or none could.
    """

    outcome_prefix = "judge"

    def __init__(self, judge: Judge, gate: GateLimits) -> None:
        self.judge = judge
        self.limits = GateLimits(
            unparsed_fraction=gate.unparsed_fraction, minimum=gate.minimum,
            inconsistent_fraction=None, tied_fraction=None, longer_fraction=None, known_agreement=None, kappa=None,
        )  # fmt: skip
        self.quality = Quality()  # of all calls
        self.recent = Quality()  # of the last call, or of the last small ones together
        self.outcomes: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        keys = [(prompt_key(prompt), completion) for prompt, completion in zip(prompts, completions, strict=True)]
        distinct = dict(zip(keys, prompts, strict=True))
        texts = [completion for _, completion in distinct]
        ratings = self.judge.rate([*distinct.values()], texts)
        self.require_readable(texts, ratings)
        by_key = {key: rating.score for key, rating in zip(distinct, ratings, strict=True)}
        scores = [by_key[key] for key in keys]
        self.outcomes.update("unparsed" if score is None else "read" for score in scores)
        lowest = min(
            (score for score in scores if score is not None), default=LEAST
        )  # the default is for a call without completions, or a small one of which none can be read
        return [((lowest if score is None else score) - LEAST) / (MOST - LEAST) for score in scores]

    def require_readable(self, texts: Sequence[str], ratings: Sequence[Rating]) -> None:
        """Holds the judge to its limit, in this call and in all calls so far: good replies earlier must not hide that it breaks late.

        Small calls are held to it together, as soon as they have `gate.minimum` verdicts.

        Raises:
            GateError: too many verdicts could not be read, or none could.
        """
        first = self.quality.unparsed.total == self.quality.unparsed.count  # nothing has been read yet
        for text, rating in zip(texts, ratings, strict=True):
            for verdict in rating.verdicts:
                for quality in (self.recent, self.quality):
                    quality.unparsed.add(verdict.value is None, f"{verdict.reply!r} of {text!r}")
        recent = self.recent
        if recent.unparsed.total >= self.limits.minimum:
            self.recent = Quality()
        elif not first:
            return
        complaints = failures(recent, self.limits) or failures(self.quality, self.limits)
        if not complaints and texts and all(rating.score is None for rating in ratings):
            complaints = [f"none of {recent.unparsed.total} verdicts could be read, such as {recent.unparsed.examples[0]}"]
        if complaints:
            raise GateError(
                f"the judge {self.judge.name!r} is outside its limit, and there is no default reward:\n  - {complaints[0]}\n"
                "Fix the judge or its prompt, let it try more often (judge.attempts), or raise judge.gate.unparsed_fraction in conf/judge."
            )

    @property
    def ledger(self) -> dict[str, float]:
        """What the judge's replies took so far."""
        return {f"judge_{name}": value for name, value in vars(self.judge.ledger).items()}

    def finish(self) -> None:
        """Ends the judge's work."""
        self.judge.finish()


def unsuitable(judge: Any) -> str:
    """The complaint about a judge that cannot be a reward, with what to do instead; empty if it can."""
    config = judge_config(judge)
    if config.backend == "none":
        return "judge: expected a judge, found none: name a file of conf/judge, such as simulated, openai or transformers"
    if config.backend == "human":
        return (
            "judge: expected a judge that can be asked while a policy trains, found people: label a sample with `judge: human`, and train a "
            "reward model on that (`reward_model`, `signal: label/<entry>`)"
        )
    if is_dry_run(config):
        return (
            "judge.dry_run: expected false for a reward, whose questions depend on what is sampled, found true: estimate with an entry of "
            "`label`, and let max_cost limit the reward"
        )
    return ""


def described(judge: Any, name: str, seed: int) -> dict[str, Any]:
    """Everything needed to build the reward again: the judge's configuration, which names the variable of a key but never holds a key."""
    return {"name": name, "seed": seed, "template": template_digest("rating"), "judge": asdict(judge_config(judge))}


def load(folder: Path, description: Mapping[str, Any], run: str) -> JudgeReward:
    """The reward that asks the judge in a reward's folder; `run` names the run that the judge's budget (max_cost) is counted for."""
    judge = judge_config(OmegaConf.create(dict(description["judge"])))
    return JudgeReward(load_judge(judge, seed=description["seed"], name=description["name"], run=run), judge.gate)
