"""A judge's own rating as the reward: direct RLAIF (arXiv:2309.00267), with no reward model to train, or to go stale.

A rating runs from 1 to 10; the reward is (rating − 1) / 9, in [0, 1]. The paper takes the mean over the probabilities of the ten ratings,
scaled to [−1, 1]; here it is the rating that the reply ends in, so that every judge will do.

A rating that cannot be read after the judge's own attempts is never given a default. While verdicts like it keep within the judge's
`gate.unparsed_fraction`, of the call and of all calls so far, its completion counts as the worst of the call and is counted as
`judge_unparsed`; beyond it, scoring stops. Replies that cost something come from the judge's store where they have been bought before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.judging.config import GateLimits, OpenaiJudge, PanelJudge, judge_config
from stages.judging.gate import GateError, Quality, failures
from stages.judging.judge import Judge, Rating
from stages.judging.loading import load_judge
from stages.judging.templates import template_digest
from stages.pipeline.records import Message
from stages.rewards.references import key_of

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
        self.quality = Quality()
        self.outcomes: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        keys = [(key_of(prompt), completion) for prompt, completion in zip(prompts, completions, strict=True)]
        distinct = dict(zip(keys, prompts, strict=True))
        texts = [completion for _, completion in distinct]
        ratings = self.judge.rate([*distinct.values()], texts)
        self.require_readable(texts, ratings)
        by_key = {key: rating.score for key, rating in zip(distinct, ratings, strict=True)}
        scores = [by_key[key] for key in keys]
        self.outcomes.update("unparsed" if score is None else "read" for score in scores)
        lowest = min((score for score in scores if score is not None), default=LEAST)  # of no completions at all
        return [((lowest if score is None else score) - LEAST) / (MOST - LEAST) for score in scores]

    def require_readable(self, texts: Sequence[str], ratings: Sequence[Rating]) -> None:
        """Holds the judge against its limit, by this call and by all so far: one that breaks late must not live on its earlier replies."""
        call = Quality()
        for text, rating in zip(texts, ratings, strict=True):
            for verdict in rating.verdicts:
                for quality in (call, self.quality):
                    quality.unparsed.add(verdict.value is None, f"{verdict.reply!r} of {text!r}")
        found = failures(call, self.limits) or failures(self.quality, self.limits)
        if texts and all(rating.score is None for rating in ratings):
            found = found or [f"none of {call.unparsed.of} verdicts could be read, such as {call.unparsed.examples[0]}"]
        if found:
            raise GateError(
                f"the judge {self.judge.name!r} is outside its limit, and there is no default reward:\n  - {found[0]}\n"
                "Mend the judge or its prompt, let it try more often (judge.attempts), or raise judge.gate.unparsed_fraction in conf/judge."
            )

    def finish(self) -> dict[str, float]:
        """Says that nothing more will be asked, and returns the judge's ledger."""
        self.judge.finish()
        return {f"judge_{name}": value for name, value in vars(self.judge.ledger).items()}


def complaint(judge: Any) -> str:
    """Why a judge cannot be a reward, and what can; empty if it can be."""
    config = judge_config(judge)
    if config.backend == "none":
        return "kind: judge needs a judge, found none: name a file of conf/judge, such as simulated, openai or transformers"
    members = config.members if isinstance(config, PanelJudge) else {}
    try:
        asked = [config, *(judge_config(OmegaConf.create(dict(values))) for values in members.values())]
    except OmegaConfBaseException as error:  # an unknown key, a missing value: Hydra takes a panel's members as they come
        return f"judge.members: {' '.join(str(error).split())}"
    if any(one.backend == "human" for one in asked):
        return (
            "people cannot rate what a policy writes while it trains: label a sample with `judge: human`, and train a reward on it "
            "(`kind: model`, `signal: label/<entry>`)"
        )
    if any(one.dry_run for one in asked if isinstance(one, OpenaiJudge)):
        return "dry_run: what will be asked depends on what is sampled: estimate on a `label` entry, and let max_cost bound the reward"
    return ""


def described(judge: Any, name: str, seed: int) -> dict[str, Any]:
    """All that the reward needs to be built again: the judge's configuration, which names the variable of a key and never holds one."""
    return {"name": name, "seed": seed, "template": template_digest("rating"), "judge": asdict(judge_config(judge))}


def from_description(description: Mapping[str, Any], run: str) -> JudgeReward:
    """The reward of a reward.json; `run` names what the judge's budget (max_cost) is for."""
    judge = judge_config(OmegaConf.create(dict(description["judge"])))
    return JudgeReward(load_judge(judge, seed=description["seed"], name=description["name"], run=run), judge.gate)
