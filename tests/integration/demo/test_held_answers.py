"""Answers of the demo model, which has never seen JSON, held to a schema while a shard dies."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from tests.integration.serve_cluster import ServeCluster

NUM_CALLS = 200
NUM_AT_ONCE = 16
NUM_REPEATED = 8
KILL_AFTER = 40  # answers
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Köln", "東京", "here"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
        "when": {
            "type": "object",
            "properties": {
                "hour": {"type": "integer", "minimum": 0, "maximum": 23},
                "zone": {"type": ["string", "null"], "maxLength": 4},
            },
            "required": ["hour", "zone"],
            "additionalProperties": False,
        },
        "sizes": {"type": "array", "items": {"type": "number", "minimum": -10, "maximum": 10}, "maxItems": 3},
        "is_open": {"type": "boolean"},
    },
    "required": ["city", "code", "when", "sizes", "is_open"],
    "additionalProperties": False,
}


def ask(cluster: ServeCluster, seed: int) -> tuple[str, str]:
    """How an answer ended, and its text."""
    body = {
        "model": "demo",
        "prompt": "date jan 8 2038 =",
        "temperature": 1,
        "seed": seed,
        "max_tokens": 400,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    }
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice["finish_reason"], choice["text"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_answers_are_of_their_schema_though_a_shard_dies(cluster: ServeCluster) -> None:
    expected = [ask(cluster, seed) for seed in range(NUM_REPEATED)]
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        asked = [pool.submit(ask, cluster, seed) for seed in range(NUM_CALLS)]
        asked[KILL_AFTER].result()
        before = cluster.pids("ray::Shard")
        cluster.kill(before[-1:])
        answers = [one.result() for one in asked]
    assert cluster.pids("ray::Shard") != before
    ended = [json.loads(text) for reason, text in answers if reason == "stop"]
    print(f"{len(ended)} of {NUM_CALLS} ended by themselves, the others by max_tokens")
    for value in ended:
        jsonschema.validate(value, SCHEMA)
    assert {reason for reason, _ in answers} <= {"stop", "length"}
    assert len(ended) > NUM_CALLS / 2
    assert answers[:NUM_REPEATED] == expected
    assert ask(cluster, KILL_AFTER + 1) == answers[KILL_AFTER + 1]  # it was there when the shard died, or soon after
