#include "csrc/cuda/report.h"

namespace ringred::cuda {
namespace {

std::string awaited_of(const Report& report) {
  const std::string peer = "rank " + std::to_string(report.peer);
  switch (report.awaited) {
    case Awaited::nothing:
      return "nothing";
    case Awaited::message:
      return "a message from " + peer;
    case Awaited::free_slot:
      return peer + " to take a message";
    case Awaited::lane:
      return "its own lane " + std::to_string(report.peer);
    case Awaited::packet:
      return "packets from " + peer;
    case Awaited::start:
      return peer + " to begin";
    case Awaited::end:
      return peer + " to end";
  }
  return "?";
}

}  // namespace

std::string describe(const Report& report) {
  if (report.taken != Report::there) return "";
  const std::string place = report.lane < 0
                                ? "block " + std::to_string(report.stripe)
                                : "lane " + std::to_string(report.lane) + ", move " + std::to_string(report.move) +
                                      ", stripe " + std::to_string(report.stripe);
  return "the device of rank " + std::to_string(report.rank) + " waited too long for " + awaited_of(report) + " (" +
         place + "): expected number " + std::to_string(report.expected) + ", saw " + std::to_string(report.seen);
}

}  // namespace ringred::cuda
