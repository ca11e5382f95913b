"""What a client reads of an error: what it can do something about, and never where the server's processes run."""

import pytest

from serve_app.errors import InternalError, RequestError, ShardLostError
from serve_app.gateway.failures import told_message, without_places

PLACES = [
    (
        "a shard was lost: RayTaskError(RuntimeError): \x1b[36mray::Shard.run()\x1b[39m (pid=4711, ip=10.0.0.7, "
        "actor_id=6d2f8a0b1c9e4f5a6b7c8d9e01000000, repr=<serve_app.deployments.shard.Shard object at 0x7f3a2c1b4d90>)",
        "a shard was lost: RayTaskError(RuntimeError): ray::Shard.run()",
    ),
    (
        "The actor died.\n\tclass: Shard\n\tactor_id: 6d2f8a0b1c9e4f5a6b7c8d9e01000000\n\tpid: 4711\n\tip: 10.0.0.7",
        "The actor died.\n\tclass: Shard\n\t…\n\t…\n\tip: …",
    ),
    ("cannot connect to tcp://127.0.0.1:5555", "cannot connect to …"),
    ("closed by peer [192.168.1.4]:41234", "closed by peer …"),
    ("no answer of [fe80::1%eth0]:8000, ::1 and 2001:db8::5", "no answer of …, … and …"),
    ("no answer of node-1.local:6379 or localhost:8265", "no answer of … or …"),
    ("ActorID(6d2f8a0b1c9e) and Worker ID: 0123456789abcdef0123", "… and …"),
    ("process 4711 has died, PID: 12, pid=(99)", "… has died, …, …"),
    ("<generator object f at 0x7fdeadbeef00> was never awaited", "… was never awaited"),
    ("Shard object at 0x7fdeadbeef00 failed", "… failed"),
    ("\x1b]8;;http://a\x07link\x1b]8;;\x07 \x1b[1;31mred\x1b[0m\x08\x9b1m", "link red1m"),
]


@pytest.mark.parametrize(("text", "shown"), PLACES)
def test_a_server_s_error_tells_no_place(text: str, shown: str) -> None:
    assert without_places(text) == shown
    assert told_message(ShardLostError(text)) == shown
    assert told_message(InternalError(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "no copy of the model was ready within 30 s; try again",
        "model=demo gave an output that is not finite",
        "tokens were lost before token 12 of choice 3",
        "step serve_app.steps:clean failed: ValueError",
        "Ray 2.60.0, step 3 of 12:30 at 10:20:30 in std::vector, 1.5 of 2.0",
    ],
)
def test_what_is_no_place_stays(text: str) -> None:
    assert without_places(text) == text


def test_a_request_s_own_error_quotes_the_request() -> None:
    assert told_message(RequestError("model='10.0.0.7:80' is not served")) == "model='10.0.0.7:80' is not served"


def test_no_error_colours_a_terminal() -> None:
    assert told_message(RequestError("\x1b[31mred\x1b[0m is unknown\nin line 2")) == "red is unknown\nin line 2"


def test_long_texts_are_cut() -> None:
    assert len(without_places("pid (" * 100_000)) <= 2000
