// Several arrays of one dtype as if they were one: what fusion works on. Nothing is copied to make it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace ringred {

class Pieces {
 public:
  struct Piece {
    const std::byte* input;
    std::byte* output;
    std::size_t begin;  // its place in the whole, in elements
  };

  void add(const std::byte* input, std::byte* output, std::size_t count) {
    if (count == 0) return;
    pieces_.push_back({input, output, count_});
    count_ += count;
  }

  std::size_t count() const { return count_; }

  // Calls visit(input, output, place, count) for each stretch of [begin, end) that lies in one array; `place` counts
  // from `begin`.
  template <class Visit>
  void visit(std::size_t begin, std::size_t end, std::size_t element_size, Visit&& visit) const {
    if (begin >= end || pieces_.empty()) return;
    auto piece = std::upper_bound(pieces_.begin(), pieces_.end(), begin,
                                  [](std::size_t place, const Piece& one) { return place < one.begin; }) -
                 1;
    for (std::size_t at = begin; at < end; ++piece) {
      const std::size_t last = piece + 1 == pieces_.end() ? count_ : (piece + 1)->begin;
      const std::size_t stop = std::min(end, last), offset = (at - piece->begin) * element_size;
      visit(piece->input == nullptr ? nullptr : piece->input + offset,
            piece->output == nullptr ? nullptr : piece->output + offset, at - begin, stop - at);
      at = stop;
    }
  }

 private:
  std::vector<Piece> pieces_;
  std::size_t count_ = 0;
};

}  // namespace ringred
