// Numbers of float32 and bfloat16, and what is done to one of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kManyNumbers = 16384;  // from here on, threads share what is done row by row

struct Bfloat16 {
    uint16_t bits;
};

inline float widened(float number) { return number; }

inline float widened(Bfloat16 number) {
    const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

template <typename Number>
Number narrowed(float wide);

template <>
inline float narrowed<float>(float wide) {
    return wide;
}

template <>
inline Bfloat16 narrowed<Bfloat16>(float wide) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}

template <typename Number>
inline float rounded(float wide) {  // as a tensor of that dtype would hold it
    return widened(narrowed<Number>(wide));
}

inline float multiply_add(float a, float b, float sum) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return std::fma(a, b, sum);
#else
    return a * b + sum;
#endif
}

// exp in float32 to 2 units of the last place: 2^n times a polynomial over [-ln 2 / 2, ln 2 / 2] (Cephes' expf).
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(x * 1.44269504088896341f);
    float rest = multiply_add(n, -0.693359375f, x);
    rest = multiply_add(n, 2.12194440e-4f, rest);
    float sum = 1.9875691500e-4f;
    sum = multiply_add(sum, rest, 1.3981999507e-3f);
    sum = multiply_add(sum, rest, 8.3334519073e-3f);
    sum = multiply_add(sum, rest, 4.1665795894e-2f);
    sum = multiply_add(sum, rest, 1.6666665459e-1f);
    sum = multiply_add(sum, rest, 5.0000001201e-1f);
    sum = multiply_add(sum * rest, rest, rest + 1.0f);
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

template <typename Number>
inline float dot(const Number* a, const float* b, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; ++k) sum = multiply_add(widened(a[k]), b[k], sum);
    return sum;
}

}  // namespace
