"""Has a process that has torch measure this CPU, and keeps what it found for later plans."""

import json
import os
import subprocess
import sys
from pathlib import Path

import serve_app
from serve_app.errors import ConfigError
from serve_app.planning.device_profiles import DeviceProfile, load_profiles, measured_profile

_MAX_S = 600.0
_MODULE = "serve_app.engine.calibration"


def calibrate(kept: Path) -> DeviceProfile:
    """Measure this CPU and write it to `kept`, in the form of devices.yaml. Raises ConfigError."""
    assert serve_app.__file__ is not None
    root = Path(serve_app.__file__).parents[1]
    command = [sys.executable, "-m", _MODULE, str(len(os.sched_getaffinity(0)))]
    try:
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_MAX_S, check=True)
        profile = measured_profile(load_profiles()["cpu"], json.loads(ended.stdout.splitlines()[-1]))
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".new")
        part.write_text(json.dumps({"cpu": profile.model_dump(exclude_none=True)}, indent=1))
        part.replace(kept)
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip().splitlines()[-1:]
        raise ConfigError(f"--calibrate failed ({' '.join(told)[:300]}); plan without it") from error
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        raise ConfigError(f"--calibrate failed ({error}); plan without it") from error
    return profile
