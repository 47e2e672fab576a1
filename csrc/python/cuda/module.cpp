// The table of contents of ringred._cuda, which ringred/cuda.py loads on first use. libcuda is looked up when a
// communicator is made.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include "csrc/cuda/check.h"
#include "csrc/cuda/device_kernels.h"
#include "csrc/python/cuda/communicator.h"
#include "csrc/python/errors.h"

namespace {

using namespace ringred::cuda;

// Kernels of CUDA 13.1 run on every driver of 13.
int driver_of_kernels() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "tell its version");
  return version / 1000 * 1000;
}

OpenDevice open_device(int ordinal) {
  return {Gpu::open(Driver::load(driver_of_kernels()), ordinal), device_kernels()};
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The part of ringred that works on GPUs. Use the ringred package instead.";
  ringred::bind_errors(module);
  ringred::cuda::bind_communicator(module, open_device);
}
