// A rank's tape in the device's memory, with room for its progress.
//
// Invariant: the memory belongs to this object; the device may use it until its destructor has run.
#pragma once

#include <cstddef>

#include "csrc/cuda/device_table.h"
#include "csrc/cuda/mail.h"
#include "csrc/cuda/player.h"
#include "csrc/cuda/tape.h"

namespace ringred::cuda {

class TapeMemory {
 public:
  TapeMemory(const Tape& tape, const Wiring& wiring, int stripes);

  const DeviceTape& view() const { return view_; }
  // For the first call after one that reported.
  void forget_progress();

 private:
  std::size_t progress_bytes_;
  DeviceTable<std::byte> memory_;
  DeviceTape view_;
};

}  // namespace ringred::cuda
