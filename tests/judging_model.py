"""A judge that the pipeline itself makes: a small Llama that learns how a verdict is written, from the simulated annotator's replies.

`python tests/judging_model.py <folder>` writes `<folder>/trained` and `<folder>/untrained`, for `transformers serve` or vLLM. It
learns the form, not to judge: what it rates is drawn from the ratings that it saw.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("MLFLOW_TRACKING_URI", "off")

from omegaconf import OmegaConf

from stages.judging import templates
from stages.pipeline.records import write_jsonl
from stages.world.annotator import AnnotatorConfig, SimulatedAnnotator
from stages.world.answers import Style, write_answer
from stages.world.tasks import FAMILIES, understand

ROOT = Path(__file__).parents[1]
CRITERIA = ("accuracy",)
CONTEXT_TOKENS = 2048
DEMONSTRATIONS, STEPS, BATCH = 960, 60, 16


def sample(prompts: int, each: int, seed: int) -> list[dict[str, Any]]:
    """Completions of the closed world, good and bad, as rows of artifacts/sample."""
    rng, rows = random.Random(seed), []
    for number in range(prompts):
        family = FAMILIES[sorted(FAMILIES)[number % len(FAMILIES)]]
        prompt = family.ask(rng.choice(family.intents()), "en", rng)
        task = understand(prompt)
        assert task is not None
        for index in range(each):
            style = Style(rng.choice(["right", "wrong"]), rng.choice(["kind", "plain", "rude"]), rng.random() < 0.5)
            rows.append({"id": f"p{number}", "index": index, "prompt": prompt, "policy": "sft", "finished": True, "tokens": 5,
                         "completion": [{"role": "assistant", "content": write_answer(task, style, rng)}]})  # fmt: skip
    return rows


def demonstrations(count: int, seed: int) -> list[dict[str, Any]]:
    """Judges' questions with the simulated annotator's replies: ratings and comparisons by turns."""
    config = AnnotatorConfig(error_rate=0.1, position_bias=0.0, length_bias=0.0, revision_skill=0.7, seed=seed)
    annotator, rows = SimulatedAnnotator(config), sample(count, 2, seed)
    found = []
    for number, (one, two) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        name, shown = ("rating", [one]) if number % 2 else ("pairwise", [one, two])
        texts = [row["completion"][0]["content"] for row in shown]
        asked = templates.question(name, one["prompt"], texts, criteria=CRITERIA)
        found.append({"prompt": asked, "completion": [{"role": "assistant", "content": annotator.respond(asked)}]})
    return found


def make(folder: Path, seed: int = 1, steps: int = STEPS) -> None:
    """Writes the two model folders."""
    import torch

    from stages.methods.sft import SftConfig, align
    from stages.models.architecture import ScratchModel, new_llama
    from stages.models.chat import end_of_turn_id
    from stages.models.tokenizers import train_tokenizer
    from stages.models.training import make_deterministic, save_policy
    from stages.pipeline.tracking import tracked

    make_deterministic(seed, torch.get_num_threads())
    rows = demonstrations(DEMONSTRATIONS, seed)
    tokenizer = train_tokenizer((row[key][0]["content"] for row in rows for key in ("prompt", "completion")), 1536)
    size = ScratchModel(
        vocabulary_size=1536, context_tokens=CONTEXT_TOKENS, hidden_size=128, layers=2, heads=4, intermediate_size=256,
        initializer_range=0.06,
    )  # fmt: skip
    model = new_llama(size, vocabulary=len(tokenizer), end_id=end_of_turn_id(tokenizer), pad_id=tokenizer.pad_token_id)
    save_policy(model, tokenizer, folder / "untrained")
    write_jsonl(folder / "data/train.jsonl", rows[64:])
    write_jsonl(folder / "data/validation.jsonl", rows[:64])
    values = OmegaConf.load(ROOT / "conf/method/sft.yaml")
    del values["defaults"]
    values.update(max_steps=steps, batch_size=BATCH, micro_batch_size=BATCH, learning_rate=3e-3, evaluate_every=steps)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SftConfig(init="", signal="")), values))
    assert isinstance(config, SftConfig)
    with tracked("judge", params={}, tags={}, inputs=[]) as run:
        align(
            config, init=folder / "untrained", signal=folder / "data", data=folder, output=folder / "trained",
            checkpoints=folder / "checkpoints", curve=folder / "curve.csv", run=run, seed=seed,
        )  # fmt: skip


if __name__ == "__main__":
    make(Path(sys.argv[1]))
