// The block that walks one lane of one rank for one stripe; see player.h.
//
// For each move, the same in all threads of the block:
//   1. Thread 0 waits for the lanes that the move waits for, for its messages and for free slots. Barrier.
//   2. All threads take, combine, store and send their units.
//   3. Barrier. Thread 0 announces what was sent, gives back the slots that were read, and counts the move.
#pragma once

#include "csrc/cuda/player.h"
#include "csrc/cuda/transfer.cuh"

namespace ringred::cuda {

// The ends of the FIFOs to and from one peer. Thread 0 writes the numbers in (1) and (3).
struct Ends {
  Line* mine;
  Line* theirs;
  std::byte* in_slots;
  std::byte* out_slots;
  Word sent, taken;  // messages
  Word head, tail;   // of the line, as last seen
};

// All of it is the same for all threads of the block, so it lies in shared memory, which leaves the registers to the
// data.
template <class T, class Carrier>
class Voice {
 public:
  // For all threads of the block.
  __device__ void play(const Performance& performance, const Seat& seat, int lane, int stripe);

 private:
  __device__ static std::size_t data_bytes(const MailShape& shape) {
    return Carrier::announced ? shape.slot_bytes : shape.packet_slot_bytes;
  }
  __device__ Progress& progress(int lane) const { return seat_->tape.progress[stripe_ * seat_->tape.lanes + lane]; }
  // Moves that a lane of `moves` has ended in this call when it has ended move `number` of a window; and the call.
  __device__ Word count_of(unsigned window, int moves, int number) const {
    return (number_of_call_ << 32) + static_cast<Word>(window) * static_cast<Word>(moves) + static_cast<Word>(number) +
           1;
  }
  __device__ static unsigned chunk_begin(unsigned units, int chunk, int chunks) {
    return units * static_cast<unsigned>(chunk) / static_cast<unsigned>(chunks);
  }

  __device__ void open(const Performance& performance, const Seat& seat, int lane, int stripe);
  __device__ void open_peer(int peer);
  __device__ void close();
  __device__ void enter(unsigned window);
  __device__ bool play(const Move& move, unsigned window);
  __device__ bool await(const Move& move, unsigned window, bool moves_data);
  __device__ void prepare(const Move& move);
  __device__ void release(const Move& move);
  __device__ unsigned units_of(const Move& move) const;
  __device__ bool transfer(const Move& move) const;
  __device__ void sweep(std::size_t units) const;

