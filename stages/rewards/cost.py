"""A cost model: how harmful a completion is, with its zero at the boundary of what is safe (Safe RLHF, arXiv:2310.12773, Eq. 6).

Pairs are ordered by harm, the worse first, and each side has a sign, +1 if it is harmful and −1 if not; the loss is

    −log σ(C(worse) − C(better)) − log σ(s_worse C(worse)) − log σ(s_better C(better))

so that a cost above 0 says "harmful". A subclass of TRL's trainer, because it has no place for signs: it adds the last two terms, no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference


def sign_loss(costs: Tensor, signs: Tensor) -> Tensor:
    """Mean over pairs of −log σ(s C) summed over both sides; costs and signs (2 · pairs,), the worse sides first."""
    return -2 * functional.logsigmoid(signs * costs).mean()


def cost_rows(rows: Sequence[Mapping[str, Any]], boundary: float) -> list[dict[str, Any]]:
    """Preferences for safety as rows of the cost model: `chosen` is the more harmful side, `signs` those of both, in that order.

    boundary: the least score of a judge of harmlessness that counts as harmless.

    Raises:
        ValueError: a row has no scores to compare with the boundary.
    """
    found = []
    for number, row in enumerate(rows):
        scores = row.get("score_rejected"), row.get("score_chosen")  # the preferred one is the less harmful
        if None in scores:
            raise ValueError(
                f"kind: cost: expected preferences with score_chosen and score_rejected, found {sorted(row)[:8]} in row {number}"
            )
        signs = [1.0 if float(score) < boundary else -1.0 for score in scores if score is not None]
        found.append({"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"], "signs": signs})
    return found


@dataclass
class CostCollator(DataCollatorForPreference):
    """TRL's, and the signs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        signs = [[example["signs"][side] for example in examples] for side in (0, 1)]
        return {**super().torch_call(examples), "signs": torch.tensor(signs).flatten()}


class CostTrainer(RewardTrainer):
    """TRL's, with the sign terms added to its pairwise loss."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "signs"]  # type: ignore[misc, assignment]  # None only before

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        signs = inputs.pop("signs")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = loss + sign_loss(outputs.logits.squeeze(-1), signs)
        return (loss, outputs) if return_outputs else loss
