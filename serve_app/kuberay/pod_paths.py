"""Where pods have what a Serve file names by a path of this machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from serve_app.checkpoints.source import is_hub_id
from serve_app.errors import ConfigError
from serve_app.kuberay.options import MODELS_FOLDER, Place


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A model's files: where they are read here, and where pods have them."""

    here: str  # an absolute directory, or a hub id
    in_pod: str
    is_on_hub: bool


def find_source(source: str, base_dir: Path, places: Sequence[Place]) -> FoundSource:
    """The `source` of a model of a Serve file in base_dir. Raises ConfigError where no pod has it."""
    if is_hub_id(source, base_dir):
        return FoundSource(source, source, is_on_hub=True)
    named_here = Path(os.path.abspath(base_dir / Path(source).expanduser()))
    deepest = sorted(places, key=lambda place: len(place.here.parts), reverse=True)
    for local in (named_here, named_here.resolve()):  # a link in a place is in the pods' folder under its own name
        for place in deepest:
            if local.is_relative_to(place.here):
                inside = place.in_pod.joinpath(*local.relative_to(place.here).parts)
                return FoundSource(str(local), str(inside), is_on_hub=False)
    named = PurePosixPath(source)
    for place in deepest:  # it may already be the path that pods have
        if named.is_absolute() and named.is_relative_to(place.in_pod):
            return FoundSource(
                str(place.here.joinpath(*named.relative_to(place.in_pod).parts)), source, is_on_hub=False
            )
    raise ConfigError(
        f"source={source} is a path of this machine, which no pod has; say where pods have it, such as --in-pod "
        f"{named_here.parent}={MODELS_FOLDER} --models-claim NAME, or give a hub id"
    )
