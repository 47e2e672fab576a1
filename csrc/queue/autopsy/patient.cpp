#include "csrc/queue/autopsy/patient.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string_view>

#include "csrc/queue/autopsy/memory.h"
#include "csrc/queue/autopsy/words.h"
#include "csrc/queue/flight_recorder.h"
#include "csrc/queue/peek.h"

namespace ringred {
namespace {

char process_state(int pid) {
  if (pid <= 0) return '?';
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t name_end = text.rfind(')');  // a program's name may hold anything
  return name_end == std::string::npos || name_end + 2 >= text.size() ? '?' : text[name_end + 2];
}

// The main thread's frames of what faulthandler wrote: blocks of frames, the innermost first, one for each thread, each
// after a line "... (most recent call first):", the oldest thread last. Threads of the module threading begin in
// _bootstrap.
std::vector<std::string> main_thread(std::string_view stacks) {
  constexpr std::size_t longest_path = 4096;
  std::vector<std::string> block, chosen;
  const auto close = [&] {
    const bool started_by_python = !block.empty() && block.back().ends_with(" in _bootstrap");
    if (!block.empty() && (chosen.empty() || !started_by_python)) chosen = block;
    block.clear();
  };
  for (const std::string& line : lines_of(stacks, longest_path)) {
    const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
    if (line.find("(most recent call first)") != std::string::npos)
      close();
    else if (line.compare(begin, 6, "File \"") == 0)
      block.push_back(line.substr(begin));
  }
  close();
  return chosen;
}

// The source line of a frame `File "/a/b.py", line 3 in f`; empty where it cannot be had.
std::string source_line(const std::string& frame) {
  constexpr std::string_view middle = "\", line ";
  constexpr off_t most_bytes = 4 << 20;
  const std::size_t path_end = frame.rfind(middle);
  if (path_end == std::string::npos || path_end <= 6 || frame[6] != '/') return "";
  unsigned number = 0;
  std::from_chars(frame.data() + path_end + middle.size(), frame.data() + frame.size(), number);
  const std::string path = frame.substr(6, path_end - 6);
  struct stat status{};
  if (number == 0 || stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_size > most_bytes)
    return "";
  std::ifstream file(path);
  std::string line;
  for (unsigned i = 0; i < number; ++i)
    if (!std::getline(file, line)) return "";
  const std::size_t begin = line.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : shortened(std::string_view(line).substr(begin), 100);
}

// Where the main thread stands: the innermost frame that tells. C functions have no frame, but their caller's line.
Place place_of(const std::vector<std::string>& frames, std::string_view source) {
  if (frames.empty()) return Place::unknown;
  const auto has = [](std::string_view text, std::string_view part) { return text.find(part) != text.npos; };
  const bool in_ringred = has(frames[0], "/ringred/");
  if (!in_ringred && has(source, "sleep(")) return Place::sleep;
  if (!in_ringred && (has(source, "MPI.") || has(source, "COMM_WORLD") || has(source, "comm."))) return Place::mpi;
  for (const std::string& frame : frames) {
    if (has(frame, "/ringred/")) return Place::ringred;
    if (has(frame, "torch/utils/data")) return Place::data_loader;
    if (has(frame, "mpi4py")) return Place::mpi;
    if (has(frame, "time.sleep")) return Place::sleep;
  }
  return Place::elsewhere;
}

void read_last_flight(const RankBlock& block, Patient& patient) {
  const FlightRange range = flights_of(block);
  FlightCopy copy;
  for (std::uint64_t sequence = range.end; sequence-- > range.first;) {
    if (!read_flight(block, sequence, copy)) continue;
    patient.last = copy.flight.name;
    patient.last_ended = copy.flight.ended;
    return;
  }
}

// What a rank that waits for long has written down is a sentence about itself, see Waiter: "rank 3 waits for ...". It
// is kept without its subject, since several ranks may say the same.
std::string predicate(const std::string& sentence, int rank) {
  const std::string subject = "rank " + std::to_string(rank) + " waits";
  return sentence.starts_with(subject) ? sentence.substr(subject.size()) : ": " + sentence;
}

void read_stack(const RankBlock& block, bool source_lines, Patient& patient) {
  patient.frames = main_thread(peek_text(block.stacks, sizeof block.stacks));
  if (source_lines && !patient.frames.empty()) patient.source = source_line(patient.frames[0]);
  patient.place = place_of(patient.frames, patient.source);
}

}  // namespace

Patient examine(const Scene& scene, int rank, const AutopsyOptions& options) {
  Patient patient;
  patient.rank = rank;
  patient.alive = !scene.alive || scene.alive(rank);
  const RankBlock* block = rank_block(scene, rank);
  if (block == nullptr) return patient;
  patient.visible = true;
  patient.pid = peek(block->pid);
  if (patient.alive) patient.state = process_state(patient.pid);
  read_last_flight(*block, patient);
  const auto time = [](std::int64_t stored) { return static_cast<std::uint64_t>(std::max<std::int64_t>(stored, 0)); };
  patient.failed = time(block->failed.load(std::memory_order_acquire));
  if (patient.failed != 0) patient.failure = lines_of(peek_text(block->failure, sizeof block->failure), 150);
  patient.waiting_since = time(block->waiting_since.load(std::memory_order_acquire));
  if (patient.waiting_since != 0)
    patient.waiting = predicate(shortened(peek_text(block->waiting_in, sizeof block->waiting_in), 300), rank);
  const auto place = static_cast<std::size_t>(rank);
  const std::uint32_t request = place < options.requests.size() ? options.requests[place] : 0;
  patient.asked = request != 0;
  patient.answered = patient.asked && answered(*block, request);
  if (patient.answered) read_stack(*block, options.source_lines, patient);
  for (std::size_t group = 0; group < RankBlock::most_groups && !patient.joined; ++group) {
    const GroupBlock* joined = group_block(scene, rank, group);
    if (joined != nullptr && joined->joined.load(std::memory_order_relaxed) == 1) patient.joined = group;
  }
  return patient;
}

std::string state_text(const Patient& patient) {
  if (!patient.alive) return "has ended";
  switch (patient.state) {
    case 'R':
      return "is running";
    case 'S':
      return "is alive, its main thread sleeps";
    case 'D':
      return "is alive, in an uninterruptible wait (a disk, a network file system or a driver)";
    case 'T':
      return "is stopped by a signal";
    case 't':
      return "is stopped by a debugger";
    case 'Z':
      return "has ended (a zombie: its parent has not asked for its exit status)";
    case 'X':
      return "has ended";
    default:
      return "is alive";
  }
}

}  // namespace ringred
