// Products of weights in float32 and bfloat16; sums are float32.
//
// Weights lie in the order in which they are read: groups of 16 outputs, and in a group unit after unit, a unit being
// what one instruction adds to 16 sums. An output is the sum over blocks of inputs of what the even and the odd units
// of a block add up to, in this order whatever else is multiplied: so a row's numbers depend on no other row.
#pragma once

#include <vector>

#include "lanes.h"
#include "numbers.h"

namespace {

constexpr int64_t kBlockUnits = 1024;  // of a group at once: several groups stay in the second-level cache
constexpr int64_t kPanelRows = 48;     // whose sums are kept beside it

#if defined(__AVX512F__)
constexpr int kLoneGroups = 4, kTileRows = 6, kTileGroups = 2;  // whose sums fill the registers

struct FloatUnit {
    using Number = float;
    static constexpr int64_t kInputs = 1;
    __m512 own;

    static FloatUnit load(const float* weights) { return {_mm512_loadu_ps(weights)}; }
    void multiply_add(const float* inputs, Lanes& sums) const { sums.multiply_add({own}, *inputs); }
};

struct BfloatUnit {
    using Number = Bfloat16;
    static constexpr int64_t kInputs = 2;
    __m512i own;

    static BfloatUnit load(const Bfloat16* weights) { return {_mm512_loadu_si512(weights)}; }
    void multiply_add(const Bfloat16* inputs, Lanes& sums) const {
#if defined(__AVX512BF16__)
        int32_t pair;
        std::memcpy(&pair, inputs, sizeof pair);
        sums.numbers = _mm512_dpbf16_ps(sums.numbers, (__m512bh)own, (__m512bh)_mm512_set1_epi32(pair));
#else
        sums.multiply_add({_mm512_castsi512_ps(_mm512_slli_epi32(own, 16))}, widened(inputs[0]));
        const __m512i high = _mm512_and_si512(own, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000)));
        sums.multiply_add({_mm512_castsi512_ps(high)}, widened(inputs[1]));
#endif
    }
};

#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kLoneGroups = 2, kTileRows = 3, kTileGroups = 1;

struct FloatUnit {
    using Number = float;
    static constexpr int64_t kInputs = 1;
    __m256 low, high;

    static FloatUnit load(const float* weights) { return {_mm256_loadu_ps(weights), _mm256_loadu_ps(weights + 8)}; }
    void multiply_add(const float* inputs, Lanes& sums) const { sums.multiply_add({low, high}, *inputs); }
};

struct BfloatUnit {
    using Number = Bfloat16;
    static constexpr int64_t kInputs = 2;
    __m256i low, high;

    static BfloatUnit load(const Bfloat16* weights) {
        const auto* pairs = reinterpret_cast<const __m256i*>(weights);
        return {_mm256_loadu_si256(pairs), _mm256_loadu_si256(pairs + 1)};
    }
    void multiply_add(const Bfloat16* inputs, Lanes& sums) const {
        sums.multiply_add({firsts(low), firsts(high)}, widened(inputs[0]));
        sums.multiply_add({seconds(low), seconds(high)}, widened(inputs[1]));
    }
    static __m256 firsts(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
    static __m256 seconds(__m256i pairs) {
        return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
    }
};

#else
constexpr int kLoneGroups = 1, kTileRows = 2, kTileGroups = 1;

template <typename Own, int64_t kCount>
struct PlainUnit {
    using Number = Own;
    static constexpr int64_t kInputs = kCount;
    const Number* own;

    static PlainUnit load(const Number* weights) { return {weights}; }
    void multiply_add(const Number* inputs, Lanes& sums) const {
        for (int64_t k = 0; k < kInputs; ++k)
            for (int64_t i = 0; i < kLanes; ++i)
                sums.numbers[i] =
                    ::multiply_add(widened(own[i * kInputs + k]), widened(inputs[k]), sums.numbers[i]);
    }
};

using FloatUnit = PlainUnit<float, 1>;
using BfloatUnit = PlainUnit<Bfloat16, 2>;
#endif

struct FloatLayer {
    const void* weights;  // [num_groups, num_units, 16, inputs of a unit], zeros where there is no output or input
    const float* bias;    // [num_groups * 16], or null
    int64_t num_outputs, num_units;  // num_units is even
};

// Rows that lie one after the other, and where their sums over a chunk of groups are kept: [kPanelRows, kLoneGroups * 16].
template <typename Unit>
struct Panel {
    using Number = typename Unit::Number;
    const Number* rows;
    int64_t num_rows, num_units;
    float sums[kPanelRows * kLoneGroups * kLanes];

