// What is done row by row: norms, the gated SiLU, rotary positions.
#pragma once

#include "numbers.h"

namespace {

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
