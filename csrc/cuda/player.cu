#include <algorithm>
#include <string>

#include "csrc/base/error.h"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/player.cuh"

namespace ringred::cuda {
namespace {

constexpr unsigned most_threads = 512;

// Block (seat, stripe, lane), lanes next to each other.
template <class T, class Carrier>
__global__ void __launch_bounds__(most_threads, 1) play_kernel(const __grid_constant__ Performance performance) {
  __shared__ Voice<T, Carrier> voice;
  const int lanes = performance.seats[0].tape.lanes;
  const int block = static_cast<int>(blockIdx.x), lane = block % lanes;
  const int stripe = block / lanes % performance.stripes, seat = block / lanes / performance.stripes;
  voice.play(performance, performance.seats[seat], lane, stripe);
}

using Kernel = void (*)(Performance);

template <class T>
Kernel kernel_of(Carrier carrier) {
  return carrier == Carrier::vectors ? play_kernel<T, Vectors> : play_kernel<T, Packets>;
}

Kernel kernel_for(DType dtype, Carrier carrier) {
  switch (dtype) {
    case DType::f32:
      return kernel_of<float>(carrier);
    case DType::f16:
      return kernel_of<__half>(carrier);
    case DType::bf16:
      return kernel_of<__nv_bfloat16>(carrier);
    case DType::f64:
      return kernel_of<double>(carrier);
    case DType::i32:
      return kernel_of<std::int32_t>(carrier);
    case DType::i64:
      return kernel_of<std::int64_t>(carrier);
    default:
      fail_usage("the device reduces float16, bfloat16, float32, float64, int32 and int64: got " +
                 std::string(info(dtype).name));
  }
}

void check_performance(const Performance& call) {
  check_shape(call.shape);
  const DeviceTape& tape = call.seats[0].tape;
  if (call.seat_count < 1 || call.seat_count > call.shape.size || call.stripes < 1 || call.stripes > call.shape.stripes)
    fail_usage("a launch plays 1 to " + std::to_string(call.shape.size) + " ranks and 1 to " +
               std::to_string(call.shape.stripes) + " stripes: got " + std::to_string(call.seat_count) + " and " +
               std::to_string(call.stripes));
  if (call.threads < 32 || call.threads > most_threads || call.threads % 32 != 0)
    fail_usage("a block has 32, 64, ... " + std::to_string(most_threads) + " threads: got " +
               std::to_string(call.threads));
  const std::size_t bytes = call.carrier == Carrier::vectors ? call.shape.slot_bytes : call.shape.packet_slot_bytes;
  const std::size_t chunk_units = bytes / unit_bytes / static_cast<std::size_t>(tape.widest);
  const auto chunks = static_cast<std::size_t>(tape.chunks);
  if (chunk_units == 0 || chunk_units * chunks * chunks >> 32 != 0)
    fail_usage(
        "a slot must hold 16 bytes of each chunk of a message, and a window less than 2^32 chunks of chunks: got " +
        std::to_string(bytes) + " bytes for " + std::to_string(tape.widest) + " of " + std::to_string(chunks) +
        " chunks");
  if (call.dtype == DType::i32 && call.op == Op::average)
    fail_usage("partial sums of int32 travel in 32 bits, so a schedule has no average of it: take int64, or a leaf");
  for (int seat = 0; seat < call.seat_count; ++seat)
    if (reinterpret_cast<std::uintptr_t>(call.seats[seat].data) % unit_bytes != 0)
      fail_usage("a buffer must be aligned to 16 bytes: rank " + std::to_string(call.seats[seat].rank) +
                 "'s is not. Copy it into an aligned one.");
}

}  // namespace

void play(const Performance& performance, cudaStream_t stream) {
  const Kernel kernel = kernel_for(performance.dtype, performance.carrier);
  if (performance.shape.size == 1 || performance.count == 0) return;
  check_performance(performance);
  const int blocks = performance.seat_count * performance.stripes * performance.seats[0].tape.lanes;
  launch_cooperative("play", kernel, {static_cast<unsigned>(blocks), performance.threads}, stream, performance);
}

int most_stripes(DType dtype, int seats, int lanes, unsigned threads) {
  unsigned blocks = resident_blocks(kernel_for(dtype, Carrier::vectors), threads);
  blocks = std::min(blocks, resident_blocks(kernel_for(dtype, Carrier::packets), threads));
  return static_cast<int>(blocks) / (seats * lanes);
}

}  // namespace ringred::cuda
