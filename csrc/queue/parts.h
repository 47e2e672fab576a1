// Who owns which elements of an array that all members work on in place. It follows from the number of elements, their
// size and the number of members; optimizer state is laid out by it, so it never depends on settings.
#pragma once

#include <algorithm>
#include <cstddef>

#include "csrc/base/round.h"

namespace ringred {

class Parts {
 public:
  struct Part {
    std::size_t begin, end;
    std::size_t before;  // how many elements of the same owner lie in earlier turns
  };

  Parts(std::size_t count, std::size_t element_bytes, std::size_t members) : count_(count), members_(members) {
    const std::size_t line = std::max<std::size_t>(64 / element_bytes, 1);
    const std::size_t most = part_bytes / element_bytes;
    part_ = std::max(round_up(std::min(divide_up(count, members), most), line), line);
  }

  std::size_t turns() const { return divide_up(count_, part_ * members_); }
  std::size_t turn_of(std::size_t element) const { return element / (part_ * members_); }
  std::size_t elements_of_turn() const { return part_ * members_; }

  Part of(std::size_t turn, std::size_t owner) const {
    const std::size_t begin = std::min((turn * members_ + owner) * part_, count_);
    return {begin, std::min(begin + part_, count_), turn * part_};
  }

  // How many elements this member owns.
  std::size_t owned(std::size_t owner) const {
    if (turns() == 0) return 0;
    const Part last = of(turns() - 1, owner);
    return last.before + (last.end - last.begin);
  }

 private:
  // Small enough that several members stay together, large enough that a turn takes much longer than its hand-shake
  // even where members share cores.
  static constexpr std::size_t part_bytes = std::size_t{2} << 20;

  std::size_t count_, members_, part_;
};

}  // namespace ringred
