#include "csrc/queue/columns.h"

#include <algorithm>
#include <bit>

#include "csrc/queue/mirrors.h"
#include "csrc/queue/nodes.h"

namespace ringred {

std::byte* ColumnLinks::Fifo::free_slot() {
  if (!links_.next_) links_.next_ = links_.packets_.spare();
  return links_.next_->data.get();
}

void ColumnLinks::Fifo::publish(std::size_t bytes) {
  links_.next_->key = key();
  links_.next_->bytes = bytes;
  links_.mirrors_.send(node_, std::move(links_.next_));
}

const std::byte* ColumnLinks::Fifo::full_slot(std::size_t& bytes) {
  const Packet* packet = links_.packets_.first(node_, key());
  if (packet == nullptr) return nullptr;
  bytes = packet->bytes;
  return packet->data.get();
}

void ColumnLinks::Fifo::release() {
  links_.packets_.take(node_, key());
}

ColumnPlayers::ColumnPlayers(Mirrors& mirrors, Packets& packets, const Nodes& nodes, int index)
    : nodes_(nodes), node_(nodes.of(index)), place_(nodes.place(index)) {
  for (Stand& stand : stands_) stand.links = std::make_unique<ColumnLinks>(mirrors, packets);
}

bool ColumnPlayers::play(std::uint64_t turn, Algorithm algorithm, const Work& work) {
  Stand& stand = stands_[turn % stands_.size()];
  if (stand.turn != turn) begin(stand, turn, algorithm, work);
  return stand.player->advance();
}

// A pipeline as deep as there are packets to fill, in powers of two so that few schedules are recorded.
void ColumnPlayers::begin(Stand& stand, std::uint64_t turn, Algorithm algorithm, const Work& work) {
  constexpr std::size_t deepest_pipeline = 16;
  const std::size_t packets =
      std::clamp<std::size_t>(work.count * work.element_size / Packet::room, 2, deepest_pipeline);
  const int depth = algorithm == Algorithm::double_tree ? static_cast<int>(std::bit_floor(packets)) : 1;
  auto found = stand.players.find({algorithm, depth});
  if (found == stand.players.end())
    found = stand.players
                .try_emplace({algorithm, depth}, *stand.links, node_, chunk_count(algorithm, nodes_.count(), depth),
                             record_rank(algorithm, node_, nodes_.count(), depth))
                .first;
  stand.player = &found->second;
  stand.turn = no_turn;
  stand.links->begin(turn);
  stand.player->start(work);
  stand.turn = turn;  // last: if memory was lacking, it begins anew
}

std::vector<int> ColumnPlayers::waits_for(std::uint64_t turn) const {
  std::vector<int> members;
  if (const Stand& stand = stands_[turn % stands_.size()]; stand.turn == turn)
    for (const int node : stand.player->waiting_peers()) members.push_back(nodes_.owner(node, place_));
  return members;
}

}  // namespace ringred
