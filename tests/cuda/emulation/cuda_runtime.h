// CUDA on the CPU: what ringred's kernels use of cuda_runtime.h, so that the same sources compile with a C++ compiler
// and their logic is tested where there is no GPU. Found before the toolkit's header by emulated targets.
//
// Invariant: what compiles and runs here also compiles with nvcc; names that ringred does not use are absent.
#pragma once

#include "tests/cuda/emulation/language.h"
#include "tests/cuda/emulation/runtime_api.h"
