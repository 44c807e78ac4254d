"""`make chat POLICY=dpo AGAINST=sft`: a page on 127.0.0.1 on which people talk to one policy, or to two blindly, and say what they think of it."""

import argparse
import logging
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from plumbline import graph
from plumbline.feedback.talk import POLICIES, load_speaker
from plumbline.models.determinism import make_deterministic
from plumbline.pipeline.params import Params, load_params

INSTALL = 'pip install ".[chat]"'


def wrong_names(policy: str, against: str, params: Params) -> str:
    """Why these policies cannot be talked to; empty if they can."""
    trained = sorted(file.parent.name for file in POLICIES.glob("*/config.json"))
    choices = f"There are: {', '.join(trained) or 'none yet'}"
    if not policy:
        return f"expected a policy, found none: make chat POLICY=dpo, or make chat POLICY=dpo AGAINST=sft. {choices}"
    if policy == against:
        return f"expected two different policies, found {policy} twice: leave AGAINST out, or name another. {choices}"
    for name in filter(None, (policy, against)):
        if name not in trained:
            maker = graph.maker(graph.nodes(params), f"policy/{name}")
            remedy = f"`dvc repro {maker}` trains it" if maker else "the recipe in params.yaml has no such policy"
            return f"expected a trained policy, found no {POLICIES / name}: {remedy}. {choices}"
    return ""


def port_problem(port: int) -> str:
    """Why the page cannot be served at a port; empty if it can."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return f"expected a free port, found that {port} cannot be used ({error}): name another, such as PORT={8090 if port != 8090 else 8091}"
    return ""


def require_page() -> None:
    """Requires the library that the page is made with.

    Raises:
        ValueError: it is missing; the message says how to install it.
    """
    if find_spec("nicegui") is None:
        raise ValueError(
            f"expected the library that makes the page, found no nicegui: run `{INSTALL}` in the project's environment"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", nargs="?", default="", help="a folder of artifacts/policy")
    parser.add_argument("--against", default="", help="another one, to compare blindly")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    try:
        require_page()
        params = load_params()
        if problem := wrong_names(arguments.policy, arguments.against, params) or port_problem(arguments.port):
            raise ValueError(problem)
        make_deterministic(params["seed"], params["threads"])
        names = filter(None, (arguments.policy, arguments.against))
        speakers = tuple(load_speaker(name, params["evaluate"]) for name in names)
    except (ValueError, OSError) as error:
        sys.exit(f"chat: {error}")
    os.environ.setdefault(
        "NICEGUI_STORAGE_PATH", str(Path("scratch/nicegui").resolve())
    )  # read on import; nothing is stored there
    logging.getLogger("nicegui").setLevel(logging.ERROR)
    from plumbline.tools.chat_page import serve

    print(f"Chat at http://127.0.0.1:{arguments.port}/ (Ctrl-C ends it)", flush=True)
    serve(speakers, arguments.port)


if __name__ == "__main__":
    main()
