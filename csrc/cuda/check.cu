#include <cstdint>
#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/check.h"

namespace ringred::cuda {
namespace {

std::string_view remedy(cudaError_t answer) {
  switch (answer) {
    case cudaErrorMemoryAllocation:
      return " Free memory of the device, or give the job less: smaller buckets, fewer ranks for each device.";
    case cudaErrorInsufficientDriver:
      return " Install a driver for the CUDA version that ringred was built with, or run on CPU tensors.";
    case cudaErrorNoDevice:
      return " Check nvidia-smi and CUDA_VISIBLE_DEVICES; a container needs its runtime's option for GPUs.";
    case cudaErrorInvalidDevice:
      return " Use a device that CUDA_VISIBLE_DEVICES leaves visible.";
    case cudaErrorNoKernelImageForDevice:
      return " Rebuild ringred with CMAKE_CUDA_ARCHITECTURES set to this device's compute capability.";
    case cudaErrorCooperativeLaunchTooLarge:
      return " Launch fewer blocks, or end other programs on the device.";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
      return " This process can no longer use its device: restart the job; compute-sanitizer finds the access.";
    default:
      return "";
  }
}

}  // namespace

void check(cudaError_t answer, std::string_view action) {
  if (answer == cudaSuccess) return;
  // Clears what is remembered of this error, so that the next call does not report it again.
  static_cast<void>(cudaGetLastError());
  fail_system("CUDA could not " + std::string(action) + ": " + cudaGetErrorString(answer) + " (error " +
              std::to_string(static_cast<int>(answer)) + ")." + std::string(remedy(answer)));
}

void check_array(const void* array, DType dtype, std::string_view name, int number) {
  const auto address = reinterpret_cast<std::uintptr_t>(array);
  const std::size_t unit = info(dtype).size < 8 ? info(dtype).size : 8;
  if (address != 0 && address % unit == 0) return;
  fail_usage("An array must lie in device memory at a multiple of its element's size: " + std::string(name) + " " +
             std::to_string(number) + " (" + std::string(info(dtype).name) + ") is at " + std::to_string(address) +
             ". Make the tensor contiguous, or copy it first.");
}

}  // namespace ringred::cuda
