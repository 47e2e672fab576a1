// The verbs on a sub-group: ranks renamed, chunks widened. A hierarchy is flat algorithms spoken through views.
//
// Invariant: a view adds no step and changes no order.
#pragma once

#include <utility>
#include <vector>

#include "csrc/schedule/step.h"

namespace ringred {

// `rank_of(member)` is the rank of a member of the group; `chunks_of(chunk)` are the chunks that the group's chunk is
// made of. Both must give the same answers on all members.
template <class Ops, class RankOf, class ChunksOf>
class View {
 public:
  View(Ops& ops, RankOf rank_of, ChunksOf chunks_of)
      : ops_(ops), rank_of_(std::move(rank_of)), chunks_of_(std::move(chunks_of)) {}

  void lane(int number) { ops_.lane(number); }
  void send(int to, const Chunks& chunks) { ops_.send(rank_of_(to), wide(chunks)); }
  void recv(int from, const Chunks& chunks) { ops_.recv(rank_of_(from), wide(chunks)); }
  void reduce(int from, const Chunks& chunks) { ops_.reduce(rank_of_(from), wide(chunks)); }
  void exchange(int to, const Chunks& out, int from, const Chunks& in, Act act = Act::receive) {
    ops_.exchange(rank_of_(to), wide(out), rank_of_(from), wide(in), act);
  }

 private:
  Chunks wide(const Chunks& chunks) const {
    std::vector<int> list;
    for (int chunk : chunks.list)
      for (int part : Chunks(chunks_of_(chunk)).list) list.push_back(part);
    return list;
  }

  Ops& ops_;
  RankOf rank_of_;
  ChunksOf chunks_of_;
};

}  // namespace ringred
