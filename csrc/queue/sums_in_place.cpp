#include "csrc/queue/sums_in_place.h"

#include <algorithm>
#include <cstring>

namespace ringred {

bool SumsInPlace::fits(const Batch& batch, const Run& run) {
  return !batch.arrays.empty() && !run.measured && ringred::keeps_results(exchange_of(batch, run));
}

SumsInPlace::SumsInPlace(const Batch& batch, const Run& run)
    : TwoShotMovement(batch, run), arrays_(batch.arrays.begin(), batch.arrays.end()) {}

void SumsInPlace::combine(std::size_t turn, const Slots& slots) {
  for (int column = 0; column < columns_; ++column) {
    const Part part = part_of(turn, 0, column);
    if (!owns(column) || part.begin == part.end) continue;
    inputs_.clear();
    for (const int member : nodes_.members(here()))
      inputs_.push_back(arrays_[static_cast<std::size_t>(member)] + part.begin * wire_bytes_);
    add_arrays(inputs_, part.end - part.begin, slots.of[index_] + part.offset);
  }
}

void SumsInPlace::reduce(std::size_t turn, const Slots& slots) {
  // In blocks, so that the copies find their source in the second-level cache.
  const std::size_t block = (std::size_t{128} << 10) / wire_bytes_;
  for (int column = 0; column < columns_; ++column) {
    const Part part = part_of(turn, 0, column);
    if (!owns(column)) continue;
    for (std::size_t begin = part.begin; begin < part.end; begin += block) {
      const std::size_t count = std::min(block, part.end - begin), bytes = count * wire_bytes_;
      inputs_.clear();
      for (const int member : summands(column))
        inputs_.push_back(slots.of[static_cast<std::size_t>(member)] + part.offset +
                          (begin - part.begin) * wire_bytes_);
      std::byte* mine = arrays_[index_] + begin * wire_bytes_;
      reduce_arrays(inputs_, count, mine);
      for (const int member : nodes_.members(here()))
        if (member != static_cast<int>(index_))
          std::memcpy(arrays_[static_cast<std::size_t>(member)] + begin * wire_bytes_, mine, bytes);
    }
  }
}

}  // namespace ringred
