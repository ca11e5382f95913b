// Attention of sequences that decode, over the paged cache in place.
#pragma once

#include <memory>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "numbers.h"

extern "C" {

struct Attention {  // one layer, and the sequences that decode
    int64_t num_sequences, num_heads, num_kv_heads, head_dim, value_dim;
    int64_t query_size;  // numbers from one sequence's queries to the next's
    int64_t block_size, table_size, window;  // window 0: none
    float scaling, softcap;  // softcap 0: none
};

}  // extern "C"

namespace {

template <typename Number>
inline void prefetch(const Number* numbers, int64_t count) {
    for (int64_t k = 0; k < count; k += static_cast<int64_t>(64 / sizeof(Number))) __builtin_prefetch(numbers + k);
}

// Keys of a sequence that lie one after the other in the cache, those of all heads of a token side by side.
struct Run {
    int64_t first, count;  // among the keys that are seen
    int64_t slot, next_slot;  // of its first token, and of the next run's
};

// What one sequence sees, by the key-value heads [first_head, end_head).
struct SeenKeys {
    const Attention& sizes;
    const int64_t* table;
    int64_t first, count;
    int64_t first_head, end_head;

    int64_t slot_of(int64_t l) const {
        const int64_t position = std::min(first + l, first + count - 1);
        return table[position / sizes.block_size] * sizes.block_size + position % sizes.block_size;
    }

    // use(run, kv_head), for all heads of one run after the other: so what lies side by side is read at once.
    template <typename Use>
    void for_each(Use&& use) const {
        for (int64_t l = 0; l < count;) {
            const int64_t offset = (first + l) % sizes.block_size;
            const int64_t size = std::min(sizes.block_size - offset, count - l);
            const Run run{l, size, slot_of(l), slot_of(l + size)};
            for (int64_t head = first_head; head < end_head; ++head) use(run, head);
            l += size;
        }
    }

    // Where a head's row of a run is, and while it is used, one of the next run is asked for: each of them once.
    template <typename Number>
    const Number* row(const Number* cache, const Run& run, int64_t head, int64_t i, int64_t dim) const {
        const int64_t ahead = (head - first_head) * run.count + i, own_heads = end_head - first_head;
        const int64_t next = (run.next_slot + ahead / own_heads) * sizes.num_kv_heads + first_head + ahead % own_heads;
        prefetch(cache + next * dim, dim);
        return cache + ((run.slot + i) * sizes.num_kv_heads + head) * dim;
    }
};

// Scores [kHeads, count] of queries [kHeads, head_dim]; kDim is head_dim, or 0 where that is not known here.
template <int kDim, int kHeads, typename Number>
void score(const SeenKeys& seen, const Run& run, int64_t head, const Number* keys, const float* queries,
           float* scores) {
    const int64_t dim = kDim ? kDim : seen.sizes.head_dim;
    for (int64_t i = 0; i < run.count; ++i) {
        const Number* key = seen.row(keys, run, head, i, dim);
        float* to = scores + run.first + i;
        if constexpr (kDim > 0) {
            Lanes products[kHeads];
            for (int64_t k = 0; k < kDim; k += kLanes) {
                const Lanes own = Lanes::load(key + k);  // once for all heads
                for (int h = 0; h < kHeads; ++h) products[h].multiply_add(own, Lanes::load(queries + h * kDim + k));
            }
            for (int h = 0; h < kHeads; ++h) to[h * seen.count] = products[h].total();
        } else {
            for (int h = 0; h < kHeads; ++h) to[h * seen.count] = dot(key, queries + h * dim, dim);
        }
    }
}

// Adds to sums [kHeads, value_dim] the values of a run, each times its weight of weights [kHeads, count].
template <int kDim, int kHeads, typename Number>
void add_up(const SeenKeys& seen, const Run& run, int64_t head, const Number* values, const float* weights,
            float* sums) {
    constexpr int kVectors = 4;  // of each head: those of four heads are in registers
    const int64_t dim = kDim ? kDim : seen.sizes.value_dim;
    int64_t begin = 0;
    for (; begin + kVectors * kLanes <= dim; begin += kVectors * kLanes) {
        Lanes totals[kHeads][kVectors];
        for (int h = 0; h < kHeads; ++h)
            for (int v = 0; v < kVectors; ++v) totals[h][v] = Lanes::load(sums + h * dim + begin + v * kLanes);
        for (int64_t i = 0; i < run.count; ++i) {
            const Number* value = seen.row(values, run, head, i, dim) + begin;
            Lanes own[kVectors];
            for (int v = 0; v < kVectors; ++v) own[v] = Lanes::load(value + v * kLanes);
            for (int h = 0; h < kHeads; ++h) {
                const float weight = weights[h * seen.count + run.first + i];
                for (int v = 0; v < kVectors; ++v) totals[h][v].multiply_add(own[v], weight);
            }
        }
        for (int h = 0; h < kHeads; ++h)
            for (int v = 0; v < kVectors; ++v) totals[h][v].store(sums + h * dim + begin + v * kLanes);
    }
    for (int64_t i = 0; begin < dim && i < run.count; ++i) {  // what fills no vectors
        const Number* value = seen.row(values, run, head, i, dim);
        for (int h = 0; h < kHeads; ++h) {
            const float weight = weights[h * seen.count + run.first + i];
            for (int64_t k = begin; k < dim; ++k)
                sums[h * dim + k] = multiply_add(weight, widened(value[k]), sums[h * dim + k]);
        }
    }
}

// In place: scores [count] become the weights of their softmax, but for the total that is returned.
inline float soften(float* scores, int64_t count, float softcap, const float* sink) {
    if (softcap > 0)
        for (int64_t l = 0; l < count; ++l) scores[l] = std::tanh(scores[l] / softcap) * softcap;
    float largest = sink ? *sink : scores[0];
    for (int64_t l = 0; l < count; ++l) largest = std::max(largest, scores[l]);
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t l = 0; l < count; ++l) {
        scores[l] = exponential(scores[l] - largest);
        total += scores[l];
    }
    return sink ? total + exponential(*sink - largest) : total;
}

