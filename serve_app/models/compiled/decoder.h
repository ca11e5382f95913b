// Layers of a decoder, one after the other, for sequences that decode: what the kernels of single calls compute, to
// the bit, in one parallel region.
#pragma once

#include <memory>
#include <vector>

#include "attention.h"
#include "float_product.h"
#include "int8_product.h"
#include "rows.h"
#include "shared_work.h"

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
    const void* hidden;                       // [B, D]
    int64_t num_logits;                       // 0: hidden states are wanted
    const int64_t* logit_rows;                // [num_logits]
    void* outputs;                            // [num_logits, V], or [B, D]
};

}  // extern "C"

namespace {

// The rows of a product, of M sequences: as numbers, and where its weight is in int8 as bytes.
template <typename Number>
struct Rows {
    std::unique_ptr<Number[]> numbers;
    std::unique_ptr<uint8_t[]> bytes;
    std::unique_ptr<float[]> factors;
    int64_t size = 0;

    Rows(int64_t num_rows, int64_t row_size)
        : numbers(new Number[num_rows * row_size]),
          bytes(new uint8_t[num_rows * (row_size + kLanes)]),
          factors(new float[num_rows]),
          size(row_size) {}

    Number* at(int64_t m) { return numbers.get() + m * size; }

    // Once the numbers of row m are there.
    void prepare([[maybe_unused]] const DecoderProduct& product, [[maybe_unused]] int64_t m) {
#ifdef HAS_INT8
        if (!product.is_int8) return;
        const int64_t bytes_size = static_cast<const Int8Layer*>(product.layer)->num_quads * kQuad;
        factors[m] = rounded_to_bytes(at(m), size, bytes.get() + m * bytes_size);
#endif
    }
};

// All that one layer writes.
template <typename Number>
struct LayerRows {
    Rows<Number> hidden, attention_inputs, joined, attended, attention_outputs;
    Rows<Number> middle, mlp_inputs, gates_and_ups, activated, mlp_outputs;

    LayerRows(const DecoderStep& step, int64_t m)
        : hidden(m, step.width),
          attention_inputs(m, step.width),
          joined(m, (step.num_heads + 2 * step.num_kv_heads) * step.head_dim),
          attended(m, step.num_heads * step.head_dim),
          attention_outputs(m, step.width),
          middle(m, step.width),
          mlp_inputs(m, step.width),
          gates_and_ups(m, 2 * step.mlp_width),
          activated(m, step.mlp_width),
          mlp_outputs(m, step.width) {}
};

inline int64_t num_chunks_of(const DecoderProduct& product) {
#ifdef HAS_INT8
    if (product.is_int8) return num_chunks_of(*static_cast<const Int8Layer*>(product.layer));
#endif
    return num_chunks_of(*static_cast<const FloatLayer*>(product.layer));
}

template <typename Unit>
class Decoder {
    using Number = typename Unit::Number;
    static constexpr int64_t kLayerPhases = 9;
    static constexpr int64_t kFewRows = 8;

public:
    Decoder(const DecoderStep& step, const DecoderLayer* layers, int64_t num_layers, const DecoderHead* head,
            int num_threads)
        : step_(step),
          layers_(layers),
          num_layers_(num_layers),
          head_(head),
          num_threads_(num_threads),
          work_(phase_sizes(), kLayerPhases, num_threads),
          last_inputs_(std::max<int64_t>(step.num_logits, 1), step.width) {
        const int64_t count = step.num_sequences <= kFewRows ? 4 : 3;  // of few rows, another one costs no memory
        for (int64_t i = 0; i < count; ++i) rows_.emplace_back(step, step.num_sequences);
    }

    void run() {
#pragma omp parallel num_threads(num_threads_)
        {
            const int thread = work_.enter();
            for (int64_t l = 0; l < num_layers_; ++l) {
                work_.arrive(thread, l);
                // What is written now, layer l + 1 - size has read last.
                work_.wait_for_all(l + 2 - static_cast<int64_t>(rows_.size()));
                run_layer(l);
            }
            put_last();
            work_.arrive(thread, num_layers_);
        }
    }

private:
    LayerRows<Number>& rows_of(int64_t l) { return rows_[l % rows_.size()]; }

