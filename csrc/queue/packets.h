// The packets of schedules that are played across nodes: those that have come and are not yet taken, by node, and
// memory for more.
//
// Invariant: packets of one node, turn and lane are taken in the order in which they have come. The schedule bounds how
// many there are: no more than its turns of a group that are under way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace ringred {

struct Packet {
  static constexpr std::size_t room = std::size_t{128} << 10;

  // Turn and lane, as one number.
  static constexpr std::uint64_t key_of(std::uint64_t turn, int lane) {
    return turn << 8 | static_cast<std::uint64_t>(lane);
  }

  std::uint64_t key = 0;
  std::size_t bytes = 0;
  std::unique_ptr<std::byte[]> data = std::make_unique_for_overwrite<std::byte[]>(room);
};

class Packets {
 public:
  explicit Packets(int nodes) : came_(static_cast<std::size_t>(nodes)) {}

  std::unique_ptr<Packet> spare() {
    if (spare_.empty()) return std::make_unique<Packet>();
    auto packet = std::move(spare_.back());
    spare_.pop_back();
    return packet;
  }
  void give_back(std::unique_ptr<Packet> packet) { spare_.push_back(std::move(packet)); }

  void arrive(int node, std::unique_ptr<Packet> packet) { from(node).push_back(std::move(packet)); }

  // The oldest of its kind; null: there is none.
  const Packet* first(int node, std::uint64_t key) {
    const auto place = find(node, key);
    return place == from(node).end() ? nullptr : place->get();
  }
  void take(int node, std::uint64_t key) {
    const auto place = find(node, key);
    give_back(std::move(*place));
    from(node).erase(place);
  }

 private:
  using List = std::vector<std::unique_ptr<Packet>>;

  List& from(int node) { return came_[static_cast<std::size_t>(node)]; }
  List::iterator find(int node, std::uint64_t key) {
    return std::find_if(from(node).begin(), from(node).end(), [key](const auto& one) { return one->key == key; });
  }

  std::vector<List> came_;  // by node
  List spare_;
};

}  // namespace ringred
