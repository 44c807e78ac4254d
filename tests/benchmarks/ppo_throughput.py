"""PPO side by side: stages.methods.ppo against trl==1.12.0's trl.experimental.ppo, each in a process and environment of its own.

`python tests/benchmarks/ppo_throughput.py --peer <python of the peer's environment>`; README.md beside this file says how
to make one. A fresh tiny Llama learns a small language first, so that completions end by themselves, at lengths that
differ; a reward model learns which of its words are liked. Both trainers then get the same folders, prompts, batch, epochs,
token limit and coefficients.
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
    """Prompts, answers of 2 to 40 words, and how much an answer is liked: by its share of words from half of the vocabulary."""
    randomness = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
    words = [first + second for first in syllables for second in syllables[::4]]
    for _ in range(count):
        topic = randomness.randrange(len(words))
        near = [words[(topic + step) % len(words)] for step in range(24)]
        answer = randomness.choices(near, k=min(40, 2 + int(randomness.expovariate(1 / 12))))
        liked = sum(words.index(word) % 2 for word in answer) / len(answer)
        asked = " ".join([words[topic], *randomness.choices(words, k=randomness.randrange(1, 12))])
        yield asked, " ".join(answer), 4 * liked - 2


def make(folder: Path, shape: dict[str, int], steps: int) -> None:
    """Writes tokenizer, policy, reward model and prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from stages.models.chat import encode_turns
    from stages.models.tokenizers import train_tokenizer

    rows = list(conversations(64 * steps + 4096, seed=0))
    tokenizer = train_tokenizer([text for asked, answer, _ in rows[:4096] for text in (asked, answer)], 1536)
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
        turns = encode_turns(tokenizer, [(_said("user", asked), _said("assistant", answer)) for asked, answer, _ in batch])
        inputs = tokenizer.pad({"input_ids": [turn.prompt + turn.completion for turn in turns]}, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = policy(**inputs, labels=labels).loss
        scores = reward_model(**inputs).logits[:, 0]
        loss = loss + (scores - torch.tensor([liked for _, _, liked in batch])).square().mean()
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
    prompts = [asked for asked, _, _ in conversations(2048, seed=1)]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def _said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


# ------------------------------------------------------------------------------------------------------------ the contestants


def run_ours(folder: Path, episodes: int, rollout: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.methods.ppo.config import PpoConfig
    from stages.methods.ppo.models import value_model_from_reward_model
    from stages.methods.ppo.trainer import train
    from stages.models.rewards import RewardModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    minibatch = min(SETTINGS["minibatch"], rollout)
    config = PpoConfig(
        episodes=episodes, rollout_batch_size=rollout, minibatch_size=minibatch, micro_batch_size=16,
        epochs=SETTINGS["epochs"], families=[], max_new_tokens=SETTINGS["max_new_tokens"], temperature=1.0, top_k=0, top_p=1.0,
        sampling_batch_size=rollout, missing_eos_penalty=SETTINGS["missing_eos_penalty"], normalise_scores=False,
        clip_score=None, init_kl_coef=SETTINGS["kl"], target_kl=None, kl_gain=0.1, min_reward_accuracy=0.0,
        cost_limit=None, lambda_learning_rate=0.1, max_lambda=10.0,
        gamma=SETTINGS["gamma"], lam=SETTINGS["lam"], whiten_advantages=True, clip_range=SETTINGS["clip"],
        value_clip_range=SETTINGS["clip"], entropy_coefficient=0.0, max_approx_kl=None,
        learning_rate=SETTINGS["learning_rate"], value_learning_rate=SETTINGS["learning_rate"], schedule="linear",
        warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=1.0, lora_rank=0, lora_alpha=16, lora_output="merged", bf16=False,
        gradient_checkpointing=False, guard=True, warn_entropy_fraction=0.25, warn_kl=20.0, samples_every=10**6,
        checkpoint_every=10**6,
    )  # fmt: skip
    from transformers import AutoModelForSequenceClassification

    reward = RewardModel(AutoModelForSequenceClassification.from_pretrained(folder / "reward"), tokenizer)
    parts: dict[str, float] = {}
    work = {"prompt": 0.0, "completion": 0.0}
    curve: list[dict[str, float]] = []

    def log(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        curve.append({"step": step, "reward": metrics["score"], "kl": metrics["kl_k1"], "length": metrics["length_tokens"]})
        for name, seconds in timings.items():
            if name.endswith("_seconds"):
                parts[name] = parts.get(name, 0.0) + seconds
        work["completion"] += metrics["length_tokens"] * rollout

    prompts = [_said("user", asked) for asked in json.loads((folder / "prompts.json").read_text())]
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    arguments: dict[str, Any] = {
        "policy": policy,
        "reference": AutoModelForCausalLM.from_pretrained(folder / "policy"),
        "value_model": value_model_from_reward_model(folder / "reward"),
        "reward": reward,
        "tokenizer": tokenizer,
        "prompts": prompts,
        "config": config,
        "seed": 0,
        "checkpoint_folder": folder / "no-checkpoints",
        "log": log,
        "log_samples": lambda step, rows: None,
    }
    began = time.perf_counter()
    cpu_began = time.process_time()
    train(**arguments)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    from stages.models.chat import prompt_ids

    lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in prompts[:256]]
    work["prompt"] = statistics.mean(lengths) * episodes
    floors = matrix_product_seconds(policy, work["prompt"], work["completion"], config.epochs) if "25m" not in str(folder) else {}
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "parts": parts, "floors": floors, "curve": curve}


def matrix_product_seconds(policy: Any, prompt_tokens: float, completion_tokens: float, epochs: int) -> dict[str, float]:
    """How long the linear layers' products alone take: generation reads prompts and completions once; an update is three times a
    forward pass, for policy and value model, at every token."""
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
        began = time.perf_counter()
        for values, weight in pairs:
            torch.nn.functional.linear(values, weight)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:]) / rows


