#include <cstring>
#include <utility>

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
    : progress_bytes_(static_cast<std::size_t>(tape.lanes()) * static_cast<std::size_t>(stripes) * sizeof(Progress)) {
  Image image;
  image.add(std::vector<std::byte>(progress_bytes_));
  const std::size_t lane_begin = image.add(tape.lane_begin), moves = image.add(tape.moves), runs = image.add(tape.runs),
                    waits = image.add(tape.waits), doors = image.add(doors_of(tape, wiring));
  check(cudaMalloc(&memory_, image.bytes.size()), "allocate memory for a schedule");
  check(cudaMemcpy(memory_, image.bytes.data(), image.bytes.size(), cudaMemcpyHostToDevice), "copy a schedule");
  view_ = {tape.chunks,
           tape.lanes(),
           tape.widest,
           reinterpret_cast<const int*>(memory_ + lane_begin),
           reinterpret_cast<const Move*>(memory_ + moves),
           reinterpret_cast<const Run*>(memory_ + runs),
           reinterpret_cast<const Wait*>(memory_ + waits),
           reinterpret_cast<const Door*>(memory_ + doors),
           reinterpret_cast<Progress*>(memory_)};
}

TapeMemory::~TapeMemory() {
  static_cast<void>(cudaFree(memory_));  // fails only where the device has failed before
}

TapeMemory::TapeMemory(TapeMemory&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), progress_bytes_(other.progress_bytes_), view_(other.view_) {}

void TapeMemory::forget_progress() {
  check(cudaMemset(memory_, 0, progress_bytes_), "clear a schedule's progress");
}

}  // namespace ringred::cuda
