// Work in phases that threads share without waiting for one of them.
//
// A phase is chunks, each of which computes the same numbers into the same place whoever computes it. Threads take chunks
// in turn. Where all are taken and one is late, the system has taken a thread off its core, as it does where other
// processes have work, too: whoever waits computes that chunk again and goes on. A thread that comes back finds its phase
// behind it; what it still writes is what stands there. So nothing that a phase has read or written may be used for
// anything else before all threads are beyond it, which `wait_for_all` tells.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
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
    static constexpr auto kLeastPatience = std::chrono::microseconds(3);

public:
    SharedWork(int64_t num_phases, int64_t max_chunks, int num_threads)
        : max_chunks_(max_chunks),
          num_threads_(num_threads),
          phases_(num_phases),
          is_done_(new std::atomic<bool>[num_phases * max_chunks]()),
          stations_(num_threads) {}

    // compute(chunk) for each chunk of a phase. Every thread calls it for all phases, in their order.
    template <typename Compute>
    void share(int64_t phase, int64_t num_chunks, Compute&& compute) {
        Phase& own = phases_[phase];
        if (own.num_done.load(std::memory_order_acquire) == num_chunks) return;
        std::atomic<bool>* is_done = is_done_.get() + phase * max_chunks_;
        const auto finish = [&](int64_t chunk) {
            compute(chunk);
            if (!is_done[chunk].exchange(true, std::memory_order_acq_rel))
                own.num_done.fetch_add(1, std::memory_order_release);
        };
        const auto began = Clock::now();
        for (int64_t chunk; (chunk = own.next.fetch_add(1, std::memory_order_relaxed)) < num_chunks;) finish(chunk);
        if (own.num_done.load(std::memory_order_acquire) == num_chunks) return;
        const auto waits_from = Clock::now();  // twice what a chunk takes
        const auto patience = 2 * num_threads_ * (waits_from - began) / num_chunks + kLeastPatience;
        for (int64_t spins = 1; own.num_done.load(std::memory_order_acquire) < num_chunks; ++spins) {
            relax();
            if (spins % kSpins || Clock::now() - waits_from < patience) continue;
            for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
                if (!is_done[chunk].load(std::memory_order_acquire)) finish(chunk);
            return;  // whoever has done the last one may be late with counting it
        }
    }

    // Says that this thread has left all before a station, which grows.
    void arrive(int thread, int64_t station) { stations_[thread].reached.store(station, std::memory_order_release); }

    // Waits until no thread is before a station; one that has not begun finds nothing left to do there.
    void wait_for_all(int64_t station) const {
        for (const Station& other : stations_)
            for (int64_t spins = 0; other.reached.load(std::memory_order_acquire) < station; ++spins)
                spins < kPatientSpins ? relax() : std::this_thread::yield();
    }

private:
    struct alignas(64) Phase {
        std::atomic<int64_t> next{0}, num_done{0};
    };
    struct alignas(64) Station {
        std::atomic<int64_t> reached{std::numeric_limits<int64_t>::max()};
    };

    const int64_t max_chunks_;
    const int num_threads_;
    std::vector<Phase> phases_;
    std::unique_ptr<std::atomic<bool>[]> is_done_;  // [num_phases, max_chunks]
    std::vector<Station> stations_;
};

}  // namespace
