#include "csrc/queue/autopsy/screen.h"

#include <algorithm>
#include <ctime>
#include <map>
#include <utility>

#include "csrc/queue/autopsy/words.h"

namespace ringred {
namespace {

using Lines = std::vector<std::string>;

// Of the whole screen, and of its parts.
constexpr std::size_t most_lines = 60, most_operations = 8, most_waits = 4, most_names = 3, most_processes = 8,
                      failure_lines = 6, stack_lines = 12;

// Ranks of which the same is to be said; not empty.
using Fold = std::vector<const Patient*>;

std::string ago(const Case& all, std::uint64_t then) {
  return duration_text(all.now > then ? all.now - then : 0);
}

// "31 s", or "29 s to 31 s" for several ranks.
std::string ages(const Case& all, const Fold& patients, std::uint64_t Patient::* when) {
  const auto [first, last] = std::minmax_element(patients.begin(), patients.end(),
                                                 [&](auto left, auto right) { return left->*when < right->*when; });
  const std::string longest = ago(all, (*first)->*when), shortest = ago(all, (*last)->*when);
  return longest == shortest ? longest : shortest + " to " + longest;
}

std::vector<int> ranks_of(const Fold& patients) {
  std::vector<int> ranks;
  for (const Patient* patient : patients) ranks.push_back(patient->rank);
  return ranks;
}

// Patients with the same key are one; in the order of the first of each.
template <class Key>
std::vector<Fold> folded(const Fold& patients, Key&& key_of) {
  std::vector<Fold> folds;
  std::map<std::string, std::size_t> places;
  for (const Patient* patient : patients) {
    const auto [place, is_new] = places.emplace(key_of(*patient), folds.size());
    if (is_new) folds.emplace_back();
    folds[place->second].push_back(patient);
  }
  return folds;
}

std::string header(const Case& all) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  const std::size_t count = all.operations.size();
  return "ringred autopsy, " + std::string(text) + ": " +
         (count == 0   ? "no named operation waits"
          : count == 1 ? "1 operation waits"
                       : std::to_string(count) + " operations wait");
}

void add_operations(const Case& all, Lines& lines) {
  const std::size_t shown = std::min(all.operations.size(), most_operations);
  for (std::size_t i = 0; i < shown; ++i) {
    const PendingOperation& operation = all.operations[i];
    lines.push_back(quoted(operation.name) + set_text(operation.group) + " waits for " + ago(all, operation.since) +
                    ": " + shortened(operation.what, 120));
    std::string line = "  submitted by " + ranks_text(operation.submitted);
    const auto add = [&](const char* what, const std::vector<int>& ranks) {
      if (!ranks.empty()) line += std::string("; ") + what + " " + ranks_text(ranks);
    };
    add("missing:", operation.missing);
    add("joined:", operation.joined);
    add("already through:", operation.finished);
    add("not visible from here:", operation.unseen);
    if (operation.missing.empty() && operation.unseen.empty()) line += "; nobody is missing, it is being carried out";
    lines.push_back(line);
  }
  if (shown < all.operations.size()) lines.push_back("and " + std::to_string(all.operations.size() - shown) + " more");
}

// The sentence was written when a wait became long: it may have got longer since then.
void add_synchronous(const Case& all, Lines& lines) {
  constexpr std::uint64_t worth_telling = 2'000'000'000;  // ns: more than a report takes
  Fold waiting;
  for (const Patient& patient : all.patients)
    if (patient.waiting_since != 0) waiting.push_back(&patient);
  const auto folds = folded(waiting, [](const Patient& patient) { return patient.waiting; });
  for (std::size_t i = 0; i < std::min(folds.size(), most_waits); ++i) {
    const Patient& first = *folds[i][0];
    const bool old = all.now > first.waiting_since + worth_telling;
    lines.push_back(ranks_text(ranks_of(folds[i])) + (folds[i].size() == 1 ? " waits" : " wait") + first.waiting +
                    (old ? " That was " + ages(all, folds[i], &Patient::waiting_since) + " ago." : ""));
  }
  std::size_t hidden = 0;
  for (std::size_t i = most_waits; i < folds.size(); ++i) hidden += folds[i].size();
  if (hidden > 0) lines.push_back("and " + std::to_string(hidden) + " more ranks");
}

std::string names_text(const Case& all, const std::vector<std::size_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < std::min(numbers.size(), most_names); ++i) {
    const PendingOperation& operation = all.operations[numbers[i]];
    text += (i == 0 ? "" : ", ") + quoted(operation.name) + set_text(operation.group);
  }
  return numbers.size() <= most_names ? text : text + " and " + std::to_string(numbers.size() - most_names) + " more";
}

// What is the same for all ranks of a section: all but numbers and times.
std::string section_key(const Case& all, const Patient& patient) {
  std::string key = likely_cause(all, patient) + '\n' + state_text(patient) + '\n' + patient.last + '\n' +
                    (patient.asked && !patient.answered ? "?" : "");
  for (const std::size_t number : patient.missing) key += '\n' + std::to_string(number);
  for (const std::string& line : patient.failure) key += '\n' + line;
  for (const std::string& line : patient.frames) key += '\n' + line;
  return key;
}

