// A network between ranks that are threads of one process, as slow and as lazy as its contract allows: a message is
// read from its sender's memory some polls after it was begun, so that memory that is used again too early shows.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/link/network.h"

namespace ringred::check {

class Switchboard {
 public:
  std::unique_ptr<Network> connect(int rank) { return std::make_unique<Line>(*this, rank); }

  // From now on nothing that these two send each other arrives.
  void cut(int one, int other) {
    const std::lock_guard lock(mutex_);
    cut_.insert({one, other});
    cut_.insert({other, one});
  }

  std::size_t bytes_sent(int rank) {
    const std::lock_guard lock(mutex_);
    return sent_[rank];
  }

  std::size_t messages_sent(int rank) {
    const std::lock_guard lock(mutex_);
    return messages_sent_[rank];
  }

 private:
  using Key = std::tuple<int, int, int>;  // from, to, tag

  class Line : public Network {
   public:
    Line(Switchboard& board, int rank) : board_(board), rank_(rank), random_(static_cast<unsigned>(rank)) {}

    void send(Transfer& transfer, int peer, int tag, const std::byte* data, std::size_t bytes) override {
      transfer = {true, peer, 1};
      outgoing_.push_back({&transfer, {rank_, peer, tag}, const_cast<std::byte*>(data), bytes});
    }

    void receive(Transfer& transfer, int peer, int tag, std::byte* data, std::size_t room) override {
      transfer = {true, peer, 1};
      incoming_.push_back({&transfer, {peer, rank_, tag}, data, room});
    }

    bool poll() override {
      const std::lock_guard lock(board_.mutex_);
      bool moved = false;
      while (!outgoing_.empty() && random_() % 3 != 0) {
        const Pending one = outgoing_.front();
        outgoing_.pop_front();
        board_.sent_[rank_] += one.bytes;
        ++board_.messages_sent_[rank_];
        if (board_.cut_.count({std::get<0>(one.key), std::get<1>(one.key)}) == 0)
          board_.messages_[one.key].emplace_back(one.data, one.data + one.bytes);
        one.transfer->pending = false;
        moved = true;
      }
      std::set<Key> blocked;
      for (auto one = incoming_.begin(); one != incoming_.end();) {
        auto& waiting = board_.messages_[one->key];
        if (blocked.count(one->key) > 0 || waiting.empty() || random_() % 4 == 0) {
          blocked.insert(one->key);
          ++one;
          continue;
        }
        if (waiting.front().size() > one->bytes) throw Error(ErrorKind::system, "a message is longer than its room");
        std::memcpy(one->data, waiting.front().data(), waiting.front().size());
        waiting.pop_front();
        one->transfer->pending = false;
        one = incoming_.erase(one);
        moved = true;
      }
      return moved;
    }

    void cancel(Transfer& transfer) override {
      std::erase_if(incoming_, [&](const Pending& one) { return one.transfer == &transfer; });
      transfer.pending = false;
    }

   private:
    struct Pending {
      Transfer* transfer;
      Key key;
      std::byte* data;
      std::size_t bytes;
    };

    Switchboard& board_;
    const int rank_;
    std::minstd_rand random_;
    std::deque<Pending> outgoing_, incoming_;
  };

  std::mutex mutex_;
  std::map<Key, std::deque<std::vector<std::byte>>> messages_;
  std::map<int, std::size_t> sent_, messages_sent_;
  std::set<std::pair<int, int>> cut_;
};

}  // namespace ringred::check
