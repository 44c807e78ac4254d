"""The closed world's annotator as a chat: the rendered question in, text out, like any other model."""

from collections.abc import Sequence

from stages.judging.chat import Ledger, Reply, Request
from stages.world.annotator import AnnotatorConfig, SimulatedAnnotator


class SimulatedChat:
    """Free, offline and as faulty as it is told to be; the same question gets the same reply."""

    def __init__(self, config: AnnotatorConfig) -> None:
        self._annotator = SimulatedAnnotator(config)
        self.model = "closed-world annotator"
        self.identity = f"simulated {config}"
        self.ledger = Ledger()
        self.share = 1.0

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies at once: they cost less than looking them up would."""
        self.ledger.calls += len(requests)
        return [Reply(self._annotator.respond(request.messages)) for request in requests]

    def finish(self) -> None:
        """Nothing is open."""
