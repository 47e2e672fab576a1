// What a rank's engine did when, as events of a Chrome trace. The format is that of the "Trace Event Format" document
// (Google; docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU), which ui.perfetto.dev opens.
//
// A rank is a process of the trace. An operation is a nestable async event (ph b and e) that contains "negotiation",
// "wait" and "execute"; the engine's work is complete events (ph X) on one track for each process set, since an engine
// works for several sets in turn and slices of one track must nest. Times are microseconds of CLOCK_MONOTONIC, which
// all ranks of a node share.
//
// Invariant: at most `most_events` are held; what comes beyond is counted, and an event of the trace says so.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/engine/call.h"

namespace ringred {

enum class Track : std::uint32_t { engine = 0 };

// The engine's track for its work in a process set.
constexpr Track track_of(std::uint32_t group) {
  return static_cast<Track>(group);
}

class Timeline {
 public:
  static constexpr std::size_t most_events = 1'000'000;

  // Drops what is left of an earlier recording.
  void start(int rank);
  // What has been recorded remains to be drained.
  void stop();
  bool on() const { return on_.load(std::memory_order_relaxed); }

  // Both do nothing while it is off, and may be called by any thread. Times are nanoseconds of CLOCK_MONOTONIC.
  // Spans of one track nest or are apart.
  void span(Track track, std::string_view name, std::uint64_t begin_ns, std::uint64_t end_ns);
  // `id` tells operations of this rank apart. A time of 0: not reached.
  void operation(std::uint64_t id, std::string_view name, std::uint64_t submitted, std::uint64_t agreed,
                 std::uint64_t started, std::uint64_t ended, CallKind kind, std::uint64_t bytes);

  // The events since the last time, JSON objects joined by ",\n", without brackets; empty where there are none.
  std::string drain();

 private:
  static constexpr std::size_t most_tracks = 1024;

  struct Event {
    std::array<std::uint64_t, 4> times;  // of a span: begin, end
    std::uint64_t id, bytes;
    std::uint32_t name;   // its place in names
    std::uint32_t track;  // of a span
    CallKind kind;
    bool is_span;
  };
  struct Hasher {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  // The names come back with each step of a training: each is kept once.
  struct Recording {
    int rank = 0;
    bool announced = false;  // the process has its name
    std::deque<Event> events;
    std::unordered_map<std::string, std::uint32_t, Hasher, std::equal_to<>> names;
    std::size_t held = 0, dropped = 0;  // events of the trace
    std::uint64_t last = 0;             // when the last one that was dropped ended
  };

  void add(Event event, std::string_view name, std::size_t events);
  static void write_operation(std::string& json, int rank, const Event& event, std::string_view name);
  static void write_span(std::string& json, int rank, const Event& event, std::string_view name);

  std::atomic<bool> on_{false};
  std::mutex mutex_;  // held for a copy of one event, or to take the recording out
  Recording recording_;
  std::vector<bool> named_tracks_ = std::vector<bool>(most_tracks);
};

}  // namespace ringred
