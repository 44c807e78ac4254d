"""Makes every data set of the pipeline and its tokenizer. Whatever is wrong with the data is found, counted and explained here.

Reads `conf/data/<name>.yaml` and the files below `inputs` that it names. Writes `artifacts/data/<role>/<split>.jsonl` (roles: pretrain,
sft, prompts, preferences, unpaired), `artifacts/tokenizer`, the counts in `artifacts/figures/prepare/prepare.json`, and the report's
section on data, `artifacts/data_report/section.html`.

Every row is read, converted and checked. Training rows that contain an evaluation prompt are removed (Tülu 3, arXiv:2411.15124, §3.2), and
so are duplicates; near duplicates are found by MinHash (Broder, 1997). Each row is rendered by the one chat template that all stages use.
In every role and source, rows in = rows kept + rows dropped. The closed world takes about 20 s, a million rows of 200 tokens about four
minutes on two cores (tests/benchmarks/README.md).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.data.schema import ROLES, WORLD_POLICY, FilesData, Policy, typed_data
from plumbline.models.architecture import HubModel, ScratchModel, require_model
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.ranges import POSITIVE, outside
from plumbline.pipeline.records import replacing, write_json
from plumbline.world.generate import ClosedWorldConfig

if TYPE_CHECKING:
    from plumbline.data.plans import Incoming
    from plumbline.data.spool import Pool
    from plumbline.data.writing import SplitSummary
    from plumbline.models.tokenizers import ReadyTokenizer


@dataclass
class PrepareSection:
    """params.yaml's `prepare`; values and their meaning: conf/prepare.yaml."""

    scale: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return outside(self, scale=POSITIVE)


@dataclass
class PrepareStage:
    """The values that decide the data."""

    seed: int = MISSING
    threads: int = MISSING
    inputs: str = MISSING
    model: Any = MISSING
    data: Any = MISSING
    prepare: PrepareSection = field(default_factory=PrepareSection)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        if not Path(self.inputs).is_dir():
            return [f"inputs: expected a folder, found none at {self.inputs}: make it, or name the folder with your files"]
        if isinstance(self.data, FilesData) and self.prepare.scale != 1:
            return [
                f"prepare.scale: expected 1 with data from files, since it scales only the closed world, found {self.prepare.scale:g}. "
                "Set `limit` of the sources in conf/data/<name>.yaml instead"
            ]
        return []


def run(config: PrepareStage) -> None:
    """Gathers, tokenises and writes all data, and reports on them."""
    config.data = typed_data(config.data)
    with executing("prepare", None, config, [config.inputs]) as work:
        from plumbline.data.overview import metrics, section, tables

        tokenizer = existing_tokenizer(config.model)
        # The rows wait on the disk of the outputs, which needs room for them in any case.
        with tempfile.TemporaryDirectory(prefix=".spool-", dir=work.output("artifacts/data/pretrain").parent) as spool:
            policy = policy_of(config)
            pools = gather_all(incoming(config), policy, Path(spool), config.threads)
            tokenizer = tokenizer or new_tokenizer(config.model, pools)
            summaries = write_all(config, policy, pools, tokenizer, work)
        figures = metrics(pools, summaries)
        write_json(work.output("artifacts/figures/prepare/prepare.json"), figures)
        work.run.log_figures(figures, [f"{role}.kept" for role in pools])
        with replacing(work.output("artifacts/data_report") / "section.html") as page:
            page.write(section(pools, summaries, tokenizer))
        for name, rows in tables(pools, summaries).items():
            work.run.log_table(f"data_{name}", rows)


def existing_tokenizer(model: ScratchModel | HubModel) -> "ReadyTokenizer | None":
    """The tokenizer of an existing model, made ready before any data are read; None for a model that is trained from scratch.

    Raises:
        ValueError: the model is not the one that its revision names, is not a causal LM, or its tokenizer cannot be used.
    """
    from plumbline.models.suitability import PLACE
    from plumbline.models.tokenizers import own_tokenizer

    if not isinstance(model, HubModel):
        return None
    require_model(model)
    try:
        return own_tokenizer(model)
    except ValueError as error:
        raise ValueError(f"{PLACE}: {error}") from error


def policy_of(config: PrepareStage) -> Policy:
    """The data conf's policy; the closed world's is fixed."""
    return WORLD_POLICY if isinstance(config.data, ClosedWorldConfig) else config.data.policy


def incoming(config: PrepareStage) -> "dict[str, Incoming]":
    """The rows of every role: from the closed world, which splits them itself, or from files below `inputs` and the hub."""
    from plumbline.data.plans import role_from_files, role_from_world

    if isinstance(config.data, ClosedWorldConfig):
        from plumbline.world.generate import generate

        scaled = replace(config.data, scale=config.data.scale * config.prepare.scale)
        files = generate(scaled, config.seed).files()
        return {role: role_from_world(role, files, WORLD_POLICY) for role in ROLES}
    return {role: role_from_files(role, config.data, Path(config.inputs)) for role in ROLES}


def gather_all(incoming: "Mapping[str, Incoming]", policy: Policy, spool: Path, processes: int) -> "dict[str, Pool]":
    """Reads, checks and selects the rows of every role; rows that contain an evaluation prompt are removed from the training data."""
    from plumbline.data.gathering import gather
    from plumbline.data.selecting import check_limits, index_evaluation, select

    overlaps = None
    pools = {}
    for role, (plan, items) in incoming.items():
        pool = gather(plan._replace(overlaps=overlaps), items, spool / role, processes)
        check_limits(role, pool.tally, policy)
        if role == "prompts" and policy.decontaminate != "off":
            overlaps = index_evaluation(pool, policy)
        select(pool, policy)
        pools[role] = pool
    return pools


def new_tokenizer(model: ScratchModel, pools: "Mapping[str, Pool]") -> "ReadyTokenizer":
    """A tokenizer trained on the texts of the kept training rows."""
    from plumbline.data.writing import tokenizer_texts
    from plumbline.models.tokenizers import ReadyTokenizer, train_tokenizer

    return ReadyTokenizer(train_tokenizer(tokenizer_texts(pools.values()), model.vocabulary_size), [])


def write_all(
    config: PrepareStage, policy: Policy, pools: "Mapping[str, Pool]", ready: "ReadyTokenizer", work: Work
) -> "dict[str, dict[str, SplitSummary]]":
    """Writes the tokenizer and the splits of every role, rendered, tokenised and checked."""
    from plumbline.data.rendering import Fitting
    from plumbline.data.selecting import check_limits
    from plumbline.data.writing import require_training_rows, write_role
    from plumbline.models.tokenizers import context_tokens

    ready.tokenizer.save_pretrained(work.output("artifacts/tokenizer"))
    for note in ready.notes:
        print(f"prepare: {note}")
    fitting = Fitting(context_tokens(config.model), policy.too_long, policy.answer_tokens)
    summaries = {}
    for role, pool in pools.items():
        summaries[role] = write_role(pool, ready.tokenizer, fitting, work.output(f"artifacts/data/{role}"), config.threads)
        require_training_rows(pool, summaries[role])
        check_limits(role, pool.tally, policy)
    return summaries


@hydra.main(version_base=None, config_path="../conf", config_name="prepare")
@launched
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("prepare", PrepareStage)
    main()
