// Products of weights in int8, by rows that are rounded to bytes.
#pragma once

#include <vector>

#include "numbers.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_INT8 1
#include <immintrin.h>
#endif

namespace {

#ifdef HAS_INT8
constexpr int64_t kGroup = 16;  // outputs whose sums fill a register
constexpr int64_t kQuad = 4;    // inputs that one instruction adds up

// Sums of kGroups times 16 outputs by kRows rows of bytes; weights [groups, quads, 16, 4], rows [kRows, quads * 4].
template <int kRows, int kGroups>
inline void dot_bytes(const int8_t* weights, const uint8_t* rows, int64_t num_quads, __m512i (&totals)[kRows][kGroups]) {
    constexpr int kChains = kRows == 1 ? 2 : 1;  // a row's sums would wait for each other
    __m512i chains[kChains][kRows][kGroups];
    for (auto& chain : chains)
        for (auto& row : chain)
            for (auto& total : row) total = _mm512_setzero_si512();
    const auto add_quad = [&](int64_t q, __m512i(&sums)[kRows][kGroups]) {
        __m512i own[kGroups];
        for (int g = 0; g < kGroups; ++g)
            own[g] = _mm512_loadu_si512(weights + (g * num_quads + q) * kGroup * kQuad);
        for (int m = 0; m < kRows; ++m) {
            int32_t quad;
            std::memcpy(&quad, rows + (m * num_quads + q) * kQuad, sizeof quad);
            const __m512i four = _mm512_set1_epi32(quad);
            for (int g = 0; g < kGroups; ++g) sums[m][g] = _mm512_dpbusd_epi32(sums[m][g], four, own[g]);
        }
    };
    int64_t q = 0;
    for (; q + kChains <= num_quads; q += kChains)
        for (int chain = 0; chain < kChains; ++chain) add_quad(q + chain, chains[chain]);
    for (; q < num_quads; ++q) add_quad(q, chains[0]);
    for (int m = 0; m < kRows; ++m)
        for (int g = 0; g < kGroups; ++g) {
            totals[m][g] = chains[0][m][g];
            if constexpr (kChains == 2) totals[m][g] = _mm512_add_epi32(totals[m][g], chains[1][m][g]);
        }
}

struct Int8Layer {
    const int8_t* weights;   // [num_groups, num_quads, 16, 4], zeros where there is no output or input
    const int32_t* offsets;  // [num_groups * 16]: 128 times the sum of each output's weights
    const float *scales, *bias;  // [num_groups * 16]; bias may be null
    int64_t num_outputs, num_quads;
};

inline void put_lanes(__m512 lanes, int64_t count, float* to) {
    const __mmask16 mask = static_cast<__mmask16>(count < kGroup ? (1 << count) - 1 : 0xffff);
    _mm512_mask_storeu_ps(to, mask, lanes);
}

inline void put_lanes(__m512 lanes, int64_t count, Bfloat16* to) {
    float wide[kGroup];
    _mm512_storeu_ps(wide, lanes);
    for (int64_t i = 0; i < std::min(count, kGroup); ++i) to[i] = narrowed<Bfloat16>(wide[i]);
}

template <int kRows, int kGroups, typename Number>
inline void put_products(const Int8Layer& layer, int64_t group, const uint8_t* rows, const float* factors,
                         Number* outputs) {
    __m512i totals[kRows][kGroups];
    dot_bytes<kRows, kGroups>(layer.weights + group * layer.num_quads * kGroup * kQuad, rows, layer.num_quads, totals);
    for (int g = 0; g < kGroups; ++g) {
        const int64_t n = (group + g) * kGroup, left = layer.num_outputs - n;
        const __m512i offsets = _mm512_loadu_si512(layer.offsets + n);
        const __m512 scales = _mm512_loadu_ps(layer.scales + n);
        for (int m = 0; m < kRows; ++m) {
            __m512 sums = _mm512_cvtepi32_ps(_mm512_sub_epi32(totals[m][g], offsets));
            sums = _mm512_mul_ps(_mm512_mul_ps(sums, scales), _mm512_set1_ps(factors[m]));
            if (layer.bias) sums = _mm512_add_ps(sums, _mm512_loadu_ps(layer.bias + n));
            put_lanes(sums, left, outputs + m * layer.num_outputs + n);
        }
    }
}

template <int kGroups, typename Number>
inline void put_all_rows(const Int8Layer& layer, int64_t group, const uint8_t* rows, const float* factors,
                         int64_t num_rows, Number* outputs) {
    constexpr int kRowsAtOnce = 4;
    int64_t m = 0;
    const auto row = [&] { return rows + m * layer.num_quads * kQuad; };
    for (; m + kRowsAtOnce <= num_rows; m += kRowsAtOnce)
        put_products<kRowsAtOnce, kGroups>(layer, group, row(), factors + m, outputs + m * layer.num_outputs);
    for (; m < num_rows; ++m)
        put_products<1, kGroups>(layer, group, row(), factors + m, outputs + m * layer.num_outputs);
}

// Groups of outputs that one thread computes at once.
constexpr int64_t kChunkGroups = 4;

inline int64_t num_chunks_of(const Int8Layer& layer) {
    return (layer.num_outputs + kChunkGroups * kGroup - 1) / (kChunkGroups * kGroup);
}

// One chunk of outputs [M, N] of rows [M, num_quads * 4] that are bytes.
template <typename Number>
inline void put_chunk(const Int8Layer& layer, int64_t chunk, const uint8_t* rows, const float* factors,
                      int64_t num_rows, Number* outputs) {
    const int64_t num_groups = (layer.num_outputs + kGroup - 1) / kGroup, group = chunk * kChunkGroups;
    if (group + kChunkGroups <= num_groups) {
        put_all_rows<kChunkGroups>(layer, group, rows, factors, num_rows, outputs);
        return;
    }
    for (int64_t one = group; one < num_groups; ++one)
        put_all_rows<1>(layer, one, rows, factors, num_rows, outputs);
}
#endif

// Integers of 1 to 255 around 128, and the factor that makes numbers of them again: NaN where one is not finite.
template <typename Number>
inline float rounded_to_bytes(const Number* row, int64_t count, uint8_t* bytes) {
    float largest = 1e-30f, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
    for (int64_t k = 0; k < count; ++k) {
        largest = std::max(largest, std::fabs(widened(row[k])));
        nothing += widened(row[k]) * 0.0f;
    }
    if (nothing != 0) return nothing;
    const float factor = static_cast<float>(127.0 / static_cast<double>(largest));
    for (int64_t k = 0; k < count; ++k)  // 128 is added before rounding, as FBGEMM does
        bytes[k] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(widened(row[k]) * factor + 128.0f)));
    return static_cast<float>(static_cast<double>(largest) / 127.0);
}

#ifdef HAS_INT8
// rows [M, K] float32, each rounded by its largest number -> outputs [M, N].
inline void multiply_bytes(const Int8Layer& layer, const float* rows, int64_t num_rows, int64_t num_inputs,
                           float* outputs, int num_threads) {
    const int64_t row_size = layer.num_quads * kQuad, num_chunks = num_chunks_of(layer);
    std::vector<uint8_t> bytes(num_rows * row_size);
    std::vector<float> factors(num_rows);
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for
        for (int64_t m = 0; m < num_rows; ++m)
            factors[m] = rounded_to_bytes(rows + m * num_inputs, num_inputs, bytes.data() + m * row_size);
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
            put_chunk(layer, chunk, bytes.data(), factors.data(), num_rows, outputs);
    }
}
#endif

}  // namespace
