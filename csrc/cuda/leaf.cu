#include <algorithm>
#include <string>

#include "csrc/base/error.h"
#include "csrc/base/round.h"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/leaf.cuh"

namespace ringred::cuda {
namespace {

// Calls whole(i) for `batch` units at a time, a stride apart, and single(i) for what is left; `good` ends both.
template <class Whole, class Single>
__device__ __forceinline__ void for_units(std::size_t begin, std::size_t whole_end, std::size_t end, std::size_t stride,
                                          const Whole& whole, const Single& single) {
  std::size_t i = begin;
  for (; i + (leaf_batch - 1) * stride < whole_end; i += leaf_batch * stride) whole(i);
  for (; i < end; i += stride) single(i);
}

template <class T>
__global__ void __launch_bounds__(most_leaf_threads, 1)
    two_shot_kernel(const __grid_constant__ LeafCall call, unsigned blocks) {
  const LeafBlock block = LeafBlock::here(call, blocks);
  const Word met = block.calls(Leaf::two_shot) * 2;
  if (!block.meet(&LeafLine::meeting, Awaited::start, met + 1)) return;  // 1
  const auto ranks = static_cast<std::size_t>(call.shape.size), rank = static_cast<std::size_t>(block.seat.rank);
  const std::size_t total = (call.count + unit_elements<T> - 1) / unit_elements<T>;
  const std::size_t begin = total * rank / ranks, end = total * (rank + 1) / ranks;
  const std::size_t stride = static_cast<std::size_t>(blocks) * blockDim.x;
  const auto buffer = [&](int peer) { return Units<T>(block.seat.buffers[peer], call.count); };
  const std::size_t whole = buffer(0).whole();
  for_units(
      begin + static_cast<std::size_t>(block.number) * blockDim.x + threadIdx.x, whole < end ? whole : end, end, stride,
      [&](std::size_t unit) {  // 2
        uint4 result[leaf_batch];
        sum_over_ranks<T, leaf_batch>(call, result, [&](int peer, uint4(&units)[leaf_batch]) {
#pragma unroll
          for (unsigned i = 0; i < leaf_batch; ++i) units[i] = buffer(peer).load_whole(unit + i * stride);
        });
        for (int peer = 0; peer < call.shape.size; ++peer)
#pragma unroll
          for (unsigned i = 0; i < leaf_batch; ++i) buffer(peer).store_whole(unit + i * stride, result[i]);
      },
      [&](std::size_t unit) {
        uint4 result[1];
        sum_over_ranks<T, 1>(call, result, [&](int peer, uint4(&units)[1]) { units[0] = buffer(peer).load(unit); });
        for (int peer = 0; peer < call.shape.size; ++peer) buffer(peer).store(unit, result[0]);
      });
  if (!block.meet(&LeafLine::meeting, Awaited::end, met + 2)) return;  // 3
  if (threadIdx.x == 0) ++block.calls(Leaf::two_shot);
}

// The units of a block of one_shot or packets.
struct Share {
  std::size_t first, units;
};

template <class T>
__device__ Share share_of(const LeafBlock& block, std::size_t share_units) {
  const std::size_t total = (block.call.count + unit_elements<T> - 1) / unit_elements<T>;
  const std::size_t first = static_cast<std::size_t>(block.number) * share_units;
  return {first, first + share_units < total ? share_units : total - first};
}

template <class T>
__global__ void __launch_bounds__(most_leaf_threads, 1)
    one_shot_kernel(const __grid_constant__ LeafCall call, unsigned blocks) {
  const LeafBlock block = LeafBlock::here(call, blocks);
  const Word number = block.calls(Leaf::one_shot) + 1;
  const Share share = share_of<T>(block, call.shape.share_bytes / unit_bytes);
  const Units<T> buffer(block.seat.buffers[block.seat.rank], call.count);
  const std::size_t place = call.shape.bank(block.number, static_cast<int>(number % 2));
  const auto bank = [&](int peer) { return reinterpret_cast<uint4*>(block.seat.memory[peer] + place); };
  for (std::size_t i = threadIdx.x; i < share.units; i += blockDim.x)
    bank(block.seat.rank)[i] = buffer.load(share.first + i);
  if (!block.meet(&LeafLine::ready, Awaited::start, number)) return;
  const std::size_t whole = buffer.whole() > share.first ? buffer.whole() - share.first : 0, stride = blockDim.x;
  for_units(
      threadIdx.x, whole < share.units ? whole : share.units, share.units, stride,
      [&](std::size_t unit) {
        uint4 result[leaf_batch];
        sum_over_ranks<T, leaf_batch>(call, result, [&](int peer, uint4(&units)[leaf_batch]) {
#pragma unroll
          for (unsigned i = 0; i < leaf_batch; ++i) units[i] = bank(peer)[unit + i * stride];
        });
#pragma unroll
        for (unsigned i = 0; i < leaf_batch; ++i) buffer.store_whole(share.first + unit + i * stride, result[i]);
      },
      [&](std::size_t unit) {
        uint4 result[1];
        sum_over_ranks<T, 1>(call, result, [&](int peer, uint4(&units)[1]) { units[0] = bank(peer)[unit]; });
        buffer.store(share.first + unit, result[0]);
      });
  if (threadIdx.x == 0) block.calls(Leaf::one_shot) = number;
}

template <class T>
__global__ void __launch_bounds__(most_leaf_threads, 1)
    packets_kernel(const __grid_constant__ LeafCall call, unsigned blocks) {
  const LeafBlock block = LeafBlock::here(call, blocks);
  const int self = block.seat.rank;
  const Word number = block.calls(Leaf::packets) + 1;
  const std::size_t capacity = call.shape.packet_share_bytes / unit_bytes;
  const Share share = share_of<T>(block, capacity);
  const Units<T> buffer(block.seat.buffers[self], call.count);
  const auto packets = [&](int at, int from) {
    const std::size_t place = call.shape.packets(block.number, static_cast<int>(number % 2), from);
    return reinterpret_cast<Word*>(block.seat.memory[at] + place);
  };
  const std::size_t written = is_sweep(number, 2) ? capacity : share.units;  // 3
  for (std::size_t i = threadIdx.x; i < written; i += blockDim.x) {          // 1
    const uint4 unit = i < share.units ? buffer.load(share.first + i) : uint4{};
    for (int peer = 0; peer < call.shape.size; ++peer)
      if (peer != self) store_packets(packets(peer, self) + i, capacity, unit, static_cast<std::uint32_t>(number));
  }
  bool good = true;
  const Waiting waiting = block.waiting();
  for (std::size_t i = threadIdx.x; good && i < share.units; i += blockDim.x) {
    uint4 result[1];
    sum_over_ranks<T, 1>(call, result, [&](int peer, uint4(&units)[1]) {
      if (peer == self)
        units[0] = buffer.load(share.first + i);
      else if (good)
        good = load_packets(units[0], packets(self, peer) + i, capacity, number, peer, waiting);
    });
    if (good) buffer.store(share.first + i, result[0]);
  }
  if (__syncthreads_or(!good)) return;
  if (threadIdx.x == 0) block.calls(Leaf::packets) = number;
}

using Kernel = void (*)(LeafCall, unsigned);

template <class T>
Kernel kernel_of(Leaf leaf) {
  return leaf == Leaf::two_shot ? two_shot_kernel<T> : leaf == Leaf::one_shot ? one_shot_kernel<T> : packets_kernel<T>;
}

Kernel kernel_for(Leaf leaf, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return kernel_of<float>(leaf);
    case DType::f16:
      return kernel_of<__half>(leaf);
    case DType::bf16:
      return kernel_of<__nv_bfloat16>(leaf);
    case DType::f64:
      return kernel_of<double>(leaf);
    case DType::i32:
      return kernel_of<std::int32_t>(leaf);
    case DType::i64:
      return kernel_of<std::int64_t>(leaf);
    default:
      fail_usage("the device reduces float16, bfloat16, float32, float64, int32 and int64: got " +
                 std::string(info(dtype).name));
  }
}

std::size_t blocks_of(Leaf leaf, const LeafCall& call) {
  if (leaf == Leaf::two_shot) return static_cast<std::size_t>(call.blocks);
  const std::size_t share = leaf == Leaf::packets ? call.shape.packet_share_bytes : call.shape.share_bytes;
  if (share == 0 || share % unit_bytes != 0)
    fail_usage("a block's share must be a whole number of 16 bytes: got " + std::to_string(share));
  return divide_up(call.count * info(call.dtype).size, share);
}

void check_call(Leaf leaf, const LeafCall& call, std::size_t blocks) {
  const int size = call.shape.size;
  if (size < 1 || size > most_ranks || call.seat_count < 1 || call.seat_count > size)
    fail_usage("a leaf is for 1 to " + std::to_string(most_ranks) + " ranks, of which a launch has 1 or more: got " +
               std::to_string(size) + " and " + std::to_string(call.seat_count));
  if (blocks < 1 || blocks > static_cast<std::size_t>(call.shape.blocks))
    fail_usage("a rank has 1 to " + std::to_string(call.shape.blocks) + " blocks for a leaf: this call takes " +
               std::to_string(blocks) + ". Take two_shot for long vectors.");
  if (call.threads < 32 || call.threads > most_leaf_threads || call.threads % 32 != 0)
    fail_usage("a block has 32, 64, ... " + std::to_string(most_leaf_threads) + " threads: got " +
               std::to_string(call.threads));
  for (int seat = 0; seat < call.seat_count; ++seat)
    for (int peer = 0; peer < size; ++peer)
      if ((leaf == Leaf::two_shot || peer == call.seats[seat].rank) &&
          reinterpret_cast<std::uintptr_t>(call.seats[seat].buffers[peer]) % unit_bytes != 0)
        fail_usage("a buffer must be aligned to 16 bytes: rank " + std::to_string(peer) +
                   "'s is not. Copy it into an aligned one.");
}

}  // namespace

void allreduce(Leaf leaf, const LeafCall& call, cudaStream_t stream) {
  const Kernel kernel = kernel_for(leaf, call.dtype);
  if (call.shape.size == 1 || call.count == 0) return;
  const std::size_t blocks = blocks_of(leaf, call);
  check_call(leaf, call, blocks);
  const auto each = static_cast<unsigned>(blocks);
  launch_cooperative("leaf", kernel, {static_cast<unsigned>(call.seat_count) * each, call.threads}, stream, call, each);
}

int most_blocks(Leaf leaf, DType dtype, int seats, unsigned threads) {
  return static_cast<int>(resident_blocks(kernel_for(leaf, dtype), threads)) / seats;
}

}  // namespace ringred::cuda
