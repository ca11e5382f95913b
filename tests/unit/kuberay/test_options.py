"""Options that cannot be are refused, each with a way out."""

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from serve_app.errors import ConfigError
from serve_app.kuberay.options import Entry, KubeRayOptions, Place, parse_place, parse_selector


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "Chat"}, "--name Chat: KubeRay takes at most 47"),
        ({"name": "x" * 48}, "KubeRay takes at most 47"),
        ({"namespace": "a b"}, "--namespace a b is not a namespace"),
        ({"image": "my image"}, "--image 'my image' is not an image"),
        ({"keys_secret": "Keys"}, "--keys-secret Keys is not an object's name"),
        ({"redis": "redis"}, "--redis redis is not an address; write HOST:PORT"),
        ({"redis": "redis:70000"}, "is not an address"),
        ({"redis_secret": "redis"}, "--redis-secret without --redis"),
        ({"entry": Entry("ingress", "nginx", "localhost", "tls")}, "--host localhost is not a host's name"),
        ({"places": (Place(Path("/a"), PurePosixPath("/data")),)}, "pods have folders below /app"),
        ({"places": (Place(Path("/a"), PurePosixPath("/models/../etc")),)}, "pods have folders below /app"),
        ({"places": (Place(Path("/a"), PurePosixPath("/models")),)}, "name its claim by --models-claim NAME"),
    ],
)
def test_what_cannot_be_is_told(given: dict[str, Any], told: str) -> None:
    (problem,) = KubeRayOptions(**given).problems()
    assert told in problem


def test_what_can_be_is_not() -> None:
    place = Place(Path("/a"), PurePosixPath("/models/chat"))
    entry = Entry("gateway", "cilium", "*.models.example.com", "models-tls")
    given = KubeRayOptions(places=(place,), models_claim="models", redis="rediss://redis.data:6380", entry=entry)
    assert given.problems() == []
    assert given.redis_port == 6380
    assert KubeRayOptions().problems() == []


def test_places_and_labels_are_read() -> None:
    assert parse_place("/a=b=/models") == Place(Path("/a=b"), PurePosixPath("/models"))
    assert parse_selector(["a.b/c=D", "e="]) == {"a.b/c": "D", "e": ""}
    for text in ("/models", "=/models", "a=models"):
        with pytest.raises(ConfigError, match="write HERE=IN_POD"):
            parse_place(text)
    for texts, told in (
        (["a"], "KEY=VALUE"),
        (["=b"], "KEY=VALUE"),
        (["a b=c"], "KEY"),
        (["a=b", "a=c"], "given twice"),
    ):
        with pytest.raises(ConfigError, match=told):
            parse_selector(texts)
