// The exported functions: which instruction set runs, torch's thread pool, and one entry per kernel.
#include "core.h"
#include "pointwise.h"
#include "scan.h"

#include <stdlib.h>
#include <string.h>

#define VSSM_STRING_(x) #x
#define VSSM_STRING(x) VSSM_STRING_(x)

namespace vssm {
namespace {

const char* const isa_names[] = {
#if defined(VSSM_X86)
    "baseline", "avx2", "avx512"
#else
    VSSM_STRING(VSSM_ISA)
#endif
};
constexpr int isa_count = sizeof(isa_names) / sizeof(isa_names[0]);

int best_isa() {
#if defined(VSSM_X86)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    return avx512 ? 2 : avx2 ? 1 : 0;
#else
    return 0;
#endif
}

int current_isa = best_isa();

// torch_parallel_for of torch/csrc/stable/c/shim.h, part of torch's stable C ABI since 2.10.
using TorchBody = void (*)(int64_t begin, int64_t end, void* context);
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, TorchBody body, void* context);
TorchParallelFor torch_parallel_for = nullptr;

struct Tasks {
    void (*body)(void*, int64_t);
    void* context;
};

void run_range(int64_t begin, int64_t end, void* context) {
    const Tasks* tasks = static_cast<const Tasks*>(context);
    for (int64_t i = begin; i < end; ++i) tasks->body(tasks->context, i);
}

struct Block {
    void* start = nullptr;
    void* aligned = nullptr;
    int64_t bytes = 0;
    ~Block() { free(start); }
};
thread_local Block block;

}  // namespace

void parallel(int64_t tasks, void (*body)(void*, int64_t), void* context) {
    Tasks all{body, context};
    if (tasks <= 1 || torch_parallel_for == nullptr || torch_parallel_for(0, tasks, 1, run_range, &all) != 0)
        run_range(0, tasks, &all);
}

#if defined(VSSM_X86)
const bool rounds_to_bf16 = (__builtin_cpu_init(), __builtin_cpu_supports("avx512bf16"));
#else
const bool rounds_to_bf16 = false;
#endif

void* scratch(int64_t bytes) {
    if (bytes > block.bytes) {
        free(block.start);
        block.start = malloc(static_cast<size_t>(bytes) + 64);
        block.bytes = block.start ? bytes : 0;
        block.aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block.start) + 63) & ~uintptr_t{63});
    }
    return block.bytes ? block.aligned : nullptr;
}

}  // namespace vssm

VSSM_API int32_t vssm_abi() { return VSSM_ABI; }

// Hash of the sources this library was built from.
VSSM_API const char* vssm_build() { return VSSM_STRING(VSSM_BUILD); }

VSSM_API const char* vssm_isa() { return vssm::isa_names[vssm::current_isa]; }

// Take the named instruction set, "" for the best one; -1 when this processor or build does not have it.
VSSM_API int32_t vssm_set_isa(const char* name) {
    const int best = vssm::best_isa();
    for (int i = 0; i <= best && i < vssm::isa_count; ++i) {
        if (strcmp(name, vssm::isa_names[i]) == 0) {
            vssm::current_isa = i;
            return 0;
        }
    }
    if (name[0] != 0) return -1;
    vssm::current_isa = best;
    return 0;
}

VSSM_API void vssm_set_parallel_for(void* function) {
    vssm::torch_parallel_for = reinterpret_cast<vssm::TorchParallelFor>(function);
}

// VSSM_KERNEL(name, Args) exports int32_t vssm_name(const Args*), which calls the variant in use of the function
// `name` that csrc/kernels/*.cpp defines in namespace vssm::VSSM_ISA.
#if defined(VSSM_X86)
#define VSSM_KERNEL(name, Args)                                                  \
    namespace vssm {                                                             \
    namespace baseline { int32_t name(const Args*); }                            \
    namespace avx2 { int32_t name(const Args*); }                                \
    namespace avx512 { int32_t name(const Args*); }                              \
    }                                                                            \
    VSSM_API int32_t vssm_##name(const vssm::Args* args) {                       \
        if (vssm::current_isa == 2) return vssm::avx512::name(args);             \
        return vssm::current_isa == 1 ? vssm::avx2::name(args) : vssm::baseline::name(args); \
    }
#else
#define VSSM_KERNEL(name, Args)                                                  \
    namespace vssm {                                                             \
    namespace VSSM_ISA { int32_t name(const Args*); }                            \
    }                                                                            \
    VSSM_API int32_t vssm_##name(const vssm::Args* args) { return vssm::VSSM_ISA::name(args); }
#endif

// One line per kernel.
VSSM_KERNEL(scan_forward, ScanArgs)
VSSM_KERNEL(scan_backward, ScanArgs)
VSSM_KERNEL(layer_norm_forward, LayerNormArgs)
VSSM_KERNEL(layer_norm_backward, LayerNormArgs)
VSSM_KERNEL(bias_act_forward, BiasActArgs)
VSSM_KERNEL(bias_act_backward, BiasActArgs)
VSSM_KERNEL(depthwise_forward, DepthwiseArgs)
VSSM_KERNEL(depthwise_backward, DepthwiseArgs)
VSSM_KERNEL(causal_conv_forward, CausalConvArgs)
VSSM_KERNEL(causal_conv_backward, CausalConvArgs)
VSSM_KERNEL(batch_norm_statistics, BatchNormArgs)
VSSM_KERNEL(batch_norm_forward, BatchNormArgs)
VSSM_KERNEL(batch_norm_sums, BatchNormArgs)
VSSM_KERNEL(batch_norm_backward, BatchNormArgs)
VSSM_KERNEL(bottleneck_forward, BottleneckArgs)
VSSM_KERNEL(bottleneck_backward, BottleneckArgs)
VSSM_KERNEL(state_fusion_forward, StateFusionArgs)
VSSM_KERNEL(state_fusion_backward, StateFusionArgs)
VSSM_KERNEL(readout_forward, ReadoutArgs)
VSSM_KERNEL(readout_backward, ReadoutArgs)
VSSM_KERNEL(state_gather_forward, StateGatherArgs)
VSSM_KERNEL(state_gather_backward, StateGatherArgs)
VSSM_KERNEL(linear_forward, LinearArgs)
VSSM_KERNEL(linear_pack, LinearArgs)
VSSM_KERNEL(swap_channels, LinearArgs)
