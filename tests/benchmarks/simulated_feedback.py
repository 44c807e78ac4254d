"""Simulated people talk to a policy of the closed world and say what they think, so that the recipe `feedback` has a result without people.

    python tests/benchmarks/simulated_feedback.py --policy sft --questions 500
    python tests/benchmarks/simulated_feedback.py --policy kto --against sft --questions 200

They ask rollout prompts through the code behind `make chat`, and their lines go to data/feedback/simulated.jsonl, which `make repro` then
reads. The opinion is that of the judge `simulated`, which errs on purpose: of one policy's answer a thumb, up from a rating of `UP_FROM` on, and
of two answers a vote. Nobody corrects an answer.
"""

import argparse
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(HF_HUB_OFFLINE="1")

from plumbline.feedback.folder import FOLDER, append
from plumbline.feedback.lines import DOWN, TIE, UP, A, B, Line
from plumbline.feedback.talk import Speaker, Talk, Turn, answer, load_speaker
from plumbline.judging.building import load_judge
from plumbline.judging.judge import Judge
from plumbline.judging.judges import SimulatedJudge
from plumbline.models.determinism import make_deterministic
from plumbline.pipeline.composing import conf_values
from plumbline.pipeline.params import load_params
from plumbline.pipeline.records import read_jsonl
from plumbline.rows import last_turn
from plumbline.world.annotate import AnnotatorConfig

CONF = Path(__file__).parents[2] / "conf"
PROMPTS = Path("artifacts/data/prompts/train.jsonl")
UP_FROM = 8.0  # of 10: a right answer that lacks courtesy, or rambles, gets 8.65, and a wrong one 5.5 at most
FILE = FOLDER / "simulated.jsonl"


def opinion(turn: Turn, judge: Judge) -> Line:
    """What a simulated person says of the answers of a turn."""
    texts = [draft.text for draft in turn.drafts]
    if len(texts) == 1:
        return turn.thumbed(0, UP if (judge.rate([turn.messages], texts)[0].score or 0) >= UP_FROM else DOWN)
    win = judge.compare([turn.messages], [texts[0]], [texts[1]])[0].win
    return turn.voted(TIE if win is None or win == 0.5 else A if win > 0.5 else B)


def asked(speakers: tuple[Speaker, ...], question: str, seed: int) -> Turn:
    """A turn with its answers, in a conversation of its own."""
    turn = Talk(speakers).ask(question, seed)
    for index, speaker in enumerate(turn.speakers):
        for draft in answer(speaker, turn.messages, seed):
            turn.drafts[index] = draft
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--against")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    params = load_params()
    make_deterministic(params["seed"], params["threads"])
    speakers = tuple(load_speaker(name, params["evaluate"]) for name in filter(None, (arguments.policy, arguments.against)))
    annotator = AnnotatorConfig(**conf_values(CONF / "judge/simulated.yaml")["annotator"])
    judge = load_judge(SimulatedJudge(annotator=annotator), seed=arguments.seed)
    rows = [row for row in read_jsonl(PROMPTS) if len(row["prompt"]) == 1]
    questions = [last_turn(row["prompt"]) for row in random.Random(arguments.seed).sample(rows, arguments.questions)]
    lines = []
    for number, question in enumerate(questions):
        lines.append(opinion(asked(speakers, question, arguments.seed + number), judge))
        append(FILE, lines[-1:])
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in sorted({line.verdict for line in lines})}
    print(f"{len(lines)} lines in {FILE}: {counts}")


if __name__ == "__main__":
    main()
