"""Makes the README's pictures of a finished project: the head of its report, and its runs in MLflow.

After `dvc repro` of the default recipe:

    python tests/benchmarks/pictures.py .        # writes docs/report.png and docs/mlflow.png; --out for another folder

Needs Chromium (`apt-get install chromium fonts-nanum`). MLflow's server gets a copy of the project's `mlflow.db` and a free port of
127.0.0.1. Half a minute.
"""

import argparse
import asyncio
import base64
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

WIDTH, HEIGHT = 1200, 960  # CSS pixels
MARGIN = 24
PATIENCE = 90.0  # seconds, for a server to answer or an element to appear
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


class Browser:
    """One page of a headless Chromium, driven by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.calls = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self.calls += 1
        await self.socket.send_json({"id": self.calls, "method": method, "params": params})
        while (reply := await self.socket.receive_json()).get("id") != self.calls:
            pass  # an event
        if "error" in reply:
            raise RuntimeError(f"chromium: {method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    async def wait_for(self, expression: str) -> Any:
        """The value of a JavaScript expression as soon as it is neither null nor false.

        Raises:
            TimeoutError: it still is after a minute and a half.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            value = (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")
            if value:
                return value
            await asyncio.sleep(0.3)
        text = (await self.call("Runtime.evaluate", expression="document.body.innerText", returnByValue=True))["result"].get(
            "value"
        )
        raise TimeoutError(f"expected {expression} on the page within {PATIENCE:g} seconds, found: {text}")

    async def save(self, path: Path, height: float) -> None:
        """Writes the page down to `height` as a PNG."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=WIDTH, height=round(height), deviceScaleFactor=1, mobile=False
        )
        await asyncio.sleep(3)  # until the layout rests
        picture = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


@asynccontextmanager
async def open_browser(chromium: str) -> AsyncIterator[Browser]:
    """A page of a Chromium that has never been anywhere."""
    with tempfile.TemporaryDirectory() as profile:
        window = [f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen([chromium, *FLAGS, *window], stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert process.stderr
            host = next(match[1] for line in process.stderr if (match := re.search(r"listening on ws://([^/]+)/", line)))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{host}/json") as reply:
                    page = next(target for target in await reply.json() if target["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Browser(socket)
        finally:
            stop(process)


async def take(chromium: str, report: Path, address: str, out: Path) -> None:
    """Opens both pages and writes their pictures."""
    async with open_browser(chromium) as browser:
        await take_report(browser, report, out / "report.png")
        await take_runs(browser, address, out / "mlflow.png")


async def take_report(browser: Browser, report: Path, out: Path) -> None:
    """The report's head, down to the note below the table of results."""
    await browser.call("Page.navigate", url=report.resolve().as_uri())
    bottom = await browser.wait_for("document.querySelector('#results .note')?.getBoundingClientRect().bottom")
    await browser.save(out, bottom + MARGIN)


async def take_runs(browser: Browser, address: str, out: Path) -> None:
    """The runs, as the bare address of `make ui` shows them to a new browser, newest first."""
    await browser.call("Page.navigate", url=address)
    await browser.wait_for("document.querySelectorAll('.ag-center-cols-container .ag-row').length")
    await browser.save(out, HEIGHT)


@contextmanager
def tracking_server(database: Path) -> Iterator[str]:
    """The address of an MLflow server on a copy of a project's store."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "mlflow.db"
        with (
            closing(sqlite3.connect(f"file:{database.resolve()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        server = subprocess.Popen(
            [sys.executable, "-m", "plumbline.tools.ui", str(port)],
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{copy}", "MLFLOW_EXPERIMENT_NAME": database.resolve().parent.name},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_healthy(address)
            yield address
        finally:
            stop(server)


def wait_until_healthy(address: str) -> None:
    """Waits until the server answers.

    Raises:
        TimeoutError: it does not within a minute and a half.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"expected MLflow to answer at {address} within {PATIENCE:g} seconds")


def stop(process: "subprocess.Popen[Any]") -> None:
    """Ends a process that was started here, and its children."""
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="the folder of a finished project")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--chromium", default="chromium")
    arguments = parser.parse_args()
    report, database = arguments.project / "artifacts/report/report.html", arguments.project / "mlflow.db"
    if missing := [str(path) for path in (report, database) if not path.is_file()]:
        sys.exit(
            f"pictures: expected a finished project in {arguments.project}, found no {' and no '.join(missing)}: run `make repro` there"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tracking_server(database) as address:
        asyncio.run(take(arguments.chromium, report, address, arguments.out))


if __name__ == "__main__":
    main()
