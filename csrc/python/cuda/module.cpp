// The table of contents of ringred._cuda, which ringred/cuda.py loads on first use. libcuda is looked up when a
// communicator is made.
#include <pybind11/pybind11.h>

#include "csrc/python/cuda/communicator.h"
#include "csrc/python/errors.h"

namespace {

ringred::cuda::OpenDevice open_device(int ordinal) {
  using namespace ringred::cuda;
  const Gpu gpu = Gpu::open(Driver::load(driver_of_kernels()), ordinal);
  return {gpu, device_kernels(gpu)};
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The part of ringred that works on GPUs. Use the ringred package instead.";
  ringred::bind_errors(module);
  ringred::cuda::bind_communicator(module, open_device);
}
