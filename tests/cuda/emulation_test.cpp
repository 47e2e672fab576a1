// The emulation: barriers and warp functions do what CUDA's do, blocks run at the same time, and what would hang or be
// undefined on a device is reported.
#include <cuda/atomic>
#include <numeric>

#include "csrc/cuda/launch.h"
#include "csrc/cuda/shared_memory.cuh"
#include "tests/cuda/device.h"

namespace ringred::cuda {
namespace {

constexpr unsigned everyone = 0xffffffffu;

TEST("a block sums through static shared memory, each block its own") {
  const auto kernel = [](int* sums) {
    __shared__ int values[256];
    values[threadIdx.x] = static_cast<int>(threadIdx.x * (blockIdx.x + 1));
    __syncthreads();
    for (unsigned half = 128; half > 0; half /= 2) {
      if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = values[0];
  };
  DeviceArray<int> sums(20);
  launch("sums", +kernel, {.blocks = 20, .threads = 256}, nullptr, sums.data());
  const std::vector<int> read = sums.read();
  for (int block = 0; block < 20; ++block) CHECK_EQ(read[static_cast<std::size_t>(block)], 255 * 128 * (block + 1));
}

TEST("shuffles, ballots and predicates") {
  const auto kernel = [](int* out) {
    const int lane = static_cast<int>(threadIdx.x);
    int* mine = out + 10 * lane;
    mine[0] = __shfl_sync(everyone, lane * 3, 5);
    mine[1] = __shfl_sync(everyone, lane, lane + 1, 8);
    mine[2] = __shfl_xor_sync(everyone, lane, 16);
    mine[3] = __shfl_up_sync(everyone, lane, 2);
    mine[4] = __shfl_down_sync(everyone, lane, 3, 16);
    mine[5] = static_cast<int>(__ballot_sync(everyone, lane % 3 == 0));
    // Two halves of a warp, each on its own.
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    mine[6] = lane < 16 ? __shfl_sync(half, lane, 3) : __shfl_sync(half, lane, 30);
    mine[7] = __all_sync(half, lane < 16);
    mine[8] = __any_sync(everyone, lane == 31);
    mine[9] = __syncthreads_count(lane < 7);
  };
  DeviceArray<int> out(320);
  launch("warp", +kernel, {.blocks = 1, .threads = 32}, nullptr, out.data());
  const std::vector<int> read = out.read();
  for (int lane = 0; lane < 32; ++lane) {
    const int* mine = &read[static_cast<std::size_t>(10 * lane)];
    const int want[] = {15,
                        lane / 8 * 8 + (lane + 1) % 8,
                        lane ^ 16,
                        lane < 2 ? lane : lane - 2,
                        lane % 16 + 3 < 16 ? lane + 3 : lane,
                        0x49249249,
                        lane < 16 ? 3 : 30,
                        lane < 16,
                        1,
                        7};
    for (int k = 0; k < 10; ++k) CHECK_EQ(mine[k], want[k]);
  }
}

TEST("two blocks hand data over through a flag") {
  const auto kernel = [](int* data, unsigned* flags) {
    for (unsigned round = 1; round <= 100; ++round) {
      const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_system> mine(flags[blockIdx.x]);
      const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_system> other(flags[1 - blockIdx.x]);
      data[blockIdx.x * 64 + threadIdx.x] = static_cast<int>(round * 1000 + threadIdx.x);
      __syncthreads();
      if (threadIdx.x == 0) {
        mine.store(2 * round - 1, ::cuda::memory_order_release);
        while (other.load(::cuda::memory_order_acquire) < 2 * round - 1) __nanosleep(20);
      }
      __syncthreads();
      const bool right = data[(1 - blockIdx.x) * 64 + threadIdx.x] == static_cast<int>(round * 1000 + threadIdx.x);
      if (__syncthreads_and(right) == 0) return;
      if (threadIdx.x == 0) {
        mine.store(2 * round, ::cuda::memory_order_release);
        while (other.load(::cuda::memory_order_acquire) < 2 * round) __nanosleep(20);
      }
      __syncthreads();
    }
  };
  DeviceArray<int> data(std::vector<int>(128));
  DeviceArray<unsigned> flags(std::vector<unsigned>(2));
  launch_cooperative("exchange", +kernel, {.blocks = 2, .threads = 64}, nullptr, data.data(), flags.data());
  for (const unsigned flag : flags.read()) CHECK_EQ(flag, 200u);
}

TEST("threads that spin on loads alone let the others of their block run") {
  const auto kernel = [](unsigned* flag) {
    const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_block> shared(*flag);
    if (threadIdx.x + 1 == blockDim.x) shared.store(1, ::cuda::memory_order_release);
    while (shared.load(::cuda::memory_order_acquire) == 0) continue;
  };
  DeviceArray<unsigned> flag(std::vector<unsigned>(1));
  launch("spin", +kernel, {.blocks = 1, .threads = 96}, nullptr, flag.data());
  CHECK_EQ(flag.read()[0], 1u);
}

TEST("a barrier that not every thread reaches is reported") {
  const auto ends = [] {
    if (threadIdx.x != 3) __syncthreads();
  };
  CHECK_THROWS(launch("ends", +ends, {.blocks = 1, .threads = 64}, nullptr),
               "thread (3, 0, 0) of block (0, 0, 0) has ended");
  const auto elsewhere = [] {
    if (threadIdx.x == 3)
      __syncthreads();
    else
      __syncthreads();
  };
  CHECK_THROWS(launch("elsewhere", +elsewhere, {.blocks = 1, .threads = 64}, nullptr), "must come to the same barrier");
  const auto mixed = [] {
    if (threadIdx.x < 32) __syncthreads();
    __syncwarp();
  };
  CHECK_THROWS(launch("mixed", +mixed, {.blocks = 1, .threads = 64}, nullptr), "has ended");
}

TEST("a warp function whose mask and lanes differ is reported") {
  const auto absent = [] {
    if (threadIdx.x < 20) __shfl_sync(everyone, 1, 0);
  };
  CHECK_THROWS(launch("absent", +absent, {.blocks = 1, .threads = 32}, nullptr),
               "waits at __shfl_sync with mask 0xffffffff");
  const auto outside = [] { __syncwarp(0xfffffffe); };
  CHECK_THROWS(launch("outside", +outside, {.blocks = 1, .threads = 32}, nullptr),
               "A mask must contain the lane itself: thread (0, 0, 0)");
  const auto different = [] { __syncwarp(threadIdx.x < 16 ? everyone : 0xffff0000u); };
  CHECK_THROWS(launch("different", +different, {.blocks = 1, .threads = 32}, nullptr),
               "waits at __syncwarp with mask 0xffffffff");
}

TEST("what one block does wrong ends a launch whose other blocks wait for it") {
  const auto kernel = [](unsigned* flag) {
    const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device> shared(*flag);
    if (blockIdx.x == 1) {
      if (threadIdx.x == 0) __syncthreads();
      return;
    }
    while (shared.load(::cuda::memory_order_acquire) == 0) __nanosleep(20);
  };
  DeviceArray<unsigned> flag(std::vector<unsigned>(1));
  CHECK_THROWS(launch_cooperative("waits", +kernel, {.blocks = 3, .threads = 32}, nullptr, flag.data()),
               "thread (0, 0, 0) of block (1, 0, 0) waits at __syncthreads");
}

TEST("writing beyond dynamic shared memory is reported") {
  const auto kernel = [](int count) {
    for (int i = 0; i < count; ++i) dynamic_shared<int>()[i] = i;
  };
  launch("within", +kernel, {.blocks = 1, .threads = 1, .shared_bytes = 40}, nullptr, 10);
  CHECK_THROWS(launch("beyond", +kernel, {.blocks = 1, .threads = 1, .shared_bytes = 40}, nullptr, 11),
               "wrote beyond 40 bytes");
  CHECK_THROWS(launch("too much", +kernel, {.blocks = 1, .threads = 1, .shared_bytes = 100 << 10}, nullptr, 1),
               "invalid argument");
}

struct Stream {
  cudaStream_t handle = nullptr;
  Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "create a stream"); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(handle)); }
};