  // Written by thread 0 when the block begins.
  const Performance* call_;
  const Seat* seat_;
  int stripe_, lane_;
  Carrier carrier_;
  Word number_of_call_;
  std::size_t first_unit_, units_;  // of the stripe
  unsigned windows_;
  Ends ends_[most_ranks];  // by peer; each by a thread
  // Written by thread 0 when a window or move begins: after the last (3), before (1) ends.
  std::size_t window_begin_;  // units of the vector
  unsigned window_units_;
  Waiting waiting_;
  Transfer transfer_;
};

template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::play(const Performance& performance, const Seat& seat, int lane,
                                                        int stripe) {
  open(performance, seat, lane, stripe);
  const DeviceTape& tape = seat.tape;
  const int first = tape.lane_begin[lane], moves = tape.lane_begin[lane + 1] - first;
  for (unsigned window = 0; window < windows_; ++window) {
    enter(window);
    for (int number = 0; number < moves; ++number) {
      const Move& move = tape.moves[first + number];
      if (threadIdx.x == 0) waiting_.move = number;
      if (!play(move, window)) return;
      if (threadIdx.x == 0 && move.awaited) store_release(&progress(lane).ended, count_of(window, moves, number));
    }
  }
  close();
}

template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::open(const Performance& performance, const Seat& seat, int lane,
                                                        int stripe) {
  if (threadIdx.x == 0) {
    call_ = &performance;
    seat_ = &seat;
    stripe_ = stripe;
    lane_ = lane;
    carrier_ = {data_bytes(performance.shape) / unit_bytes};
    const std::size_t total = (performance.count + unit_elements<T> - 1) / unit_elements<T>;
    const auto stripes = static_cast<std::size_t>(performance.stripes), number = static_cast<std::size_t>(stripe);
    first_unit_ = total * number / stripes;
    units_ = total * (number + 1) / stripes - first_unit_;
    const std::size_t chunk_units = carrier_.capacity / static_cast<unsigned>(seat.tape.widest);
    const std::size_t window_units = chunk_units * static_cast<unsigned>(seat.tape.chunks);
    windows_ = static_cast<unsigned>((units_ + window_units - 1) / window_units);
    number_of_call_ = progress(lane).calls + 1;
    waiting_ = {seat.report, performance.patience, seat.rank, lane, stripe, 0};
  }
  __syncthreads();
  if (threadIdx.x < static_cast<unsigned>(performance.shape.size)) open_peer(static_cast<int>(threadIdx.x));
  __syncthreads();
}

template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::open_peer(int peer) {
  const MailShape& shape = call_->shape;
  const Door door = seat_->tape.doors[lane_ * shape.size + peer];
  std::byte* const here = seat_->mail[seat_->rank];
  std::byte* const there = seat_->mail[peer];
  const auto slots_of = [&](std::byte* memory, int inbox) {
    return memory + (Carrier::announced ? shape.slot(inbox, stripe_) : shape.packet_slot(inbox, stripe_));
  };
  Ends& ends = ends_[peer];
  ends.mine = reinterpret_cast<Line*>(here + shape.line(Carrier::line, lane_, stripe_, peer));
  ends.theirs = reinterpret_cast<Line*>(there + shape.line(Carrier::line, lane_, stripe_, seat_->rank));
  ends.in_slots = door.in < 0 ? nullptr : slots_of(here, door.in);
  ends.out_slots = door.out < 0 ? nullptr : slots_of(there, door.out);
  ends.sent = ends.mine->sent;
  ends.taken = ends.tail = ends.mine->taken;
  ends.head = load_acquire(&ends.mine->head);
}

template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::close() {
  const auto size = static_cast<unsigned>(call_->shape.size);
  __syncthreads();
  if (threadIdx.x == 0) progress(lane_).calls = number_of_call_;
  if (threadIdx.x >= size) return;
  const Ends& ends = ends_[threadIdx.x];
  ends.mine->sent = ends.sent;
  ends.mine->taken = ends.taken;
}

// Windows are of equal length, to a unit.
template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::enter(unsigned window) {
  if (threadIdx.x == 0) {
    const std::size_t begin = units_ * window / windows_, end = units_ * (window + 1) / windows_;
    window_begin_ = first_unit_ + begin;
    window_units_ = static_cast<unsigned>(end - begin);
  }
  __syncthreads();
}

template <class T, class Carrier>
__device__ __forceinline__ unsigned Voice<T, Carrier>::units_of(const Move& move) const {
  const DeviceTape& tape = seat_->tape;
  unsigned units = 0;
  for (int run = move.first_run; run < move.end_run; ++run)
    units += chunk_begin(window_units_, tape.runs[run].end, tape.chunks) -
             chunk_begin(window_units_, tape.runs[run].first, tape.chunks);
  return units;
}

// False: a wait has ended without what it was for.
template <class T, class Carrier>
__device__ __forceinline__ bool Voice<T, Carrier>::play(const Move& move, unsigned window) {
  const bool moves_data = units_of(move) > 0;  // an empty message is not sent
  bool good = threadIdx.x != 0 || await(move, window, moves_data);
  if (__syncthreads_or(!good)) return false;
  if (!moves_data) return true;
  good = transfer(move);
  if (__syncthreads_or(!good)) return false;
  if (threadIdx.x == 0) release(move);
  return true;
}

// (1)
template <class T, class Carrier>
__device__ __forceinline__ bool Voice<T, Carrier>::await(const Move& move, unsigned window, bool moves_data) {
  const DeviceTape& tape = seat_->tape;
  for (int wait = move.first_wait; wait < move.end_wait; ++wait) {
    const int lane = tape.waits[wait].lane, moves = tape.lane_begin[lane + 1] - tape.lane_begin[lane];
    Word* const ended = &progress(lane).ended;
    if (!waiting_.number(Awaited::lane, lane, count_of(window, moves, tape.waits[wait].move),
                         [&] { return load_acquire(ended); }))
      return false;
  }
  if (!moves_data) return true;
  for (int peer : move.from) {
    if (peer < 0 || !Carrier::announced) continue;
    Ends& ends = ends_[peer];
    if (ends.tail <= ends.taken && !waiting_.number(Awaited::message, peer, ends.taken + 1,
                                                    [&] { return ends.tail = load_acquire(&ends.mine->tail); }))
      return false;
  }
  const Word slots = static_cast<Word>(call_->shape.slots);
  for (int peer : move.to) {
    if (peer < 0) continue;
    Ends& ends = ends_[peer];
    if (ends.head + slots <= ends.sent && !waiting_.number(Awaited::free_slot, peer, ends.sent - slots + 1,
                                                           [&] { return ends.head = load_acquire(&ends.mine->head); }))
      return false;
  }
  prepare(move);
  return true;
}

template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::prepare(const Move& move) {
  const Word mask = static_cast<Word>(call_->shape.slots) - 1;
  const std::size_t stride = Carrier::slot_bytes(data_bytes(call_->shape));
  for (int i = 0; i < most_peers; ++i) {
    transfer_.from[i] = move.from[i];
    transfer_.in[i] = transfer_.out[i] = nullptr;
    if (move.from[i] >= 0) {
      const Ends& ends = ends_[move.from[i]];
      transfer_.in_number[i] = ends.taken;
      transfer_.in[i] = ends.in_slots + (ends.taken & mask) * stride;
      transfer_.theirs_left[i] = move.from[i] < seat_->rank;
    }
    if (move.to[i] >= 0) {
      const Ends& ends = ends_[move.to[i]];
      transfer_.out_number[i] = ends.sent;
      transfer_.out[i] = ends.out_slots + (ends.sent & mask) * stride;
    }
  }
  transfer_.op = call_->op;
  transfer_.divisor = move.finishes && call_->op == Op::average ? call_->shape.size : 1;
  transfer_.reads_own = move.reads_own;
  transfer_.writes_own = move.writes_own;
}

// (3)
template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::release(const Move& move) {
  for (int peer : move.to) {
    if (peer < 0) continue;
    ++ends_[peer].sent;
    if (Carrier::announced) store_release(&ends_[peer].theirs->tail, ends_[peer].sent);
  }
  for (int peer : move.from)
    if (peer >= 0) store_release(&ends_[peer].theirs->head, ++ends_[peer].taken);
}

// (2)
template <class T, class Carrier>
__device__ __forceinline__ bool Voice<T, Carrier>::transfer(const Move& move) const {
  constexpr unsigned batch = Carrier::batch;
  const DeviceTape& tape = seat_->tape;
  const Units<T> buffer(seat_->data, call_->count);
  const unsigned threads = blockDim.x;
  unsigned place = 0;
  bool good = true;
  for (int run = move.first_run; run < move.end_run; ++run) {
    const unsigned begin = chunk_begin(window_units_, tape.runs[run].first, tape.chunks);
    const unsigned units = chunk_begin(window_units_, tape.runs[run].end, tape.chunks) - begin;
    const std::size_t first = window_begin_ + begin;
    // The last unit of the vector may be a part of one, which goes alone.
    const unsigned whole = first + units > buffer.whole() ? units - 1 : units;
    unsigned i = threadIdx.x;
    if constexpr (batch > 1)
      for (; good && i + (batch - 1) * threads < whole; i += batch * threads)
        good = transfer_units<T, batch>(transfer_, carrier_, waiting_, buffer, first + i, place + i, threads);
    for (; good && i < units; i += threads)
      good = transfer_units<T, 1>(transfer_, carrier_, waiting_, buffer, first + i, place + i, threads);
    place += units;
  }
  if constexpr (!Carrier::announced) sweep(place);
  return good;
}

template <class T, class Carrier>
__device__ __forceinline__ void Voice<T, Carrier>::sweep(std::size_t units) const {
  for (int i = 0; i < most_peers; ++i)
    if (transfer_.out[i] != nullptr && is_sweep(transfer_.out_number[i], call_->shape.slots))
      for (std::size_t place = units + threadIdx.x; place < carrier_.capacity; place += blockDim.x)
        carrier_.store({}, transfer_.out[i], place, transfer_.out_number[i]);
}

}  // namespace ringred::cuda
