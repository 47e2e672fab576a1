// A scope in which the thread may call what a capture of a CUDA graph, on whatever thread, would forbid: opening
// memory, asking whether an event is over. None of it belongs to the graph.
#pragma once

#include "csrc/cuda/driver.h"

namespace ringred::cuda {

class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver)
      : driver_(driver), changed_(driver_->exchange_capture_mode(&mode_) == Result::success) {}
  RelaxedCapture(const RelaxedCapture&) = delete;
  ~RelaxedCapture() {
    if (changed_) driver_->exchange_capture_mode(&mode_);
  }

 private:
  const Driver& driver_;
  CaptureMode mode_ = CaptureMode::relaxed;  // then the thread's own, until it is given back
  const bool changed_;
};

}  // namespace ringred::cuda
