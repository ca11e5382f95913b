"""The generated code of the protos: that of the files as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROTOS = sorted((ROOT / "serve_app" / "protos").glob("*.proto"))


@pytest.mark.process
@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_the_generated_code_is_that_of_the_proto(proto: Path, tmp_path: Path) -> None:
    name = proto.relative_to(ROOT)
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, str(name)], cwd=ROOT, check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert len(made) == 3
    for path in made:
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), f"{path} is stale; run: make protos"
