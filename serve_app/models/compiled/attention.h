// Attention of sequences that decode, over the paged cache in place.
#pragma once

#include <vector>

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

constexpr int64_t kRowsAhead = 12;  // keys of one head lie too far apart for the CPU to foresee them

template <typename Number>
inline void prefetch(const Number* numbers, int64_t count) {
    for (int64_t k = 0; k < count; k += static_cast<int64_t>(64 / sizeof(Number))) __builtin_prefetch(numbers + k);
}

// What one sequence's queries of one key-value head see.
template <typename Number>
struct SeenKeys {
    const Attention& sizes;
    const int64_t* table;
    int64_t kv_head, first, count;

    // use(l, row of the cache), block by block; l counts the keys that are seen.
    template <typename Use>
    void for_each(Use&& use) const {
        for (int64_t l = 0; l < count;) {
            const int64_t offset = (first + l) % sizes.block_size;
            const int64_t stop = l + std::min(sizes.block_size - offset, count - l);
            const int64_t slot = table[(first + l) / sizes.block_size] * sizes.block_size + offset;
            for (int64_t row = slot * sizes.num_kv_heads + kv_head; l < stop; ++l, row += sizes.num_kv_heads)
                use(l, row);
        }
    }
};

// Scores [kHeads, count] of queries [kHeads, head_dim]; kDim is head_dim, or 0 where that is not known here.
template <int kDim, int kHeads, typename Number>
void score(const SeenKeys<Number>& seen, const Number* keys, const float* queries, float* scores) {
    const int64_t dim = kDim ? kDim : seen.sizes.head_dim;
    seen.for_each([&](int64_t l, int64_t row) {
        const Number* key = keys + row * dim;
        prefetch(key + kRowsAhead * seen.sizes.num_kv_heads * dim, dim);
        if constexpr (kDim > 0) {
            float wide[kDim];  // once for all heads
            for (int k = 0; k < kDim; ++k) wide[k] = widened(key[k]);
            for (int h = 0; h < kHeads; ++h) scores[h * seen.count + l] = dot(wide, queries + h * kDim, kDim);
        } else {
            for (int h = 0; h < kHeads; ++h) scores[h * seen.count + l] = dot(key, queries + h * dim, dim);
        }
    });
}

// Sums [kHeads, value_dim] of the values, each times its weight of weights [kHeads, count].
template <int kDim, int kHeads, typename Number>
void add_up(const SeenKeys<Number>& seen, const Number* values, const float* weights, float* sums) {
    constexpr int kAtOnce = kDim ? kDim : 16;
    const int64_t dim = kDim ? kDim : seen.sizes.value_dim;
    for (int64_t begin = 0; begin < dim; begin += kAtOnce) {
        const int64_t width = kDim ? kDim : std::min<int64_t>(kAtOnce, dim - begin);
        float totals[kHeads][kAtOnce] = {};
        seen.for_each([&](int64_t l, int64_t row) {
            const Number* value = values + row * dim + begin;
            prefetch(value + kRowsAhead * seen.sizes.num_kv_heads * dim, width);
            float wide[kAtOnce];
            for (int64_t k = 0; k < width; ++k) wide[k] = widened(value[k]);
            for (int h = 0; h < kHeads; ++h) {
                const float weight = weights[h * seen.count + l];
#pragma omp simd
                for (int64_t k = 0; k < width; ++k) totals[h][k] = multiply_add(weight, wide[k], totals[h][k]);
            }
        });
        for (int h = 0; h < kHeads; ++h) std::copy_n(totals[h], width, sums + h * dim + begin);
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

template <int kDim, int kHeads, typename Number>
void attend_heads(const SeenKeys<Number>& seen, const Number* queries, const Number* keys, const Number* values,
                  const Number* sinks, Number* outputs) {
    const Attention& sizes = seen.sizes;
    std::vector<float> wide(kHeads * sizes.head_dim), weights(kHeads * seen.count), sums(kHeads * sizes.value_dim);
    for (int64_t i = 0; i < kHeads * sizes.head_dim; ++i) wide[i] = widened(queries[i]) * sizes.scaling;
    score<kDim, kHeads>(seen, keys, wide.data(), weights.data());
    float totals[kHeads];
    for (int h = 0; h < kHeads; ++h) {
        const float sink = sinks ? widened(sinks[h]) : 0;
        totals[h] = soften(weights.data() + h * seen.count, seen.count, sizes.softcap, sinks ? &sink : nullptr);
    }
    add_up<kDim, kHeads>(seen, values, weights.data(), sums.data());
    for (int h = 0; h < kHeads; ++h)
        for (int64_t k = 0; k < sizes.value_dim; ++k)
            outputs[h * sizes.value_dim + k] = narrowed<Number>(sums[h * sizes.value_dim + k] / totals[h]);
}

template <int kDim, typename Number>
void attend_group(const SeenKeys<Number>& seen, const Number* queries, const Number* keys, const Number* values,
                  const Number* sinks, Number* outputs) {
    const int64_t num_heads = seen.sizes.num_heads / seen.sizes.num_kv_heads;
    for (int64_t h = 0; h < num_heads;) {
        const int64_t left = num_heads - h;
        const Number *query = queries + h * seen.sizes.head_dim, *sink = sinks ? sinks + h : nullptr;
        Number* to = outputs + h * seen.sizes.value_dim;
        if (left >= 4) attend_heads<kDim, 4>(seen, query, keys, values, sink, to);
        else if (left == 3) attend_heads<kDim, 3>(seen, query, keys, values, sink, to);
        else if (left == 2) attend_heads<kDim, 2>(seen, query, keys, values, sink, to);
        else attend_heads<kDim, 1>(seen, query, keys, values, sink, to);
        h += std::min<int64_t>(left, 4);
    }
}

template <typename Number>
void attend(const Attention& a, const Number* queries, const Number* keys, const Number* values, const int64_t* tables,
            const int64_t* lengths, const Number* sinks, Number* outputs, int num_threads) {
    const int64_t group = a.num_heads / a.num_kv_heads;
    int64_t num_keys = 0;
    for (int64_t b = 0; b < a.num_sequences; ++b) num_keys += lengths[b];
    const bool is_large = num_keys * a.num_heads * a.head_dim >= kManyNumbers;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (is_large)
    for (int64_t task = 0; task < a.num_sequences * a.num_kv_heads; ++task) {
        const int64_t b = task / a.num_kv_heads, kv_head = task % a.num_kv_heads;
        const int64_t first = a.window > 0 ? std::max<int64_t>(0, lengths[b] - a.window) : 0;
        const SeenKeys<Number> seen{a, tables + b * a.table_size, kv_head, first, lengths[b] - first};
        const Number* query = queries + b * a.query_size + kv_head * group * a.head_dim;
        const Number* sink = sinks ? sinks + kv_head * group : nullptr;
        Number* to = outputs + (b * a.num_heads + kv_head * group) * a.value_dim;
        const bool is_square = a.head_dim == a.value_dim;
        if (is_square && a.head_dim == 64) attend_group<64>(seen, query, keys, values, sink, to);
        else if (is_square && a.head_dim == 128) attend_group<128>(seen, query, keys, values, sink, to);
        else attend_group<0>(seen, query, keys, values, sink, to);
    }
}

}  // namespace
