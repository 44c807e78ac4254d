"""Serves the project's runs in MLflow: `make ui`.

    python -m plumbline.tools.ui 5000

MLflow's own server, in one process, on 127.0.0.1, with one script in its page. It leads from the bare address to the runs, and gives a browser that
has not been here what MLflow's page would otherwise ask for by clicks: experiments open as machine learning, the runs' table has the headline
figures, and the assistant stays closed. Whatever is chosen on the page itself counts from then on. With MLFLOW_TRACKING_URI at a server, only the
link is printed.
"""

import json
import os
import socket
import sys
from typing import TYPE_CHECKING

from plumbline.pipeline.landing import remembered, runs_route, view_route
from plumbline.pipeline.mlflow_calls import open_experiment, project_root, without_password
from plumbline.pipeline.mlflow_fault import MlflowFault
from plumbline.pipeline.tracking import quiet_mlflow, tracking_uri

if TYPE_CHECKING:
    from flask import Response

HOST = "127.0.0.1"


def opening_script(experiment: str) -> str:
    """A script for the head of MLflow's page: what a browser is to remember unless it does, and where the bare address leads."""
    lines = [f"localStorage[{json.dumps(key)}] ??= {json.dumps(value)};" for key, value in remembered(experiment).items()]
    return (
        f"<script>{''.join(lines)}if (location.hash.length < 3) location.replace({json.dumps(runs_route(experiment))});</script>"
    )


def with_opening(response: "Response", script: str) -> "Response":
    """A response of MLflow's server, with the script in it if it is the page that holds the whole UI."""
    if response.mimetype == "text/html":
        response.direct_passthrough = False
        response.set_data(response.get_data().replace(b"<head>", b"<head>" + script.encode(), 1))
    return response


def serve(uri: str, experiment: str, port: int) -> None:
    """Serves a store of runs until it is interrupted."""
    import uvicorn
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

    os.environ[BACKEND_STORE_URI_ENV_VAR] = uri
    os.environ[ARTIFACT_ROOT_ENV_VAR] = str(project_root() / "mlartifacts")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # it would start processes for evaluations that are not made here
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    script = opening_script(experiment)
    pages.after_request(lambda response: with_opening(response, script))
    uvicorn.run(app, host=HOST, port=port, log_level="warning")


def main() -> None:
    port, uri = int(sys.argv[1]), tracking_uri()
    if uri == "off":
        sys.exit("ui: expected runs to show, found MLFLOW_TRACKING_URI=off: set it to where the runs are, or leave it out")
    quiet_mlflow()
    try:
        experiment = open_experiment(uri)
    except MlflowFault as fault:
        sys.exit(f"ui: MLflow at {without_password(uri)} cannot be used: {fault.reason}")
    if uri.startswith("http"):
        print(f"The runs: {without_password(uri).rstrip('/')}/{view_route(experiment)}")
        return
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            sys.exit(
                f"ui: expected a free port, found {port} in use: is `make ui` running already? Choose another (make ui PORT=5001)"
            )
    print(f"The runs: http://{HOST}:{port}/{runs_route(experiment)}\nCtrl-C ends the server.", flush=True)
    serve(uri, experiment, port)


if __name__ == "__main__":
    main()
