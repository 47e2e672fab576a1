// Who owns which elements of an array that all members of a node work on in place. It follows from the number of
// elements, their size and the number of owners; optimizer state is laid out by it, so it never depends on settings.
// The owners are the members; across nodes they are columns (nodes.h), of which a member may have several.
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

  Parts(std::size_t count, std::size_t element_bytes, std::size_t owners) : count_(count), owners_(owners) {
    const std::size_t line = std::max<std::size_t>(64 / element_bytes, 1);
    const std::size_t most = part_bytes / element_bytes;
    part_ = std::max(round_up(std::min(divide_up(count, owners), most), line), line);
  }

  std::size_t turns() const { return divide_up(count_, part_ * owners_); }
  std::size_t turn_of(std::size_t element) const { return element / (part_ * owners_); }
  std::size_t elements_of_turn() const { return part_ * owners_; }
  std::size_t elements_of_part() const { return part_; }  // of one that is whole

  Part of(std::size_t turn, std::size_t owner) const {
    const std::size_t begin = std::min((turn * owners_ + owner) * part_, count_);
    return {begin, std::min(begin + part_, count_), turn * part_};
  }

  // Of a member that has several owners' parts, in the order of the array: how many elements it has before a part of
  // the `nth` of `several`.
  std::size_t before(const Part& part, std::size_t nth, std::size_t several) const {
    return part.before * several + nth * part_;
  }

  // How many elements an owner has.
  std::size_t owned(std::size_t owner) const {
    if (turns() == 0) return 0;
    const Part last = of(turns() - 1, owner);
    return last.before + (last.end - last.begin);
  }

 private:
  // Small enough that several members stay together, large enough that a turn takes much longer than its hand-shake
  // even where members share cores.
  static constexpr std::size_t part_bytes = std::size_t{2} << 20;

  std::size_t count_, owners_, part_;
};

}  // namespace ringred
