#include "benchmarks/gpu/figures.h"

#include <algorithm>
#include <cctype>
#include <cstdio>

namespace ringred::cuda {
namespace {

std::string text(const char* format, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string quoted(const std::string& value) {
  std::string result = "\"";
  for (const char character : value) {
    if (character == '"' || character == '\\') result += '\\';
    result += character;
  }
  return result + "\"";
}

std::string goal_text(const Goal& goal) {
  if (goal.share > 0) return text("%.0f %% of the floor", 100 * goal.share);
  return goal.seconds > 0 ? text("at most %.3g us", 1e6 * goal.seconds) : "";
}

bool has_goal(const Goal& goal) {
  return goal.share > 0 || goal.seconds > 0;
}

std::string row(const Figure& figure, double bandwidth) {
  const Trial& best = figure.best();
  const std::string met = !has_goal(figure.goal) ? "" : figure.meets_goal(bandwidth) ? "yes" : "no";
  const double spread = (best.times.most - best.times.least) / best.times.median;
  return "| " + figure.name + " | " + goal_text(figure.goal) + " | " + text("%.2f", 1e6 * figure.floor(bandwidth)) +
         " | " + text("%.2f", 1e6 * best.times.median) + " | " + text("%.2f", spread) + " | " +
         text("%.3f", figure.share(bandwidth)) + " | " + met + " | " + best.setting + " |\n";
}

std::string times_json(const Times& times) {
  return "\"microseconds\": " + text("%.6g", 1e6 * times.median) + ", \"least\": " + text("%.6g", 1e6 * times.least) +
         ", \"most\": " + text("%.6g", 1e6 * times.most);
}

std::string figure_json(const Figure& figure, double bandwidth) {
  std::string result = "    {\"name\": " + quoted(figure.name) + ", \"bytes\": " + text("%.0f", figure.bytes) +
                       ", \"floor_microseconds\": " + text("%.6g", 1e6 * figure.floor(bandwidth)) + ", " +
                       times_json(figure.best().times) +
                       ", \"share_of_floor\": " + text("%.4f", figure.share(bandwidth)) +
                       ", \"setting\": " + quoted(figure.best().setting);
  if (has_goal(figure.goal))
    result += ", \"goal\": " + quoted(goal_text(figure.goal)) +
              ", \"met\": " + (figure.meets_goal(bandwidth) ? "true" : "false");
  result += ", \"trials\": [";
  for (std::size_t i = 0; i < figure.trials.size(); ++i)
    result += (i > 0 ? "," : "") + std::string("\n      {\"setting\": ") + quoted(figure.trials[i].setting) + ", " +
              times_json(figure.trials[i].times) + "}";
  return result + "]}";
}

}  // namespace

const Trial& Figure::best() const {
  return *std::min_element(trials.begin(), trials.end(), [](const Trial& left, const Trial& right) {
    return left.times.median < right.times.median;
  });
}

bool Figure::meets_goal(double bandwidth) const {
  if (goal.share > 0 && share(bandwidth) < goal.share) return false;
  return goal.seconds <= 0 || best().times.median <= goal.seconds;
}

std::string markdown(const Findings& findings) {
  const Machine& machine = findings.machine;
  std::string result =
      "# Kernels on a GPU, " + machine.date + "\n\nMachine: " + machine.name + ", " +
      std::to_string(machine.multiprocessors) + " multiprocessors, " + text("%.0f", machine.cache_bytes / 1e6) +
      " MB of L2 cache, " + text("%.1f", machine.memory_bytes / 1e9) + " GB of memory; driver of CUDA " +
      version(machine.driver) + ", runtime " + version(machine.runtime) + ".\n\n" +
      "A copy on the device reads and writes " + text("%.3f", findings.bandwidth / 1e12) +
      " TB/s, the fastest of those below. A floor is the bytes that a call has to read and write over that. Times are\n"
      "of events on one stream: the median of nine batches of at least a millisecond each, after a warm-up; spread is\n"
      "the slowest less the fastest batch over it. Where a figure has settings, all were tried and the fastest stands\n"
      "here. Every setting's result was compared with one that the host had computed, before its batches and after\n"
      "them, but for optimizers' steps: after the first. Ranks are virtual: all of them are on this device, in one\n"
      "launch. Tensors, inputs and ranks' vectors are of 256 MiB where no size stands, which the L2 cache does not "
      "hold;\n"
      "shorter vectors lie in it, and a CUDA graph launches a hundred calls in a row.\n\n"
      "| what | goal | floor, us | measured, us | spread | share of floor | met | setting |\n"
      "|---|---|--:|--:|--:|--:|---|---|\n";
  for (const Figure& figure : findings.figures) result += row(figure, findings.bandwidth);
  for (const std::string& failure : findings.failures) result += "\nFailed: " + failure + "\n";
  return result;
}

std::string json(const Findings& findings) {
  const Machine& machine = findings.machine;
  std::string result =
      "{\n  \"date\": " + quoted(machine.date) + ",\n  \"machine\": {\"name\": " + quoted(machine.name) +
      ", \"multiprocessors\": " + std::to_string(machine.multiprocessors) +
      ", \"cache_bytes\": " + text("%.0f", machine.cache_bytes) +
      ", \"memory_bytes\": " + text("%.0f", machine.memory_bytes) + ", \"driver\": " + std::to_string(machine.driver) +
      ", \"runtime\": " + std::to_string(machine.runtime) +
      "},\n  \"copy_bytes_per_second\": " + text("%.6g", findings.bandwidth) + ",\n  \"figures\": [\n";
  for (std::size_t i = 0; i < findings.figures.size(); ++i)
    result += (i > 0 ? ",\n" : "") + figure_json(findings.figures[i], findings.bandwidth);
  result += "\n  ],\n  \"failures\": [";
  for (std::size_t i = 0; i < findings.failures.size(); ++i)
    result += (i > 0 ? ", " : "") + quoted(findings.failures[i]);
  return result + "]\n}\n";
}

std::string file_name(const Machine& machine) {
  std::string name = machine.date + "-gpu-";
  for (const char character : machine.name)
    if (std::isalnum(static_cast<unsigned char>(character)) != 0)
      name += static_cast<char>(std::tolower(static_cast<unsigned char>(character)));
    else if (name.back() != '-')
      name += '-';
  return name.back() == '-' ? name.substr(0, name.size() - 1) : name;
}

}  // namespace ringred::cuda
