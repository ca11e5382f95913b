// What a step of decoding on CPU does between its products, and the products of weights in int8.
//
// Plain loops, which the compiler turns into the vector instructions of the CPU it runs on. No row's numbers depend on
// how many rows there are, nor on how many threads. Products are contracted with sums where it is written only
// (-ffp-contract=off), so what torch rounds twice is rounded twice here.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_INT8 1
#include <immintrin.h>
#endif

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

#ifdef HAS_INT8
constexpr int64_t kGroup = 16;  // outputs whose sums fill a register
constexpr int64_t kQuad = 4;    // inputs that one instruction adds up

// Sums of kGroups times 16 outputs by kRows rows of bytes; weights [groups, quads, 16, 4], rows [kRows, quads * 4].
template <int kRows, int kGroups>
inline void dot_bytes(const int8_t* weights, const uint8_t* rows, int64_t num_quads, __m512i (&totals)[kRows][kGroups]) {
    for (auto& row : totals)
        for (auto& total : row) total = _mm512_setzero_si512();
    for (int64_t q = 0; q < num_quads; ++q) {
        __m512i own[kGroups];
        for (int g = 0; g < kGroups; ++g)
            own[g] = _mm512_loadu_si512(weights + (g * num_quads + q) * kGroup * kQuad);
        for (int m = 0; m < kRows; ++m) {
            int32_t quad;
            std::memcpy(&quad, rows + (m * num_quads + q) * kQuad, sizeof quad);
            const __m512i four = _mm512_set1_epi32(quad);
            for (int g = 0; g < kGroups; ++g) totals[m][g] = _mm512_dpbusd_epi32(totals[m][g], four, own[g]);
        }
    }
}

struct Int8Layer {
    const int8_t* weights;   // [num_groups, num_quads, 16, 4], zeros where there is no output or input
    const int32_t* offsets;  // [num_groups * 16]: 128 times the sum of each output's weights
    const float *scales, *bias;  // [num_groups * 16]; bias may be null
    int64_t num_outputs, num_quads;
};

template <int kRows, int kGroups>
inline void put_products(const Int8Layer& layer, int64_t group, const uint8_t* rows, const float* factors,
                         float* outputs) {
    __m512i totals[kRows][kGroups];
    dot_bytes<kRows, kGroups>(layer.weights + group * layer.num_quads * kGroup * kQuad, rows, layer.num_quads, totals);
    for (int g = 0; g < kGroups; ++g) {
        const int64_t n = (group + g) * kGroup, left = layer.num_outputs - n;
        const __mmask16 mask = static_cast<__mmask16>(left < kGroup ? (1 << left) - 1 : 0xffff);
        const __m512i offsets = _mm512_loadu_si512(layer.offsets + n);
        const __m512 scales = _mm512_loadu_ps(layer.scales + n);
        for (int m = 0; m < kRows; ++m) {
            __m512 sums = _mm512_cvtepi32_ps(_mm512_sub_epi32(totals[m][g], offsets));
            sums = _mm512_mul_ps(_mm512_mul_ps(sums, scales), _mm512_set1_ps(factors[m]));
            if (layer.bias) sums = _mm512_add_ps(sums, _mm512_loadu_ps(layer.bias + n));
            _mm512_mask_storeu_ps(outputs + m * layer.num_outputs + n, mask, sums);
        }
    }
}

template <int kGroups>
inline void put_all_rows(const Int8Layer& layer, int64_t group, const uint8_t* rows, const float* factors,
                         int64_t num_rows, float* outputs) {
    constexpr int kRowsAtOnce = 4;
    int64_t m = 0;
    const auto row = [&] { return rows + m * layer.num_quads * kQuad; };
    for (; m + kRowsAtOnce <= num_rows; m += kRowsAtOnce)
        put_products<kRowsAtOnce, kGroups>(layer, group, row(), factors + m, outputs + m * layer.num_outputs);
    for (; m < num_rows; ++m)
        put_products<1, kGroups>(layer, group, row(), factors + m, outputs + m * layer.num_outputs);
}
#endif

// Integers of 1 to 255 around 128, and the factor that makes numbers of them again: NaN where one is not finite.
inline float rounded_to_bytes(const float* row, int64_t count, uint8_t* bytes) {
    float largest = 1e-30f, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
    for (int64_t k = 0; k < count; ++k) {
        largest = std::max(largest, std::fabs(row[k]));
        nothing += row[k] * 0.0f;
    }
    if (nothing != 0) return nothing;
    const float factor = static_cast<float>(127.0 / static_cast<double>(largest));
    for (int64_t k = 0; k < count; ++k)  // 128 is added before rounding, as FBGEMM does
        bytes[k] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(row[k] * factor + 128.0f)));
    return static_cast<float>(static_cast<double>(largest) / 127.0);
}

template <typename Number>
void norm(const Number* rows, int64_t num_rows, int64_t width, const Number* weight, double epsilon, Number* outputs,
          int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows * width >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m) {
        const Number* row = rows + m * width;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t k = 0; k < width; ++k) squares = multiply_add(widened(row[k]), widened(row[k]), squares);
        const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(squares) / width + epsilon));
        for (int64_t k = 0; k < width; ++k)
            outputs[m * width + k] = narrowed<Number>(widened(weight[k]) * rounded<Number>(widened(row[k]) * factor));
    }
}