    // Chunks of all phases, in their order.
    std::vector<int64_t> phase_sizes() const {
        const int64_t m = step_.num_sequences;
        std::vector<int64_t> sizes;
        for (int64_t l = 0; l < num_layers_; ++l) {
            const DecoderLayer& one = layers_[l];
            const int64_t rounded = one.attended.is_int8 ? m : 0;
            sizes.insert(sizes.end(), {m, num_chunks_of(one.queries_keys_values), m * num_parts(), rounded,
                                       num_chunks_of(one.attended), m, num_chunks_of(one.gates_and_ups), m,
                                       num_chunks_of(one.activated)});
        }
        if (step_.num_logits == 0) sizes.push_back(m);
        else sizes.insert(sizes.end(), {step_.num_logits, num_chunks_of(head_->product)});
        return sizes;
    }

    int64_t num_parts() const { return num_attention_parts(attention_sizes(), num_threads_); }

    Attention attention_sizes() const {
        return {step_.num_sequences, step_.num_heads,  step_.num_kv_heads, step_.head_dim, step_.head_dim, 0,
                step_.block_size,    step_.table_size, 0,                  0,              0};
    }

    void run_layer(int64_t l) {
        const DecoderLayer& layer = layers_[l];
        LayerRows<Number>& rows = rows_of(l);
        const int64_t phase = l * kLayerPhases, num_rows = step_.num_sequences;
        work_.share(phase, [&](int64_t m) {
            put_hidden(l, m, rows.hidden.at(m));
            norm_into(rows.attention_inputs, m, rows.hidden.at(m), layer.attention_norm, layer.attention_epsilon,
                      layer.queries_keys_values);
        });
        multiply(phase + 1, layer.queries_keys_values, rows.attention_inputs, num_rows, rows.joined.at(0));
        attend_all(phase + 2, layer, rows);
        work_.share(phase + 3, [&](int64_t m) { rows.attended.prepare(layer.attended, m); });
        multiply(phase + 4, layer.attended, rows.attended, num_rows, rows.attention_outputs.at(0));
        work_.share(phase + 5, [&](int64_t m) {
            add(rows.attention_outputs.at(m), rows.hidden.at(m), rows.middle.at(m));
            norm_into(rows.mlp_inputs, m, rows.middle.at(m), layer.mlp_norm, layer.mlp_epsilon, layer.gates_and_ups);
        });
        multiply(phase + 6, layer.gates_and_ups, rows.mlp_inputs, num_rows, rows.gates_and_ups.at(0));
        work_.share(phase + 7, [&](int64_t m) {
            silu_product_row(rows.gates_and_ups.at(m), step_.mlp_width, rows.activated.at(m));
            rows.activated.prepare(layer.activated, m);
        });
        multiply(phase + 8, layer.activated, rows.activated, num_rows, rows.mlp_outputs.at(0));
    }

    // Behind the layers: hidden states, or logits of some of them.
    void put_last() {
        const int64_t phase = num_layers_ * kLayerPhases;
        if (step_.num_logits == 0) {
            auto* outputs = static_cast<Number*>(step_.outputs);
            work_.share(phase, [&](int64_t m) { put_hidden(num_layers_, m, outputs + m * step_.width); });
            return;
        }
        work_.share(phase, [&](int64_t n) {
            std::vector<Number> hidden(step_.width);
            put_hidden(num_layers_, step_.logit_rows[n], hidden.data());
            norm_into(last_inputs_, n, hidden.data(), head_->norm, head_->epsilon, head_->product);
        });
        multiply(phase + 1, head_->product, last_inputs_, step_.num_logits, static_cast<Number*>(step_.outputs));
    }

    // Row m of what layer l reads: the step's, or what the layer before has left.
    void put_hidden(int64_t l, int64_t m, Number* to) {
        if (l == 0) {
            std::copy_n(static_cast<const Number*>(step_.hidden) + m * step_.width, step_.width, to);
            return;
        }
        LayerRows<Number>& before = rows_of(l - 1);
        add(before.mlp_outputs.at(m), before.middle.at(m), to);
    }

    void add(const Number* one, const Number* other, Number* to) {
        for (int64_t k = 0; k < step_.width; ++k) to[k] = narrowed<Number>(widened(one[k]) + widened(other[k]));
    }

