// The benchmark of kernels: gpu_bench [--output DIRECTORY] [--only WORD] [--rehearse]
//
// Prints the table, and writes it into DIRECTORY as DATE-gpu-NAME.md and .json. With --only, the copies and those
// groups whose name contains WORD. A rehearsal takes tiny sizes, checks all results and prints no times.
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "benchmarks/gpu/session.h"
#include "csrc/base/error.h"

namespace ringred::cuda {
namespace {

constexpr int skipped = 77;  // which ctest takes for a skipped test

struct Arguments {
  std::string directory, only;
  bool rehearse = false;
};

Arguments parsed(int count, char** words) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string_view word = words[i];
    if (word == "--rehearse")
      arguments.rehearse = true;
    else if ((word == "--output" || word == "--only") && i + 1 < count)
      (word == "--output" ? arguments.directory : arguments.only) = words[++i];
    else
      fail_usage("gpu_bench takes --output DIRECTORY, --only WORD and --rehearse: it was given '" + std::string(word) +
                 "'");
  }
  return arguments;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

Machine this_machine() {
  cudaDeviceProp properties;
  int device = 0, driver = 0, runtime = 0;
  check(cudaGetDevice(&device), "tell which device is current");
  check(cudaGetDeviceProperties(&properties, device), "describe the device");
  check(cudaDriverGetVersion(&driver), "tell the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "tell the runtime's version");
  return {properties.name,
          today(),
          properties.multiProcessorCount,
          driver,
          runtime,
          static_cast<double>(properties.totalGlobalMem),
          static_cast<double>(properties.l2CacheSize)};
}

struct Group {
  const char* name;
  void (*run)(Session& session);
};
constexpr Group groups[] = {{"fusion", time_fusion},
                            {"reductions", time_reductions},
                            {"updates", time_updates},
                            {"leaves", time_leaves},
                            {"schedules", time_schedules}};

void write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) fail_system("could not write " + path);
}

// After every group, so that what there is stays if the program is ended.
void write_tables(const Findings& findings, const Arguments& arguments) {
  if (arguments.rehearse || arguments.directory.empty()) return;
  const std::string path = arguments.directory + "/" + file_name(findings.machine);
  write(path + ".md", markdown(findings));
  write(path + ".json", json(findings));
}

void run(Session& session, const Arguments& arguments) {
  session.findings().machine = this_machine();
  time_copies(session);
  for (const Group& group : groups) {
    if (std::string_view(group.name).find(arguments.only) == std::string_view::npos) continue;
    std::fprintf(stderr, "# %s\n", group.name);
    group.run(session);
    write_tables(session.findings(), arguments);
  }
}

// A rehearsal's table would be of times that mean nothing.
void print(const Findings& findings, bool rehearsed) {
  if (!rehearsed) {
    std::printf("%s", markdown(findings).c_str());
    return;
  }
  std::size_t trials = 0;
  for (const Figure& figure : findings.figures) trials += figure.trials.size();
  std::printf("%zu figures rehearsed in %zu settings, %zu failed\n", findings.figures.size(), trials,
              findings.failures.size());
}

int bench(const Arguments& arguments) {
  int devices = 0;
  const cudaError_t answer = cudaGetDeviceCount(&devices);
  if (answer != cudaSuccess || devices == 0) {
    std::printf("skipped: there is no GPU that CUDA can use here (%s)\n", cudaGetErrorString(answer));
    return skipped;
  }
  Session session(arguments.rehearse ? rehearsal() : full_plan());
  run(session, arguments);
  print(session.findings(), arguments.rehearse);
  return session.findings().failures.empty() ? 0 : 1;
}

}  // namespace
}  // namespace ringred::cuda

int main(int count, char** words) {
  try {
    return ringred::cuda::bench(ringred::cuda::parsed(count, words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
