"""Work that threads share while one of them is away, in a program of its own."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from serve_app.models.compiled.build import SOURCE
from tests.compiled import kernels_or_skip

PROGRAM = r"""
#include <cstdio>
#include "shared_work.h"

constexpr int kPhases = 40, kChunks = 7, kAway = 3;
constexpr auto kLong = std::chrono::milliseconds(400);

int main() {
    using Clock = std::chrono::steady_clock;
    SharedWork work(kPhases, kChunks, 2);
    std::atomic<int64_t> outputs[kPhases][kChunks]{};
    std::atomic<int> num_computed{0};
    std::atomic<bool> is_away{false};
    const auto began = Clock::now();
    const auto ms = [&] { return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - began).count(); };
    std::atomic<int64_t> all_ms{-1}, met_ms{0}, late_ms{0};
    const auto run = [&](int thread) {
        for (int phase = 0; phase < kPhases; ++phase) {
            work.arrive(thread, phase);
            work.share(phase, kChunks, [&](int64_t chunk) {
                ++num_computed;
                int64_t sum = 1;  // of all that the phase before has written
                if (phase > 0) for (const auto& one : outputs[phase - 1]) sum += one;
                // One thread is taken off its core in the middle of a chunk, the other goes on.
                if (phase == kAway && !is_away.exchange(true)) std::this_thread::sleep_for(kLong), late_ms = ms();
                outputs[phase][chunk] = sum % 1000003 + chunk;
            });
            int64_t nobody = -1;
            if (phase == kPhases - 1) all_ms.compare_exchange_strong(nobody, ms());
        }
        work.arrive(thread, kPhases);
        work.wait_for_all(kPhases);
        met_ms = ms();
    };
    std::thread other(run, 1);
    run(0);
    other.join();
    bool is_right = true;
    int64_t before = 0;
    for (auto& phase : outputs) {
        int64_t sum = 0;
        for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
            is_right = is_right && phase[chunk] == (before + 1) % 1000003 + chunk;
            sum += phase[chunk];
        }
        before = sum;
    }
    std::printf("{\"is_right\": %s, \"num_computed\": %d, \"all_ms\": %ld, \"late_ms\": %ld, \"met_ms\": %ld}\n",
                is_right ? "true" : "false", num_computed.load(), long(all_ms.load()), long(late_ms.load()), long(met_ms.load()));
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kernels_or_skip()
    directory = tmp_path_factory.mktemp("shared_work")
    (directory / "main.cpp").write_text(PROGRAM)
    compiler = next(path for name in ("g++", "c++", "clang++") if (path := shutil.which(name)) is not None)
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCE.parent}"]
    subprocess.run([*command, "main.cpp", "-o", "main"], cwd=directory, check=True)
    return directory / "main"


def test_a_thread_that_is_away_holds_up_nobody_and_comes_back_to_what_stands(program: Path) -> None:
    said = json.loads(subprocess.run([program], capture_output=True, check=True, timeout=20).stdout)
    assert said["is_right"]
    assert said["all_ms"] < said["late_ms"], "37 phases were done while one thread slept in the third"
    assert said["met_ms"] >= said["late_ms"], "and what it used was kept for it"
    assert 40 * 7 < said["num_computed"] <= 2 * 40 * 7, "its chunk was computed again"
