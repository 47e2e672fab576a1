// Schedules across nodes: the owners of a column, one on each node, play an algorithm of csrc/algorithms on what their
// nodes have added up. The schedule's ranks are the nodes.
//
// Its messages carry the data themselves (Kind::packet of mirrors.h), in pieces of up to Packet::room, and reach the
// owner of the same column; nothing is stored into mirrors. Sent is a copy, so the memory that is worked on may change
// at once; the owners alone touch it until the schedule has been played. Two turns are under way at a time, each with a
// player of its own; messages say which turn they are of, and one that comes early waits in Packets.
//
// Invariant: all nodes play the same algorithms in the same turns on as many elements: it follows from the batch.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/algorithms/algorithms.h"
#include "csrc/engine/player.h"
#include "csrc/queue/packets.h"

namespace ringred {

class Mirrors;
class Nodes;

// The link of one turn, see csrc/link/link.h. Peers are nodes.
class ColumnLinks {
 public:
  ColumnLinks(Mirrors& mirrors, Packets& packets) : mirrors_(mirrors), packets_(packets) {}

  void begin(std::uint64_t turn) { turn_ = turn; }

  class Fifo {
   public:
    Fifo(ColumnLinks& links, int node, int lane) : links_(links), node_(node), lane_(lane) {}
    std::byte* free_slot();  // there always is one: packets are bounded by the schedule
    void publish(std::size_t bytes);
    const std::byte* full_slot(std::size_t& bytes);
    void release();

   private:
    std::uint64_t key() const { return Packet::key_of(links_.turn_, lane_); }

    ColumnLinks& links_;
    const int node_, lane_;
  };

  Fifo fifo_to(int node, int lane) { return {*this, node, lane}; }
  Fifo fifo_from(int node, int lane) { return {*this, node, lane}; }
  std::size_t slot_bytes() const { return Packet::room; }
  void notify(int) {}  // the network does

 private:
  Mirrors& mirrors_;
  Packets& packets_;
  std::uint64_t turn_ = 0;
  std::unique_ptr<Packet> next_;  // to be sent
};

class ColumnPlayers {
 public:
  ColumnPlayers(Mirrors& mirrors, Packets& packets, const Nodes& nodes, int index);

  // Goes as far on with a turn's schedule as it can, after it has begun with it; whether it has been played. Then the
  // work's data are the same on all nodes.
  bool play(std::uint64_t turn, Algorithm algorithm, const Work& work);

  // The members for whose messages a turn waits that has begun.
  std::vector<int> waits_for(std::uint64_t turn) const;

 private:
  static constexpr std::uint64_t no_turn = ~std::uint64_t{0};

  struct Stand {
    std::unique_ptr<ColumnLinks> links;
    std::map<std::pair<Algorithm, int>, Player<ColumnLinks>> players;  // by algorithm and depth of its pipeline
    Player<ColumnLinks>* player = nullptr;
    std::uint64_t turn = no_turn;
  };

  void begin(Stand& stand, std::uint64_t turn, Algorithm algorithm, const Work& work);

  const Nodes& nodes_;
  const int node_, place_;
  std::array<Stand, 2> stands_;  // by turn, modulo two
};

}  // namespace ringred
