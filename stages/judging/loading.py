"""From a file of conf/judge to the judge that it describes."""

from omegaconf import DictConfig, OmegaConf

from stages.judging.chat import Chat
from stages.judging.config import (
    BACKENDS,
    HumanJudge,
    JudgeConfig,
    OpenaiJudge,
    PanelJudge,
    SimulatedJudge,
    TransformersJudge,
    judge_config,
)
from stages.judging.human import load_annotations
from stages.judging.judge import AskingJudge, GoldJudge, Judge, Member


def load_judge(config: JudgeConfig | DictConfig, *, seed: int, name: str | None = None, run: str = "") -> Judge:
    """The judge that a file of conf/judge describes; `run` names what its budget (max_cost) is for.

    Raises:
        ValueError: the backend is unknown, or samples above 1 would all be the same.
    """
    config = judge_config(config)
    name = name or config.backend
    if config.backend == "gold":
        return GoldJudge()
    if isinstance(config, HumanJudge):
        return load_annotations(config)
    if isinstance(config, PanelJudge):
        members = {member: judge_config(OmegaConf.create(values)) for member, values in config.members.items()}
        if not members:
            raise ValueError("judge: panel: expected members, found none: name at least one judge in judge.members")
    else:
        members = {name: config}
    return AskingJudge(name, [Member(member, _chat(c, run), c) for member, c in members.items()], config, seed)


def _chat(config: JudgeConfig, run: str) -> Chat:
    temperature = config.sampling.temperature if isinstance(config, OpenaiJudge | TransformersJudge) else 0.0
    if config.samples > 1 and temperature == 0:
        raise ValueError(
            f"judge: samples: {config.samples} at temperature 0 are all the same: set sampling.temperature, or samples: 1"
        )
    if isinstance(config, SimulatedJudge):
        from stages.judging.backends.simulated import SimulatedChat

        return SimulatedChat(config.annotator)
    if isinstance(config, OpenaiJudge):
        from stages.judging.backends.endpoint import EndpointChat

        return EndpointChat(config, run)
    if isinstance(config, TransformersJudge):
        from stages.judging.backends.local import LocalChat

        return LocalChat(config)
    raise ValueError(f"judge: {config.backend!r} cannot be asked; backends are {', '.join(BACKENDS)}")
