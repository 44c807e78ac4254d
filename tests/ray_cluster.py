"""A Ray cluster on this machine, reached at 127.0.0.1 alone."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT

SEARCHED = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
"""Where a worker on Ray finds this project's modules and those of the tests."""


os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Read when Ray is imported. The first has all addresses be 127.0.0.1."""

MEMORY = 80 * 2**20
"""Bytes of a node's object store."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of this machine with two nodes of one core each, to which nodes may be added."""
    pytest.importorskip("ray", reason='ray is not installed: pip install ".[ray]"')
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(num_cpus=1, object_store_memory=MEMORY)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", made.address)
            patch.setenv("PYTHONPATH", SEARCHED)
            # a thread may add a node, but cannot set the signal handler that Ray gives each
            patch.setattr("ray._private.utils.set_sigterm_handler", lambda handler: None)
            yield made
    finally:
        made.shutdown()
