// The ranks of one communicator as one of them sees them: everybody's control block, and the two ways to meet: lines
// that open a call, and phases inside it. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "csrc/base/function_ref.h"
#include "csrc/base/wait.h"
#include "csrc/leaf/control.h"

namespace ringred {

class Team {
 public:
  Team(int rank, std::vector<std::byte*> bases, Layout layout, Waiter waiter)
      : rank_(rank), bases_(std::move(bases)), layout_(layout), waiter_(std::move(waiter)) {
    for (std::byte* base : bases_) blocks_.push_back(reinterpret_cast<ControlBlock*>(base));
    inputs.resize(bases_.size());
    outputs.resize(bases_.size());
  }

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(bases_.size()); }
  const Layout& layout() const { return layout_; }
  Waiter& waiter() { return waiter_; }

  std::byte* base(int peer) const { return bases_[static_cast<std::size_t>(peer)]; }
  ControlBlock& block(int peer) const { return *blocks_[static_cast<std::size_t>(peer)]; }
  std::byte* one_shot_slot(int peer) const { return base(peer) + layout_.one_shot_slot(number_); }
  std::byte* staging_slot(int peer, std::uint64_t turn) const { return base(peer) + layout_.staging_slot(turn); }

  // The line of the call that is being opened, for its payload; then the announcement itself.
  Line& my_line() { return block(rank_).lines[number_ & 1]; }
  const Line& line(int peer) const { return block(peer).lines[number_ & 1]; }
  std::uint64_t number() const { return number_; }
  void begin_call() { ++number_; }
  void announce(std::uint64_t fingerprint, std::uint64_t location) {
    Line& mine = my_line();
    mine.fingerprint = fingerprint;
    mine.location = location;
    mine.number.store(number_, std::memory_order_seq_cst);
    waiter_.wake_sleepers();
  }

  template <class Sentence>
  void await_lines(Sentence&& sentence) {
    for (int peer = 0; peer < size(); ++peer) {
      const std::atomic<std::uint64_t>& number = line(peer).number;
      waiter_.until(peer, [&] { return number.load(std::memory_order_seq_cst) == number_; }, sentence);
    }
  }

  bool all_fingerprints_equal() const {
    for (int peer = 0; peer < size(); ++peer)
      if (line(peer).fingerprint != line(rank_).fingerprint) return false;
    return true;
  }

  // Phases: post() says that this rank has completed its next one; await_phase waits until all, or one, have come to
  // `phase`. `phase()` is this rank's own count.
  std::uint64_t phase() const { return phase_; }
  void post() {
    block(rank_).phase.store(++phase_, std::memory_order_seq_cst);
    waiter_.wake_sleepers();
  }
  template <class Sentence>
  void await_phase(int peer, std::uint64_t phase, Sentence&& sentence) {
    const std::atomic<std::uint64_t>& word = block(peer).phase;
    waiter_.until(peer, [&] { return word.load(std::memory_order_seq_cst) >= phase; }, sentence);
  }
  template <class Sentence>
  void await_phase_of_all(std::uint64_t phase, Sentence&& sentence) {
    for (int peer = 0; peer < size(); ++peer)
      if (peer != rank_) await_phase(peer, phase, sentence);
  }

  // The staging slots are used in turn, across calls; every rank counts the same turns.
  std::uint64_t turn() const { return turn_; }
  void use_turns(std::uint64_t turns) { turn_ += turns; }

  // Room for a kernel's arguments, so that no call allocates.
  std::vector<const void*> inputs;
  std::vector<void*> outputs;

 private:
  const int rank_;
  const std::vector<std::byte*> bases_;
  const Layout layout_;
  Waiter waiter_;
  std::vector<ControlBlock*> blocks_;
  std::uint64_t number_ = 0, phase_ = 0, turn_ = 0;
};

// The part [begin, end) of `count` elements that belongs to one rank: whole cache lines, so that no two ranks write
// one.
struct Slice {
  std::size_t begin, end;
  std::size_t size() const { return end - begin; }
};
inline Slice slice_of(std::size_t count, std::size_t element_size, int rank, int size) {
  const std::size_t ranks = static_cast<std::size_t>(size), unit = element_size < 64 ? 64 / element_size : 1;
  const std::size_t each = ((count + ranks - 1) / ranks + unit - 1) / unit * unit;
  const std::size_t begin = each * static_cast<std::size_t>(rank);
  return {begin < count ? begin : count, begin + each < count ? begin + each : count};
}

}  // namespace ringred
