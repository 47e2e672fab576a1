#include "csrc/cuda/mail.h"

#include <algorithm>
#include <string>

#include "csrc/base/error.h"

namespace ringred::cuda {

Wiring::Wiring(const std::vector<Schedule>& schedules) : size_(schedules.empty() ? 0 : schedules[0].size) {
  if (size_ == 0) fail_usage("a wiring needs a schedule or more");
  for (const Schedule& schedule : schedules) {
    if (schedule.size != size_)
      fail_usage("the schedules of a wiring must be of one size: got " + std::to_string(size_) + " and " +
                 std::to_string(schedule.size));
    for (const std::vector<Lane>& lanes : schedule.ranks) lanes_ = std::max(lanes_, static_cast<int>(lanes.size()));
  }
  numbers_.assign(place(0, size_, 0), -1);
  for (const Schedule& schedule : schedules)
    for (int from = 0; from < size_; ++from) {
      const std::vector<Lane>& lanes = schedule.ranks[static_cast<std::size_t>(from)];
      for (std::size_t lane = 0; lane < lanes.size(); ++lane)
        for (const Step& step : lanes[lane])
          if (step.to >= 0) numbers_[place(from, step.to, static_cast<int>(lane))] = 0;
    }
  for (int to = 0; to < size_; ++to) {
    int next = 0;
    for (std::size_t i = place(0, to, 0); i < place(0, to + 1, 0); ++i)
      if (numbers_[i] == 0) numbers_[i] = next++;
    inboxes_ = std::max(inboxes_, next);
  }
}

void check_shape(const MailShape& shape) {
  if (shape.size < 1 || shape.size > most_ranks || shape.lanes < 1 || shape.stripes < 1)
    fail_usage("mail is for 1 to " + std::to_string(most_ranks) + " ranks, with a lane and a stripe or more: got " +
               std::to_string(shape.size) + " ranks, " + std::to_string(shape.lanes) + " lanes, " +
               std::to_string(shape.stripes) + " stripes");
  if (shape.slots < 2 || (shape.slots & (shape.slots - 1)) != 0)
    fail_usage(
        "a FIFO of the device has 2, 4, 8, ... slots, since a move may hold one while it waits for another: got " +
        std::to_string(shape.slots));
  for (std::size_t bytes : {shape.slot_bytes, shape.packet_slot_bytes})
    if (bytes == 0 || bytes % unit_bytes != 0)
      fail_usage("slots must be a whole number of 16 bytes: got " + std::to_string(bytes));
}

}  // namespace ringred::cuda