    // Units [first, end) of kGroups groups, kRows rows from m on.
    template <int kRows, int kGroups>
    void add_tile(const Number* weights, int group, int64_t m, int64_t first, int64_t end) {
        const int64_t unit_size = kLanes * Unit::kInputs;
        Lanes totals[2][kRows][kGroups];
        for (int64_t q = first; q < end; q += 2)
            for (int odd = 0; odd < 2; ++odd) {
                Unit units[kGroups];
                for (int g = 0; g < kGroups; ++g)
                    units[g] = Unit::load(weights + ((group + g) * num_units + q + odd) * unit_size);
                for (int r = 0; r < kRows; ++r) {
                    const Number* inputs = rows + ((m + r) * num_units + q + odd) * Unit::kInputs;
                    for (int g = 0; g < kGroups; ++g) units[g].multiply_add(inputs, totals[odd][r][g]);
                }
            }
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g) {
                float* kept = sums + ((m + r) * kLoneGroups + group + g) * kLanes;
                totals[0][r][g].add(totals[1][r][g]);
                if (first > 0) {
                    Lanes before = Lanes::load(kept);
                    before.add(totals[0][r][g]);
                    totals[0][r][g] = before;
                }
                totals[0][r][g].store(kept);
            }
    }

    template <int kGroups>
    void add_rows(const Number* weights, int group, int64_t first, int64_t end) {
        int64_t m = 0;
        for (; m + kTileRows <= num_rows; m += kTileRows) add_tile<kTileRows, kGroups>(weights, group, m, first, end);
        for (; m + 2 <= num_rows; m += 2) add_tile<2, kGroups>(weights, group, m, first, end);
        for (; m < num_rows; ++m) add_tile<1, kGroups>(weights, group, m, first, end);
    }

    void multiply(const Number* weights, int num_groups) {
        for (int64_t first = 0; first < num_units; first += kBlockUnits) {
            const int64_t end = std::min(first + kBlockUnits, num_units);
            if (num_rows == 1 && num_groups == kLoneGroups) {
                add_tile<1, kLoneGroups>(weights, 0, 0, first, end);
                continue;
            }
            int group = 0;
            for (; group + kTileGroups <= num_groups; group += kTileGroups)
                add_rows<kTileGroups>(weights, group, first, end);
            for (; group < num_groups; ++group) add_rows<1>(weights, group, first, end);
        }
    }
};

// Groups of outputs that one thread computes at once.
inline int64_t num_chunks_of(const FloatLayer& layer) {
    return (layer.num_outputs + kLoneGroups * kLanes - 1) / (kLoneGroups * kLanes);
}

// One chunk of outputs [M, N] of rows [M, num_units * inputs of a unit].
template <typename Unit>
void put_chunk(const FloatLayer& layer, int64_t chunk, const typename Unit::Number* rows, int64_t num_rows,
               typename Unit::Number* outputs) {
    using Number = typename Unit::Number;
    const int64_t row_size = layer.num_units * Unit::kInputs;
    const int64_t num_groups = (layer.num_outputs + kLanes - 1) / kLanes, group = chunk * kLoneGroups, n = group * kLanes;
    const int own_groups = static_cast<int>(std::min<int64_t>(kLoneGroups, num_groups - group));
    const int64_t width = std::min(own_groups * kLanes, layer.num_outputs - n);
    for (int64_t m = 0; m < num_rows; m += kPanelRows) {
        Panel<Unit> panel;
        panel.rows = rows + m * row_size, panel.num_units = layer.num_units;
        panel.num_rows = std::min(kPanelRows, num_rows - m);
        panel.multiply(static_cast<const Number*>(layer.weights) + group * row_size * kLanes, own_groups);
        for (int64_t r = 0; r < panel.num_rows; ++r) {
            const float* sums = panel.sums + r * kLoneGroups * kLanes;
            Number* to = outputs + (m + r) * layer.num_outputs + n;
            for (int64_t k = 0; k < width; ++k)
                to[k] = narrowed<Number>(layer.bias ? sums[k] + layer.bias[n + k] : sums[k]);
        }
    }
}

// rows [M, K] -> outputs [M, N].
template <typename Unit>
void multiply_floats(const FloatLayer& layer, const typename Unit::Number* rows, int64_t num_rows, int64_t num_inputs,
                     typename Unit::Number* outputs, int num_threads) {
    const int64_t row_size = layer.num_units * Unit::kInputs, num_chunks = num_chunks_of(layer);
    std::vector<typename Unit::Number> padded;
    if (row_size != num_inputs) {
        padded.resize(num_rows * row_size);
        for (int64_t m = 0; m < num_rows; ++m) std::copy_n(rows + m * num_inputs, num_inputs, &padded[m * row_size]);
        rows = padded.data();
    }
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (num_chunks > 1)
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) put_chunk<Unit>(layer, chunk, rows, num_rows, outputs);
}

}  // namespace
