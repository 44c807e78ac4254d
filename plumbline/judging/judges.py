"""The schemas of conf/judge/*.yaml: one dataclass for each backend."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from plumbline.pipeline.composing import problems
from plumbline.pipeline.digests import pin_problems
from plumbline.pipeline.endpoints import Endpoint, check_address
from plumbline.pipeline.misfits import misfits
from plumbline.pipeline.ranges import COUNT, FRACTION, NOT_NEGATIVE, Range, outside
from plumbline.reasoning import ALL, mark_problems
from plumbline.rows import LANGUAGES
from plumbline.world.annotate import AnnotatorConfig


@dataclass
class GateLimits:
    """Limits that fail a labelling run whose judge is outside them; null switches a limit off."""

    unparsed_fraction: float | None = 0.05
    """Most verdicts that cannot be read, after all attempts."""
    inconsistent_fraction: float | None = 0.5
    """Most comparisons whose verdict changes with the order shown."""
    tied_fraction: float | None = 0.8
    """Most pairs of different texts without a winner."""
    longer_fraction: float | None = 0.9
    """Most decided pairs in which the longer answer wins (0.68 in public judge data)."""
    known_agreement: float | None = None
    """Least agreement with known answers, if there are any."""
    kappa: float | None = None
    """Least Cohen's kappa between two judges, or two samples of one, averaged over all such pairs."""
    minimum: int = 30
    """Fewest cases for which a limit applies; a fraction of fewer is noise."""

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        fractions = ("unparsed_fraction", "inconsistent_fraction", "tied_fraction", "longer_fraction", "known_agreement")
        agreement = Range("from -1 to 1", lambda value: -1 <= value <= 1)
        return outside(self, **dict.fromkeys(fractions, FRACTION), kappa=agreement, minimum=NOT_NEGATIVE)


@dataclass
class JudgeConfig:
    """The values that every judge has, whatever answers its questions."""

    backend: str = MISSING
    language: str = "auto"
    """Language of the templates: en, ko, or auto, which is Korean if the conversation contains Hangul."""
    criteria: list[str] = field(default_factory=lambda: ["accuracy", "usefulness", "clarity", "safety"])
    """Names from conf/judge/templates/criteria.yaml that ratings, comparisons and rankings go by."""
    reasoning: bool = False
    """Whether to ask for reasoning before the verdict."""
    thinking_marks: str = ALL
    """Which marks set a model's own reasoning apart: in the completions, of which the judge is shown the rest, and in the judge's replies."""
    both_orders: bool = True
    """Whether each comparison and ranking is asked in both orders."""
    samples: int = 1
    """How often each question is asked; the verdicts are aggregated. More than 1 needs a temperature above 0."""
    attempts: int = 3
    """Most times that a question is asked until its verdict can be read."""
    principles: dict[str, Any] = field(default_factory=dict)
    """A constitution: each principle as put to a judge (`judge`), to a critic (`critique`) and to a writer (`revision`), by language."""
    gate: GateLimits = field(default_factory=GateLimits)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        from plumbline.judging.templates import criteria_texts

        complaints = outside(self, samples=COUNT, attempts=COUNT) + mark_problems(self.thinking_marks)
        if self.language not in ("auto", *LANGUAGES):
            complaints.append(f"language: expected auto, {' or '.join(LANGUAGES)}, found {self.language!r}")
        try:
            criteria_texts(self.criteria, LANGUAGES[0] if self.language == "auto" else self.language)
        except ValueError as error:
            complaints.append(str(error).removeprefix("judge.").removeprefix("judge: "))
        if self.samples > 1 and getattr(self, "sampling", SamplingConfig()).temperature == 0 and self.backend in ASKED:
            complaints.append(
                f"samples: expected 1 at temperature 0, where all samples are the same, found {self.samples}: set sampling.temperature, or "
                "samples: 1"
            )
        return complaints + _principle_problems(self.principles)


ASKED = ("simulated", "openai", "transformers")
"""The backends that answer a judge's questions in text."""


def _principle_problems(principles: dict[str, Any]) -> list[str]:
    """Complaints about principles that are not texts by language for a judge, a critic or a writer."""
    return [
        f"principles.{name}: expected a mapping of judge, critique, revision to texts by language ({', '.join(LANGUAGES)}), found {principle!r}"
        for name, principle in principles.items()
        if not (
            isinstance(principle, dict)
            and set(principle) <= {"judge", "critique", "revision"}
            and all(isinstance(texts, dict) and set(texts) <= set(LANGUAGES) for texts in principle.values())
        )
    ]


@dataclass
class SimulatedJudge(JudgeConfig):
    """The closed world's annotator: it reads the rendered prompt and replies with text, with planted faults."""

    backend: str = "simulated"
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)


@dataclass
class GoldJudge(JudgeConfig):
    """The closed world's verifier as a judge: perfect, and only there to compare other judges with."""

    backend: str = "gold"


@dataclass
class NoJudge(JudgeConfig):
    """Nobody, for pairs that need no judge and evaluations without a win rate."""

    backend: str = "none"


@dataclass
class Prices:
    """Money per million tokens, in the currency of max_cost."""

    input: float = 0.0
    output: float = 0.0

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return outside(self, input=NOT_NEGATIVE, output=NOT_NEGATIVE)


