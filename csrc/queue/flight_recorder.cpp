#include "csrc/queue/flight_recorder.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/json.h"
#include "csrc/base/text.h"
#include "csrc/queue/peek.h"

namespace ringred {
namespace {

// A record moves as whole words, whatever its fields are. The first is `sequence`.
using Word = std::uint64_t __attribute__((may_alias));
constexpr std::size_t words = sizeof(FlightRecord) / sizeof(Word);
static_assert(offsetof(FlightRecord, sequence) == 0 && sizeof(FlightRecord) % sizeof(Word) == 0);

constexpr std::size_t slot_of(std::uint64_t sequence) {
  return (sequence - 1) % RankBlock::flight_records;
}

void store_words(FlightRecord& place, const FlightRecord& record) {
  Word* const to = reinterpret_cast<Word*>(&place);
  const Word* const from = reinterpret_cast<const Word*>(&record);
  for (std::size_t i = 1; i < words; ++i) __atomic_store_n(to + i, from[i], __ATOMIC_RELEASE);
}

void load_words(const FlightRecord& place, FlightRecord& record) {
  Word* const to = reinterpret_cast<Word*>(&record);
  const Word* const from = reinterpret_cast<const Word*>(&place);
  for (std::size_t i = 1; i < words; ++i) to[i] = __atomic_load_n(from + i, __ATOMIC_ACQUIRE);
}

void append_entry(std::string& json, const FlightCopy& copy) {
  const Flight& flight = copy.flight;
  const auto field = [&](std::string_view key, auto value) {
    json += ',';
    append_json(json, key, value);
  };
  json += '{';
  append_json(json, "sequence", copy.sequence);
  field("name", flight.name);
  field("kind", name_of(flight.kind));
  field("op", name_of(flight.op));
  field("dtype", static_cast<std::size_t>(flight.dtype) < dtype_table.size() ? info(flight.dtype).name : "?");
  field("bytes", flight.bytes);
  field("process_set", std::uint64_t{flight.group});
  field("submitted", flight.submitted);
  field("agreed", flight.agreed);
  field("started", flight.started);
  field("ended", flight.ended);
  field("state", std::string_view(flight.failed ? "failed" : "done"));
  json += '}';
}

}  // namespace

FlightRecorder::FlightRecorder(RankBlock& block)
    : block_(block), next_(block.flights.load(std::memory_order_relaxed) + 1) {}

void FlightRecorder::record(const Flight& flight) {
  FlightRecord record{};
  record.bytes = flight.bytes;
  record.submitted = flight.submitted;
  record.agreed = flight.agreed;
  record.started = flight.started;
  record.ended = flight.ended;
  record.group = flight.group;
  record.kind = static_cast<std::uint8_t>(flight.kind);
  record.state = flight.failed ? 1 : 0;
  record.dtype = static_cast<std::uint8_t>(flight.dtype);
  record.op = static_cast<std::uint8_t>(flight.op);
  store_text(record.name, flight.name);

  FlightRecord& place = block_.flight[slot_of(next_)];
  place.sequence.store(0, std::memory_order_relaxed);      // 1
  store_words(place, record);                              // 2
  place.sequence.store(next_, std::memory_order_release);  // 3
  block_.flights.store(next_++, std::memory_order_release);
}

FlightRange flights_of(const RankBlock& block) {
  const std::uint64_t last = block.flights.load(std::memory_order_acquire);
  if (last == UINT64_MAX) return {1, 1};
  return {last < RankBlock::flight_records ? 1 : last - RankBlock::flight_records + 1, last + 1};
}

bool read_flight(const RankBlock& block, std::uint64_t sequence, FlightCopy& copy) {
  if (sequence == 0) return false;
  const FlightRecord& place = block.flight[slot_of(sequence)];
  if (place.sequence.load(std::memory_order_acquire) != sequence) return false;  // 4
  FlightRecord record{};
  load_words(place, record);
  if (place.sequence.load(std::memory_order_relaxed) != sequence) return false;

  copy.sequence = sequence;
  std::memcpy(copy.name, record.name, sizeof copy.name);
  copy.flight = {.name = std::string_view(copy.name, strnlen(copy.name, sizeof copy.name)),
                 .kind = static_cast<CallKind>(record.kind),
                 .op = static_cast<Op>(record.op),
                 .dtype = static_cast<DType>(record.dtype),
                 .group = record.group,
                 .bytes = record.bytes,
                 .submitted = record.submitted,
                 .agreed = record.agreed,
                 .started = record.started,
                 .ended = record.ended,
                 .failed = record.state != 0};
  return true;
}

std::string flight_recorder_json(const RankBlock& block) {
  std::string json = "{";
  const auto number = [](std::int32_t value) { return static_cast<std::uint64_t>(std::max(value, 0)); };
  append_json(json, "version", std::uint64_t{1});
  append_json(json += ',', "rank", number(peek(block.rank)));
  append_json(json += ',', "size", number(peek(block.size)));
  append_json(json += ',', "pid", number(peek(block.pid)));
  append_json(json += ',', "clock", std::string_view("CLOCK_MONOTONIC ns"));
  json += ",\"entries\":[";
  const FlightRange range = flights_of(block);
  FlightCopy copy;
  bool first = true;
  for (std::uint64_t sequence = range.first; sequence < range.end; ++sequence) {
    if (!read_flight(block, sequence, copy)) continue;
    json += first ? "\n" : ",\n";
    append_entry(json, copy);
    first = false;
  }
  return json + "]}";
}

}  // namespace ringred
