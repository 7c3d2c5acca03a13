// Arguments of the scan kernels. Mirrored by vssm/ops/selective_scan/core.py; raise VSSM_ABI with every change.
//
// Sizes: B batch, K routes, C channels, L length, R rank of the dt projection, N states. All tensors are contiguous
// and of one type, float or double, except `order`. Lanes run over channels, so channels are the last dimension.
#pragma once

#include <stdint.h>

namespace vssm {

struct ScanArgs {
    int64_t is_double, batch, routes, channels, length, rank, state;
    int64_t softplus;   // dt is passed through softplus
    int64_t separate;   // 1: every route has its own u and y (B, K, L, C); 0: all share u and add to y (B, L, C)
    int64_t chunk;      // backward: steps between stored states; 0 lets the kernel choose

    const void* u;
    const void* dt;         // (B, K, L, C), or null: dt = proj's first R columns times dt_weight
    const void* proj;       // (B, L, K, R + 2N), columns [low-rank dt | B | C]
    const void* dt_weight;  // (K, C, R) or null
    const void* dt_bias;    // (K, C) or null
    const void* A;          // (K, C, N)
    const void* D;          // (K, C) or null
    const void* initial;    // (B, K, C, N) or null
    const int32_t* order;   // (K, L): route k is at position order[k][t] at time t; null: at t

    void* y;       // like u; null: no readout
    void* last;    // (B, K, C, N) or null
    void* states;  // (B, K, N, L, C) or null, indexed by position

    // Backward only: gradients that come in (null: none) and go out (null: not wanted).
    const void* gy;
    const void* glast;
    const void* gstates;
    void* du;
    void* ddt;
    void* dproj;
    void* ddt_weight;
    void* ddt_bias;
    void* dA;
    void* dD;
    void* dinitial;
};

}  // namespace vssm
