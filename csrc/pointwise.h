// Arguments of the kernels around the scan. Mirrored by vssm/ops/*/core.py; raise VSSM_ABI with every change.
//
// Maps and rows may be of any of four types; weights (where they are no Tensor), all gradients of weights and everything
// computed have the compute type, float, or double if any tensor is double. Channels are the last dimension, and everything is contiguous.
#pragma once

#include <stdint.h>

#include "scan.h"

namespace vssm {

enum Type : int64_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// A tensor of any type; data is null when it is absent.
struct Tensor {
    void* data;
    int64_t type;
};

struct LayerNormArgs {
    int64_t is_double, rows, channels;
    int64_t centred;     // subtract the mean; else the root mean square alone is divided out
    double eps;
    Tensor weight;  // (channels,) or absent, of any type; bias likewise
    Tensor bias;
    Tensor x;
    Tensor gate;    // the result is multiplied by silu(gate)
    Tensor y;       // forward: the result; backward: its gradient
    // Backward only.
    Tensor dx;
    Tensor dgate;
    void* dweight;  // (channels,) or null; dbias likewise
    void* dbias;
};

struct BiasActArgs {
    int64_t is_double, rows, channels;
    int64_t act;       // 0 gelu, 1 silu, 2 relu, 3 none
    const void* bias;  // (channels,) or null
    Tensor x;
    Tensor y;     // forward: the result; backward: its gradient
    Tensor dx;    // backward only
    void* dbias;  // backward only; (channels,) or null
};

struct DepthwiseArgs {
    int64_t is_double, batch, height, width, channels;
    int64_t act;         // 1 silu, 3 none
    int64_t residual;    // x is added to the result
    Tensor weight;       // (channels, 9), of any type, as is bias
    Tensor bias;         // (channels,) or absent
    Tensor x;
    Tensor y;       // forward: the result; backward: its gradient
    Tensor dx;      // backward only
    void* dweight;  // backward only; (9, channels)
    void* dbias;    // backward only; (channels,) or null
};

// The causal convolution of sequences (batch, length, channels): tap `width` - 1 meets the step itself.
struct CausalConvArgs {
    int64_t is_double, batch, length, channels, width;
    int64_t act;         // 1 silu, 3 none
    int64_t reverse;     // walk from the end
    const void* weight;  // (width, channels)
    const void* bias;    // (channels,) or null
    Tensor x;
    Tensor y;       // forward: the result; backward: its gradient
    Tensor dx;      // backward only
    void* dweight;  // backward only; (width, channels)
    void* dbias;    // backward only; (channels,) or null
};

// Batch normalisation of rows. Everything has the compute type.
struct BatchNormArgs {
    int64_t is_double, rows, channels;
    int64_t act;           // 2 relu, 3 none
    const void* x;
    void* mean;            // (channels,), as are all below that are not rows; written by batch_norm_statistics
    void* var;             // likewise; the sums take 1 / sqrt(var + eps) here
    const void* scale;     // act(x * scale + shift) + residual
    const void* shift;
    const void* residual;  // rows, or null
    void* y;               // rows; backward: the gradient of x, may be g
    // Backward only.
    const void* g;         // rows, the gradient of the result
    void* dscale;          // sums of it, before the activation, times the normalised x; added to, as is dshift
    void* dshift;
    const void* slope;     // the gradient of x is that before the activation * scale + x * slope + offset
    const void* offset;
};

// The middle of a bottleneck: y = relu(bias + weight * h), depthwise 3x3 with stride 2 and zero padding 1, on a strip of
// consecutive rows of every sample. Everything has the compute type.
struct BottleneckArgs {
    int64_t is_double, samples, height, width, channels;  // of h
    int64_t out_height, out_width;
    int64_t above;       // h begins with the row above the first centre, else at the map's top edge
    const void* weight;  // (9, channels)
    const void* bias;    // (channels,)
    void* h;             // after its ReLU; backward: replaced by its gradient before that ReLU, the last row only if `last`
    void* y;             // backward: its value, from the forward
    // Backward only.
    int64_t last;        // the strip ends at the map's bottom edge
    void* g;             // the gradient of y; replaced by that before the ReLU
    const void* g_above; // (out_width, channels), the last row of what was g in the strip above; null at the top
    void* dweight;       // (9, channels); added to, as are dbias and the sum of what replaces h
    void* dbias;
    void* dh_sum;
};

// State fusion. The structure is followed in memory by the dilations, `count` int64.
struct StateFusionArgs {
    int64_t is_double, batch, height, width, channels, count;
    const void* kernels;  // (count, channels, 9)
    const void* alphas;   // (count,)
    Tensor h;
    Tensor y;        // forward: the result; backward: its gradient
    Tensor dh;       // backward only, as are dkernels and dalphas
    void* dkernels;
    void* dalphas;
    // With a readout the result is C * fused + D * u; C null: without.
    const void* C;  // (batch, height, width)
    const void* D;  // (channels,) or null
    Tensor u;       // like h; needed with D
    void* dC;
    void* dD;
    Tensor du;
};

// Blending of states at learned places. Everything has the compute type; h, y, dh are (maps, states, height, width,
// channels), weights (maps, count, height, width), offsets (maps, count, 2, height, width) in rows and columns.
struct StateGatherArgs {
    int64_t is_double, maps, states, height, width, channels, count;
    const void* h;
    const void* offsets;
    const void* weights;
    void* y;  // forward: the result; backward: its gradient
    // Backward only.
    void* dh;
    void* doffsets;
    void* dweights;
};

// The readout of states, y = sum_m C_m h_m + skip x. Everything has the compute type; h and dh are (batch, terms, pixels,
// channels), C and dC (batch, terms, pixels), x and y (batch, pixels, channels).
struct ReadoutArgs {
    int64_t is_double, batch, terms, pixels, channels;
    const void* h;
    const void* C;
    const void* x;     // or null, as is skip (channels,)
    const void* skip;
    void* y;           // forward: the result; backward: its gradient
    // Backward only.
    void* dh;
    void* dC;
};

// y = act(x W' + bias) + residual, all float.
struct LinearArgs {
    int64_t rows, in, out;
    int64_t act;
    int64_t x_stride;       // from one row of x to the next; negative: x is transposed, (in, rows), this is its stride
    const float* x;         // (rows, in)
    const float* weight;    // (out, in)
    const float* packed;    // the weight's panels as linear_pack wrote them, or null
    const float* bias;      // (out,) or null
    const float* residual;  // (rows, out) or null; may be y itself
    float* y;               // (rows, out)
    int64_t y_columns;      // 0, or with few rows: y is transposed, (out, rows), this is its stride; then no residual
};

}  // namespace vssm
