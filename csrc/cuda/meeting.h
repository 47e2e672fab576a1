// How the ranks of a group agree on the host: every rank brings bytes and gets everybody's.
//
// Invariant: a rank that fails on the way to a meeting comes all the same and says so, so that nobody waits for it: all
// ranks throw, the one that failed its own error, the others one that names it.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/base/text.h"

namespace ringred::cuda {

// The bytes of all ranks, one after the other; every rank brings the same number. It is the caller's, has a deadline
// and throws where a rank does not come.
using Meeting = std::function<std::vector<std::byte>(std::span<const std::byte> mine)>;

template <class Row>
struct Brought {
  Row row{};
  bool failed = false;
  std::array<char, 480> reason{};
};

// work() gives this rank's row; returns the rows of all ranks.
template <class Work>
auto meet(const Meeting& meeting, Work&& work) {
  using Row = std::decay_t<decltype(work())>;
  static_assert(std::is_trivially_copyable_v<Row>);
  std::vector<std::byte> mine(sizeof(Brought<Row>));
  auto* const brought = new (mine.data()) Brought<Row>;
  std::exception_ptr own;
  try {
    brought->row = work();
  } catch (const std::exception& error) {
    own = std::current_exception();
    brought->failed = true;
    store_text(brought->reason.data(), brought->reason.size(), error.what());
  }
  const std::vector<std::byte> all = meeting(mine);
  if (own) std::rethrow_exception(own);
  std::vector<Row> rows;
  for (std::size_t rank = 0; rank < all.size() / sizeof(Brought<Row>); ++rank) {
    Brought<Row> one;
    std::memcpy(static_cast<void*>(&one), &all[rank * sizeof one], sizeof one);
    if (one.failed)
      throw Error(ErrorKind::peer_lost, "Rank " + std::to_string(rank) + " could not take part: " + one.reason.data());
    rows.push_back(one.row);
  }
  return rows;
}

}  // namespace ringred::cuda
