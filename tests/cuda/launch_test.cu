// Launching kernels: every thread runs once, blocks of a cooperative launch wait for one another, errors have remedies.
#include <cuda/atomic>

#include "csrc/cuda/launch.h"
#include "csrc/cuda/shared_memory.cuh"
#include "tests/cuda/device.h"

namespace ringred::cuda {
namespace {

__global__ void count_up(int* values, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) values[i] += i + 1;
}

// The sum of the numbers of the threads, through shared memory and one warp.
__global__ void sum_of_threads(int* sums) {
  int* values = dynamic_shared<int>();
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  int sum = 0;
  for (unsigned i = threadIdx.x; i < blockDim.x; i += 32) sum += values[i];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Every block adds its number to what the block before it hands over. Ends without a result after a second.
__global__ void relay(int* total, unsigned* turn, long long limit) {
  if (threadIdx.x != 0) return;
  const ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device> flag(*turn);
  const long long start = clock64();
  while (flag.load(::cuda::memory_order_acquire) != blockIdx.x) {
    if (clock64() - start > limit) return;
    __nanosleep(100);
  }
  *total += static_cast<int>(blockIdx.x);
  flag.store(blockIdx.x + 1, ::cuda::memory_order_release);
}

TEST("a kernel runs once on each of its threads") {
  DeviceArray<int> values(std::vector<int>(1000, 7));
  launch("count_up", count_up, {.blocks = 8, .threads = 128}, nullptr, values.data(), 1000);
  finish();
  const std::vector<int> read = values.read();
  for (int i = 0; i < 1000; ++i) CHECK_EQ(read[static_cast<std::size_t>(i)], 8 + i);
}

TEST("threads of a block meet in shared memory, lanes of a warp in shuffles") {
  DeviceArray<int> sums(5);
  launch("sum_of_threads", sum_of_threads, {.blocks = 5, .threads = 160, .shared_bytes = 160 * sizeof(int)}, nullptr,
         sums.data());
  finish();
  for (const int sum : sums.read()) CHECK_EQ(sum, 160 * 159 / 2);
}

TEST("blocks of a cooperative launch wait for one another") {
  DeviceArray<int> total(std::vector<int>{0});
  DeviceArray<unsigned> turn(std::vector<unsigned>{0});
  launch_cooperative("relay", relay, {.blocks = 8, .threads = 64}, nullptr, total.data(), turn.data(), clock_ticks(1));
  finish();
  CHECK_EQ(total.read()[0], 28);
  CHECK_EQ(turn.read()[0], 8u);
}

TEST("a launch that CUDA refuses says which and what helps") {
  CHECK_THROWS(launch("count_up", count_up, {.blocks = 1, .threads = 2048}, nullptr, nullptr, 0),
               "CUDA could not launch the kernel count_up: invalid");
  const unsigned most = resident_blocks(relay, 64);
  CHECK(most >= 8);
  CHECK_THROWS(launch_cooperative("relay", relay, {.blocks = most + 1, .threads = 64}, nullptr, nullptr, nullptr, 0LL),
               "(error 720). Launch fewer blocks");
  CHECK(cudaGetLastError() == cudaSuccess);
  void* memory = nullptr;
  CHECK_THROWS(check(cudaMalloc(&memory, std::size_t{1} << 50), "allocate 1 PiB"),
               "CUDA could not allocate 1 PiB: out of memory (error 2). Free memory of the device");
  CHECK(cudaGetLastError() == cudaSuccess);
}

}  // namespace
}  // namespace ringred::cuda
