"""Compares plumbline.methods.online.ppo with trl.experimental.ppo of trl==1.12.0, each in a process and an environment of its own.

`python tests/benchmarks/ppo_throughput.py --peer <python of the peer's environment>`; README.md in this folder shows how to make that
environment. First a tiny Llama learns a small language, so that completions end by themselves, at different lengths. A reward model learns
which of its words are preferred. Then both trainers get the same folders, prompts, batch, epochs, token limit and coefficients.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SETTINGS: dict[str, Any] = {
    "rollout": 256, "minibatch": 64, "epochs": 4, "max_new_tokens": 48, "kl": 0.05, "learning_rate": 1e-4, "clip": 0.2,
    "gamma": 1.0, "lam": 0.95, "missing_eos_penalty": 1.0,
}  # fmt: skip
TINY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
LARGER = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376}  # about 25M


# ------------------------------------------------------------------------------------------------ the language and the models


def conversations(count: int, seed: int) -> Iterator[tuple[str, str, float]]:
    """Prompts, answers of 2 to 40 words, and the score of each answer: its share of words from one half of the vocabulary."""
    randomness = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
    words = [first + second for first in syllables for second in syllables[::4]]
    for _ in range(count):
        topic = randomness.randrange(len(words))
        near = [words[(topic + step) % len(words)] for step in range(24)]
        answer = randomness.choices(near, k=min(40, 2 + int(randomness.expovariate(1 / 12))))
        share = sum(words.index(word) % 2 for word in answer) / len(answer)
        question = " ".join([words[topic], *randomness.choices(words, k=randomness.randrange(1, 12))])
        yield question, " ".join(answer), 4 * share - 2


def make(folder: Path, shape: dict[str, int], steps: int) -> None:
    """Writes tokenizer, policy, reward model and prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from plumbline.models.chat import encode_turns
    from plumbline.models.tokenizers import train_tokenizer
    from plumbline.rows import assistant

    rows = list(conversations(64 * steps + 4096, seed=0))
    tokenizer = train_tokenizer([text for question, answer, _ in rows[:4096] for text in (question, answer)], 1536)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, num_labels=1, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    policy, reward_model = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    optimiser = torch.optim.AdamW([*policy.parameters(), *reward_model.parameters()], lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.02, total_iters=max(1, steps))
    for step in range(steps):
        batch = rows[64 * step : 64 * step + 64]
        turns = encode_turns(tokenizer, [(_prompt(question), assistant(answer)) for question, answer, _ in batch])
        inputs = tokenizer.pad({"input_ids": [turn.prompt + turn.completion for turn in turns]}, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = policy(**inputs, labels=labels).loss
        scores = reward_model(**inputs).logits[:, 0]
        loss = loss + (scores - torch.tensor([score for _, _, score in batch])).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        scheduler.step()
        if step % 50 == 0:
            print(f"make: step {step}, loss {loss.item():.3f}", file=sys.stderr)
    for name, model in (("policy", policy), ("reward", reward_model)):
        model.generation_config = None if name == "reward" else model.generation_config
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = [question for question, _, _ in conversations(2048, seed=1)]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def _prompt(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def read_prompts(folder: Path) -> list[list[dict[str, str]]]:
    """The prompts that `make` has written."""
    return [_prompt(question) for question in json.loads((folder / "prompts.json").read_text())]


# ------------------------------------------------------------------------------------------------------------ the contestants


def our_config(episodes: int, rollout: int) -> Any:
    """The values of conf/method/ppo.yaml, with those that the comparison sets."""
    from omegaconf import OmegaConf

    from plumbline.methods.online.ppo.settings import PpoConfig
    from plumbline.pipeline.composing import size_section

    values: Any = OmegaConf.load(ROOT / "conf/method/ppo.yaml")
    del values["defaults"]  # Hydra's
    changes = {
        "init": "policy", "reward": "reward", "episodes": episodes, "rollout_batch_size": rollout, "sampling_batch_size": rollout,
        "batch_size": min(SETTINGS["minibatch"], rollout), "micro_batch_size": 16, "update_epochs": SETTINGS["epochs"],
        "max_new_tokens": SETTINGS["max_new_tokens"], "missing_eos_penalty": SETTINGS["missing_eos_penalty"], "beta": SETTINGS["kl"],
        "gamma": SETTINGS["gamma"], "lam": SETTINGS["lam"], "clip_range": SETTINGS["clip"], "value_clip_range": SETTINGS["clip"],
        "learning_rate": SETTINGS["learning_rate"], "value_learning_rate": SETTINGS["learning_rate"], "warmup_fraction": 0.0,
        "samples_every": 10**6, "checkpoint_every": 10**6,
    }  # fmt: skip
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PpoConfig), values, size_section("tiny", "ppo"), changes))


