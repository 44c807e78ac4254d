"""How MLflow fails."""


class MlflowFault(Exception):
    """MLflow failed. Holds the reason in one line, and whether the same call would fail again."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason, final)
        self.reason = reason
        self.final = final
