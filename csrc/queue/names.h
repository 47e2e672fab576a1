// The names that a rank has used in one group, each with its number: the index of its entry in the shared table.
//
// Invariant: a number belongs to one name from its introduction until it is recycled, and only numbers of names that
// are not in flight are recycled, the least recently used first. So the table's size follows from how many names are in
// flight at once (and `idle_names` more), not from how many there ever were.
#pragma once

#include <cstdint>
#include <list>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ringred {

// 128 bits stand for a name: two names of a job with one hash are not to be expected before 10^18 names.
struct NameHash {
  std::uint64_t words[2];
  friend bool operator==(const NameHash&, const NameHash&) = default;
};
NameHash hash_of(std::string_view name);

struct NameHasher {
  std::size_t operator()(const NameHash& hash) const { return hash.words[0]; }
};

class NameTable {
 public:
  static constexpr std::uint32_t idle_names = 1024;

  explicit NameTable(std::uint32_t most) : most_(most) {}

  enum class Found { known, introduced, busy, full };
  struct Place {
    Found found;
    std::uint32_t number;
  };

  // Finds or introduces the name and marks it as in flight, unless it is already (busy) or no number is left (full).
  Place take(const NameHash& hash);

  // The name's operation is over.
  void release(std::uint32_t number);

  std::uint32_t used() const { return static_cast<std::uint32_t>(rows_.size()); }

 private:
  struct Row {
    NameHash hash;
    std::list<std::uint32_t>::iterator idle;  // its place among the idle; meaningless while in flight
    bool in_flight;
  };

  const std::uint32_t most_;
  std::unordered_map<NameHash, std::uint32_t, NameHasher> numbers_;
  std::vector<Row> rows_;
  std::list<std::uint32_t> idle_;   // the least recently used first
  std::list<std::uint32_t> spare_;  // list nodes, so that steady work allocates nothing
};

}  // namespace ringred
