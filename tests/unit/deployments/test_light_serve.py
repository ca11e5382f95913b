"""Ray Serve without pandas, in a process of its own."""

import subprocess
import sys

_SCRIPT = """
import sys
import serve_app.deployments.light_serve
from ray import serve
import ray.serve._private.controller, ray.serve._private.proxy, ray.serve._private.replica
print(*sorted({"pandas", "pyarrow"} & set(sys.modules)))
import pandas
from serve_app.deployments import light_serve
print(pandas.DataFrame({"a": [1, 2]}).a.sum())
"""


def test_serve_comes_without_pandas_and_pandas_can_be_had_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == ["", "3"]
