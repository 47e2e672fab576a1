#include "csrc/cuda/driver.h"

#include <dlfcn.h>

#include <type_traits>

#include "csrc/base/error.h"

namespace ringred::cuda {
namespace {

const char* remedy_of_start(Result result) {
  switch (result) {
    case Result::no_device:
      return " Look at nvidia-smi and at CUDA_VISIBLE_DEVICES; start a container with --gpus all; or use CPU tensors.";
    case Result::not_initialized:
      return " A process that was forked from one that used CUDA cannot use it: start it with 'spawn'.";
    case Result::stub_library:
      return " The libcuda.so.1 that was found is the toolkit's stub for linking: take its folder off LD_LIBRARY_PATH.";
    case Result::system_driver_mismatch:
      return " The kernel module and libcuda.so.1 are of different versions: reboot, or reinstall the driver.";
    case Result::system_not_ready:
      return " The NVSwitch fabric is not up: start nvidia-fabricmanager.";
    case Result::device_unavailable:
      return " Another process has the device for itself: set the compute mode to DEFAULT with nvidia-smi -c 0.";
    default:
      return " Look at nvidia-smi and at the system's log.";
  }
}

}  // namespace

bool is_context_lost(Result result) {
  const auto number = static_cast<unsigned>(result);
  // Illegal address, launch timeout, assert; stack error to launch failure; uncorrectable errors of memory and NVLink.
  return number == 700 || number == 702 || number == 710 || (number >= 714 && number <= 719) || number == 214 ||
         number == 220;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Functions bind_functions(FunctionRef<void*(const char* symbol)> find) {
  Functions functions{};
  std::string missing;
  for_each_function(functions, [&](auto& function, const char* symbol) {
    void* found = find(symbol);
    if (found == nullptr) missing += (missing.empty() ? "" : ", ") + std::string(symbol);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
  });
  if (!missing.empty())
    fail_system("ringred needs an NVIDIA driver for CUDA " + version_text(oldest_driver) +
                " or newer: libcuda.so.1 lacks " + missing + ". Install a newer driver.");
  return functions;
}

std::shared_ptr<const Driver> Driver::load(int needed_version, const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: contexts live as long as the process
  if (handle == nullptr)
    fail_system("Tensors on a GPU need the NVIDIA driver, and its library could not be loaded (" +
                std::string(dlerror()) +
                "). Install the driver; start a container with --gpus all; or use CPU tensors.");
  const auto find = [handle](const char* symbol) { return dlsym(handle, symbol); };
  return std::make_shared<const Driver>(bind_functions(find), needed_version);
}

Driver::Driver(const Functions& functions, int needed_version) : functions_(functions) {
  // The version comes first: it is known without a device, and explains most of what else may fail.
  if (functions_.driver_get_version(&version_) == Result::success && version_ < needed_version)
    fail_system("ringred needs an NVIDIA driver for CUDA " + version_text(needed_version) +
                " or newer: this one is for " + version_text(version_) +
                ". Install a newer driver, or the CUDA compatibility package.");
  const Result started = functions_.init(0);
  if (started != Result::success)
    fail_system("CUDA could not be started: " + words(started) + "." + remedy_of_start(started));
}

std::string Driver::words(Result result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  functions_.get_error_name(result, &name);
  functions_.get_error_string(result, &text);
  if (name == nullptr) return "error " + std::to_string(static_cast<unsigned>(result));
  return std::string(name) + (text == nullptr ? "" : " (" + std::string(text) + ")");
}

void Driver::fail(Result result, const std::string& what) const {
  std::string text = "CUDA could not " + what + ": " + words(result) + ".";
  if (is_context_lost(result))
    text +=
        " A kernel that ran before has failed, not necessarily ringred's: run with CUDA_LAUNCH_BLOCKING=1 or under "
        "compute-sanitizer to find it. This process can use the device no more.";
  if (result == Result::out_of_memory) text += " Free device memory, or use smaller tensors.";
  fail_system(text);
}

}  // namespace ringred::cuda
