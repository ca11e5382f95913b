"""What is known of replicas by what they tell, and where a call may go."""

from dataclasses import replace
from typing import Literal

import pytest

from serve_app.backend.known_replicas import FRESH_S, LOST_S, KnownReplicas
from serve_app.backend.token_stream import TokenStream
from serve_app.types.generation import OutputChunk
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyCounts, CopyState, ModelVersion

OLD, NEW = ModelVersion("t", "old"), ModelVersion("t", "new")
ADDRESS = LinkAddress("node", "tcp://127.0.0.1:1", None, "key")


@pytest.fixture
def known() -> KnownReplicas:
    return KnownReplicas()


def tell(
    known: KnownReplicas,
    name: str,
    state: Literal["ready", "rebuilding", "draining"] = "ready",
    *,
    version: ModelVersion = OLD,
    num_rebuilds: int = 0,
    num_running: int = 0,
) -> bool:
    counts = CopyCounts(num_rebuilds=num_rebuilds)
    return known.see(ADDRESS, CopyState(name, state, "", num_running, 0, 8, 8, counts=counts), version)


def stream_of(version: ModelVersion, *, has_begun: bool) -> TokenStream:
    stream = TokenStream(1, lambda _chunk: True)
    stream.version = version
    if has_begun:
        stream.feed(OutputChunk(0, 0, [7]))
    return stream


def fit(known: KnownReplicas, stream: TokenStream | None) -> list[str]:
    return [one.replica_id for one in known.fit(stream)]


def test_a_cache_is_kept_until_its_copy_is_rebuilt(known: KnownReplicas) -> None:
    assert not tell(known, "a"), "nothing is known of a newcomer"
    assert tell(known, "a")
    assert not tell(known, "a", num_rebuilds=1)
    assert tell(known, "a", num_rebuilds=1)


def test_another_process_of_the_name_is_told_by_its_key(known: KnownReplicas) -> None:
    another = replace(ADDRESS, server_key="another")
    assert not known.is_another("a", another)
    tell(known, "a")
    assert known.is_another("a", another)
    assert not known.is_another("a", replace(ADDRESS, wide_endpoint="tcp://127.0.0.1:2")), (
        "the same, which listens wide"
    )


def test_one_that_drains_still_has_its_cache(known: KnownReplicas) -> None:
    tell(known, "a")
    assert tell(known, "a", "draining")


def test_a_call_goes_to_those_that_are_ready_and_have_told_it_of_late(known: KnownReplicas) -> None:
    for name in ("a", "b", "c"):
        tell(known, name)
    tell(known, "b", "rebuilding")
    assert fit(known, None) == ["a", "c"]
    known.by_id["a"].told_s -= FRESH_S
    assert fit(known, None) == ["c"]
    assert [one.replica_id for one in known.fresh()] == ["b", "c"]


def test_a_stream_that_has_begun_goes_on_with_its_own_version_only(known: KnownReplicas) -> None:
    tell(known, "old", "draining")
    tell(known, "new", version=NEW)
    assert fit(known, stream_of(OLD, has_begun=False)) == ["new"]
    assert fit(known, stream_of(OLD, has_begun=True)) == ["old"], "the last of its version"
    tell(known, "another")
    assert fit(known, stream_of(OLD, has_begun=True)) == ["another"]


def test_a_stream_is_replaced_when_only_another_version_runs(known: KnownReplicas) -> None:
    stream = stream_of(OLD, has_begun=True)
    assert not known.is_replaced(stream), "nobody runs: one of its version may come"
    tell(known, "new", version=NEW)
    assert known.is_replaced(stream)
    tell(known, "old", "rebuilding")
    assert not known.is_replaced(stream), "it will be back"


def test_the_silent_are_taken_but_for_the_time_that_this_process_stood_still(known: KnownReplicas) -> None:
    tell(known, "a")
    tell(known, "b")
    known.by_id["a"].told_s -= LOST_S + 60.0
    assert known.take_silent(60.0 + LOST_S) == []
    known.by_id["a"].told_s -= LOST_S + 60.0
    assert [one.replica_id for one in known.take_silent(60.0)] == ["a"]


def test_what_other_processes_have_there_counts_as_load(known: KnownReplicas) -> None:
    tell(known, "a")
    replica = known.by_id["a"]
    replica.num_sequences = replica.most_sequences = 2
    tell(known, "a", num_running=5)
    assert (replica.num_others, replica.load) == (3, 5)