    void norm_into(Rows<Number>& rows, int64_t m, const Number* hidden, const void* weight, double epsilon,
                   const DecoderProduct& product) {
        norm_row(hidden, step_.width, static_cast<const Number*>(weight), epsilon, rows.at(m));
        rows.prepare(product, m);
    }

    void multiply(int64_t phase, const DecoderProduct& product, Rows<Number>& rows, int64_t num_rows, Number* outputs) {
#ifdef HAS_INT8
        if (product.is_int8) {
            const auto& layer = *static_cast<const Int8Layer*>(product.layer);
            work_.share(phase, [&](int64_t chunk) {
                put_chunk(layer, chunk, rows.bytes.get(), rows.factors.get(), num_rows, outputs);
            });
            return;
        }
#endif
        const auto& layer = *static_cast<const FloatLayer*>(product.layer);
        work_.share(phase, [&](int64_t chunk) { put_chunk<Unit>(layer, chunk, rows.at(0), num_rows, outputs); });
    }

    void attend_all(int64_t phase, const DecoderLayer& layer, LayerRows<Number>& rows) {
        Attention sizes = attention_sizes();
        sizes.window = layer.window, sizes.scaling = static_cast<float>(layer.scaling);
        const int64_t num_parts = this->num_parts();
        const auto attend = [&](int64_t task) {
            const int64_t b = task / num_parts, part = task % num_parts;
            const int64_t first = part * step_.num_kv_heads / num_parts;
            const int64_t end = (part + 1) * step_.num_kv_heads / num_parts;
            std::vector<Number> queries(rows.attended.size);  // of all heads, where attention finds its own
            place_heads(layer, b, first, end, rows.joined.at(b), queries.data());
            attend_part(sizes, b, part, num_parts, queries.data(),
                        static_cast<const Number*>(layer.keys), static_cast<const Number*>(layer.values), step_.tables,
                        step_.lengths, static_cast<const Number*>(nullptr), rows.attended.at(0));
        };
        const auto [shortest, longest] = std::minmax_element(step_.lengths, step_.lengths + step_.num_sequences);
        work_.share(phase, attend, *longest / *shortest + 1);
    }

    // Of one sequence: norms and rotates the key-value heads [first, end), which it stores, and their queries.
    void place_heads(const DecoderLayer& layer, int64_t b, int64_t first, int64_t end, const Number* joined,
                     Number* queries) {
        const int64_t dim = step_.head_dim, group = step_.num_heads / step_.num_kv_heads, size = (end - first) * dim;
        const int64_t place = (step_.slots[b] * step_.num_kv_heads + first) * dim;
        Number *to_keys = static_cast<Number*>(layer.keys) + place, *own = queries + first * group * dim;
        std::vector<Number> keys(joined + (step_.num_heads + first) * dim, joined + (step_.num_heads + end) * dim);
        std::copy_n(joined + first * group * dim, size * group, own);
        turn(own, (end - first) * group, b, layer.query_norm, layer.query_epsilon);
        turn(keys.data(), end - first, b, layer.key_norm, layer.key_epsilon);
        std::copy_n(keys.data(), size, to_keys);
        std::copy_n(joined + (step_.num_heads + step_.num_kv_heads + first) * dim, size,
                    static_cast<Number*>(layer.values) + place);
    }

    void turn(Number* heads, int64_t num_heads, int64_t b, const void* weight, double epsilon) {
        const int64_t dim = step_.head_dim;
        for (int64_t h = 0; weight && h < num_heads; ++h)
            norm_row(heads + h * dim, dim, static_cast<const Number*>(weight), epsilon, heads + h * dim);
        rotate_heads(heads, num_heads, dim, static_cast<const Number*>(step_.cos) + step_.positions[b] * dim,
                     static_cast<const Number*>(step_.sin) + step_.positions[b] * dim);
    }

    const DecoderStep& step_;
    const DecoderLayer* const layers_;
    const int64_t num_layers_;
    const DecoderHead* const head_;
    const int num_threads_;
    SharedWork work_;
    std::vector<LayerRows<Number>> rows_;  // in turn
    Rows<Number> last_inputs_;
};

}  // namespace
