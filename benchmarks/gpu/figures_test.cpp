// The tables of the benchmark: floors and shares from the bandwidth that was measured, goals met or not, the best of
// the settings.
#include "benchmarks/gpu/figures.h"

#include <algorithm>
#include <cmath>

#include "tests/check.h"

namespace ringred::cuda {
namespace {

constexpr double bandwidth = 2e12;

Findings example() {
  Findings findings;
  findings.machine = {"NVIDIA \"H200\"", "2026-11-22", 132, 13000, 12080, 141e9, 60e6};
  findings.bandwidth = bandwidth;
  findings.figures = {
      {"copy of 256 MiB", 5e8, {}, {{"", {250e-6, 249e-6, 252e-6}}}},
      {"two_shot",
       2e9,
       {.share = 0.8},
       {{"33 blocks", {1.3e-3, 1.2e-3, 1.4e-3}}, {"66 blocks", {1.25e-3, 1.25e-3, 1.25e-3}}}},
      {"ring", 2e9, {.share = 0.6}, {{"8 stripes", {2e-3, 2e-3, 2e-3}}}},
      {"one_shot", 1e5, {.seconds = 8e-6}, {{"4 blocks", {7.5e-6, 7e-6, 8e-6}}, {"2 blocks", {9e-6, 9e-6, 9e-6}}}},
      {"packets", 1e5, {.seconds = 8e-6}, {{"4 blocks", {8.5e-6, 8e-6, 9e-6}}}}};
  return findings;
}

bool has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  std::fprintf(stderr, "%s\n", text.c_str());
  return false;
}

TEST("the best setting, its share of the floor, and whether that is enough") {
  const Findings findings = example();
  const Figure& two_shot = findings.figures[1];
  CHECK_EQ(two_shot.best().setting, std::string("66 blocks"));
  CHECK(std::abs(two_shot.floor(bandwidth) - 1e-3) < 1e-12);
  CHECK(std::abs(two_shot.share(bandwidth) - 0.8) < 1e-12);
  const bool met[] = {true, true, false, true, false};
  for (std::size_t i = 0; i < 5; ++i) CHECK_EQ(findings.figures[i].meets_goal(bandwidth), met[i]);
}

TEST("the table for people") {
  const std::string table = markdown(example());
  CHECK(has(table, "# Kernels on a GPU, 2026-11-22\n"));
  CHECK(has(table, "132 multiprocessors, 60 MB of L2 cache, 141.0 GB of memory; driver of CUDA 13.0, runtime 12.8."));
  CHECK(has(table, "reads and writes 2.000 TB/s"));
  CHECK(has(table, "| copy of 256 MiB |  | 250.00 | 250.00 | 0.01 | 1.000 |  |  |\n"));
  CHECK(has(table, "| two_shot | 80 % of the floor | 1000.00 | 1250.00 | 0.00 | 0.800 | yes | 66 blocks |\n"));
  CHECK(has(table, "| ring | 60 % of the floor | 1000.00 | 2000.00 | 0.00 | 0.500 | no | 8 stripes |\n"));
  CHECK(has(table, "| one_shot | at most 8 us | 0.05 | 7.50 | 0.13 | 0.007 | yes | 4 blocks |\n"));
  CHECK(has(table, "| packets | at most 8 us | 0.05 | 8.50 |"));
}

TEST("the table for programs has every setting that was tried") {
  const std::string table = json(example());
  CHECK(has(table, R"("name": "NVIDIA \"H200\"")"));
  CHECK(has(table, R"("copy_bytes_per_second": 2e+12)"));
  CHECK(has(table, R"("setting": "66 blocks", "goal": "80 % of the floor", "met": true, "trials": [)"));
  CHECK(has(table, R"({"setting": "33 blocks", "microseconds": 1300, "least": 1200, "most": 1400},)"));
  CHECK(has(table, R"("goal": "at most 8 us", "met": false)"));
  CHECK(has(table, R"("failures": []
})"));
  CHECK_EQ(std::count(table.begin(), table.end(), '{'), std::count(table.begin(), table.end(), '}'));
}

TEST("what failed is in both tables") {
  Findings findings = example();
  findings.failures = {"A kernel's result must be \"right\".", "Another."};
  CHECK(has(markdown(findings), "\nFailed: A kernel's result must be \"right\".\n\nFailed: Another.\n"));
  CHECK(has(json(findings), R"("failures": ["A kernel's result must be \"right\".", "Another."])"));
}

TEST("the file's name has the date and the device") {
  Machine machine;
  machine.date = "2026-11-22";
  machine.name = "NVIDIA H100 80GB HBM3";
  CHECK_EQ(file_name(machine), std::string("2026-11-22-gpu-nvidia-h100-80gb-hbm3"));
  machine.name = " Some (TM) GPU) ";
  CHECK_EQ(file_name(machine), std::string("2026-11-22-gpu-some-tm-gpu"));
}

}  // namespace
}  // namespace ringred::cuda
