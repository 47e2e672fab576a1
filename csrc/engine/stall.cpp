#include "csrc/engine/stall.h"

#include "csrc/base/error.h"

namespace ringred {

std::string describe(const Stall& stall) {
  if (stall.step == nullptr) return "";
  std::string text = "lane " + std::to_string(stall.lane) + ", step " + std::to_string(stall.number) + " of " +
                     std::to_string(stall.steps) + " waits for ";
  if (stall.other_lane)
    text += "step " + std::to_string(stall.other_lane->step) + " of lane " + std::to_string(stall.other_lane->lane);
  if (stall.out_chunk)
    text +=
        "a free slot to send chunk " + std::to_string(*stall.out_chunk) + " to rank " + std::to_string(stall.step->to);
  if (stall.in_chunk)
    text += (stall.out_chunk ? " and for chunk " : "chunk ") + std::to_string(*stall.in_chunk) + " from rank " +
            std::to_string(stall.step->from);
  return text;
}

void fail_piece(int rank, int peer, int lane, std::size_t step, std::size_t expected, std::size_t arrived) {
  throw Error(ErrorKind::system, "all ranks must play the same schedule on buffers of the same length: rank " +
                                     std::to_string(rank) + ", lane " + std::to_string(lane) + ", step " +
                                     std::to_string(step) + " expects " + std::to_string(expected) +
                                     " bytes from rank " + std::to_string(peer) + " and gets " +
                                     std::to_string(arrived));
}

}  // namespace ringred
