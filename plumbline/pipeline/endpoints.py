"""A server that speaks OpenAI's protocol: where it is, and how it is called. Judges and engines have these values in common."""

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from omegaconf import MISSING

from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, POSITIVE, outside


@dataclass
class Endpoint:
    """The address of a server, and how it is called. The key is never a value: it comes from the environment."""

    section: ClassVar[str] = ""
    """What leads to these values in messages, such as `judge`."""
    address_env: ClassVar[str] = "OPENAI_BASE_URL"
    """The environment variable with the server's address, if `base_url` does not say it."""

    base_url: str | None = None
    """Address of the server, with /v1; null: the one in the environment."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; never the key itself."""
    needs_key: bool = True
    """False for a local server that accepts any key."""
    concurrency: int = 16
    """Calls at the same time."""
    requests_per_minute: float | None = None
    timeout_seconds: float = 60.0
    retries: int = 8
    """Further tries of a call that fails in transport; they back off exponentially and honour Retry-After."""
    backoff_seconds: float = 0.5
    longest_wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        # Checked here, before the stage's values are logged to MLflow as they are.
        if self.base_url and self.base_url != MISSING:
            check_address(self.base_url, self.section)

    def endpoint_problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return outside(
            self,
            concurrency=COUNT,
            requests_per_minute=POSITIVE,
            timeout_seconds=POSITIVE,
            retries=NOT_NEGATIVE,
            backoff_seconds=NOT_NEGATIVE,
            longest_wait_seconds=NOT_NEGATIVE,
        )


def check_address(url: str, section: str) -> None:
    """Requires an address that may be shown and logged.

    Raises:
        ValueError: the text is not an address, or it has a user, a password or a query, which the message does not repeat.
    """
    if any(mark in url for mark in "@?#"):
        raise ValueError(
            f"{section}.base_url: expected an address alone, found one with a user, password, query or fragment. Addresses are logged: "
            f"put the key into the environment variable that {section}.api_key_env names"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{section}.base_url: expected http://… or https://…, found {url!r}")


def public_address(url: str) -> str:
    """A server's address without user, password, query or fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