template <typename Number>
void silu_product(const Number* gates_and_ups, int64_t num_rows, int64_t width, Number* outputs, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows * width >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m) {
        const Number *gates = gates_and_ups + m * 2 * width, *ups = gates + width;
        Number* to = outputs + m * width;
        for (int64_t k = 0; k < width; ++k) {
            const float gate = widened(gates[k]);
            const float silu = rounded<Number>(gate / (1.0f + exponential(-gate)));
            to[k] = narrowed<Number>(silu * widened(ups[k]));
        }
    }
}

template <typename Number>
void rotate(Number* rows, int64_t num_rows, int64_t row_size, int64_t num_heads, int64_t head_dim, const Number* cos,
            const Number* sin, int num_threads) {
    const int64_t half = head_dim / 2;
#pragma omp parallel for num_threads(num_threads) if (num_rows * row_size >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m) {
        const Number *c = cos + m * head_dim, *s = sin + m * head_dim;
        for (int64_t h = 0; h < num_heads; ++h) {
            Number *low = rows + m * row_size + h * head_dim, *high = low + half;
#pragma omp simd
            for (int64_t k = 0; k < half; ++k) {
                const float a = widened(low[k]), b = widened(high[k]);
                const float turned_low = rounded<Number>(-b * widened(s[k]));
                const float turned_high = rounded<Number>(a * widened(s[half + k]));
                low[k] = narrowed<Number>(rounded<Number>(a * widened(c[k])) + turned_low);
                high[k] = narrowed<Number>(rounded<Number>(b * widened(c[half + k])) + turned_high);
            }
        }
    }
}

}  // namespace

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

extern "C" {

#ifdef HAS_INT8
// rows [M, K] float32, each rounded by its largest number -> outputs [M, N].
void multiply_int8(const Int8Layer* layer, const float* rows, int64_t num_rows, int64_t num_inputs, float* outputs,
                   int num_threads) {
    constexpr int64_t kGroupsAtOnce = 4;
    const int64_t row_size = layer->num_quads * kQuad, num_groups = (layer->num_outputs + kGroup - 1) / kGroup;
    std::vector<uint8_t> bytes(num_rows * row_size);
    std::vector<float> factors(num_rows);
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for
        for (int64_t m = 0; m < num_rows; ++m)
            factors[m] = rounded_to_bytes(rows + m * num_inputs, num_inputs, bytes.data() + m * row_size);
#pragma omp for schedule(dynamic)
        for (int64_t group = 0; group < num_groups; group += kGroupsAtOnce) {
            if (group + kGroupsAtOnce <= num_groups) {
                put_all_rows<kGroupsAtOnce>(*layer, group, bytes.data(), factors.data(), num_rows, outputs);
                continue;
            }
            for (int64_t one = group; one < num_groups; ++one)
                put_all_rows<1>(*layer, one, bytes.data(), factors.data(), num_rows, outputs);
        }
    }
}
#endif

void norm_float32(const float* rows, int64_t m, int64_t width, const float* weight, double epsilon, float* outputs, int t) {
    norm(rows, m, width, weight, epsilon, outputs, t);
}

void silu_product_float32(const float* gates_and_ups, int64_t m, int64_t width, float* outputs, int t) {
    silu_product(gates_and_ups, m, width, outputs, t);
}

void rotate_float32(float* rows, int64_t m, int64_t row_size, int64_t num_heads, int64_t head_dim, const float* cos,
                    const float* sin, int t) {
    rotate(rows, m, row_size, num_heads, head_dim, cos, sin, t);
}

void attend_float32(const Attention* a, const float* queries, const float* keys, const float* values,
                    const int64_t* tables, const int64_t* lengths, const float* sinks, float* outputs, int t) {
    attend(*a, queries, keys, values, tables, lengths, sinks, outputs, t);
}

void norm_bfloat16(const Bfloat16* rows, int64_t m, int64_t width, const Bfloat16* weight, double epsilon, Bfloat16* outputs, int t) {
    norm(rows, m, width, weight, epsilon, outputs, t);
}

void silu_product_bfloat16(const Bfloat16* gates_and_ups, int64_t m, int64_t width, Bfloat16* outputs, int t) {
    silu_product(gates_and_ups, m, width, outputs, t);
}

void rotate_bfloat16(Bfloat16* rows, int64_t m, int64_t row_size, int64_t num_heads, int64_t head_dim, const Bfloat16* cos,
                    const Bfloat16* sin, int t) {
    rotate(rows, m, row_size, num_heads, head_dim, cos, sin, t);
}

void attend_bfloat16(const Attention* a, const Bfloat16* queries, const Bfloat16* keys, const Bfloat16* values,
                    const int64_t* tables, const int64_t* lengths, const Bfloat16* sinks, Bfloat16* outputs, int t) {
    attend(*a, queries, keys, values, tables, lengths, sinks, outputs, t);
}

}  // extern "C"
