// The network: messages between processes of different nodes, point to point and without waiting.
//
// The contract, for one rank's view, used by one thread at a time:
//
//   send(transfer, ...)     begins to send; the bytes stay as they are until the transfer is over.
//   receive(transfer, ...)  begins to receive into `room` bytes. A message may be shorter, never longer; of more than a
//                           gigabyte it is as long as the room.
//   poll()                  moves whatever can move and marks transfers that are over; whether there were any.
//   cancel(transfer)        asks that a receive end without a message. It is over when it is no longer pending, which
//                           may be never: its memory stays until then.
//   leave(deadline)         ends this rank's part, after its last transfers: peers do not take its silence for a loss.
//                           What it has sent may need a moment on its way, for which this waits, until the deadline.
//
// Invariant: messages of one sender, receiver and tag arrive whole, once, and in the order in which they were sent, and
// meet the receives of that sender and tag in the order in which these were begun. No call but leave() waits for a
// peer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringred {

// One message under way. It stays at its address until it is over.
struct Transfer {
  bool pending = false;
  int peer = -1;
  std::uint32_t parts = 0;  // the network's: of how many the message is made that are not over
};

class Network {
 public:
  virtual ~Network() = default;

  // Ranks are those of the world. Tags are from 0 to 32767. Errors are peer_lost, and name the peer.
  virtual void send(Transfer& transfer, int peer, int tag, const std::byte* data, std::size_t bytes) = 0;
  virtual void receive(Transfer& transfer, int peer, int tag, std::byte* data, std::size_t room) = 0;
  virtual bool poll() = 0;
  virtual void cancel(Transfer& transfer) = 0;
  virtual void leave(std::int64_t /*deadline*/) {}

  // Whether any thread may drive it. Otherwise only threads that are inside a call of the user's do.
  virtual bool any_thread() const { return true; }
};

}  // namespace ringred