def run_peer(folder: Path, episodes: int, rollout: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    prompts = [_said("user", asked) for asked in json.loads((folder / "prompts.json").read_text())]
    texts = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
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
    began = time.perf_counter()
    cpu_began = time.process_time()
    trainer.train()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    curve = [
        {"step": step, "reward": row["objective/scores"], "kl": row["objective/kl"]}
        for step, row in enumerate(row for row in trainer.state.log_history if "objective/scores" in row)
    ]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "curve": curve}


# --------------------------------------------------------------------------------------------------------------- measuring


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def contest(kind: str, folder: Path, episodes: int, rollout: int) -> None:
    """One run in this process; prints its result as JSON on the last line."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    imports = "stages.methods.ppo.trainer" if kind == "ours" else "trl.experimental.ppo"
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
    """Alternates runs of both, so that whatever else the machine does falls on both."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="python of the environment with trl==1.12.0")
    parser.add_argument("--folder", type=Path, default=Path("scratch/ppo_benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1024)
    parser.add_argument(
        "--curve-episodes", type=int, default=4096, help="length of one more run of each, for the reward curves; 0: none"
    )
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of a step of 64 episodes with about 25M parameters instead"
    )
    parser.add_argument("--contest", nargs=4, metavar=("KIND", "FOLDER", "EPISODES", "ROLLOUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contest:
        kind, folder, episodes, rollout = arguments.contest
        contest(kind, Path(folder), int(episodes), int(rollout))
        return
    folder = arguments.folder.resolve() / ("25m" if arguments.memory else "tiny")
    if not (folder / "prompts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, LARGER if arguments.memory else TINY, steps=0 if arguments.memory else 250)
    if arguments.memory:
        summary = compare(arguments.peer, folder, episodes=64, runs=1, rollout=64, threads=arguments.threads)
    else:
        summary = compare(
            arguments.peer,
            folder,
            episodes=arguments.episodes,
            runs=arguments.runs,
            rollout=SETTINGS["rollout"],
            threads=arguments.threads,
        )
        if arguments.curve_episodes:
            long = compare(
                arguments.peer,
                folder,
                episodes=arguments.curve_episodes,
                runs=1,
                rollout=SETTINGS["rollout"],
                threads=arguments.threads,
            )
            summary["curves"] = long["curves"]
    name = "memory" if arguments.memory else "throughput"
    (folder / f"{name}.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps({key: value for key, value in summary.items() if key != "curves"}, indent=2))
    for contestant, curve in summary["curves"].items():
        print(contestant, "reward:", [round(row["reward"], 2) for row in curve], "kl:", [round(row["kl"], 2) for row in curve])


if __name__ == "__main__":
    main()
