"""Writes the table of docs/memory.md: what training models of some sizes needs, by plumbline/models/training_memory.py.

python tests/benchmarks/memory_table.py
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from plumbline.models.training_memory import Size, gib, memory_needed  # noqa: E402

PAGE = ROOT / "docs/memory.md"
BEGIN, END = "<!-- table: python tests/benchmarks/memory_table.py -->", "<!-- end of the table -->"

SIZES = {
    "0.5B": Size(494_032_768, 2, 549_888, 136_134_656),
    "1.5B": Size(1_543_714_304, 2, 1_154_048, 233_373_696),
    "7B": Size(7_615_616_512, 2, 2_523_136, 544_997_376),
    "8B": Size(8_030_261_248, 2, 2_621_440, 525_336_576),
}
"""Qwen2.5-0.5B, Qwen2.5-1.5B, Qwen2.5-7B and Llama-3.1-8B, saved in bfloat16."""

ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("`sft`, `dpo`, `kto`, `orpo`, `reward_model`", "sft", {}),
    ("the same, `bf16: true`", "sft", {"bf16": True}),
    ("the same, `bf16: true`, `optimiser: paged_adamw_8bit`", "sft", {"bf16": True, "optimiser": "paged_adamw_8bit"}),
    ("the same, `lora_rank: 16`", "sft", {"lora_rank": 16}),
    ("`grpo`, `rloo`, `bf16: true`", "grpo", {"bf16": True}),
    ("the same, `lora_rank: 16`", "grpo", {"lora_rank": 16}),
    ("`ppo`, `bf16: true`", "ppo", {"bf16": True}),
    ("the same, `lora_rank: 16`", "ppo", {"lora_rank": 16}),
]


def table() -> str:
    """A row for each way of training, with memory and, behind it, the disk that checkpoints take."""
    lines = [f"| training | {' | '.join(SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    for title, method, options in ROWS:
        needs = [memory_needed(size, method, **options) for size in SIZES.values()]
        lines.append(f"| {title} | {' | '.join(f'{gib(need.memory)}, disk {gib(need.checkpoints)}' for need in needs)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
