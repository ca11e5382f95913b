"""Imports Ray Serve without pandas: to be imported before anything of ray.serve.

Serve imports pandas where it is installed, to encode a DataFrame that a deployment might return; ours return none. It
and pyarrow behind it take 0.8 s of CPU and 30 MB in each process. Whoever asks for pandas afterwards gets it.
"""

import sys

_IS_WANTED = "pandas" in sys.modules  # somebody has paid for it already

if not _IS_WANTED:
    sys.modules["pandas"] = None  # type: ignore[assignment]  # import(3): as if it were not installed
try:
    import ray.serve  # noqa: F401
finally:
    if not _IS_WANTED:
        del sys.modules["pandas"]
