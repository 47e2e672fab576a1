#include "csrc/queue/autopsy/causes.h"

#include <algorithm>

#include "csrc/queue/autopsy/memory.h"
#include "csrc/queue/autopsy/words.h"

namespace ringred {
namespace {

// A rule says why the rank may be missing, or nothing.
using Rule = std::string (*)(const Case&, const Patient&);

constexpr std::size_t most_compared = 64;  // operations of a rank that the rules look at

std::string is_elsewhere(const Case&, const Patient& patient) {
  return patient.visible ? "" : "it is on another node or has not started: its memory cannot be read from here";
}

std::string has_ended(const Case&, const Patient& patient) {
  if (!patient.ended()) return "";
  if (!patient.failure.empty()) return "its process ended after a failure: " + patient.failure.front();
  return "its process has ended and left no word: killed (out of memory? see dmesg), crashed in C code, or it called "
         "exit";
}

std::string is_stopped(const Case&, const Patient& patient) {
  if (patient.state == 't') return "its process is held by a debugger";
  return patient.state == 'T' ? "its process is stopped (SIGSTOP, SIGTSTP or Ctrl-Z); kill -CONT lets it go on" : "";
}

std::string has_failed(const Case&, const Patient& patient) {
  if (patient.failed == 0) return "";
  return "it failed: " + (patient.failure.empty() ? std::string("(no text)") : patient.failure.front());
}

std::string has_joined(const Case&, const Patient& patient) {
  if (!patient.joined) return "";
  const std::string set = *patient.joined == 0 ? "" : " in process set " + std::to_string(*patient.joined);
  return "it has called join()" + set + " and submits nothing until all ranks have joined";
}

std::string used_other_set(const Case& all, const Patient& patient) {
  for (std::size_t i = 0; i < std::min(patient.missing.size(), most_compared); ++i) {
    const PendingOperation& wanted = all.operations[patient.missing[i]];
    for (const std::size_t number : patient.submitted) {
      const PendingOperation& other = all.operations[number];
      if (other.hash == wanted.hash && other.group != wanted.group)
        return "it has submitted " + quoted(wanted.name) + " to process set " + std::to_string(other.group) +
               ", the others to process set " + std::to_string(wanted.group);
    }
  }
  return "";
}

std::string lacks_set(const Case& all, const Patient& patient) {
  for (const std::size_t number : patient.missing) {
    const std::uint32_t group = all.operations[number].group;
    if (group_block(all.scene, patient.rank, group) == nullptr)
      return "it does not have process set " + std::to_string(group) + " (not yet, or no longer)";
  }
  return "";
}

std::string loads_data(const Case&, const Patient& patient) {
  return patient.place == Place::data_loader ? "it waits for its DataLoader" : "";
}

std::string calls_synchronously(const Case& all, const Patient& patient) {
  if (patient.waiting_since == 0) return "";
  std::string text = "it waits" + patient.waiting;
  if (text.ends_with('.')) text.pop_back();
  if (!patient.missing.empty())
    text += ", and submits " + quoted(all.operations[patient.missing[0]].name) +
            " only then: the ranks call in different order, or some do not make this call";
  return text;
}

// Whether the rank waits in ringred, as far as is known.
bool may_wait_in_ringred(const Patient& patient) {
  const bool able = patient.visible && !patient.ended() && !patient.stopped() && patient.failed == 0;
  return able && (patient.place == Place::ringred || patient.place == Place::unknown);
}

std::string calls_in_other_order(const Case& all, const Patient& patient) {
  if (!may_wait_in_ringred(patient)) return "";
  for (std::size_t i = 0; i < std::min(patient.missing.size(), most_compared); ++i) {
    const PendingOperation& wanted = all.operations[patient.missing[i]];
    for (std::size_t j = 0; j < std::min(patient.submitted.size(), most_compared); ++j) {
      const PendingOperation& own = all.operations[patient.submitted[j]];
      for (const int other : own.missing) {
        if (!contains(wanted.submitted, other)) continue;
        if (!may_wait_in_ringred(all.patients[static_cast<std::size_t>(other)])) continue;
        const bool first = patient.rank < other;
        return "rank " + std::to_string(std::min(patient.rank, other)) + " waits for " +
               quoted(first ? own.name : wanted.name) + ", rank " + std::to_string(std::max(patient.rank, other)) +
               " for " + quoted(first ? wanted.name : own.name) + ": they call in different order";
      }
    }
  }
  return "";
}

std::string waits_for_others(const Case& all, const Patient& patient) {
  if (!may_wait_in_ringred(patient)) return "";
  for (const std::size_t number : patient.submitted) {
    const PendingOperation& own = all.operations[number];
    if (!own.missing.empty())
      return "it waits for " + quoted(own.name) + set_text(own.group) + ", which " + ranks_text(own.missing) +
             (own.missing.size() == 1 ? " has" : " have") + " not submitted";
  }
  return "";
}

std::string takes_part(const Case& all, const Patient& patient) {
  if (patient.missing.empty() && !patient.submitted.empty() && all.operations[patient.submitted[0]].missing.empty())
    return quoted(all.operations[patient.submitted[0]].name) + " is submitted everywhere and being carried out";
  return "";
}

std::string is_in_mpi(const Case&, const Patient& patient) {
  return patient.place == Place::mpi ? "it seems to be in an MPI call, which waits for other ranks" : "";
}

std::string sleeps(const Case&, const Patient& patient) {
  return patient.place == Place::sleep ? "it sleeps (time.sleep)" : "";
}

std::string computes(const Case&, const Patient& patient) {
  if (patient.frames.empty()) return "";
  const std::string frame = ": " + shortened(patient.frames[0], 150);
  if (patient.place == Place::ringred) return "it is in ringred" + frame;
  if (patient.state == 'D') return "it waits for a disk, a network file system or a driver" + frame;
  return (patient.state == 'S' ? "it is elsewhere, asleep" : "it is still computing") + frame;
}

// The first that speaks; facts before guesses, what holds for sure before what only fits.
constexpr Rule rules[] = {
    has_ended,  is_elsewhere,        is_stopped,           has_failed,       has_joined, used_other_set, lacks_set,
    loads_data, calls_synchronously, calls_in_other_order, waits_for_others, takes_part, is_in_mpi,      sleeps,
    computes};

}  // namespace

std::string likely_cause(const Case& all, const Patient& patient) {
  for (const Rule rule : rules)
    if (std::string text = rule(all, patient); !text.empty()) return text;
  if (!patient.asked) return "not known: it was not asked for its Python stack";
  return patient.answered ? "not known: it has no Python stack" : "not known: its engine did not answer";
}

}  // namespace ringred
