"""Work that threads share while one of them is away, in a program of its own."""

import json
import shutil
import subprocess
from pathlib import Path

from serve_app.models.compiled.build import SOURCE
from tests.compiled import kernels_or_skip

AWAY = r"""
#include <cstdio>
#include "shared_work.h"

constexpr int kPhases = 40, kChunks = 7, kAway = 3;
constexpr auto kLong = std::chrono::milliseconds(400);

int main() {
    using Clock = std::chrono::steady_clock;
    SharedWork work(std::vector<int64_t>(kPhases, kChunks), 1, 2);
    std::atomic<int64_t> outputs[kPhases][kChunks]{};
    std::atomic<int> num_computed{0};
    std::atomic<bool> is_away{false};
    const auto began = Clock::now();
    const auto ms = [&] { return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - began).count(); };
    std::atomic<int64_t> all_ms{-1}, met_ms{0}, late_ms{0};
    const auto run = [&](int thread) {
        for (int phase = 0; phase < kPhases; ++phase) {
            work.arrive(thread, phase);
            work.share(phase, [&](int64_t chunk) {
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
    std::printf("[%d, %d, %ld, %ld, %ld]", is_right, num_computed.load(), long(all_ms), long(late_ms), long(met_ms));
}
"""

IDLE = r"""
#include <cstdio>
#include "shared_work.h"

constexpr int kPhases = 20, kChunks = 2, kThreads = 4;

int main() {
    SharedWork work(std::vector<int64_t>(kPhases, kChunks), 1, kThreads);
    std::atomic<int> num_computed{0}, num_first{0};
    const auto run = [&] {
        for (int phase = 0; phase < kPhases; ++phase)
            work.share(phase, [&](int64_t) {
                ++(phase == 0 ? num_first : num_computed);
                std::this_thread::sleep_for(std::chrono::milliseconds(20));
            });
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) threads.emplace_back(run);
    for (auto& one : threads) one.join();
    std::printf("[%d, %d]", num_first.load(), num_computed.load());
}
"""


def run_program(text: str, directory: Path) -> list[int]:
    """What a program prints that includes the header."""
    kernels_or_skip()
    (directory / "main.cpp").write_text(text)
    compiler = next(path for name in ("g++", "c++", "clang++") if (path := shutil.which(name)) is not None)
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCE.parent}"]
    subprocess.run([*command, "main.cpp", "-o", "main"], cwd=directory, check=True)
    said: list[int] = json.loads(subprocess.run([directory / "main"], capture_output=True, check=True).stdout)
    return said


def test_a_thread_that_is_away_holds_up_nobody_and_comes_back_to_what_stands(tmp_path: Path) -> None:
    is_right, num_computed, all_ms, late_ms, met_ms = run_program(AWAY, tmp_path)
    assert is_right
    assert all_ms < late_ms, "37 phases were done while one thread slept in the third"
    assert met_ms >= late_ms, "and what it used was kept for it"
    assert 40 * 7 < num_computed <= 2 * 40 * 7, "its chunk was computed again"


def test_threads_without_a_chunk_leave_the_others_theirs_for_as_long_as_one_takes(tmp_path: Path) -> None:
    num_first, num_computed = run_program(IDLE, tmp_path)
    assert 2 <= num_first <= 8, "how long one takes is not known yet"
    assert 38 <= num_computed <= 42, "a loaded machine may hold up one or the other"
