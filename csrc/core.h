// What the kernels and the exported functions share. No C++ type crosses the library's boundary: every exported
// kernel takes one pointer to a plain struct and returns 0, or an error code below.
#pragma once

#include <stdint.h>

// Raised with every change of an exported function or struct; vssm/ops/native.py refuses another number.
#define VSSM_ABI 6

#if defined(_WIN32)
#define VSSM_API extern "C" __declspec(dllexport)
#else
#define VSSM_API extern "C" __attribute__((visibility("default")))
#endif

namespace vssm {

enum Status { ok = 0, out_of_memory = 1, bad_argument = 2 };

// Runs body(context, task) for every task in [0, tasks) on torch's threads, or one after another when torch's pool
// is not known. Tasks must not depend on each other: which thread runs which task is not defined.
void parallel(int64_t tasks, void (*body)(void* context, int64_t task), void* context);

// Whether the processor has an instruction that rounds to bfloat16, vcvtneps2bf16.
extern const bool rounds_to_bf16;

// A 64-byte aligned block of at least `bytes` owned by the calling thread and reused from call to call; its content
// is undefined. nullptr when memory is short. One block per thread: a task asks once.
void* scratch(int64_t bytes);

// The same for callables: parallel(n, [&](int64_t task) { ... }).
template <class Body>
inline void parallel(int64_t tasks, const Body& body) {
    parallel(
        tasks, [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace vssm