TEST("a graph keeps what its stream was asked for, with the arguments of then, and does it whenever it is launched") {
  const auto add = [](int* sum, int value) {
    if (threadIdx.x == 0) *sum += value;
  };
  DeviceArray<int> sum(std::vector<int>(1)), copy(std::vector<int>(1));
  const Stream stream;
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal), "begin a capture");
  for (int value = 1; value <= 3; ++value)
    launch_cooperative("add", +add, {.blocks = 1, .threads = 32}, stream.handle, sum.data(), value);
  check(cudaMemcpyAsync(copy.data(), sum.data(), sizeof(int), cudaMemcpyDeviceToDevice, stream.handle), "copy");
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream.handle, &graph), "end a capture");
  CHECK_EQ(sum.read()[0], 0);
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph), "instantiate a graph");
  check(cudaGraphDestroy(graph), "destroy a graph");
  for (int times = 1; times <= 4; ++times) {
    check(cudaGraphLaunch(executable, stream.handle), "launch a graph");
    CHECK_EQ(copy.read()[0], 6 * times);
  }
  check(cudaGraphExecDestroy(executable), "destroy a graph's executable");
}

TEST("what a capture does not allow ends it with an error") {
  const Stream stream;
  cudaGraph_t graph = nullptr;
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "create an event");
  const auto broken_by = [&](auto&& call) {
    check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal), "begin a capture");
    CHECK(call() == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(stream.handle, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
  };
  void* memory = nullptr;
  int value = 0;
  broken_by([&] { return cudaMalloc(&memory, 16); });
  broken_by([&] { return cudaMemcpy(&value, &value, sizeof value, cudaMemcpyDefault); });
  broken_by([&] { return cudaStreamSynchronize(stream.handle); });
  broken_by([&] { return cudaDeviceSynchronize(); });
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(stream.handle, &graph) == cudaErrorInvalidValue);
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeRelaxed), "begin a relaxed capture");
  check(cudaMalloc(&memory, 16), "allocate within a relaxed capture");
  check(cudaFree(memory), "free within a relaxed capture");
  check(cudaEventRecord(event, stream.handle), "record an event");
  CHECK(cudaEventQuery(event) == cudaErrorCapturedEvent);
  check(cudaStreamEndCapture(stream.handle, &graph), "end a capture");
  check(cudaGraphDestroy(graph), "destroy a graph");
  check(cudaEventDestroy(event), "destroy an event");
  static_cast<void>(cudaGetLastError());
}

TEST("indices in all dimensions") {
  const auto kernel = [](int* seen) {
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    seen[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
  };
  DeviceArray<int> seen(std::vector<int>(24 * 30));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2, 3, 4);
  config.blockDim = dim3(5, 3, 2);
  check(cudaLaunchKernelEx(&config, +kernel, seen.data()), "launch");
  const std::vector<int> read = seen.read();
  CHECK_EQ(std::accumulate(read.begin(), read.end(), 0), 24 * 30);
  CHECK(std::all_of(read.begin(), read.end(), [](int times) { return times == 1; }));
}

}  // namespace
}  // namespace ringred::cuda
