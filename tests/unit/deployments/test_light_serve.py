"""Serve is imported without pandas, and pandas can be imported all the same."""

import subprocess
import sys

import pytest

LINES = (
    "import sys",
    "from serve_app.deployments.light_serve import import_without_pandas",
    "import_without_pandas(['ray.serve'])",
    "assert 'ray.serve' in sys.modules and 'pandas' not in sys.modules and 'pyarrow' not in sys.modules",
    "import pandas; assert pandas.DataFrame",
    "import_without_pandas(['pandas.api'])",
    "assert 'pandas' in sys.modules",
)


@pytest.mark.process
def test_serve_goes_without_pandas_and_others_do_not() -> None:
    pytest.importorskip("pandas", reason="pandas, which Serve imports where it is, is not here")
    assert subprocess.run([sys.executable, "-c", "\n".join(LINES)], check=False, timeout=60).returncode == 0
