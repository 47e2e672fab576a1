// The verbs of an algorithm, written down as the lanes of one rank.
//
// Lanes are streams: the order in which an algorithm speaks is the order of meaning, and a step waits for exactly those
// earlier steps of other lanes that it could disturb.
//
// Invariant: a step that touches a chunk depends on the last earlier step of every other lane that wrote the chunk and,
// if it writes the chunk itself, on the last that read it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/schedule/step.h"

namespace ringred {

class Recorder {
 public:
  Recorder(int rank, int size, int chunks)
      : rank_(rank), size_(size), lanes_(1), awaited_(1), touched_(static_cast<std::size_t>(chunks)) {}

  void lane(int number) {
    lane_ = number;
    if (lanes_.size() > index(number)) return;
    lanes_.resize(index(number) + 1);
    awaited_.resize(index(number) + 1);
  }
  void send(int to, Chunks chunks) { add({Act::none, to, std::move(chunks.list), -1, {}, {}}); }
  void recv(int from, Chunks chunks) { add({Act::receive, -1, {}, from, std::move(chunks.list), {}}); }
  void reduce(int from, Chunks chunks) { add({Act::reduce, -1, {}, from, std::move(chunks.list), {}}); }
  void exchange(int to, Chunks out, int from, Chunks in, Act act = Act::receive) {
    add({act, to, std::move(out.list), from, std::move(in.list), {}});
  }

  std::vector<Lane> take() { return std::move(lanes_); }

 private:
  // The last steps of one lane that read and that wrote a chunk; -1: none did.
  struct Touch {
    int lane;
    int read;
    int wrote;
  };

  static std::size_t index(int number) { return static_cast<std::size_t>(number); }

  void add(Step step) {
    check(step);
    for (int chunk : step.out) depend(step, chunk, false);
    for (int chunk : step.in) depend(step, chunk, true);
    const int number = static_cast<int>(lanes_[index(lane_)].size());
    for (int chunk : step.out) touch(chunk).read = number;
    for (int chunk : step.in) touch(chunk).wrote = number;
    lanes_[index(lane_)].push_back(std::move(step));
  }

  Touch& touch(int chunk) {
    std::vector<Touch>& all = touched_[index(chunk)];
    for (Touch& one : all)
      if (one.lane == lane_) return one;
    return all.emplace_back(Touch{lane_, -1, -1});
  }

  void depend(Step& step, int chunk, bool writes) {
    for (const Touch& one : touched_[index(chunk)]) {
      const int last = writes ? std::max(one.read, one.wrote) : one.wrote;
      if (one.lane == lane_ || last <= awaited(one.lane)) continue;
      awaited(one.lane) = last;
      std::erase_if(step.after, [&](const Dependency& dependency) { return dependency.lane == one.lane; });
      step.after.push_back({one.lane, last});
    }
  }

  // The last step of `other` that an earlier step of this lane waits for, and with it this one.
  int& awaited(int other) {
    std::vector<int>& row = awaited_[index(lane_)];
    if (row.size() <= index(other)) row.resize(index(other) + 1, -1);
    return row[index(other)];
  }

  void check(const Step& step) const {
    check_side(step.to, step.out);
    check_side(step.from, step.in);
    if (step.out == step.in) return;
    std::vector<int> out = step.out, in = step.in, both;
    std::sort(out.begin(), out.end());
    std::sort(in.begin(), in.end());
    std::set_intersection(out.begin(), out.end(), in.begin(), in.end(), std::back_inserter(both));
    if (!both.empty())
      fail_usage("a step that sends and takes the same chunk must send and take the same list: rank " +
                 std::to_string(rank_) + " sends and takes chunk " + std::to_string(both.front()) + " among others");
  }

  void check_side(int peer, const std::vector<int>& chunks) const {
    if (peer == -1 && chunks.empty()) return;
    if (peer < 0 || peer >= size_ || peer == rank_)
      fail_usage("a step's peer must be another rank of 0.." + std::to_string(size_ - 1) + ": rank " +
                 std::to_string(rank_) + " names " + std::to_string(peer));
    for (int chunk : chunks)
      if (chunk < 0 || index(chunk) >= touched_.size())
        fail_usage("a step's chunk must be one of 0.." + std::to_string(touched_.size() - 1) + ": rank " +
                   std::to_string(rank_) + " names " + std::to_string(chunk));
  }

  int rank_;
  int size_;
  int lane_ = 0;
  std::vector<Lane> lanes_;
  std::vector<std::vector<int>> awaited_;    // by lane, then other lane; -1: none
  std::vector<std::vector<Touch>> touched_;  // by chunk
};

// `algorithm(ops, rank)` speaks for one rank.
template <class Function>
std::vector<Lane> record_lanes(int rank, int size, int chunks, Function&& algorithm) {
  Recorder recorder(rank, size, chunks);
  algorithm(recorder, rank);
  return recorder.take();
}

template <class Function>
Schedule record_schedule(std::string name, int size, int chunks, Function&& algorithm) {
  Schedule schedule{std::move(name), size, chunks, {}};
  for (int rank = 0; rank < size; ++rank) schedule.ranks.push_back(record_lanes(rank, size, chunks, algorithm));
  return schedule;
}

}  // namespace ringred
