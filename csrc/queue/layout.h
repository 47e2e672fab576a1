// Where the parts of a GroupBlock lie, from its beginning. The same on all members, since it follows from the number of
// ranks and from settings that they agree on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/round.h"
#include "csrc/queue/shared.h"
#include "csrc/select/across_nodes.h"

namespace ringred {

struct GroupLayout {
  static constexpr std::size_t page = 4096;
  static constexpr std::size_t slots = 3;  // of staging, for the reason given in turns.h

  std::size_t size;        // of the group
  std::size_t slot_bytes;  // each

  static GroupLayout of(std::size_t size, std::size_t parts, bool spans_nodes, std::size_t slot_setting) {
    const std::size_t wanted_slot_bytes = slot_setting * (spans_nodes ? larger_slots : 1);
    // A slot is divided among the ranks, or the parts of a turn, in whole cache lines; one may be taken before.
    const std::size_t least = 64 * ((parts > size ? parts : size) + 1);
    return {size, round_up(wanted_slot_bytes > least ? wanted_slot_bytes : least, page)};
  }

  std::size_t ring() const { return round_up(sizeof(GroupBlock), 64); }
  std::size_t log() const { return round_up(ring() + GroupBlock::most_entries * sizeof(std::uint32_t), page); }
  std::size_t record_bytes() const { return round_up(LogRecord::most_bytes(size), 64); }
  std::size_t slot(std::uint64_t turn) const {
    return round_up(log() + GroupBlock::log_records * record_bytes(), page) + turn % slots * slot_bytes;
  }
  std::size_t entries() const { return slot(0) + slots * slot_bytes; }
  std::size_t end() const { return round_up(entries() + GroupBlock::most_entries * sizeof(Entry), page); }

  // The table of names of a member.
  Entry* entries_of(GroupBlock& block) const {
    return reinterpret_cast<Entry*>(reinterpret_cast<std::byte*>(&block) + entries());
  }
  std::uint32_t* ring_of(GroupBlock& block) const {
    return reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::byte*>(&block) + ring());
  }
  // Where the log's record of this number lies in the sequencer's block.
  LogRecord* record_of(GroupBlock& sequencer, std::uint64_t number) const {
    return reinterpret_cast<LogRecord*>(reinterpret_cast<std::byte*>(&sequencer) + log() +
                                        number % GroupBlock::log_records * record_bytes());
  }
};

}  // namespace ringred
