// A rank's tape in the device's memory, with room for its progress.
//
// Invariant: the memory belongs to this object; the device may use it until its destructor has run.
#pragma once

#include <cstddef>
#include <vector>

#include "csrc/cuda/mail.h"
#include "csrc/cuda/player.h"
#include "csrc/cuda/tape.h"

namespace ringred::cuda {

class TapeMemory {
 public:
  TapeMemory(const Tape& tape, const Wiring& wiring, int stripes);
  ~TapeMemory();
  TapeMemory(TapeMemory&& other) noexcept;
  TapeMemory(const TapeMemory&) = delete;

  const DeviceTape& view() const { return view_; }
  // For the first call after one that reported.
  void forget_progress();

 private:
  std::byte* memory_ = nullptr;
  std::size_t progress_bytes_ = 0;
  DeviceTape view_;
};

}  // namespace ringred::cuda
