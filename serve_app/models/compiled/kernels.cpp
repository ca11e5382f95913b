// What a step of decoding on CPU does between its products, and the products of weights in int8.
//
// Plain loops, which the compiler turns into the vector instructions of the CPU it runs on. No row's numbers depend on
// how many rows there are, nor on how many threads. Products are contracted with sums where it is written only
// (-ffp-contract=off), so what torch rounds twice is rounded twice here.

#include "attention.h"
#include "decoder.h"
#include "float_product.h"
#include "int8_product.h"
#include "rows.h"

extern "C" {

#ifdef HAS_INT8
void multiply_int8(const Int8Layer* layer, const float* rows, int64_t m, int64_t num_inputs, float* outputs, int t) {
    multiply_bytes(*layer, rows, m, num_inputs, outputs, t);
}
#endif

void multiply_float32(const FloatLayer* layer, const float* rows, int64_t m, int64_t num_inputs, float* outputs, int t) {
    multiply_floats<FloatUnit>(*layer, rows, m, num_inputs, outputs, t);
}

void multiply_bfloat16(const FloatLayer* layer, const Bfloat16* rows, int64_t m, int64_t num_inputs, Bfloat16* outputs,
                       int t) {
    multiply_floats<BfloatUnit>(*layer, rows, m, num_inputs, outputs, t);
}

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

void place_largest_float32(const float* rows, int64_t m, int64_t width, int64_t otherwise, int64_t* places, int t) {
    place_largest(rows, m, width, otherwise, places, t);
}

void place_largest_bfloat16(const Bfloat16* rows, int64_t m, int64_t width, int64_t otherwise, int64_t* places, int t) {
    place_largest(rows, m, width, otherwise, places, t);
}

void decode_float32(const DecoderStep* step, const DecoderLayer* layers, int64_t num_layers,
                    const DecoderHead* head, int t) {
    Decoder<FloatUnit>(*step, layers, num_layers, head, t).run();
}

void decode_bfloat16(const DecoderStep* step, const DecoderLayer* layers, int64_t num_layers,
                    const DecoderHead* head, int t) {
    Decoder<BfloatUnit>(*step, layers, num_layers, head, t).run();
}

}  // extern "C"