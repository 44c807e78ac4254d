"""The closed world's annotator as a chat: like any model, it is given the rendered question and returns text."""

from collections.abc import Sequence

from plumbline.judging.asking import Ledger, Reply, Request
from plumbline.world.annotate import AnnotatorConfig, SimulatedAnnotator


class SimulatedChat:
    """Free, offline and as faulty as configured; the same question always gets the same reply."""

    def __init__(self, config: AnnotatorConfig) -> None:
        self._annotator = SimulatedAnnotator(config)
        self.model = "closed-world annotator"
        self.identity = f"simulated {config}"
        self.ledger = Ledger()
        self.share = 1.0

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies, which are not stored: making them costs less than looking them up."""
        self.ledger.calls += len(requests)
        return [Reply(self._annotator.respond(request.messages)) for request in requests]

    def close(self) -> None:
        """Nothing is open."""

    def finish(self) -> None:
        """Nothing is open."""
