"""The name by which the engine's server is expected to serve a policy.

    vllm serve artifacts/policy/dpo --served-model-name "$(python -m plumbline.tools.served_name vllm dpo)"

prints it for the engine conf/engine/vllm.yaml and the policy `dpo`. It changes with the policy's weights.
"""

import argparse
from pathlib import Path

from plumbline.pipeline.composing import CONF, conf_values, require_file
from plumbline.pipeline.engine import Server, served_name


def main() -> None:
    """Prints the name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="a file of conf/engine")
    parser.add_argument("policy", help="a folder of artifacts/policy")
    arguments = parser.parse_args()
    values = conf_values(CONF / f"engine/{require_file('engine', arguments.engine, 'engine')}.yaml")
    folder = Path("artifacts/policy") / arguments.policy
    if not folder.is_dir():
        parser.error(f"expected a policy in {folder}, found none. `dvc repro` makes it")
    server = values.get("server")
    if server is None:
        parser.error(f"expected an engine with a server, found conf/engine/{arguments.engine}.yaml without one")
    print(served_name(Server(**{key: value for key, value in server.items() if key == "model"}), folder))


if __name__ == "__main__":
    main()