void add_process(const Case& all, const Fold& patients, Lines& lines) {
  const Patient& patient = *patients[0];
  std::string line = patients.size() == 1 ? "  process " : "  processes ";
  for (std::size_t i = 0; i < std::min(patients.size(), most_processes); ++i)
    line += (i == 0 ? "" : ", ") + std::to_string(patients[i]->pid);
  if (patients.size() > most_processes) line += " and " + std::to_string(patients.size() - most_processes) + " more";
  line += (patients.size() == 1 ? " " : ": each ") + state_text(patient);
  line += patient.last_ended == 0
              ? "; has completed no operation"
              : "; last completed " + quoted(patient.last) + " " + ages(all, patients, &Patient::last_ended) + " ago";
  lines.push_back(line);
}

// Its last lines say most. Its first sums it up, and is the likely cause.
void add_failure(const Case& all, const Fold& patients, Lines& lines) {
  const auto& failure = patients[0]->failure;
  if (failure.size() < 2) return;
  const std::size_t hidden = failure.size() - 1 - std::min(failure.size() - 1, failure_lines);
  lines.push_back("  first failure, " + ages(all, patients, &Patient::failed) + " ago" +
                  (hidden == 0 ? ":" : " (" + std::to_string(hidden) + " lines above not shown):"));
  for (std::size_t i = 1 + hidden; i < failure.size(); ++i) lines.push_back("    " + failure[i]);
}

void add_stack(const Patient& patient, Lines& lines) {
  if (patient.asked && !patient.answered && !patient.ended())
    lines.push_back("  no Python stack: its engine did not answer");
  if (patient.frames.empty()) return;
  lines.push_back("  Python stack, innermost first:");
  const std::size_t shown = std::min(patient.frames.size(), stack_lines);
  for (std::size_t i = 0; i < shown; ++i)
    lines.push_back("    " + shortened(patient.frames[i], 150) +
                    (i == 0 && !patient.source.empty() ? ":  " + patient.source : ""));
  if (shown < patient.frames.size())
    lines.push_back("    and " + std::to_string(patient.frames.size() - shown) + " more");
}

// The cause comes first, so that a cut takes details.
Lines section(const Case& all, const Fold& patients) {
  const Patient& patient = *patients[0];
  Lines lines{ranks_text(ranks_of(patients)) + ", likely cause: " + likely_cause(all, patient)};
  if (!patient.missing.empty())
    lines.push_back("  " + std::string(patients.size() == 1 ? "has" : "have") + " not submitted " +
                    names_text(all, patient.missing));
  if (!patient.visible) return lines;
  add_process(all, patients, lines);
  add_failure(all, patients, lines);
  add_stack(patient, lines);
  return lines;
}

// Those that others wait for, that have ended or that have failed; if there are none, all.
Fold worth_a_section(const Case& all) {
  const bool some_wait = std::any_of(all.patients.begin(), all.patients.end(),
                                     [](const Patient& patient) { return patient.waiting_since != 0; });
  Fold chosen, everyone;
  for (const Patient& patient : all.patients) {
    const bool late = all.operations.empty() && some_wait && patient.waiting_since == 0;
    everyone.push_back(&patient);
    if (!patient.missing.empty() || patient.ended() || patient.stopped() || patient.failed != 0 || late)
      chosen.push_back(&patient);
  }
  return chosen.empty() ? everyone : chosen;
}

// Who failed first comes first, then who has ended.
std::vector<Fold> sections_of(const Case& all) {
  Fold chosen = worth_a_section(all);
  std::stable_sort(chosen.begin(), chosen.end(), [](const Patient* left, const Patient* right) {
    const auto order = [](const Patient* patient) {
      return std::pair(patient->failed == 0 ? UINT64_MAX : patient->failed, patient->ended() ? 0 : 1);
    };
    return order(left) < order(right);
  });
  return folded(chosen, [&](const Patient& patient) { return section_key(all, patient); });
}

void add_sections(const Case& all, Lines& lines) {
  constexpr std::size_t least = 4;  // lines of a section: an empty one, the cause, what is missing, the process
  const std::vector<Fold> sections = sections_of(all);
  std::size_t left = most_lines - std::min(lines.size(), most_lines - 1);
  const std::size_t shown = std::min(sections.size(), std::max<std::size_t>(left / least, 1));
  for (std::size_t i = 0; i < shown; ++i) {
    Lines part = section(all, sections[i]);
    const std::size_t share = std::max(left / (shown - i), least) - 1;
    if (part.size() > share) {
      part.resize(share - 1);
      part.push_back("    and more");
    }
    lines.push_back("");
    lines.insert(lines.end(), part.begin(), part.end());
    left -= std::min(left, part.size() + 1);
  }
  std::size_t hidden = 0;
  for (std::size_t i = shown; i < sections.size(); ++i) hidden += sections[i].size();
  if (hidden > 0) lines.push_back("and " + std::to_string(hidden) + " more ranks");
}

}  // namespace

std::string screen(const Case& all) {
  Lines lines{header(all)};
  add_operations(all, lines);
  add_synchronous(all, lines);
  add_sections(all, lines);
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

}  // namespace ringred
