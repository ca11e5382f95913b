// Layers of a decoder, one after the other, for sequences that decode: what the kernels of single calls compute, to
// the bit, in one parallel region. Threads meet between what one computes and another reads, and nowhere else.
#pragma once

#include <vector>

#include "attention.h"
#include "float_product.h"
#include "int8_product.h"
#include "rows.h"

extern "C" {

struct DecoderProduct {
    const void* layer;  // FloatLayer, whose inputs are whole units, or Int8Layer
    int64_t is_int8;
};

struct DecoderLayer {
    const void *attention_norm, *mlp_norm;  // [D]
    const void *query_norm, *key_norm;      // [Dh] of each head, or null
    double attention_epsilon, mlp_epsilon, query_epsilon, key_epsilon;
    DecoderProduct queries_keys_values;  // [(H + 2 * K) * Dh, D]
    DecoderProduct attended;             // [D, H * Dh]
    DecoderProduct gates_and_ups;        // [2 * I, D]
    DecoderProduct activated;            // [D, I]
    void *keys, *values;                 // [num_slots, K, Dh]
    int64_t window;                      // 0: none
    double scaling;
};

struct DecoderHead {  // of the last stage
    const void* norm;  // [D]
    double epsilon;
    DecoderProduct product;  // [V, D]
};

struct DecoderStep {
    int64_t num_sequences, width, mlp_width, num_heads, num_kv_heads, head_dim, block_size, table_size;
    const int64_t *slots, *lengths, *tables;  // [B], [B], [B, table_size]
    const int64_t* positions;                 // [B], rows of cos and sin
    const void *cos, *sin;                    // [.., Dh]
    void* hidden;                             // [B, D], read and written
    int64_t num_logits;                       // 0: there is no head
    const int64_t* logit_rows;                // [num_logits]
    void* logits;                             // [num_logits, V], written
};

}  // extern "C"

namespace {

template <typename Unit>
class Decoder {
    using Number = typename Unit::Number;

public:
    Decoder(const DecoderStep& step, int num_threads)
        : step_(step),
          num_threads_(num_threads),
          joined_size_((step.num_heads + 2 * step.num_kv_heads) * step.head_dim),
          attended_size_(step.num_heads * step.head_dim),
          hidden_(static_cast<Number*>(step.hidden)),
          normed_(num_rows() * step.width),
          joined_(step.num_sequences * joined_size_),
          attended_(step.num_sequences * attended_size_),
          gates_and_ups_(step.num_sequences * 2 * step.mlp_width),
          activated_(step.num_sequences * step.mlp_width),
          added_(step.num_sequences * step.width),
          row_bytes_(std::max({step.width, attended_size_, step.mlp_width}) + kLanes),
          bytes_(num_rows() * row_bytes_),
          factors_(num_rows()) {}

    void run(const DecoderLayer* layers, int64_t num_layers, const DecoderHead* head) {
#pragma omp parallel num_threads(num_threads_)
        {
            for (int64_t l = 0; l < num_layers; ++l) run_layer(layers[l], l > 0);
#pragma omp for
            for (int64_t m = 0; m < step_.num_sequences; ++m) add_row(m);
            if (step_.num_logits > 0) put_logits(*head);
        }
    }

private:
    int64_t num_rows() const { return std::max(step_.num_sequences, step_.num_logits); }

    // Called by all threads; each loop ends where they meet.
    void run_layer(const DecoderLayer& layer, bool has_added) {
        const int64_t num_rows = step_.num_sequences;
#pragma omp for
        for (int64_t m = 0; m < num_rows; ++m) {
            if (has_added) add_row(m);  // what the layer before has left
            norm_hidden(m, m, layer.attention_norm, layer.attention_epsilon, layer.queries_keys_values);
        }
        multiply(layer.queries_keys_values, normed_.data(), num_rows, joined_.data());
        attend_all(layer);
        multiply(layer.attended, attended_.data(), num_rows, added_.data());
#pragma omp for
        for (int64_t m = 0; m < num_rows; ++m) {
            add_row(m);
            norm_hidden(m, m, layer.mlp_norm, layer.mlp_epsilon, layer.gates_and_ups);
        }
        multiply(layer.gates_and_ups, normed_.data(), num_rows, gates_and_ups_.data());
#pragma omp for
        for (int64_t m = 0; m < num_rows; ++m) {
            Number* row = &activated_[m * step_.mlp_width];
            silu_product_row(&gates_and_ups_[m * 2 * step_.mlp_width], step_.mlp_width, row);
            prepare(layer.activated, m, row, step_.mlp_width);
        }
        multiply(layer.activated, activated_.data(), num_rows, added_.data());
    }

    void put_logits(const DecoderHead& head) {
#pragma omp for
        for (int64_t n = 0; n < step_.num_logits; ++n)
            norm_hidden(step_.logit_rows[n], n, head.norm, head.epsilon, head.product);
        multiply(head.product, normed_.data(), step_.num_logits, static_cast<Number*>(step_.logits));
    }

