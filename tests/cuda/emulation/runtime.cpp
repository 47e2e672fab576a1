// The runtime API: errors, memory, launches, the device. Streams are in streams.cpp.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string_view>
#include <thread>

#include "tests/cuda/emulation/block.h"
#include "tests/cuda/emulation/sanitizers.h"
#include "tests/cuda/emulation/streams.h"

namespace ringred::emulation {
namespace {

// A small device, so that a grid that fills it has few threads. Limits of a block as on compute capability 9.0.
constexpr int multiprocessors = 4, most_threads = 1024, most_resident_threads = 2048, most_resident_blocks = 32;
constexpr std::size_t shared_bytes = 227 << 10, shared_bytes_by_default = 48 << 10;
constexpr std::size_t memory_bytes = std::size_t{1} << 32;  // a larger allocation fails
constexpr int l2_bytes = 1 << 20, cuda_version = 13000;

constexpr unsigned workers = 4;  // threads for the blocks of a launch that is not cooperative
constexpr std::int64_t kernel_limit = 60'000'000'000;

struct State {
  std::mutex mutex;
  std::map<const void*, std::size_t> dynamic_limits;
};
State& state() {
  static State state;
  return state;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_failure;

std::size_t dynamic_limit(const void* kernel) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().dynamic_limits.find(kernel);
  return found == state().dynamic_limits.end() ? shared_bytes_by_default : found->second;
}

unsigned volume(dim3 size) {
  return size.x * size.y * size.z;
}

bool is_cooperative(const cudaLaunchConfig_t& config) {
  return std::any_of(config.attrs, config.attrs + config.numAttrs, [](const cudaLaunchAttribute& attribute) {
    return attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative != 0;
  });
}

cudaError_t check_config(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (volume(grid) == 0 || grid.y > 65535 || grid.z > 65535 || volume(block) == 0 || volume(block) > most_threads)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > dynamic_limit(kernel)) return cudaErrorInvalidValue;
  int resident = 0;
  occupancy(&resident, static_cast<int>(volume(block)), config.dynamicSmemBytes);
  const bool fits = volume(grid) <= static_cast<unsigned>(resident) * multiprocessors;
  return is_cooperative(config) && !fits ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
}

// Emulated code is compiled to trap on misaligned accesses, where no sanitizer reports them.
void explain_trap(int) {
  constexpr std::string_view text = "A kernel's access must be at a multiple of its size: one was not.\n";
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) _exit(3);
  _exit(2);
}

void run_blocks(Launch& launch, std::atomic<unsigned>& next) {
  Block block(launch);
  const dim3 grid = launch.config.gridDim;
  for (unsigned k = next++; k < volume(grid); k = next++)
    if (!block.run({k % grid.x, k / grid.x % grid.y, k / grid.x / grid.y})) return;
}

}  // namespace

namespace {

cudaError_t run(const cudaLaunchConfig_t& config, bool cooperative, const Body& body) {
  [[maybe_unused]] static const auto handler = std::signal(SIGILL, explain_trap);
  Launch launch{.config = config, .body = body, .deadline = now() + kernel_limit, .mutex = {}, .failure = {}};
  std::atomic<unsigned> next{0};
  const unsigned blocks = volume(config.gridDim);
  // Blocks of a cooperative launch may wait for one another: each has a thread.
  std::vector<std::thread> threads;
  for (unsigned k = 0; k < (cooperative ? blocks : std::min(blocks, workers)); ++k)
    threads.emplace_back([&] { run_blocks(launch, next); });
  for (std::thread& thread : threads) thread.join();
  acquire(&launch);
  last_failure = launch.failure;
  return launch.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, Body body) {
  if (const cudaError_t error = check_config(config, kernel); error != cudaSuccess) return answer(error);
  const bool cooperative = is_cooperative(config);
  cudaLaunchConfig_t kept = config;  // its attributes belong to the caller
  kept.attrs = nullptr;
  kept.numAttrs = 0;
  return enqueue(config.stream, [kept, cooperative, body = std::move(body)] { return run(kept, cooperative, body); });
}

cudaError_t occupancy(int* blocks, int threads, std::size_t dynamic_bytes) {
  if (blocks == nullptr || threads < 1 || threads > most_threads) return answer(cudaErrorInvalidValue);
  const int by_shared = dynamic_bytes == 0 ? most_resident_blocks : static_cast<int>(shared_bytes / dynamic_bytes);
  *blocks = std::min({most_resident_threads / threads, most_resident_blocks, by_shared});
  return cudaSuccess;
}

cudaError_t set_dynamic_limit(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > shared_bytes) return answer(cudaErrorInvalidValue);
  const std::lock_guard lock(state().mutex);
  state().dynamic_limits[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

}  // namespace ringred::emulation

using namespace ringred::emulation;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return last_failure.empty() ? "unspecified launch failure" : last_failure.c_str();
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
    default:
      return "an error that the emulation does not make";
  }
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}
cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}

// 256 bytes, as cudaMalloc promises.
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (const cudaError_t error = outside_of_captures(); error != cudaSuccess) return error;
  if (memory == nullptr) return answer(cudaErrorInvalidValue);
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (bytes > memory_bytes) return answer(cudaErrorMemoryAllocation);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return answer(*memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaFree(void* memory) {
  if (const cudaError_t error = outside_of_captures(); error != cudaSuccess) return error;
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
cudaError_t cudaFreeHost(void* memory) {
  return cudaFree(memory);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  if (device == nullptr || host == nullptr || flags != 0) return answer(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t error = outside_of_captures();
  return error != cudaSuccess ? error : cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes > 0 && (to == nullptr || from == nullptr)) return answer(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  const cudaError_t error = outside_of_captures();
  return error != cudaSuccess ? error : cudaMemsetAsync(memory, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes > 0 && memory == nullptr) return answer(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    if (bytes > 0) std::memset(memory, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return answer(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  *properties = {"Emulation", memory_bytes, l2_bytes, multiprocessors, 9, 0};
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = cuda_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = cuda_version;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = most_threads;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = shared_bytes_by_default;
      break;
    case cudaDevAttrClockRate:
      *value = 1'000'000;  // clock64 counts nanoseconds
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = most_resident_threads;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shared_bytes;
      break;
    default:
      return answer(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
