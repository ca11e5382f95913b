"""What a shard's process imports, which is most of the time of its start."""

import subprocess
import sys

import pytest

_SCRIPT = """
import sys
from serve_app.engine.shard import EngineShard
from serve_app.types.shards import BatchModelSettings, BatchShardSettings, ShardSettings, ShardSpec
place = ShardSpec(stage=0, num_stages=1, rank=0, num_ranks=1, first_layer=0, end_layer=1)
def batch(architecture):
    model = BatchModelSettings("m", "nowhere", "embed", "float32", place, architecture=architecture)
    return BatchShardSettings(place, [model], "cpu", 1)
generator = ShardSettings(place, "nowhere", "float32", "cpu", 1, 16, 1024, 0.9, 64, 8)
EngineShard({"module": batch("a.b:C"), "encoder": batch(None), "generator": generator}[sys.argv[1]], "127.0.0.1")
if sys.argv[1] == "encoder":
    import serve_app.engine.encoder_loader
print(*sorted({"transformers", "sklearn", "pandas", "scipy"} & sys.modules.keys()))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "loaded"), [("module", ""), ("encoder", "transformers"), ("generator", "transformers")]
)
def test_a_shard_imports_what_its_kind_needs(kind: str, loaded: str) -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == loaded
