// The memory and the channels of a symbolic execution: a value is the set of ranks that it sums.
//
// Invariant: an eager message keeps the value that it was sent with; a pulled one has the value that the sender's chunk
// has when it is read, and until then the chunk counts as unread.
#pragma once

#include <bitset>
#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "csrc/schedule/verify.h"

namespace ringred {

using RankSet = std::bitset<largest_verified_size>;

class Symbols {
 public:
  struct Message {
    int chunk;
    bool opens;                    // the first chunk of a step
    std::optional<RankSet> value;  // none: pulled
  };
  using Ends = std::tuple<int, int, int>;  // from, to, lane

  // Every chunk of a rank begins as that rank alone.
  Symbols(int size, int chunks, const Channel& channel) : chunks_(at(chunks)), channel_(channel) {
    values_.resize(at(size) * chunks_);
    unread_.resize(at(size) * chunks_);
    for (int rank = 0; rank < size; ++rank)
      for (int chunk = 0; chunk < chunks; ++chunk) value(rank, chunk).set(at(rank));
  }

  RankSet& value(int rank, int chunk) { return values_[at(rank) * chunks_ + at(chunk)]; }

  // A peer was shown the chunk and has not read it.
  bool unread(int rank, int chunk) const { return unread_[at(rank) * chunks_ + at(chunk)] > 0; }

  // False where no slot is free.
  bool send(const Ends& ends, int chunk, bool opens) {
    std::deque<Message>& queue = queues_[ends];
    if (queue.size() >= at(channel_.slots)) return false;
    const int from = std::get<0>(ends);
    queue.push_back({chunk, opens, {}});
    if (channel_.pull)
      ++unread_[at(from) * chunks_ + at(chunk)];
    else
      queue.back().value = value(from, chunk);
    return true;
  }

  // The oldest message, its value read; none where there is none.
  std::optional<Message> take(const Ends& ends) {
    std::deque<Message>& queue = queues_[ends];
    if (queue.empty()) return std::nullopt;
    Message message = queue.front();
    queue.pop_front();
    if (message.value) return message;
    const int from = std::get<0>(ends);
    --unread_[at(from) * chunks_ + at(message.chunk)];
    message.value = value(from, message.chunk);
    return message;
  }

  const std::map<Ends, std::deque<Message>>& queues() const { return queues_; }

 private:
  static std::size_t at(int number) { return static_cast<std::size_t>(number); }

  std::size_t chunks_;
  const Channel& channel_;
  std::vector<RankSet> values_;  // by rank, then chunk
  std::vector<int> unread_;      // by rank, then chunk: how many peers
  std::map<Ends, std::deque<Message>> queues_;
};

}  // namespace ringred
