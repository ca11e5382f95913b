// Work in phases that threads share without waiting for one of them.
//
// A phase is chunks, each of which computes the same numbers into the same place whoever computes it. Threads take chunks
// in turn. Where all are taken and one is late, by more than twice what such a chunk has taken, the system has taken a
// thread off its core, as it does where other processes have work, too: whoever waits computes it again and goes on. A
// thread that comes back finds its phase behind it; what it still writes is what stands there. So nothing that a phase
// has read or written may be used for anything else before all threads are beyond it, which `wait_for_all` tells.
//
// Two threads may thus write the same numbers at once, while a third reads them: by the letter of C++ a data race,
// without consequence where aligned stores of equal numbers change nothing, as on x86 and ARM.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class SharedWork {
    using Clock = std::chrono::steady_clock;
    static constexpr int64_t kSpins = 32;            // between two looks at the clock
    static constexpr int64_t kPatientSpins = 10000;  // before the core is given to others
    static constexpr int64_t kLeastPatienceNs = 3000, kBlindPatienceNs = 50000;

public:
    // sizes: chunks of each phase. Phases come again after num_kinds others that are like them.
    SharedWork(std::vector<int64_t> sizes, int64_t num_kinds, int num_threads)
        : sizes_(std::move(sizes)), phases_(sizes_.size()), fastest_ns_(num_kinds), stations_(num_threads) {
        int64_t total = 0;
        for (size_t phase = 0; phase < sizes_.size(); ++phase) {
            phases_[phase].first_chunk = total;
            total += sizes_[phase];
        }
        is_done_.reset(new std::atomic<bool>[total]());
    }

    // compute(chunk) for each chunk of a phase. Every thread calls it for all phases, in their order. unevenness: how
    // many times as long as the shortest chunk the longest one may take.
    template <typename Compute>
    void share(int64_t phase, Compute&& compute, int64_t unevenness = 1) {
        Phase& own = phases_[phase];
        const int64_t num_chunks = sizes_[phase];
        if (own.num_done.load(std::memory_order_acquire) == num_chunks) return;
        std::atomic<bool>* is_done = is_done_.get() + own.first_chunk;
        const auto finish = [&](int64_t chunk) {
            compute(chunk);
            if (!is_done[chunk].exchange(true, std::memory_order_acq_rel))
                own.num_done.fetch_add(1, std::memory_order_release);
        };
        std::atomic<int64_t>& fastest_ns = fastest_ns_[phase % fastest_ns_.size()].ns;
        int64_t least_ns = fastest_ns.load(std::memory_order_relaxed);
        auto now = Clock::now();
        for (int64_t chunk; (chunk = own.next.fetch_add(1, std::memory_order_relaxed)) < num_chunks;) {
            finish(chunk);
            const auto began = now;
            now = Clock::now();
            least_ns = std::min<int64_t>(least_ns, std::chrono::nanoseconds(now - began).count());
        }
        fastest_ns.store(least_ns, std::memory_order_relaxed);
        const int64_t patience_ns =
            least_ns == kUnknown ? kBlindPatienceNs : 2 * unevenness * least_ns + kLeastPatienceNs;
        const auto gives_up = now + std::chrono::nanoseconds(patience_ns);
        for (int64_t spins = 1; own.num_done.load(std::memory_order_acquire) < num_chunks; ++spins) {
            relax();
            if (spins % kSpins || Clock::now() < gives_up) continue;
            for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
                if (!is_done[chunk].load(std::memory_order_acquire)) finish(chunk);
            return;  // whoever has done the last one may be late with counting it
        }
    }

    // The number of a thread that begins.
    int enter() { return num_entered_.fetch_add(1); }

    // Says that this thread has left all before a station, which grows.
    void arrive(int thread, int64_t station) { stations_[thread].reached.store(station); }

    // Waits until no thread is before a station; one that has not begun finds nothing left to do there.
    void wait_for_all(int64_t station) const {
        for (const Station& other : stations_)
            for (int64_t spins = 0; other.reached.load() < station; ++spins)
                spins < kPatientSpins ? relax() : std::this_thread::yield();
    }

private:
    static constexpr int64_t kUnknown = int64_t{1} << 40;

    struct alignas(64) Phase {
        std::atomic<int64_t> next{0}, num_done{0};
        int64_t first_chunk = 0;
    };
    struct alignas(64) Time {
        std::atomic<int64_t> ns{kUnknown};
    };
    struct alignas(64) Station {
        std::atomic<int64_t> reached{std::numeric_limits<int64_t>::max()};
    };

    const std::vector<int64_t> sizes_;
    std::vector<Phase> phases_;
    std::vector<Time> fastest_ns_;                  // of a chunk, by kind
    std::unique_ptr<std::atomic<bool>[]> is_done_;  // of all phases
    std::vector<Station> stations_;
    std::atomic<int> num_entered_{0};
};

}  // namespace
