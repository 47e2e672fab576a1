// The link: how a player reaches its peers. One ordered, bounded FIFO of slots for each peer, lane and direction.
//
// The contract, for one rank's view of all its peers, used by one thread at a time:
//
//   fifo_to(peer, lane)    the sending end. free_slot() is where the next message may be written, or nullptr while all
//                          slots are full; publish(bytes) hands it over. Nothing is visible to the peer before publish.
//   fifo_from(peer, lane)  the taking end. full_slot(bytes) is the oldest message and its length, or nullptr while
//                          there is none; release() gives its slot back. The bytes stay as they are until then.
//   slot_bytes()           how much a message may carry; the same number on all ranks, at least one element.
//   notify(peer)           called after a publish or a release that concerns the peer, so that it is woken if it
//   sleeps.
//
// Invariant: messages of one FIFO arrive whole, once, and in order; a publish happens before the full_slot that shows
// it, a release before the free_slot that shows it. No call waits.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

namespace ringred {

template <class End>
concept FifoEnds = requires(End& fifo, std::size_t& bytes) {
  { fifo.free_slot() } -> std::same_as<std::byte*>;
  { fifo.publish(bytes) } -> std::same_as<void>;
  { fifo.full_slot(bytes) } -> std::same_as<const std::byte*>;
  { fifo.release() } -> std::same_as<void>;
};

template <class L>
concept Links = requires(L& links, int peer, int lane) {
  { links.fifo_to(peer, lane) } -> std::same_as<decltype(links.fifo_from(peer, lane))>;
  requires FifoEnds<std::remove_reference_t<decltype(links.fifo_to(peer, lane))>>;
  { links.slot_bytes() } -> std::convertible_to<std::size_t>;
  { links.notify(peer) } -> std::same_as<void>;
};

}  // namespace ringred
