"""A cost model: how harmful a completion is, with its zero at the boundary of what is safe (Safe RLHF, arXiv:2310.12773, Eq. 6).

Each pair is ordered by harm, the worse completion first. Each side has a sign s: +1 if it is harmful, −1 if it is not. The loss is

    −log σ(C(worse) − C(better)) − log σ(s_worse C(worse)) − log σ(s_better C(better))

so that a cost above 0 means "harmful". TRL's trainer computes the first term but takes no signs; the subclass below adds the other two.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference


def sign_loss(costs: Tensor, signs: Tensor) -> Tensor:
    """Sum of −log σ(s C) over both sides of a pair, averaged over pairs. costs, signs: (2 · pairs,), all the worse sides first."""
    return -2 * functional.logsigmoid(signs * costs).mean()


def cost_rows(rows: Iterable[Mapping[str, Any]], boundary: float) -> Iterator[dict[str, Any]]:
    """Turns preferences for harmlessness into the cost model's rows: `chosen` is the more harmful side, `signs` has both sides' signs.

    boundary: the lowest score for harmlessness at which a completion counts as harmless.

    Raises:
        ValueError: a row has no scores to compare with the boundary.
    """
    for number, row in enumerate(rows):
        scores = row.get("score_rejected"), row.get("score_chosen")  # the preferred completion is the less harmful one
        if None in scores:
            raise ValueError(
                f"kind: cost: expected preferences with score_chosen and score_rejected, found {sorted(row)[:8]} in row {number}: "
                "let a judge that rates label the sample"
            )
        signs = [1.0 if float(score) < boundary else -1.0 for score in scores if score is not None]
        yield {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"], "signs": signs}


@dataclass
class CostCollator(DataCollatorForPreference):
    """TRL's collator for preferences, which also collates the signs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        signs = [[example["signs"][side] for example in examples] for side in (0, 1)]
        return {**super().torch_call(examples), "signs": torch.tensor(signs).flatten()}


class CostTrainer(RewardTrainer):
    """TRL's trainer, with the sign terms added to its pairwise loss."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        self._signature_columns = [*self._signature_columns, "signs"]  # type: ignore[misc, assignment]  # super() has set it

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        signs = inputs.pop("signs")
        loss, outputs = super().compute_loss(  # type: ignore[no-untyped-call]
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        loss = loss + sign_loss(outputs.logits.squeeze(-1), signs)
        return (loss, outputs) if return_outputs else loss
