// What is done row by row: norms, the gated SiLU, rotary positions.
#pragma once

#include "numbers.h"

namespace {

// Not inlined: where it is, a compiler may add up in another order, and the same row would have other numbers.
template <typename Number>
[[gnu::noinline]] void norm_row(const Number* row, int64_t width, const Number* weight, double epsilon, Number* outputs) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t k = 0; k < width; ++k) squares = multiply_add(widened(row[k]), widened(row[k]), squares);
    const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(squares) / width + epsilon));
    for (int64_t k = 0; k < width; ++k)
        outputs[k] = narrowed<Number>(widened(weight[k]) * rounded<Number>(widened(row[k]) * factor));
}

template <typename Number>
void norm(const Number* rows, int64_t num_rows, int64_t width, const Number* weight, double epsilon, Number* outputs,
          int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows * width >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m) norm_row(rows + m * width, width, weight, epsilon, outputs + m * width);
}

template <typename Number>
inline void silu_product_row(const Number* gates_and_ups, int64_t width, Number* outputs) {
    const Number *gates = gates_and_ups, *ups = gates + width;
    for (int64_t k = 0; k < width; ++k) {
        const float gate = widened(gates[k]);
        const float silu = rounded<Number>(gate / (1.0f + exponential(-gate)));
        outputs[k] = narrowed<Number>(silu * widened(ups[k]));
    }
}

template <typename Number>
void silu_product(const Number* gates_and_ups, int64_t num_rows, int64_t width, Number* outputs, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows * width >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m)
        silu_product_row(gates_and_ups + m * 2 * width, width, outputs + m * width);
}

// Heads of one token that lie one after the other; its cosines and sines.
template <typename Number>
inline void rotate_heads(Number* heads, int64_t num_heads, int64_t head_dim, const Number* cos, const Number* sin) {
    const int64_t half = head_dim / 2;
    for (int64_t h = 0; h < num_heads; ++h) {
        Number *low = heads + h * head_dim, *high = low + half;
#pragma omp simd
        for (int64_t k = 0; k < half; ++k) {
            const float a = widened(low[k]), b = widened(high[k]);
            const float turned_low = rounded<Number>(-b * widened(sin[k]));
            const float turned_high = rounded<Number>(a * widened(sin[half + k]));
            low[k] = narrowed<Number>(rounded<Number>(a * widened(cos[k])) + turned_low);
            high[k] = narrowed<Number>(rounded<Number>(b * widened(cos[half + k])) + turned_high);
        }
    }
}

template <typename Number>
void rotate(Number* rows, int64_t num_rows, int64_t row_size, int64_t num_heads, int64_t head_dim, const Number* cos,
            const Number* sin, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows * row_size >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m)
        rotate_heads(rows + m * row_size, num_heads, head_dim, cos + m * head_dim, sin + m * head_dim);
}

// The first place of each row's largest number; `otherwise` where one of them is NaN or the largest is not finite.
template <typename Number>
void place_largest(const Number* rows, int64_t num_rows, int64_t width, int64_t otherwise, int64_t* places,
                   int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows > 1 && num_rows * width >= kManyNumbers)
    for (int64_t m = 0; m < num_rows; ++m) {
        const Number* row = rows + m * width;
        float largest = -INFINITY, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
        for (int64_t k = 0; k < width; ++k) {
            const float number = widened(row[k]);
            largest = number > largest ? number : largest;
            nothing += number != number ? 1.0f : 0.0f;
        }
        int64_t k = 0;
        if (nothing != 0 || std::fabs(largest) == INFINITY) k = otherwise;
        else
            while (k < width && widened(row[k]) != largest) ++k;
        places[m] = k < width ? k : otherwise;
    }
}

}  // namespace
