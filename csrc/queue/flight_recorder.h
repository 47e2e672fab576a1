// The last operations of a rank, kept in shared memory for whoever asks.
//
// One record's protocol; the owner writes, any process reads:
//   1. The owner sets `sequence` to 0.
//   2. It stores the other words of the record, each with release.
//   3. It stores the new `sequence` (release), then the block's number of `flights`.
//   4. A reader loads `sequence` (acquire), then the words, each with acquire, then `sequence` again.
// A reader that has seen a word of (2) sees (1) or later when it loads `sequence` again; so if it finds twice the
// number that it wants, all words are that record's. Otherwise the record was overwritten meanwhile, and it is left
// out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "csrc/base/types.h"
#include "csrc/engine/call.h"
#include "csrc/queue/shared.h"

namespace ringred {

// A finished operation. Times are nanoseconds of CLOCK_MONOTONIC; 0: not reached.
struct Flight {
  std::string_view name = {};
  CallKind kind = CallKind::barrier;
  Op op = Op::sum;
  DType dtype = DType::u8;
  std::uint32_t group = 0;
  std::uint64_t bytes = 0, submitted = 0, agreed = 0, started = 0, ended = 0;
  bool failed = false;
};

class FlightRecorder {
 public:
  explicit FlightRecorder(RankBlock& block);

  // One thread at a time. Allocates nothing.
  void record(const Flight& flight);

 private:
  RankBlock& block_;
  std::uint64_t next_;
};

// A record as its reader has it. `flight.name` is a copy's: valid as long as the copy.
struct FlightCopy {
  std::uint64_t sequence;
  Flight flight;
  char name[FlightRecord::name_bytes];

  FlightCopy() = default;
  FlightCopy(const FlightCopy&) = delete;
  FlightCopy& operator=(const FlightCopy&) = delete;
};

// The numbers of the records that may be there: [first, end). Empty where none.
struct FlightRange {
  std::uint64_t first, end;
};
FlightRange flights_of(const RankBlock& block);

// Reads a record; false where it is being overwritten, or was.
bool read_flight(const RankBlock& block, std::uint64_t sequence, FlightCopy& copy);

// {"version":1,"rank":0,...,"entries":[{...},...]}, the oldest first.
std::string flight_recorder_json(const RankBlock& block);

}  // namespace ringred
