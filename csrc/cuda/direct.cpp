#include "csrc/cuda/direct.h"

#include <algorithm>

#include "csrc/base/error.h"
#include "csrc/base/round.h"

namespace ringred::cuda {
namespace {

LeafShape leaf_shape(int size, int blocks, const Sizes& sizes) {
  const auto share = [&](std::size_t limit) {
    return round_up(divide_up(limit, static_cast<std::size_t>(blocks)), unit_bytes);
  };
  return {size, blocks, share(sizes.one_shot_limit(size)), share(sizes.packet_limit(size))};
}

// Shares are rounded up: fewer blocks take no more room than all of them.
std::size_t buffer_begin(int size, const Sizes& sizes) {
  return round_up(leaf_shape(size, sizes.blocks, sizes).bytes(), 256);
}

template <class T>
T* pointer(DevicePointer address) {
  return reinterpret_cast<T*>(address);
}

std::size_t size_of(DType dtype) {
  return info(dtype).size;
}

}  // namespace

std::size_t Direct::bytes(int size, const Sizes& sizes) {
  return buffer_begin(size, sizes) + 2 * sizes.piece_bytes;
}

Direct::Direct(Setup setup, const SymmetricMemory& memory)
    : setup_(std::move(setup)),
      shape_(leaf_shape(setup_.size, setup_.blocks, setup_.sizes)),
      memory_(memory),
      events_(setup_.gpu, 6),
      copies_(setup_.gpu) {}

const ReadyAlgorithm* Direct::find(Algorithm algorithm) const {
  const auto found = std::find_if(algorithms_.begin(), algorithms_.end(),
                                  [&](const ReadyAlgorithm& ready) { return ready.algorithm == algorithm; });
  return found == algorithms_.end() ? nullptr : &*found;
}

bool Direct::is_long(const Reduction& reduction) const {
  return !reduction.algorithm && reduction.count * size_of(reduction.dtype) > setup_.sizes.one_shot_limit(setup_.size);
}

DevicePointer Direct::half(int rank, std::size_t piece) const {
  return memory_.address_of(rank) + buffer_begin(setup_.size, setup_.sizes) + piece % 2 * setup_.sizes.piece_bytes;
}

std::size_t Direct::piece_elements(DType dtype) const {
  return setup_.sizes.piece_bytes / size_of(dtype);
}

void Direct::allreduce(Stream stream, DevicePointer input, DevicePointer output, const Reduction& reduction) {
  if (reduction.count == 0) return;
  if (setup_.size > 1 && is_long(reduction)) return in_pieces(stream, input, output, reduction);
  if (setup_.size > 1 && output % unit_bytes != 0) return through_buffer(stream, input, output, reduction);
  setup_.kernels.scale(input, output, reduction.count, reduction.dtype, reduction.prescale, stream);
  in_place(stream, output, reduction.count, reduction);
  setup_.kernels.scale(output, output, reduction.count, reduction.dtype, reduction.postscale, stream);
}

void Direct::allreduce_symmetric(Stream stream, const SymmetricMemory& memory, std::size_t offset,
                                 const Reduction& reduction) {
  const DevicePointer own = memory.address() + offset;
  if (setup_.size == 1 || reduction.count == 0 || !is_long(reduction) || offset % unit_bytes != 0)
    return allreduce(stream, own, own, reduction);
  setup_.kernels.scale(own, own, reduction.count, reduction.dtype, reduction.prescale, stream);
  LeafCall call = leaf_call(reduction.count, reduction);
  for (int rank = 0; rank < setup_.size; ++rank)
    call.seats[0].buffers[rank] = pointer<void>(memory.address_of(rank) + offset);
  leaf(Leaf::two_shot, stream, call);
  setup_.kernels.scale(own, own, reduction.count, reduction.dtype, reduction.postscale, stream);
}

// A vector of a leaf, or any for an algorithm.
void Direct::in_place(Stream stream, DevicePointer data, std::size_t count, const Reduction& reduction) {
  if (setup_.size == 1) return;
  if (reduction.algorithm) return play(*find(*reduction.algorithm), stream, data, count, reduction);
  LeafCall call = leaf_call(count, reduction);
  call.seats[0].buffers[setup_.rank] = pointer<void>(data);
  const bool is_short = count * size_of(reduction.dtype) <= setup_.sizes.packet_limit(setup_.size);
  leaf(is_short ? Leaf::packets : Leaf::one_shot, stream, call);
}

// No more threads than a block has units of 16 bytes.
void Direct::leaf(Leaf leaf, Stream stream, LeafCall& call) {
  const std::size_t most = call.threads;
  const std::size_t share = leaf == Leaf::packets ? shape_.packet_share_bytes : shape_.share_bytes;
  if (leaf != Leaf::two_shot) call.threads = static_cast<unsigned>(std::min(most, round_up(share / unit_bytes, 32)));
  setup_.kernels.allreduce(leaf, call, stream);
}

LeafCall Direct::leaf_call(std::size_t count, const Reduction& reduction) const {
  LeafCall call;
  LeafSeat& seat = call.seats[0];
  seat.rank = setup_.rank;
  seat.report = setup_.report;
  for (int rank = 0; rank < setup_.size; ++rank) seat.memory[rank] = pointer<std::byte>(memory_.address_of(rank));
  call.shape = shape_;
  call.count = count;
  call.dtype = reduction.dtype;
  call.op = reduction.op;
  call.blocks = setup_.blocks;
  call.threads = static_cast<unsigned>(setup_.sizes.threads);
  call.patience = setup_.patience;
  return call;
}

void Direct::two_shot(Stream stream, std::size_t piece, std::size_t count, const Reduction& reduction) {
  LeafCall call = leaf_call(count, reduction);
  for (int rank = 0; rank < setup_.size; ++rank) call.seats[0].buffers[rank] = pointer<void>(half(rank, piece));
  leaf(Leaf::two_shot, stream, call);
}

void Direct::play(const ReadyAlgorithm& ready, Stream stream, DevicePointer data, std::size_t count,
                  const Reduction& reduction) {
  Performance performance;
  Seat& seat = performance.seats[0];
  seat.rank = setup_.rank;
  seat.data = pointer<void>(data);
  seat.report = setup_.report;
  seat.tape = ready.tape->view();
  for (int rank = 0; rank < setup_.size; ++rank) seat.mail[rank] = pointer<std::byte>(ready.mail.address_of(rank));
  performance.shape = ready.shape;
  performance.count = count;
  performance.dtype = reduction.dtype;
  performance.op = reduction.op;
  const bool is_short = count * size_of(reduction.dtype) <= setup_.sizes.packet_limit(setup_.size);
  performance.carrier = is_short ? Carrier::packets : Carrier::vectors;
  performance.stripes = ready.stripes;
  performance.threads = static_cast<unsigned>(setup_.sizes.threads);
  performance.patience = setup_.patience;
  setup_.kernels.play(performance, stream);
}

// What leaves and the player cannot do in an output that is not at a multiple of 16 bytes.
void Direct::through_buffer(Stream stream, DevicePointer input, DevicePointer output, const Reduction& reduction) {
  const std::size_t most = piece_elements(reduction.dtype);
  for (std::size_t begin = 0; begin < reduction.count; begin += most) {
    const std::size_t count = std::min(most, reduction.count - begin), offset = begin * size_of(reduction.dtype);
    const DevicePointer room = half(setup_.rank, 0);
    setup_.kernels.scale(input + offset, room, count, reduction.dtype, reduction.prescale, stream);
    in_place(stream, room, count, reduction);
    setup_.kernels.scale(room, output + offset, count, reduction.dtype, reduction.postscale, stream);
  }
}

// One piece needs no second stream. In a capture, that one is joined again whatever happens (streams.h).
void Direct::in_pieces(Stream stream, DevicePointer input, DevicePointer output, const Reduction& reduction) {
  if (reduction.count <= piece_elements(reduction.dtype)) return play_pieces(stream, stream, input, output, reduction);
  const Driver& driver = *setup_.gpu.driver;
  follow(driver, copies_.get(), events_.record(stream));
  try {
    play_pieces(stream, copies_.get(), input, output, reduction);
  } catch (...) {
    try {
      follow(driver, stream, events_.record(copies_.get()));
    } catch (const Error&) {  // the first error tells more
    }
    throw;
  }
  follow(driver, stream, events_.record(copies_.get()));
}

// The order that direct.h draws.
void Direct::play_pieces(Stream stream, Stream copies, DevicePointer input, DevicePointer output,
                         const Reduction& reduction) {
  const Driver& driver = *setup_.gpu.driver;
  const std::size_t most = piece_elements(reduction.dtype), pieces = divide_up(reduction.count, most);
  const auto count = [&](std::size_t piece) { return std::min(most, reduction.count - piece * most); };
  const auto offset = [&](std::size_t piece) { return piece * most * size_of(reduction.dtype); };
  std::optional<EventPool::Lease> filled[2];
  const auto in = [&](std::size_t piece) {
    setup_.kernels.scale(input + offset(piece), half(setup_.rank, piece), count(piece), reduction.dtype,
                         reduction.prescale, copies);
    filled[piece % 2].reset();
    filled[piece % 2].emplace(events_.record(copies));
  };
  in(0);
  if (pieces > 1) in(1);
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    follow(driver, stream, *filled[piece % 2]);
    two_shot(stream, piece, count(piece), reduction);
    follow(driver, copies, events_.record(stream));
    setup_.kernels.scale(half(setup_.rank, piece), output + offset(piece), count(piece), reduction.dtype,
                         reduction.postscale, copies);
    if (piece + 2 < pieces) in(piece + 2);
  }
}

}  // namespace ringred::cuda
