"""Whether modules can be built and cut as a Serve file says, told by the code that loads them, in a process of its own.

`rayshard validate` runs it: there neither torch nor a user's code is loaded.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from serve_app.engine.module_loader import check_module_stage
from serve_app.errors import ConfigError
from serve_app.types.shards import BatchModelSettings


class ModuleQuestions(msgspec.Struct):
    """What is asked: of each model, the settings of its stages."""

    import_path: list[str]  # where Python looks for modules
    models: list[list[BatchModelSettings]]


def find_problems(models: Sequence[Sequence[BatchModelSettings]]) -> list[str | None]:
    """For each model why it cannot be loaded; None: it can."""
    return [_problem_of(stages) for stages in models]


def _problem_of(stages: Sequence[BatchModelSettings]) -> str | None:
    for settings in stages:
        try:
            check_module_stage(settings)
        except ConfigError as error:
            return error.message
        except Exception as error:  # a user's constructor: whatever it raises there, it raises in a shard
            return f"architecture={settings.architecture} raises {type(error).__name__}: {error}; mend the class"
    return None


def main() -> None:
    """Read questions from the file that is named first, and write the answers to the second."""
    questions = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ModuleQuestions)
    sys.path += [entry for entry in questions.import_path if entry not in sys.path]
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(find_problems(questions.models)))


if __name__ == "__main__":
    main()
