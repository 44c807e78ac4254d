"""Builds the judge that a file of conf/judge describes."""

from omegaconf import DictConfig, OmegaConf

from plumbline.judging.asking import Chat
from plumbline.judging.gold import VerifierJudge
from plumbline.judging.human import load_annotations
from plumbline.judging.judge import Judge
from plumbline.judging.judges import (
    BACKENDS,
    HumanJudge,
    JudgeConfig,
    OpenaiJudge,
    PanelJudge,
    SimulatedJudge,
    TransformersJudge,
    judge_config,
)
from plumbline.judging.panel import AskingJudge, Member


def load_judge(config: JudgeConfig | DictConfig, *, seed: int, name: str | None = None, run: str = "") -> Judge:
    """Builds the judge that a file of conf/judge describes; `run` names the run that its budget (max_cost) is counted for.

    Raises:
        ValueError: the backend is unknown or answers no questions, a panel has no members, or several samples would be identical.
    """
    config = judge_config(config)
    name = name or config.backend
    if config.backend == "gold":
        return VerifierJudge(config.thinking_marks)
    if isinstance(config, HumanJudge):
        return load_annotations(config)
    if isinstance(config, PanelJudge):
        members = {member: judge_config(OmegaConf.create(values)) for member, values in config.members.items()}
        if not members:
            raise ValueError("judge.members: expected at least one judge in the panel, found none")
    else:
        members = {name: config}
    return AskingJudge(name, [Member(member, _chat(values, run), values) for member, values in members.items()], config, seed)


def _chat(config: JudgeConfig, run: str) -> Chat:
    temperature = config.sampling.temperature if isinstance(config, OpenaiJudge | TransformersJudge) else 0.0
    if config.samples > 1 and temperature == 0:
        raise ValueError(
            f"judge.samples: expected 1 at temperature 0, where all samples are the same, found {config.samples}: "
            "set judge.sampling.temperature, or samples: 1"
        )
    if isinstance(config, SimulatedJudge):
        from plumbline.judging.backends.simulated import SimulatedChat

        return SimulatedChat(config.annotator)
    if isinstance(config, OpenaiJudge):
        from plumbline.judging.backends.endpoint import EndpointChat

        return EndpointChat(config, run)
    if isinstance(config, TransformersJudge):
        from plumbline.judging.backends.local import LocalChat

        return LocalChat(config)
    raise ValueError(
        f"judge.backend: expected one that can be asked, found {config.backend!r}; the backends are {', '.join(BACKENDS)}"
    )
