// Sixteen numbers of float32 that are worked on together, in the registers that the CPU has for them.
#pragma once

#include "numbers.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
struct Lanes {
    __m512 numbers = _mm512_setzero_ps();

    static Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
    static Lanes load(const Bfloat16* from) {
        const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16))};
    }
    void store(float* to) const { _mm512_storeu_ps(to, numbers); }
    void add(Lanes other) { numbers = _mm512_add_ps(numbers, other.numbers); }
    void multiply_add(Lanes one, Lanes other) { numbers = _mm512_fmadd_ps(one.numbers, other.numbers, numbers); }
    void multiply_add(Lanes one, float other) { multiply_add(one, Lanes{_mm512_set1_ps(other)}); }
    float total() const { return _mm512_reduce_add_ps(numbers); }
};

#elif defined(__AVX2__) && defined(__FMA__)
struct Lanes {
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();

    static Lanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    static Lanes load(const Bfloat16* from) { return {widen(from), widen(from + 8)}; }
    void store(float* to) const { _mm256_storeu_ps(to, low), _mm256_storeu_ps(to + 8, high); }
    void add(Lanes other) { low = _mm256_add_ps(low, other.low), high = _mm256_add_ps(high, other.high); }
    void multiply_add(Lanes one, Lanes other) {
        low = _mm256_fmadd_ps(one.low, other.low, low), high = _mm256_fmadd_ps(one.high, other.high, high);
    }
    void multiply_add(Lanes one, float other) {
        const __m256 wide = _mm256_set1_ps(other);
        multiply_add(one, Lanes{wide, wide});
    }
    float total() const {
        const __m256 eight = _mm256_add_ps(low, high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static __m256 widen(const Bfloat16* from) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
    }
};

#else
struct Lanes {
    float numbers[kLanes] = {};

    template <typename Number>
    static Lanes load(const Number* from) {
        Lanes lanes;
        for (int i = 0; i < kLanes; ++i) lanes.numbers[i] = widened(from[i]);
        return lanes;
    }
    void store(float* to) const { std::copy_n(numbers, kLanes, to); }
    void add(const Lanes& other) {
        for (int i = 0; i < kLanes; ++i) numbers[i] += other.numbers[i];
    }
    void multiply_add(const Lanes& one, const Lanes& other) {
        for (int i = 0; i < kLanes; ++i) numbers[i] = ::multiply_add(one.numbers[i], other.numbers[i], numbers[i]);
    }
    void multiply_add(const Lanes& one, float other) {
        for (int i = 0; i < kLanes; ++i) numbers[i] = ::multiply_add(one.numbers[i], other, numbers[i]);
    }
    float total() const {
        float sum = 0;
        for (float number : numbers) sum += number;
        return sum;
    }
};
#endif

}  // namespace