def run_ours(folder: Path, episodes: int, rollout: int) -> dict[str, Any]:
    """Trains with plumbline.methods.online.ppo."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from plumbline.methods.online.ppo.networks import value_model_from_reward_model
    from plumbline.methods.online.ppo.trainer import PpoTrainer, train
    from plumbline.rewards.model import RewardModel

    config, prompts = our_config(episodes, rollout), read_prompts(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    parts: dict[str, float] = {}
    completion_tokens = 0.0
    curve: list[dict[str, float]] = []

    def log(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        nonlocal completion_tokens
        curve.append({"step": step, "reward": metrics["score"], "kl": metrics["kl_k1"], "length": metrics["length_tokens"]})
        for name, seconds in timings.items():
            if name.endswith("_seconds"):
                parts[name] = parts.get(name, 0.0) + seconds
        completion_tokens += metrics["length_tokens"] * rollout

    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    models = {
        "policy": policy,
        "reference": AutoModelForCausalLM.from_pretrained(folder / "policy"),
        "value_model": value_model_from_reward_model(folder / "reward"),
        "reward": RewardModel(AutoModelForSequenceClassification.from_pretrained(folder / "reward"), tokenizer),
    }
    started, cpu_started = time.perf_counter(), time.process_time()
    trainer = PpoTrainer(**models, tokenizer=tokenizer, prompts=prompts, config=config, seed=0)
    train(trainer, folder / "no-checkpoints", log=log, log_samples=lambda step, rows: None)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    prompt_tokens = statistics.mean(len(ids) for ids in trainer.encoded[:256]) * episodes
    epochs = config.update_epochs
    floors = {} if "25m" in str(folder) else matrix_product_seconds(policy, prompt_tokens, completion_tokens, epochs)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "parts": parts, "floors": floors, "curve": curve}


def matrix_product_seconds(policy: Any, prompt_tokens: float, completion_tokens: float, epochs: int) -> dict[str, float]:
    """The seconds that the matrix products of the linear layers take by themselves.

    Generation reads prompts and completions once. An update is three times a forward pass of policy and value model at every token.
    """
    layers = [
        (module.weight.shape[0], module.weight.shape[1]) for module in policy.model.modules() if hasattr(module, "in_features")
    ]
    head = [tuple(policy.lm_head.weight.shape)]
    backbone_wide, backbone_decoding = (_seconds_per_row(layers, rows) for rows in (4096, 128))
    head_wide, head_decoding = (_seconds_per_row(head, rows) for rows in (2048, 128))
    tokens = prompt_tokens + completion_tokens
    return {
        "generation_seconds": prompt_tokens * backbone_wide + completion_tokens * (backbone_decoding + head_decoding),
        "update_seconds": epochs * 3 * (2 * tokens * backbone_wide + completion_tokens * head_wide),
    }


def _seconds_per_row(shapes: list[tuple[int, ...]], rows: int) -> float:
    pairs = [(torch.randn(rows, inputs), torch.randn(outputs, inputs)) for outputs, inputs in shapes]
    times = []
    for _ in range(12):
        started = time.perf_counter()
        for values, weight in pairs:
            torch.nn.functional.linear(values, weight)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) / rows


def run_peer(folder: Path, episodes: int, rollout: int) -> dict[str, Any]:
    """Trains with trl.experimental.ppo."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    texts = tokenizer.apply_chat_template(read_prompts(folder), tokenize=False, add_generation_prompt=True)
    dataset = Dataset.from_dict({"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]})
    minibatch = min(SETTINGS["minibatch"], rollout)
    args = PPOConfig(
        output_dir=str(folder / "peer"), total_episodes=episodes, per_device_train_batch_size=rollout,  # its batch; minibatches below
        gradient_accumulation_steps=1, num_mini_batches=rollout // minibatch, num_ppo_epochs=SETTINGS["epochs"],
        local_rollout_forward_batch_size=rollout, response_length=SETTINGS["max_new_tokens"], temperature=1.0, stop_token="eos",
        missing_eos_penalty=SETTINGS["missing_eos_penalty"], kl_coef=SETTINGS["kl"], cliprange=SETTINGS["clip"],
        cliprange_value=SETTINGS["clip"], gamma=SETTINGS["gamma"], lam=SETTINGS["lam"], learning_rate=SETTINGS["learning_rate"],
        num_sample_generations=0, report_to="none", save_strategy="no", bf16=False, gradient_checkpointing=False, use_cpu=True,
        seed=0, logging_steps=1,
    )  # fmt: skip

    def load(kind: Any, name: str) -> Any:
        return kind.from_pretrained(folder / name)

    reward_model, value_model = (load(AutoModelForSequenceClassification, "reward") for _ in range(2))
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=load(AutoModelForCausalLM, "policy"),
        ref_model=load(AutoModelForCausalLM, "policy"),
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=dataset,
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    curve = [
        {"step": step, "reward": row["objective/scores"], "kl": row["objective/kl"]}
        for step, row in enumerate(row for row in trainer.state.log_history if "objective/scores" in row)
    ]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "curve": curve}


# --------------------------------------------------------------------------------------------------------------- measuring


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def contest(kind: str, folder: Path, episodes: int, rollout: int) -> None:
    """Makes one run in this process and prints its result as JSON on the last line."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    imports = "plumbline.methods.online.ppo.trainer" if kind == "ours" else "trl.experimental.ppo"
    __import__(imports)
    __import__("transformers.models.llama.modeling_llama")
    before = resident_bytes()
    result = (run_ours if kind == "ours" else run_peer)(folder, episodes, rollout)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result |= {
        "samples_per_second": episodes / result["seconds"],
        "samples_per_cpu_second": episodes / result["cpu_seconds"],
        "peak_mib": (peak - before) / 2**20,
    }
    print("\n" + json.dumps(result))


def launch(python: str, threads: int, *arguments: str) -> dict[str, Any]:
    """Runs this script in another process and returns the result that it prints."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run([python, __file__, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(peer: str, folder: Path, *, episodes: int, runs: int, rollout: int, threads: int) -> dict[str, Any]:
    """Alternates runs of both, so that other work on the machine affects both."""
    contestants = {"ours": sys.executable, "peer": peer}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(runs):
        for name, python in contestants.items():
            results[name].append(launch(python, threads, "--contest", name, str(folder), str(episodes), str(rollout)))
            last = results[name][-1]
            print(f"run {number} {name}: {last['samples_per_second']:.1f} samples/s, peak {last['peak_mib']:.0f} MiB", flush=True)
    rates = ("samples_per_second", "samples_per_cpu_second")
    medians = {rate: {name: statistics.median(row[rate] for row in rows) for name, rows in results.items()} for rate in rates}
    summary: dict[str, Any] = {
        **medians,
        "samples_per_second_of_runs": {name: [row["samples_per_second"] for row in rows] for name, rows in results.items()},
        "times_the_peer": {rate: medians[rate]["ours"] / medians[rate]["peer"] for rate in rates},
        "peak_mib": {name: statistics.median(row["peak_mib"] for row in rows) for name, rows in results.items()},
        "curves": {name: rows[0]["curve"] for name, rows in results.items()},
    }
    middle = sorted(results["ours"], key=lambda row: row["samples_per_second"])[runs // 2]
    parts = middle["parts"]
    summary["shares"] = {name: seconds / sum(parts.values()) for name, seconds in parts.items()}
    summary["times_the_matrix_products"] = {name: parts[name] / seconds for name, seconds in middle["floors"].items()}
    return summary


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="python of the environment with trl==1.12.0")
    parser.add_argument("--folder", type=Path, default=Path("scratch/ppo_benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1024)
    parser.add_argument(
        "--curve-episodes", type=int, default=4096, help="length of another run of each for the reward curves; 0: none"
    )
    parser.add_argument(
        "--memory", action="store_true", help="measure instead the peak memory of a step of 64 episodes with about 25M parameters"
    )
    parser.add_argument("--contest", nargs=4, metavar=("KIND", "FOLDER", "EPISODES", "ROLLOUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.contest:
        kind, folder, episodes, rollout = arguments.contest
        contest(kind, Path(folder), int(episodes), int(rollout))
        return
    folder = arguments.folder.resolve() / ("25m" if arguments.memory else "tiny")
    if not (folder / "prompts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, LARGER if arguments.memory else TINY, steps=0 if arguments.memory else 250)
    measured = partial(compare, arguments.peer, folder, threads=arguments.threads)
    if arguments.memory:
        summary = measured(episodes=64, runs=1, rollout=64)
    else:
        summary = measured(episodes=arguments.episodes, runs=arguments.runs, rollout=SETTINGS["rollout"])
        if arguments.curve_episodes:
            summary["curves"] = measured(episodes=arguments.curve_episodes, runs=1, rollout=SETTINGS["rollout"])["curves"]
    name = "memory" if arguments.memory else "throughput"
    (folder / f"{name}.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps({key: value for key, value in summary.items() if key != "curves"}, indent=2))
    for contestant, curve in summary["curves"].items():
        print(contestant, "reward:", [round(row["reward"], 2) for row in curve], "kl:", [round(row["kl"], 2) for row in curve])


if __name__ == "__main__":
    main()
