"""What conf/judge/*.yaml may say: one dataclass for each backend, all of them a judge."""

from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from omegaconf import MISSING, DictConfig, OmegaConf

from stages.world.annotator import AnnotatorConfig


@dataclass
class GateLimits:
    """Limits over or under which a labelling run fails; null switches one off."""

    unparsed_fraction: float | None = 0.05
    """Most verdicts that could not be read, after retries."""
    inconsistent_fraction: float | None = 0.5
    """Most comparisons whose winner changed with the order shown."""
    tied_fraction: float | None = 0.8
    """Most comparable pairs without a winner."""
    longer_fraction: float | None = 0.9
    """Most decided pairs in which the longer answer won (0.68 in public judge data)."""
    known_agreement: float | None = None
    """Least agreement with known answers, where some are given."""
    kappa: float | None = None
    """Least mean Cohen's kappa between two judges, or two samples of one."""
    minimum: int = 30
    """Fewest cases for a limit to be applied: below it a fraction is noise."""


@dataclass
class JudgeConfig:
    """What every judge has, whatever answers its questions."""

    backend: str = MISSING
    language: str = "auto"
    """Of the templates: en, ko, or auto: Korean where the conversation holds Hangul."""
    criteria: list[str] = field(default_factory=lambda: ["accuracy", "usefulness", "clarity", "safety"])
    """Names from conf/judge/templates/criteria.yaml that a rating or comparison goes by."""
    reasoning: bool = False
    """Whether to ask for reasoning before the verdict."""
    both_orders: bool = True
    """Whether each comparison and ranking is asked in both orders."""
    samples: int = 1
    """Verdicts asked of each question, aggregated; above 1 needs a temperature above 0."""
    attempts: int = 3
    """How often a question is asked at most until its verdict can be read."""
    gate: GateLimits = field(default_factory=GateLimits)


@dataclass
class SimulatedJudge(JudgeConfig):
    """The closed world's annotator: it reads the rendered prompt and replies in text, with planted faults."""

    backend: str = "simulated"
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)


@dataclass
class GoldJudge(JudgeConfig):
    """The closed world's verifier as a judge: perfect, and only for comparison with judges that are not."""

    backend: str = "gold"


@dataclass
class NoJudge(JudgeConfig):
    """Nobody: for pairs that need no judge, and evaluations without a win rate."""

    backend: str = "none"


def check_address(url: str) -> None:
    """Requires an address that may be shown and logged.

    Raises:
        ValueError: it is none, or holds a user, a password or a query, which is not repeated.
    """
    if any(mark in url for mark in "@?#"):
        raise ValueError(
            "judge.base_url: expected an address alone, found one with a user, password, query or fragment, and addresses are "
            "logged: give the key in the environment variable that judge.api_key_env names"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"judge.base_url: expected http://… or https://…, found {url!r}")


@dataclass
class Prices:
    """Money per million tokens, in the currency that max_cost is in."""

    input: float = 0.0
    output: float = 0.0


@dataclass
class SamplingConfig:
    """How the judging model is sampled; part of what identifies a verdict."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None


@dataclass
class OpenaiJudge(JudgeConfig):
    """Any OpenAI-compatible chat endpoint: hosted, vLLM, Ollama, llama.cpp, `transformers serve`."""

    backend: str = "openai"
    model: str = MISSING
    base_url: str | None = None
    """Of the endpoint, with /v1; null: the client's own (OPENAI_BASE_URL, or the hosted service)."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; never the key."""
    needs_key: bool = True
    """False for a local server that takes any key."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    structured: bool = False
    """Ask for the verdict as JSON of a schema, where the endpoint can; else as text."""
    probabilities: bool = False
    """Ask for token log-probabilities and score comparisons by P(A), where the endpoint gives them."""
    concurrency: int = 16
    requests_per_minute: float | None = None
    timeout_seconds: float = 60.0
    retries: int = 8
    """Further tries of a call that failed in transport, with exponential backoff and Retry-After honoured."""
    backoff_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    prices: Prices = field(default_factory=Prices)
    max_cost: float | None = None
    """Money that a run may spend, crashed attempts at it included; it stops before."""
    dry_run: bool = False
    """Print what the run would cost and stop."""

    def __post_init__(self) -> None:
        # Before anything is logged: the values of a stage go to MLflow as they are.
        if self.base_url and self.base_url != MISSING:
            check_address(self.base_url)


@dataclass
class TransformersJudge(JudgeConfig):
    """A chat model in this process, batched: a folder or a hub id with a pinned revision."""

    backend: str = "transformers"
    model: str = MISSING
    revision: str | None = None
    device: str = "cpu"
    batch: int = 16
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass
class HumanJudge(JudgeConfig):
    """People: annotations read back from a sheet that `python -m stages.judging.human` wrote blank."""

    backend: str = "human"
    annotations: str = MISSING
    """CSV or JSON Lines file as annotators returned it, or a folder of such."""


@dataclass
class PanelJudge(JudgeConfig):
    """Several judges, whose verdicts are aggregated; `members` holds their configurations by name."""

    backend: str = "panel"
    members: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for member in self.members.values():
            if address := member.get("base_url"):
                check_address(address)


SCHEMAS: dict[str, type] = {
    "judge_simulated": SimulatedJudge,
    "judge_gold": GoldJudge,
    "judge_none": NoJudge,
    "judge_openai": OpenaiJudge,
    "judge_transformers": TransformersJudge,
    "judge_human": HumanJudge,
    "judge_panel": PanelJudge,
}
"""The names that conf/judge/*.yaml begin their defaults lists with."""

BACKENDS: dict[str, type[JudgeConfig]] = {
    schema.backend: schema
    for schema in (SimulatedJudge, GoldJudge, NoJudge, OpenaiJudge, TransformersJudge, HumanJudge, PanelJudge)
}


def judge_config(config: JudgeConfig | DictConfig) -> JudgeConfig:
    """A composed config as its dataclass."""
    if isinstance(config, JudgeConfig):
        return config
    backend = config.get("backend")
    if backend not in BACKENDS:
        raise ValueError(f"judge.backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    return cast("JudgeConfig", OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BACKENDS[backend]), config)))