@dataclass
class SamplingConfig:
    """How the judging model is sampled; part of what identifies a reply."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        share = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
        return outside(self, temperature=NOT_NEGATIVE, top_p=share, max_tokens=COUNT)


@dataclass
class OpenaiJudge(JudgeConfig, Endpoint):
    """Any OpenAI-compatible chat endpoint: hosted, vLLM, Ollama, llama.cpp, `transformers serve`.

    Without `base_url` it is the one of the environment's OPENAI_BASE_URL, or else the hosted service.
    """

    section: ClassVar[str] = "judge"

    backend: str = "openai"
    model: str = MISSING
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    structured: bool = False
    """Ask for the verdict as JSON that follows a schema; if the endpoint cannot do that, as text."""
    probabilities: bool = False
    """Ask for token log-probabilities, and score comparisons by P(A) if the endpoint gives them."""
    prices: Prices = field(default_factory=Prices)
    max_cost: float | None = None
    """Money that a run may spend, including earlier attempts that crashed; it stops before it would spend more."""
    dry_run: bool = False
    """Print what the run would cost and stop."""

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return [*super().problems(), *self.endpoint_problems(), *outside(self, max_cost=NOT_NEGATIVE)]


@dataclass
class TransformersJudge(JudgeConfig):
    """A chat model in this process: a folder, or a hub id with a pinned revision."""

    backend: str = "transformers"
    model: str = MISSING
    revision: str | None = None
    device: str = "cpu"
    batch: int = 16
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return [*super().problems(), *outside(self, batch=COUNT), *pin_problems(self.model, self.revision, "model")]


@dataclass
class HumanJudge(JudgeConfig):
    """People: their verdicts, on sheets that `python -m plumbline.judging.human` wrote blank."""

    backend: str = "human"
    annotations: str = MISSING
    """A CSV or JSON Lines file that annotators filled in, or a folder of such files."""


@dataclass
class PanelJudge(JudgeConfig):
    """Several judges whose verdicts are aggregated; `members` holds their values by name."""

    backend: str = "panel"
    members: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for member in self.members.values():
            if address := member.get("base_url"):
                check_address(address, "judge")

    def problems(self) -> list[str]:
        """What does not fit in the panel and in each member; empty if all does."""
        complaints = super().problems()
        if not self.members:
            complaints.append("members: expected at least one judge in the panel, found none")
        for name, values in self.members.items():
            complaints += _member_problems(f"members.{name}", values)
        return complaints


def _member_problems(where: str, values: Any) -> list[str]:
    """Complaints about a member of a panel, whose values Hydra does not look into."""
    if not isinstance(values, dict):
        return [f"{where}: expected the values of a judge, found {values!r}"]
    if values.get("backend") not in ASKED:
        return [f"{where}.backend: expected one of {', '.join(ASKED)}, which can be asked, found {values.get('backend')!r}"]
    if complaints := [*misfits(values, BACKENDS[values["backend"]], where)]:
        return complaints
    member = OmegaConf.merge(OmegaConf.structured(BACKENDS[values["backend"]]), values)
    if missing := OmegaConf.missing_keys(member):
        return [f"{where}: no value for {', '.join(sorted(missing))}"]
    return [f"{where}.{complaint}" for complaint in problems(OmegaConf.to_object(member))]


SCHEMAS: dict[str, type] = {
    "judge_simulated": SimulatedJudge,
    "judge_gold": GoldJudge,
    "judge_none": NoJudge,
    "judge_openai": OpenaiJudge,
    "judge_transformers": TransformersJudge,
    "judge_human": HumanJudge,
    "judge_panel": PanelJudge,
}
"""The schemas by the names that the defaults lists of conf/judge/*.yaml begin with."""

BACKENDS: dict[str, type[JudgeConfig]] = {
    schema.backend: schema
    for schema in (SimulatedJudge, GoldJudge, NoJudge, OpenaiJudge, TransformersJudge, HumanJudge, PanelJudge)
}


def judge_config(config: JudgeConfig | DictConfig) -> JudgeConfig:
    """A composed config as an instance of its backend's dataclass.

    Raises:
        ValueError: the backend is unknown.
    """
    if isinstance(config, JudgeConfig):
        return config
    backend = config.get("backend")
    if backend not in BACKENDS:
        raise ValueError(f"judge.backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    return cast("JudgeConfig", OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BACKENDS[backend]), config)))


def uses_gold(judge: Any) -> bool:
    """Whether a judge, or a member of a panel, is the closed world's verifier, by which policies are evaluated."""
    config = judge_config(judge)
    members = config.members.values() if isinstance(config, PanelJudge) else ()
    return "gold" in (config.backend, *(member.get("backend") for member in members))


def is_dry_run(judge: Any) -> bool:
    """Whether a judge, or a member of a panel, counts what it would be asked instead of being asked."""
    config = judge_config(judge)
    members = config.members.values() if isinstance(config, PanelJudge) else ()
    return bool(getattr(config, "dry_run", False)) or any(member.get("dry_run") for member in members)


def must_see_all(judge: Any) -> bool:
    """Whether a judge sums up at the end what it was asked, so that it has to be asked about every shard of a sample in one run.

    A dry run sums up the costs; people's sheets sum up the verdicts that nobody asked for.
    """
    return is_dry_run(judge) or judge_config(judge).backend == "human"
