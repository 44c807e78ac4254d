"""Makes every data set of the pipeline and its tokenizer; what is wrong with the data is caught, counted and explained here.

Reads `conf/data/<name>.yaml`, and the files that it names below `inputs`. Writes `artifacts/data/<role>/<split>.jsonl` (roles:
pretrain, sft, prompts, preferences, unpaired), `artifacts/tokenizer`, `metrics/prepare/prepare.json` and the report's section on
data, `artifacts/data_report/section.html`.

Rows are read and checked, evaluation prompts are removed from training text (Tülu 3, arXiv:2411.15124, §3.2), duplicates are
found (MinHash, Broder 1997), and each row is rendered by the one chat template that all stages use. In = kept + dropped,
always. The closed world takes about 20 s; a million rows of 200 tokens about four minutes on two cores (tests/benchmarks/README.md).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.datasets.config import WORLD_POLICY, Policy, typed_data
from stages.models.architecture import HubModel, ScratchModel
from stages.pipeline.composing import register, typed
from stages.pipeline.execution import Work, executing, explained
from stages.pipeline.records import replacing, write_json
from stages.world.generate import ClosedWorldConfig

if TYPE_CHECKING:
    from stages.datasets.finishing import SplitStatistics
    from stages.datasets.gathering import Gathering, Pool
    from stages.datasets.reading import Item
    from stages.models.tokenizers import ReadyTokenizer

ROLES = ("prompts", "pretrain", "sft", "preferences", "unpaired")  # prompts first: the others are cleaned of them


@dataclass
class PrepareSection:
    """params.yaml's `prepare`; meaning: conf/prepare.yaml."""

    scale: float = MISSING


@dataclass
class PrepareStage:
    """What decides the data."""

    seed: int = MISSING
    threads: int = MISSING
    inputs: str = MISSING
    model: Any = MISSING
    data: Any = MISSING
    prepare: PrepareSection = field(default_factory=PrepareSection)


def world_items(config: PrepareStage) -> "dict[str, tuple[Gathering, Iterator[tuple[int, Item]]]]":
    """Every role's rows from the closed world, which splits them itself."""
    from stages.datasets.gathering import world_role
    from stages.world.generate import generate

    scaled = replace(config.data, scale=config.data.scale * config.prepare.scale)
    files = generate(scaled, config.seed).files()
    return {role: world_role(role, files, WORLD_POLICY) for role in ROLES}


def file_items(config: PrepareStage) -> "dict[str, tuple[Gathering, Iterator[tuple[int, Item]]]]":
    """Every role's rows from the files below `inputs`, or from the hub."""
    from stages.datasets.gathering import files_role

    if config.prepare.scale != 1:
        raise ValueError("prepare.scale is the closed world's; of files, set `limit` of the sources in conf/data/<name>.yaml")
    return {role: files_role(role, config.data, Path(config.inputs)) for role in ROLES}


def gather_all(config: PrepareStage, spool: Path) -> "dict[str, Pool]":
    """Reads, checks and selects the rows of every role; evaluation prompts are removed from what trains."""
    from stages.datasets.gathering import gather
    from stages.datasets.selection import check_limits, index_evaluation, select

    items = world_items(config) if isinstance(config.data, ClosedWorldConfig) else file_items(config)
    overlaps = None
    pools = {}
    for role in ROLES:
        gathering, rows = items[role]
        pool = gather(gathering._replace(overlaps=overlaps), rows, spool / role, config.threads)
        check_limits(role, pool.tally, gathering.policy)
        if role == "prompts" and gathering.policy.decontaminate != "off":
            overlaps = index_evaluation(pool, gathering.policy)
        select(pool, gathering.policy)
        pools[role] = pool
    return pools


def make_tokenizer(model: ScratchModel | HubModel, pools: "dict[str, Pool]") -> "ReadyTokenizer":
    """A tokenizer trained on what is said in the kept training rows, or the model's own made ready."""
    from stages.datasets.finishing import tokenizer_texts
    from stages.models.tokenizers import ReadyTokenizer, load_tokenizer, train_tokenizer
    from stages.pipeline.pinning import pinned

    if isinstance(model, HubModel):
        if Path(model.path).is_dir():
            pinned(Path(model.path), model.revision, "conf/model/hub.yaml: revision")
        return load_tokenizer(model.path, model.revision, chat_template=model.chat_template, pad_token=model.pad_token)
    return ReadyTokenizer(train_tokenizer(tokenizer_texts(pools.values()), model.vocabulary_size), [])


def save(
    config: PrepareStage, pools: "dict[str, Pool]", work: Work
) -> "tuple[ReadyTokenizer, dict[str, dict[str, SplitStatistics]]]":
    """Writes the tokenizer and every role's splits, rendered, tokenised and checked."""
    from stages.datasets.finishing import finish, require_training_rows
    from stages.datasets.rendering import Fitting
    from stages.datasets.selection import check_limits
    from stages.models.tokenizers import context_tokens

    policy = policy_of(config)
    tokenizer = make_tokenizer(config.model, pools)
    tokenizer.tokenizer.save_pretrained(work.output("artifacts/tokenizer"))
    for note in tokenizer.notes:
        print(f"prepare: {note}")
    fitting = Fitting(context_tokens(config.model), policy.too_long, policy.answer_tokens)
    statistics = {}
    for role, pool in pools.items():
        statistics[role] = finish(pool, tokenizer.tokenizer, fitting, work.output(f"artifacts/data/{role}"), config.threads)
        require_training_rows(pool, statistics[role])
        check_limits(role, pool.tally, policy)
    return tokenizer, statistics


def policy_of(config: PrepareStage) -> Policy:
    """The data conf's policy; the closed world's is fixed."""
    return WORLD_POLICY if isinstance(config.data, ClosedWorldConfig) else config.data.policy


def run(config: PrepareStage) -> None:
    """Gathers, tokenises and writes all data, and reports on them."""
    config.data = typed_data(config.data)
    with executing("prepare", None, config, [config.inputs]) as work:
        from stages.datasets.report import metrics, section, tables

        # The rows wait on the disk that takes the outputs: there must be room for them there anyway.
        with tempfile.TemporaryDirectory(prefix=".spool-", dir=work.output("artifacts/data/pretrain").parent) as spool:
            pools = gather_all(config, Path(spool))
            tokenizer, statistics = save(config, pools, work)
        write_json(work.output("metrics/prepare/prepare.json"), metrics(pools, statistics))
        with replacing(work.output("artifacts/data_report") / "section.html") as page:
            page.write(section(pools, statistics, tokenizer))
        for name, rows in tables(pools, statistics).items():
            work.run.log_table(f"data_{name}", rows)


@hydra.main(version_base=None, config_path="../conf", config_name="prepare")
@explained
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("prepare", PrepareStage)
    main()
