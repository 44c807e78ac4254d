"""Makes the base policy: pretrains a small model from scratch, or loads an existing one.

Reads `artifacts/data/pretrain` and `artifacts/tokenizer`; writes `artifacts/policy/base`, `artifacts/figures/pretrain/pretrain.json` and a
training curve.

Training is next-token prediction with AdamW, a warm-up and a falling learning rate (Llama, arXiv:2302.13971, §2.3). A row is one document,
not a block of several, which would see each other. With `model: hub` nothing is trained: the model is loaded, gets the tokenizer's padding
token, and is saved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.models.architecture import HubModel, ScratchModel, load_hub_model, new_model
from plumbline.models.rows_on_disk import CHUNK, rows_on_disk
from plumbline.models.size import require_size
from plumbline.models.training_values import Validated
from plumbline.pipeline.composing import register, typed
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import Range, outside
from plumbline.pipeline.records import stream_jsonl, write_json
from plumbline.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DATA, TOKENIZER = Path("artifacts/data/pretrain"), Path("artifacts/tokenizer")
IGNORED = -100  # the label of a token without loss

Encoded = tuple[list[int], list[int]]  # token ids and labels


@dataclass
class PretrainConfig(Validated):
    """Values and their meaning: conf/pretrain.yaml."""

    block_tokens: int = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        least = Range("at least 2, since a token alone predicts nothing", lambda value: value >= 2)
        return [*super().problems(), *outside(self, block_tokens=least)]


@dataclass
class PretrainStage:
    """The config of the stage: everything that decides the base policy."""

    seed: int = MISSING
    threads: int = MISSING
    launcher: Launcher = field(default_factory=Launcher)
    model: Any = MISSING
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


def pieces(ids: list[int], block_tokens: int) -> list[list[int]]:
    """Cuts a document into pieces of at most `block_tokens`; a last piece of one token is dropped, because it predicts nothing."""
    all_pieces = [ids[start : start + block_tokens] for start in range(0, len(ids), block_tokens)]
    return [piece for piece in all_pieces if len(piece) > 1]


def documents(tokenizer: "PreTrainedTokenizerBase", split: str, block_tokens: int) -> Iterator[dict[str, list[int]]]:
    """The documents of a split as `input_ids` and `labels`, one block after another; each document ends in end-of-turn.

    Of a dialogue only the last answer carries loss, as everywhere: what users say is not an example to follow.

    Raises:
        ValueError: there is nothing to train on.
    """
    is_empty = True
    for ids, labels in _encoded(tokenizer, DATA / f"{split}.jsonl"):
        for block, block_labels in zip(pieces(ids, block_tokens), pieces(labels, block_tokens), strict=True):
            if any(label != IGNORED for label in block_labels[1:]):
                is_empty = False
                yield {"input_ids": block, "labels": block_labels}
    if is_empty:
        raise ValueError(
            f"{DATA / split}.jsonl: expected text to train on, found none. artifacts/figures/prepare/prepare.json counts the rows that "
            "prepare dropped, by reason"
        )


def _encoded(tokenizer: "PreTrainedTokenizerBase", file: Path) -> Iterator[Encoded]:
    """The documents of a file, a thousand in memory at a time: first those to read as text, then dialogues."""
    for encode, is_kind in ((_texts, _is_text), (_dialogues, _answers_last)):
        rows = filter(is_kind, stream_jsonl(file))
        while chunk := [*islice(rows, CHUNK)]:
            yield from encode(tokenizer, chunk)


def _answers_last(row: Row) -> bool:
    return "messages" in row and row["messages"][-1]["role"] == "assistant" and len(row["messages"]) > 1


def _is_text(row: Row) -> bool:
    return not _answers_last(row)


def _texts(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Iterator[Encoded]:
    """Rows to read as text, every token of which carries loss."""
    from plumbline.models.chat import end_of_turn_id, render

    end = end_of_turn_id(tokenizer)
    texts = [row["text"] if "text" in row else render(tokenizer, row["messages"], add_generation_prompt=False) for row in rows]
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        whole = ids if ids[-1:] == [end] else [*ids, end]
        yield whole, whole


def _dialogues(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Iterator[Encoded]:
    """Dialogues that end in an answer, which alone carries loss."""
    from plumbline.models.chat import encode_turns

    turns = encode_turns(tokenizer, [(row["messages"][:-1], row["messages"][-1:]) for row in rows])
    for prompt, completion in turns:
        yield [*prompt, *completion], [IGNORED] * len(prompt) + completion


class Base(NamedTuple):
    """The base policy."""

    model: "PreTrainedModel"
    figures: dict[str, float | None]


def train_from_scratch(config: PretrainStage, tokenizer: "PreTrainedTokenizerBase", work: Work) -> Base:
    """Trains a new model on the pretraining text and records its curve.

    Raises:
        ValueError: the model is not of the size that its file names.
    """
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from plumbline.models.batching import mixed_batches
    from plumbline.models.chat import end_of_turn_id
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.saving import whole_model
    from plumbline.models.training import train, trainer_arguments

    model = new_model(config.model, vocabulary=len(tokenizer), end_id=end_of_turn_id(tokenizer), pad_id=tokenizer.pad_token_id)
    require_size(config.model.size, model.num_parameters())
    with work.checkpoints() as checkpoints:
        blocks = {
            split: rows_on_disk(documents(tokenizer, split, config.pretrain.block_tokens), list, checkpoints / f"{split}.arrow")
            for split in ("train", "validation")
        }
        trainer = mixed_batches(Trainer)(
            model=model,
            args=TrainingArguments(**trainer_arguments(config.pretrain, checkpoints, config.seed)),
            train_dataset=blocks["train"],
            eval_dataset=blocks["validation"],
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        train(trainer, checkpoints)
        figures = {"validation_loss": trainer.evaluate()["eval_loss"], "parameters": model.num_parameters()}
        model = whole_model(trainer, init=None)
    write_curve(work.output("artifacts/curves/pretrain/pretrain.csv"), curve_rows(trainer.state.log_history), work.run)
    return Base(model, figures)


def load_existing(config: HubModel, tokenizer: "PreTrainedTokenizerBase", work: Work) -> Base:
    """Loads the model in the config; its embeddings get as many rows as the tokenizer has ids.

    They grow by one if `prepare` added a padding token, and lose rows that only pad the vocabulary (plumbline/models/loading.py).

    Raises:
        ValueError: the model is not of the size that its file names, or the tokenizer has tokens that the model does not know.
    """
    from plumbline.models.curves import write_curve
    from plumbline.models.loading import unknown_ids, vocabulary_size
    from plumbline.models.suitability import PLACE

    model = load_hub_model(config)
    require_size(config.size, model.num_parameters())
    embeddings: Any = model.get_input_embeddings()
    rows, size = embeddings.num_embeddings, vocabulary_size(tokenizer)
    if complaint := unknown_ids(tokenizer, rows):
        raise ValueError(f"{PLACE}: {complaint}")
    if size != rows:
        print(f"pretrain: the embeddings have {rows} rows and the tokenizer {size} ids: they are resized to {size}")
        model.resize_token_embeddings(size)
    write_curve(work.output("artifacts/curves/pretrain/pretrain.csv"), [], work.run)
    return Base(model, {"validation_loss": None, "parameters": model.num_parameters()})


def run(config: PretrainStage) -> None:
    """Trains or loads the base policy and saves it."""
    with executing("pretrain", None, config, [DATA, TOKENIZER]) as work:
        from transformers import AutoTokenizer

        from plumbline.models.determinism import make_deterministic
        from plumbline.models.model_card import hub_origin, scratch_origin, write_card
        from plumbline.models.saving import save_policy

        make_deterministic(config.seed, config.threads)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        values: dict[str, Any] = {}
        if isinstance(config.model, ScratchModel):
            base, did, origin = train_from_scratch(config, tokenizer, work), "trained it from random weights", scratch_origin()
            values = asdict(config.model) | asdict(config.pretrain)
        else:
            base, did, origin = (
                load_existing(config.model, tokenizer, work),
                "loaded it",
                hub_origin(config.model.path, config.model.revision),
            )
        policy = work.output("artifacts/policy/base")
        save_policy(base.model, tokenizer, policy)
        write_card(work, policy, did=did, values=values, figures=base.figures, origin=origin, seed=config.seed)
        write_json(work.output("artifacts/figures/pretrain/pretrain.json"), base.figures)
        work.run.log_figures(base.figures)


@hydra.main(version_base=None, config_path="../conf", config_name="pretrain")
@launched
def main(config: DictConfig) -> None:
    run(typed(config))


if __name__ == "__main__":
    register("pretrain", PretrainStage)
    main()