// use.template operator()<kHeads>(h) for the queries of one key-value head, at most four of them at once.
template <typename Use>
void in_fours(int64_t num_heads, Use&& use) {
    int64_t h = 0;
    for (; num_heads - h >= 4; h += 4) use(std::integral_constant<int, 4>(), h);
    if (num_heads - h == 3) use(std::integral_constant<int, 3>(), h);
    else if (num_heads - h == 2) use(std::integral_constant<int, 2>(), h);
    else if (num_heads - h == 1) use(std::integral_constant<int, 1>(), h);
}

// One sequence: queries, sinks and outputs of all heads.
template <int kDim, typename Number>
void attend_sequence(const SeenKeys& seen, const Number* queries, const Number* keys, const Number* values,
                     const Number* sinks, Number* outputs) {
    const Attention& sizes = seen.sizes;
    const int64_t group = sizes.num_heads / sizes.num_kv_heads, first = seen.first_head * group;
    const int64_t num_heads = (seen.end_head - seen.first_head) * group;
    std::vector<float> wide(num_heads * sizes.head_dim), sums(num_heads * sizes.value_dim);
    const std::unique_ptr<float[]> weights(new float[num_heads * seen.count]);  // not zeros: all are written
    const auto at = [&](int64_t kv_head, int64_t h) { return (kv_head - seen.first_head) * group + h; };
    for (int64_t i = 0; i < num_heads * sizes.head_dim; ++i)
        wide[i] = widened(queries[first * sizes.head_dim + i]) * sizes.scaling;
    seen.for_each([&](const Run& run, int64_t kv_head) {
        in_fours(group, [&](auto count, int64_t h) {
            const int64_t own = at(kv_head, h);
            score<kDim, count()>(seen, run, kv_head, keys, &wide[own * sizes.head_dim], &weights[own * seen.count]);
        });
    });
    std::vector<float> totals(num_heads);
    for (int64_t h = 0; h < num_heads; ++h) {
        const float sink = sinks ? widened(sinks[first + h]) : 0;
        totals[h] = soften(&weights[h * seen.count], seen.count, sizes.softcap, sinks ? &sink : nullptr);
    }
    seen.for_each([&](const Run& run, int64_t kv_head) {
        in_fours(group, [&](auto count, int64_t h) {
            const int64_t own = at(kv_head, h);
            add_up<kDim, count()>(seen, run, kv_head, values, &weights[own * seen.count], &sums[own * sizes.value_dim]);
        });
    });
    for (int64_t h = 0; h < num_heads; ++h)
        for (int64_t k = 0; k < sizes.value_dim; ++k)
            outputs[(first + h) * sizes.value_dim + k] = narrowed<Number>(sums[h * sizes.value_dim + k] / totals[h]);
}

// Into how many parts the heads of a sequence are shared among threads: of many sequences, each is read from end to
// end by one thread.
inline int64_t num_attention_parts(const Attention& a, int num_threads) {
    const bool has_many = a.num_sequences >= 2 * num_threads || num_threads == 1;
    return has_many ? 1 : std::min<int64_t>(a.num_kv_heads, num_threads);
}

// Sequence b by the key-value heads of one part; outputs [B, H, Dv]. Not inlined, as norm_row.
template <typename Number>
[[gnu::noinline]] void attend_part(const Attention& a, int64_t b, int64_t part, int64_t num_parts, const Number* queries,
                 const Number* keys, const Number* values, const int64_t* tables, const int64_t* lengths,
                 const Number* sinks, Number* outputs) {
    const int64_t first = a.window > 0 ? std::max<int64_t>(0, lengths[b] - a.window) : 0;
    const SeenKeys seen{a, tables + b * a.table_size, first, lengths[b] - first,
                        part * a.num_kv_heads / num_parts, (part + 1) * a.num_kv_heads / num_parts};
    const Number* query = queries + b * a.query_size;
    Number* to = outputs + b * a.num_heads * a.value_dim;
    const bool is_square = a.head_dim == a.value_dim;
    if (is_square && a.head_dim == 64) attend_sequence<64>(seen, query, keys, values, sinks, to);
    else if (is_square && a.head_dim == 128) attend_sequence<128>(seen, query, keys, values, sinks, to);
    else attend_sequence<0>(seen, query, keys, values, sinks, to);
}

template <typename Number>
void attend(const Attention& a, const Number* queries, const Number* keys, const Number* values, const int64_t* tables,
            const int64_t* lengths, const Number* sinks, Number* outputs, int num_threads) {
    int64_t num_keys = 0;
    for (int64_t b = 0; b < a.num_sequences; ++b) num_keys += lengths[b];
    const bool is_large = num_keys * a.num_heads * a.head_dim >= kManyNumbers;
    const int64_t num_parts = num_attention_parts(a, num_threads);
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (is_large)
    for (int64_t task = 0; task < a.num_sequences * num_parts; ++task)
        attend_part(a, task / num_parts, task % num_parts, num_parts, queries, keys, values, tables, lengths, sinks,
                    outputs);
}

}  // namespace
