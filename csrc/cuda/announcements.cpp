#include "csrc/cuda/announcements.h"

#include <algorithm>
#include <array>
#include <bit>

#include "csrc/algorithms/algorithms.h"
#include "csrc/base/mix.h"
#include "csrc/base/text.h"

namespace ringred::cuda {
namespace {

using Words = std::array<std::uint64_t, HostBlock::words>;

Words words_of(const Announcement& call) {
  const std::uint64_t small = std::uint64_t{call.kind} | std::uint64_t(call.dtype) << 8 | std::uint64_t(call.op) << 16 |
                              std::uint64_t{call.captured} << 24 |
                              std::uint64_t{static_cast<std::uint8_t>(call.algorithm)} << 32;
  return {small,
          call.tag << 16 | call.region,
          call.offset,
          call.count,
          std::bit_cast<std::uint64_t>(call.prescale),
          std::bit_cast<std::uint64_t>(call.postscale)};
}

Announcement announcement_of(const Words& words) {
  const auto byte = [&](int shift) { return static_cast<std::uint8_t>(words[0] >> shift); };
  Announcement call;
  call.kind = static_cast<Announcement::Kind>(byte(0));
  call.dtype = static_cast<DType>(byte(8));
  call.op = static_cast<Op>(byte(16));
  call.captured = byte(24) != 0;
  call.algorithm = static_cast<std::int8_t>(byte(32));
  call.region = static_cast<std::uint16_t>(words[1]);
  call.tag = words[1] >> 16;
  call.offset = words[2];
  call.count = words[3];
  call.prescale = std::bit_cast<double>(words[4]);
  call.postscale = std::bit_cast<double>(words[5]);
  return call;
}

std::uint64_t hash_of(std::uint64_t earlier, const Words& words) {
  std::uint64_t hash = mix(earlier, 1);
  for (const std::uint64_t word : words) hash = mix(hash, word);
  return hash;
}

}  // namespace

std::string Announcement::text() const {
  std::string text = "allreduce(count=" + std::to_string(count) + ", dtype=" + std::string(info(dtype).name) +
                     ", op=" + std::string(name_of(op));
  if (prescale != 1) text += ", prescale=" + in_seconds(prescale);
  if (postscale != 1) text += ", postscale=" + in_seconds(postscale);
  if (algorithm >= 0) text += ", algorithm=" + std::string(info(static_cast<Algorithm>(algorithm)).name);
  if (kind == symmetric)
    text += ", symmetric memory " + std::to_string(region) + " from byte " + std::to_string(offset);
  if (tag != 0) text += ", tag " + std::to_string(tag);
  return text + ")" + (captured ? " in a capture" : "");
}

Announcements::Announcements(std::vector<HostBlock*> blocks, int rank)
    : blocks_(std::move(blocks)), rank_(rank), compared_(blocks_.size()) {}

void Announcements::announce(const Announcement& announcement) {
  HostBlock::Entry& entry = block(rank_).announced[++calls_ % HostBlock::entries];
  const Words words = words_of(announcement);
  hash_ = hash_of(hash_, words);
  // Each release is for a reader that sees what it stores: that one sees the earlier stores, too.
  entry.number.store(0, std::memory_order_relaxed);
  entry.hash.store(hash_, std::memory_order_release);
  for (std::size_t i = 0; i < words.size(); ++i) entry.words[i].store(words[i], std::memory_order_release);
  entry.number.store(calls_, std::memory_order_release);
  block(rank_).calls.store(calls_, std::memory_order_release);
}

std::optional<Announcements::Known> Announcements::read(int rank, std::uint64_t call) const {
  const HostBlock::Entry& entry = block(rank).announced[call % HostBlock::entries];
  if (entry.number.load(std::memory_order_acquire) != call) return std::nullopt;
  Words words;
  const std::uint64_t hash = entry.hash.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = entry.words[i].load(std::memory_order_acquire);
  if (entry.number.load(std::memory_order_relaxed) != call) return std::nullopt;
  return Known{hash, announcement_of(words)};
}

std::string Announcements::difference() {
  for (int peer = 0; peer < static_cast<int>(blocks_.size()); ++peer) {
    std::uint64_t& compared = compared_[static_cast<std::size_t>(peer)];
    const std::uint64_t newest = std::min(calls_, calls_of(peer));
    if (peer == rank_ || newest <= compared) continue;
    const std::optional<Known> mine = read(rank_, newest), theirs = read(peer, newest);
    if (!mine || !theirs) continue;  // 2: by the one that is behind, later
    if (mine->hash != theirs->hash) return difference_from(peer, newest);
    compared = newest;
  }
  return "";
}

// Calls up to the last one that agreed are alike, and the newest are not: the first that differ are in between, or
// gone.
std::string Announcements::difference_from(int peer, std::uint64_t newest) const {
  for (std::uint64_t call = compared_[static_cast<std::size_t>(peer)] + 1; call <= newest; ++call) {
    const std::optional<Known> mine = read(rank_, call), theirs = read(peer, call);
    if (!mine || !theirs || words_of(mine->announcement) == words_of(theirs->announcement)) continue;
    const auto text = [](int rank, const Known& known) {
      return "rank " + std::to_string(rank) + " called " + known.announcement.text();
    };
    return "All ranks must make the same calls in the same order: of call " + std::to_string(call) + ", " +
           (rank_ < peer ? text(rank_, *mine) + "; " + text(peer, *theirs)
                         : text(peer, *theirs) + "; " + text(rank_, *mine));
  }
  return "All ranks must make the same calls in the same order: ranks " + std::to_string(std::min(rank_, peer)) +
         " and " + std::to_string(std::max(rank_, peer)) + " differ in a call between " +
         std::to_string(compared_[static_cast<std::size_t>(peer)] + 1) + " and " + std::to_string(newest) +
         ", too long ago to say in what";
}

}  // namespace ringred::cuda
