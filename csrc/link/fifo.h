// A FIFO of slots between one sender and one taker, over plain memory that both can load and store: a shared segment or
// the heap. Zeroed memory is an empty FIFO.
//
//   | tail, bytes of each slot | head     | slot 0 ... | slot 1 ... |
//     written by the sender      by taker   by the sender
//
// 1. The sender fills slot tail % slots, notes its bytes, then stores tail + 1.
// 2. The taker that sees tail > head may read slot head % slots and its bytes.
// 3. The taker stores head + 1 when it has read the slot.
// 4. The sender that sees tail - head < slots may fill a slot again.
//
// Invariant: head <= tail <= head + slots; both only grow, and 64 bits do not wrap. Each line of memory has one writer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "csrc/base/error.h"

namespace ringred {

// Each end has an object of its own over the same memory, and uses its own half of the calls.
class Fifo {
 public:
  static constexpr std::size_t line_bytes = 64;  // of a cache

  static constexpr std::size_t memory_bytes(std::size_t slots, std::size_t slot_bytes) {
    return sender_bytes(slots) + line_bytes + slots * whole_lines(slot_bytes);
  }

  // `memory` is aligned to a line. Continues where the memory's head and tail stand.
  Fifo(std::byte* memory, std::size_t slots, std::size_t slot_bytes)
      : tail_word_(reinterpret_cast<std::uint64_t*>(memory)),
        head_word_(reinterpret_cast<std::uint64_t*>(memory + sender_bytes(slots))),
        first_slot_(memory + sender_bytes(slots) + line_bytes),
        slots_(slots),
        stride_(whole_lines(slot_bytes)) {
    if (slots == 0 || reinterpret_cast<std::uintptr_t>(memory) % line_bytes != 0)
      fail_usage("a FIFO needs a slot or more, in memory aligned to " + std::to_string(line_bytes) + " bytes: got " +
                 std::to_string(slots) + " slots");
    head_ = other_head_ = load(head_word_);
    tail_ = other_tail_ = load(tail_word_);
  }

  // Sender (4): where the next message goes, or nullptr.
  std::byte* free_slot() {
    if (tail_ - other_head_ >= slots_) other_head_ = load(head_word_);
    return tail_ - other_head_ < slots_ ? slot(tail_) : nullptr;
  }

  // Sender (1), after free_slot() gave a slot.
  void publish(std::size_t bytes) {
    tail_word_[1 + tail_ % slots_] = bytes;
    store(tail_word_, ++tail_);
  }

  // Taker (2): the oldest message and its length, or nullptr.
  const std::byte* full_slot(std::size_t& bytes) {
    if (head_ == other_tail_) other_tail_ = load(tail_word_);
    if (head_ == other_tail_) return nullptr;
    bytes = tail_word_[1 + head_ % slots_];
    return slot(head_);
  }

  // Taker (3), after full_slot() gave a message.
  void release() { store(head_word_, ++head_); }

 private:
  static constexpr std::size_t whole_lines(std::size_t bytes) {
    return (bytes + line_bytes - 1) / line_bytes * line_bytes;
  }
  static constexpr std::size_t sender_bytes(std::size_t slots) {
    return whole_lines((1 + slots) * sizeof(std::uint64_t));
  }

  // Release and acquire would do for the data. Sequential consistency is for a peer that sleeps: it stores its waiter
  // word and then loads tail or head; we store tail or head and then load its waiter word; one of the two must see the
  // other.
  static std::uint64_t load(std::uint64_t* word) { return std::atomic_ref(*word).load(std::memory_order_seq_cst); }
  static void store(std::uint64_t* word, std::uint64_t value) {
    std::atomic_ref(*word).store(value, std::memory_order_seq_cst);
  }
  static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free, "a lock would not reach across processes");

  std::byte* slot(std::uint64_t number) const { return first_slot_ + number % slots_ * stride_; }

  std::uint64_t* tail_word_;  // written by the sender; behind it the bytes of each slot, ordered by it
  std::uint64_t* head_word_;  // written by the taker
  std::byte* first_slot_;
  std::uint64_t slots_;
  std::size_t stride_;
  std::uint64_t head_ = 0, other_tail_ = 0;  // the taker's own number, and the other's as last seen
  std::uint64_t tail_ = 0, other_head_ = 0;  // the sender's
};

}  // namespace ringred
