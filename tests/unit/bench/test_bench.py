"""The parts of the benchmarks that need no quiet machine."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.cpu_usage import CpuSnapshot, CpuUsage, ProcessCpu, usage_between
from bench.generated import Generated, WorkItem, steady_tokens_per_s
from bench.load import LoadFailedError, LoadReport, run_load
from bench.lone_client import ENGINE, format_rounds
from bench.overhead import PROFILES, ServingCost, format_costs
from bench.prefix_copies import Answered, Scale, format_answered
from bench.random_llama import SIZES, byte_level_tokenizer
from bench.results import Machine, record
from bench.workload import poisson_workload, read_workload, write_workload
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import ScriptedBackend, save_model_dir, serving


def test_a_workload_keeps_its_bounds_and_comes_back_from_its_file(tmp_path: Path) -> None:
    items = poisson_workload(200, 8.0, (16, 256), (8, 256), 1000)
    assert items == poisson_workload(200, 8.0, (16, 256), (8, 256), 1000)
    assert {len(item.prompt_token_ids) for item in items} <= set(range(16, 257))
    assert {item.num_outputs for item in items} <= set(range(8, 257))
    assert 15 < items[-1].arrival_s < 40  # 200 arrivals at 8 a second
    assert read_workload(write_workload(items, tmp_path / "new" / "workload.json")) == items


def test_the_steady_rate_leaves_out_beginning_and_end() -> None:
    answers = [Generated([1] * 4, [1.0, 2.0, 3.0, 4.0]), Generated([1] * 3, [2.0, 3.0, 6.0])]
    assert steady_tokens_per_s(answers) == 3 / 2.0  # after 2.0 and until 4.0: 3.0, 4.0 and 3.0
    assert steady_tokens_per_s([Generated([1], [1.0])]) is None


@pytest.mark.parametrize("num_streams", [None, 2])
async def test_the_load_generator_counts_what_the_gateway_streams(tmp_path: Path, num_streams: int | None) -> None:
    backend = ScriptedBackend(save_model_dir(tmp_path / "model"))
    items = [WorkItem(0.01 * number, [97 + number] * 3, 5 + number) for number in range(4)]
    async with serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url:
        report = await asyncio.to_thread(run_load, url, backend.name, items, num_streams)
        with pytest.raises(LoadFailedError, match=r"HTTP/1\.1 404"):
            await asyncio.to_thread(run_load, url, "other", items)
    assert report.num_tokens == 5 + 6 + 7 + 8
    assert 0 < report.first_token_ms <= report.last_first_token_ms <= 1000 * report.elapsed_s


def test_cpu_of_new_processes_counts_from_their_start_and_ended_ones_are_left_out() -> None:
    before = CpuSnapshot(10.0, {1: ProcessCpu("router", 5.0), 2: ProcessCpu("shard", 7.0)})
    after = CpuSnapshot(12.0, {1: ProcessCpu("router", 5.5), 3: ProcessCpu("shard", 0.25)})
    usage = usage_between(before, after)
    assert (usage.elapsed_s, usage.cpu_s) == (2.0, 0.75)
    assert usage.cpu_s_by_role == {"router": 0.5, "shard": 0.25}


def test_the_cost_of_a_token_is_what_was_used_beyond_idling() -> None:
    load = LoadReport(1000, 5.0, 0.1, 20.0, 40.0)
    idle = CpuUsage(10.0, 1.0, {"router": 1.0})
    cost = ServingCost("throughput", PROFILES["throughput"][1], load, CpuUsage(5.0, 0.7, {"router": 0.7}), idle)
    assert cost.cpu_ms_per_token == pytest.approx(0.2)
    assert "| throughput | 0.200 | 0.25 | 200 | 1000 | 0.100 | 0.100 |" in format_costs([cost], 32)


def test_the_tokenizer_of_random_models_has_a_token_for_every_id() -> None:
    for size in (SIZES["tiny"], SIZES["120M"]):
        tokenizer = Tokenizer.from_str(json.dumps(byte_level_tokenizer(size.vocab_size)))
        assert tokenizer.get_vocab_size() == size.vocab_size
        assert tokenizer.decode(tokenizer.encode("Grüße, abc Zyx").ids) == "Grüße, abc Zyx"


def test_a_run_is_appended_to_the_results(tmp_path: Path) -> None:
    for table in ("| 1 |", "| 2 |"):
        record("Title", Machine("a cpu", 2, 0.5, "Python"), table, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Results of the benchmarks\n\n## Title, 20")
    assert text.index("| 1 |") < text.index("2 cores of a cpu, load 0.50", text.index("| 1 |")) < text.index("| 2 |")


def test_shares_of_the_engine_are_those_of_one_round() -> None:
    rounds = [{ENGINE: 10.0, "throughput": 9.0}, {ENGINE: 20.0, "throughput": 16.0}, {ENGINE: 30.0, "throughput": 3.0}]
    table = format_rounds(rounds)
    assert "| engine alone | 20.0 | 1.00 |" in table
    assert "| throughput | 9.0 | 0.80 |" in table


@pytest.mark.parametrize(("num_hits", "first_s", "is_met"), [(80, 0.1, True), (79, 0.1, False), (80, 0.3, False)])
def test_choosing_by_prefix_has_to_hit_and_to_be_faster(num_hits: int, first_s: float, is_met: bool) -> None:
    by_load = [Answered(0, 0.3, 0, 0), Answered(1, 0.1, 40, 100)]
    by_prefix = [Answered(0, 0.1, 0, 0), Answered(1, first_s, num_hits, 100)]
    answered = {"power of two": by_load, "prefix": by_prefix}
    table, found = format_answered(answered, Counter(prefix=1, load=0, hash=1), Scale())
    assert found is is_met
    assert "| power of two | 0.40 | 200 | 200 | 100 |" in table
    assert "Chosen by: prefix 1, hash 1." in table
