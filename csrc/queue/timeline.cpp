#include "csrc/queue/timeline.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "csrc/base/json.h"

namespace ringred {
namespace {

// Perfetto looks threads up by tid alone when it names them, so that tids differ between ranks.
std::uint64_t tid_of(int rank, std::uint32_t track) {
  return (static_cast<std::uint64_t>(rank) + 1) * 1024 + track;
}

void append_microseconds(std::string& json, std::string_view key, std::uint64_t nanoseconds) {
  char text[32];
  const int length = std::snprintf(text, sizeof text, "%llu.%03u", static_cast<unsigned long long>(nanoseconds / 1000),
                                   static_cast<unsigned>(nanoseconds % 1000));
  (((json += ",\"") += key) += "\":").append(text, static_cast<std::size_t>(length));
}

// Opens an event: what all have. The caller adds fields and closes it.
void open_event(std::string& json, char phase, int rank, std::uint64_t tid, std::string_view name) {
  json += json.empty() ? "{" : ",\n{";
  append_json(json, "ph", std::string_view(&phase, 1));
  append_json(json += ',', "pid", static_cast<std::uint64_t>(rank));
  append_json(json += ',', "tid", tid);
  append_json(json += ',', "name", name);
}

void write_metadata(std::string& json, int rank, std::uint64_t tid, std::string_view what, std::string_view name) {
  open_event(json, 'M', rank, tid, what);
  append_json(json += ",\"args\":{", "name", name);
  json += "}}";
}

void write_process(std::string& json, int rank) {
  const auto number = static_cast<std::uint64_t>(rank);
  write_metadata(json, rank, number, "process_name", "rank " + std::to_string(rank));
  open_event(json, 'M', rank, number, "process_sort_index");
  append_json(json += ",\"args\":{", "sort_index", number);
  json += "}}";
}

void write_dropped(std::string& json, int rank, std::uint64_t when, std::size_t dropped) {
  open_event(json, 'i', rank, tid_of(rank, 0), "events dropped");
  append_microseconds(json, "ts", when);
  append_json(json += ",\"s\":\"p\",\"args\":{", "dropped", std::uint64_t{dropped});
  append_json(json += ',', "reason", std::string_view("the timeline was not drained in time"));
  json += "}}";
}

}  // namespace

void Timeline::start(int rank) {
  const std::lock_guard lock(mutex_);
  recording_ = {};
  recording_.rank = std::max(rank, 0);
  named_tracks_.assign(most_tracks, false);
  on_.store(true, std::memory_order_relaxed);
}

void Timeline::stop() {
  on_.store(false, std::memory_order_relaxed);
}

void Timeline::span(Track track, std::string_view name, std::uint64_t begin_ns, std::uint64_t end_ns) {
  if (!on()) return;
  const std::uint32_t number = std::min(static_cast<std::uint32_t>(track), std::uint32_t{most_tracks - 1});
  add({{begin_ns, std::max(begin_ns, end_ns)}, 0, 0, 0, number, {}, true}, name, 1);
}

void Timeline::operation(std::uint64_t id, std::string_view name, std::uint64_t submitted, std::uint64_t agreed,
                         std::uint64_t started, std::uint64_t ended, CallKind kind, std::uint64_t bytes) {
  if (!on()) return;
  add({{submitted, agreed, started, ended}, id, bytes, 0, 0, kind, false}, name, 8);
}

void Timeline::add(Event event, std::string_view name, std::size_t events) {
  const std::lock_guard lock(mutex_);
  if (recording_.held + events > most_events) {
    recording_.dropped += events;
    recording_.last = event.is_span ? event.times[1] : event.times[3];
    return;
  }
  recording_.held += events;
  const auto known = recording_.names.find(name);
  event.name = static_cast<std::uint32_t>(known == recording_.names.end() ? recording_.names.size() : known->second);
  if (known == recording_.names.end()) recording_.names.emplace(name, event.name);
  recording_.events.push_back(event);
}

std::string Timeline::drain() {
  Recording taken;
  std::string json;
  {
    const std::lock_guard lock(mutex_);
    if (recording_.events.empty() && recording_.dropped == 0) return json;
    std::swap(taken, recording_);
    recording_.rank = taken.rank;
    recording_.announced = true;
    for (const Event& event : taken.events) {
      if (!event.is_span || named_tracks_[event.track]) continue;
      named_tracks_[event.track] = true;
      const std::string set = event.track == 0 ? "" : ", process set " + std::to_string(event.track);
      write_metadata(json, taken.rank, tid_of(taken.rank, event.track), "thread_name", "engine" + set);
    }
  }
  if (!taken.announced) write_process(json, taken.rank);
  std::vector<std::string_view> names(taken.names.size());
  for (const auto& [name, number] : taken.names) names[number] = name;
  for (const Event& event : taken.events)
    event.is_span ? write_span(json, taken.rank, event, names[event.name])
                  : write_operation(json, taken.rank, event, names[event.name]);
  if (taken.dropped > 0) write_dropped(json, taken.rank, taken.last, taken.dropped);
  return json;
}

void Timeline::write_span(std::string& json, int rank, const Event& event, std::string_view name) {
  open_event(json, 'X', rank, tid_of(rank, event.track), name);
  append_microseconds(json, "ts", event.times[0]);
  append_microseconds(json, "dur", event.times[1] - event.times[0]);
  json += '}';
}

// The parts of an operation share its category and id, and so lie inside it. The id is of this process only
// (id2.local).
void Timeline::write_operation(std::string& json, int rank, const Event& event, std::string_view name) {
  const auto mark = [&](char phase, std::string_view what, std::uint64_t when) {
    open_event(json, phase, rank, static_cast<std::uint64_t>(rank), what);
    append_microseconds(json, "ts", when);
    append_json(json += ",\"cat\":\"operation\",\"id2\":{", "local", std::string_view(std::to_string(event.id)));
    json += '}';
  };
  // A time that was not reached is the end; no part ends before it begins.
  std::array<std::uint64_t, 4> times = event.times;
  times[3] = *std::max_element(times.begin(), times.end());
  for (std::size_t i = 1; i < 3; ++i) times[i] = times[i] == 0 ? times[3] : std::max(times[i], times[i - 1]);

  mark('b', name, times[0]);
  append_json(json += ",\"args\":{", "kind", name_of(event.kind));
  append_json(json += ',', "bytes", event.bytes);
  json += "}}";
  constexpr std::array<std::string_view, 3> parts{"negotiation", "wait", "execute"};
  for (std::size_t i = 0; i < parts.size() && times[i] < times[3]; ++i) {
    mark('b', parts[i], times[i]);
    json += '}';
    mark('e', parts[i], times[i + 1]);
    json += '}';
  }
  mark('e', name, times[3]);
  json += '}';
}

}  // namespace ringred
