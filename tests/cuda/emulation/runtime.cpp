// The runtime API: memory, streams, events, launches.
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

struct CUstream_st {
  unsigned flags;
};
struct CUevent_st {
  std::int64_t recorded;  // 0: never
};

namespace ringred::emulation {
namespace {

// A small device, so that a grid that fills it has few threads. Limits of a block as on compute capability 9.0.
constexpr int multiprocessors = 4, most_threads = 1024, most_resident_threads = 2048, most_resident_blocks = 32;
constexpr std::size_t shared_bytes = 227 << 10, shared_bytes_by_default = 48 << 10;
constexpr std::size_t memory_bytes = std::size_t{1} << 32;  // a larger allocation fails

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

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

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

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, Body body) {
  if (const cudaError_t error = check_config(config, kernel); error != cudaSuccess) return answer(error);
  [[maybe_unused]] static const auto handler = std::signal(SIGILL, explain_trap);
  Launch launch{.config = config, .body = body, .deadline = now() + kernel_limit, .mutex = {}, .failure = {}};
  std::atomic<unsigned> next{0};
  const unsigned blocks = volume(config.gridDim);
  // Blocks of a cooperative launch may wait for one another: each has a thread.
  std::vector<std::thread> threads;
  for (unsigned k = 0; k < (is_cooperative(config) ? blocks : std::min(blocks, workers)); ++k)
    threads.emplace_back([&] { run_blocks(launch, next); });
  for (std::thread& thread : threads) thread.join();
  acquire(&launch);
  last_failure = launch.failure;
  return answer(launch.failed ? cudaErrorLaunchFailure : cudaSuccess);
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
  if (memory == nullptr) return answer(cudaErrorInvalidValue);
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (bytes > memory_bytes) return answer(cudaErrorMemoryAllocation);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return answer(*memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaFree(void* memory) {
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
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  if (bytes > 0 && (to == nullptr || from == nullptr)) return answer(cudaErrorInvalidValue);
  if (bytes > 0) std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  if (bytes > 0 && memory == nullptr) return answer(cudaErrorInvalidValue);
  if (bytes > 0) std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st{flags};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
  return answer(event == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}
cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{0};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (start->recorded == 0 || end->recorded == 0) return answer(cudaErrorInvalidValue);
  *milliseconds = static_cast<float>(static_cast<double>(end->recorded - start->recorded) * 1e-6);
  return cudaSuccess;
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
