"""Imports what uses Ray so that forks of the process draw identifiers of their own."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

from serve_app.deployments.light_serve import import_without_pandas


def import_forkable(names: Sequence[str]) -> None:
    """Import modules in this order.

    Ray draws an identifier for each class of actors as it is defined, from a generator in C++ whose state all forks of
    this process would share: their objects, tasks and actors would then have the same names. Here these identifiers
    come from the operating system, and the generator is first used in each fork.
    """
    actor: Any = importlib.import_module("ray.actor")
    rays_own = actor.ActorClassID
    actor.ActorClassID = _Identifiers(rays_own)
    try:
        import_without_pandas(names)
    finally:
        actor.ActorClassID = rays_own


class _Identifiers:
    """Stands in for Ray's class of identifiers while classes of actors are defined."""

    def __init__(self, rays_own: Any) -> None:
        self._rays_own = rays_own
        self._num_bytes = len(rays_own.nil().binary())

    def from_random(self) -> Any:
        """A new identifier."""
        return self._rays_own(os.urandom(self._num_bytes))
