#include "csrc/queue/names.h"

namespace ringred {

// FNV-1a with 128 bits (Fowler, Noll, Vo; constants from draft-eastlake-fnv), then mixed so that one word can be used
// as a hash of its own.
NameHash hash_of(std::string_view name) {
  __extension__ using Wide = unsigned __int128;
  constexpr Wide prime = (Wide{1} << 88) + 0x13b;
  Wide hash = (Wide{0x6c62272e07bb0142} << 64) + 0x62b821756295c58d;
  for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * prime;
  const auto low = static_cast<std::uint64_t>(hash), high = static_cast<std::uint64_t>(hash >> 64);
  return {{(low ^ (high >> 29)) * 0x9e3779b97f4a7c15, high ^ (low << 32)}};
}

NameTable::Place NameTable::take(const NameHash& hash) {
  if (const auto known = numbers_.find(hash); known != numbers_.end()) {
    Row& row = rows_[known->second];
    if (row.in_flight) return {Found::busy, known->second};
    row.in_flight = true;
    spare_.splice(spare_.begin(), idle_, row.idle);
    return {Found::known, known->second};
  }
  std::uint32_t number = used();
  if (idle_.size() >= idle_names || (number == most_ && !idle_.empty())) {
    number = idle_.front();
    numbers_.erase(rows_[number].hash);
    spare_.splice(spare_.begin(), idle_, idle_.begin());
    rows_[number] = {hash, {}, true};
  } else if (number == most_) {
    return {Found::full, 0};
  } else {
    rows_.push_back({hash, {}, true});
  }
  numbers_.emplace(hash, number);
  return {Found::introduced, number};
}

void NameTable::release(std::uint32_t number) {
  Row& row = rows_[number];
  row.in_flight = false;
  if (spare_.empty()) {
    idle_.push_back(number);
  } else {
    spare_.front() = number;
    idle_.splice(idle_.end(), spare_, spare_.begin());
  }
  row.idle = std::prev(idle_.end());
}

}  // namespace ringred
