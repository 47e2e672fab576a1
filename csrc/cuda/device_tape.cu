#include <cstring>
#include <span>
#include <vector>

#include "csrc/base/round.h"
#include "csrc/cuda/check.h"
#include "csrc/cuda/device_tape.h"

namespace ringred::cuda {
namespace {

std::vector<Door> doors_of(const Tape& tape, const Wiring& wiring) {
  std::vector<Door> doors;
  for (int lane = 0; lane < tape.lanes(); ++lane)
    for (int peer = 0; peer < tape.size; ++peer)
      doors.push_back({wiring.inbox(tape.rank, peer, lane), wiring.inbox(peer, tape.rank, lane)});
  return doors;
}

// Arrays one after the other, each aligned.
class Image {
 public:
  template <class T>
  std::size_t add(const std::vector<T>& array) {
    const std::size_t begin = bytes.size();
    bytes.resize(round_up(begin + array.size() * sizeof(T), 16));
    if (!array.empty()) std::memcpy(bytes.data() + begin, array.data(), array.size() * sizeof(T));
    return begin;
  }
  std::vector<std::byte> bytes;
};

}  // namespace

TapeMemory::TapeMemory(const Tape& tape, const Wiring& wiring, int stripes)
    : progress_bytes_(static_cast<std::size_t>(tape.lanes()) * static_cast<std::size_t>(stripes) * sizeof(Progress)),
      memory_(0) {
  Image image;
  image.add(std::vector<std::byte>(progress_bytes_));
  const std::size_t lane_begin = image.add(tape.lane_begin), moves = image.add(tape.moves), runs = image.add(tape.runs),
                    waits = image.add(tape.waits), doors = image.add(doors_of(tape, wiring));
  memory_ = DeviceTable<std::byte>(std::span<const std::byte>(image.bytes));
  std::byte* const memory = memory_.data();
  view_ = {tape.chunks,
           tape.lanes(),
           tape.widest,
           reinterpret_cast<const int*>(memory + lane_begin),
           reinterpret_cast<const Move*>(memory + moves),
           reinterpret_cast<const Run*>(memory + runs),
           reinterpret_cast<const Wait*>(memory + waits),
           reinterpret_cast<const Door*>(memory + doors),
           reinterpret_cast<Progress*>(memory)};
}

void TapeMemory::forget_progress() {
  check(cudaMemset(memory_.data(), 0, progress_bytes_), "clear a schedule's progress");
}

}  // namespace ringred::cuda