    void add_row(int64_t m) {
        Number *to = hidden_ + m * step_.width, *from = &added_[m * step_.width];
        for (int64_t k = 0; k < step_.width; ++k) to[k] = narrowed<Number>(widened(from[k]) + widened(to[k]));
    }

    // Row m of the hidden states, as row n of the next product.
    void norm_hidden(int64_t m, int64_t n, const void* weight, double epsilon, const DecoderProduct& next) {
        Number* row = &normed_[n * step_.width];
        norm_row(hidden_ + m * step_.width, step_.width, static_cast<const Number*>(weight), epsilon, row);
        prepare(next, n, row, step_.width);
    }

    // The rows of a product in int8 are bytes.
    void prepare([[maybe_unused]] const DecoderProduct& product, [[maybe_unused]] int64_t m,
                 [[maybe_unused]] const Number* row, [[maybe_unused]] int64_t size) {
#ifdef HAS_INT8
        if (product.is_int8) {
            const int64_t row_size = static_cast<const Int8Layer*>(product.layer)->num_quads * kQuad;
            factors_[m] = rounded_to_bytes(row, size, &bytes_[m * row_size]);
        }
#endif
    }

    void multiply(const DecoderProduct& product, const Number* rows, int64_t num_rows, Number* outputs) {
#ifdef HAS_INT8
        if (product.is_int8) {
            const auto& layer = *static_cast<const Int8Layer*>(product.layer);
            const int64_t num_chunks = num_chunks_of(layer);
#pragma omp for schedule(dynamic)
            for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
                put_chunk(layer, chunk, bytes_.data(), factors_.data(), num_rows, outputs);
            return;
        }
#endif
        const auto& layer = *static_cast<const FloatLayer*>(product.layer);
        const int64_t num_chunks = num_chunks_of(layer);
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
            put_chunk<Unit>(layer, chunk, rows, num_rows, outputs);
    }

    void attend_all(const DecoderLayer& layer) {
        const Attention sizes{step_.num_sequences, step_.num_heads, step_.num_kv_heads, step_.head_dim, step_.head_dim,
                              joined_size_, step_.block_size, step_.table_size, layer.window,
                              static_cast<float>(layer.scaling), 0};
        const int64_t num_parts = num_attention_parts(sizes, num_threads_);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < step_.num_sequences * num_parts; ++task) {
            const int64_t b = task / num_parts, part = task % num_parts;
            place_heads(layer, b, part * step_.num_kv_heads / num_parts, (part + 1) * step_.num_kv_heads / num_parts);
            attend_part(sizes, b, part, num_parts, joined_.data(), static_cast<const Number*>(layer.keys),
                        static_cast<const Number*>(layer.values), step_.tables, step_.lengths,
                        static_cast<const Number*>(nullptr), attended_.data());
        }
        if (!layer.attended.is_int8) return;
#pragma omp for
        for (int64_t m = 0; m < step_.num_sequences; ++m)
            prepare(layer.attended, m, &attended_[m * attended_size_], attended_size_);
    }

    // Of one sequence: norms and rotates the key-value heads [first, end) and their queries, and stores them.
    void place_heads(const DecoderLayer& layer, int64_t b, int64_t first, int64_t end) {
        const int64_t dim = step_.head_dim, group = step_.num_heads / step_.num_kv_heads;
        const Number* cos = static_cast<const Number*>(step_.cos) + step_.positions[b] * dim;
        const Number* sin = static_cast<const Number*>(step_.sin) + step_.positions[b] * dim;
        Number* queries = &joined_[b * joined_size_ + first * group * dim];
        Number* keys = &joined_[b * joined_size_ + (step_.num_heads + first) * dim];
        const Number* values = keys + step_.num_kv_heads * dim;
        norm_heads(queries, (end - first) * group, layer.query_norm, layer.query_epsilon);
        norm_heads(keys, end - first, layer.key_norm, layer.key_epsilon);
        rotate_heads(queries, (end - first) * group, dim, cos, sin);
        rotate_heads(keys, end - first, dim, cos, sin);
        const int64_t place = (step_.slots[b] * step_.num_kv_heads + first) * dim;
        std::copy_n(keys, (end - first) * dim, static_cast<Number*>(layer.keys) + place);
        std::copy_n(values, (end - first) * dim, static_cast<Number*>(layer.values) + place);
    }

    void norm_heads(Number* heads, int64_t num_heads, const void* weight, double epsilon) {
        const int64_t dim = step_.head_dim;
        for (int64_t h = 0; weight && h < num_heads; ++h)
            norm_row(heads + h * dim, dim, static_cast<const Number*>(weight), epsilon, heads + h * dim);
    }

    const DecoderStep& step_;
    const int num_threads_;
    const int64_t joined_size_, attended_size_;
    Number* const hidden_;
    std::vector<Number> normed_, joined_, attended_, gates_and_ups_, activated_, added_;
    const int64_t row_bytes_;
    std::vector<uint8_t> bytes_;
    std::vector<float> factors_;
};

}  // namespace
