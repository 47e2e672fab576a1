#include "csrc/cuda/communicator.h"

#include <algorithm>

#include "csrc/base/error.h"
#include "csrc/cuda/share.h"
#include "csrc/reduce/check_operator.h"

namespace ringred::cuda {
namespace {

bool is_reduced(DType dtype) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
    case DType::f32:
    case DType::f64:
    case DType::i32:
    case DType::i64:
      return true;
    default:
      return false;
  }
}

Announcement announcement_of(const Reduction& reduction) {
  Announcement announcement;
  announcement.dtype = reduction.dtype;
  announcement.op = reduction.op;
  announcement.count = reduction.count;
  announcement.prescale = reduction.prescale;
  announcement.postscale = reduction.postscale;
  announcement.tag = reduction.tag;
  if (reduction.algorithm) announcement.algorithm = static_cast<std::int8_t>(*reduction.algorithm);
  return announcement;
}

}  // namespace

void DeviceCommunicator::allreduce(const CallerStream& caller, DevicePointer input, DevicePointer output,
                                   const Reduction& reduction) {
  check_call(reduction);
  check_arrays(input, output, reduction);
  const Announcement announcement = announcement_of(reduction);
  if (!is_direct()) return stage(caller, input, output, reduction, announcement);
  start(caller, announcement, [&](Stream own) { direct_->allreduce(own, input, output, reduction); });
}

void DeviceCommunicator::allreduce_symmetric(const CallerStream& caller, const SymmetricMemory& memory,
                                             std::size_t offset, const Reduction& reduction) {
  check_call(reduction);
  const auto region =
      std::find_if(regions_.begin(), regions_.end(), [&](std::size_t i) { return &memories_[i] == &memory; });
  if (region == regions_.end()) fail_usage("Symmetric memory must be of this communicator's allocate(): this is not.");
  const std::size_t bytes = reduction.count * info(reduction.dtype).size;
  if (offset > memory.bytes() || bytes > memory.bytes() - offset || offset % info(reduction.dtype).size != 0)
    fail_usage("A vector must lie in its symmetric memory of " + std::to_string(memory.bytes()) +
               " bytes, at a multiple of its element's size: it has " + std::to_string(bytes) + " bytes from byte " +
               std::to_string(offset) + " on.");
  Announcement announcement = announcement_of(reduction);
  announcement.kind = Announcement::symmetric;
  announcement.region = static_cast<std::uint16_t>(region - regions_.begin());
  announcement.offset = offset;
  const DevicePointer own = memory.address() + offset;
  if (!is_direct()) return stage(caller, own, own, reduction, announcement);
  start(caller, announcement, [&](Stream stream) { direct_->allreduce_symmetric(stream, memory, offset, reduction); });
}

void DeviceCommunicator::require_open() const {
  if (ended_) fail_usage("A device's communicator cannot be used after its end(). Make a new one, on all ranks.");
}

void DeviceCommunicator::check_call(const Reduction& reduction) const {
  require_open();
  const auto& [count, dtype, op, prescale, postscale, algorithm, tag] = reduction;
  if (!is_reduced(dtype))
    fail_usage("The device reduces float16, bfloat16, float32, float64, int32 and int64: the dtype is " +
               std::string(info(dtype).name) + ". Convert the tensor, or use a CPU tensor.");
  check_operator(dtype, op);
  const bool is_integer = dtype == DType::i32 || dtype == DType::i64;
  if (is_integer && (prescale != 1 || postscale != 1))
    fail_usage("Integers cannot be scaled: the factors are " + std::to_string(prescale) + " and " +
               std::to_string(postscale) + " for " + std::string(info(dtype).name) +
               ". Convert the tensor to a floating-point dtype, or use the factor 1.");
  if (!algorithm) return;
  const std::string name(info(*algorithm).name);
  if (!is_direct())
    fail_usage("An algorithm may be named where devices reach each other's memory: " + name + " is not possible. " +
               sentence_);
  if (size() > 1 && !direct_->has(*algorithm))
    fail_usage("An algorithm must be prepared before it is named: " + name +
               " is not. Call prepare() for it on all ranks.");
  if (dtype == DType::i32 && op == Op::average)
    fail_usage("Partial sums of int32 travel in 32 bits, so an algorithm has no average of it: " + name +
               " was named. Take int64, or name no algorithm.");
}

void DeviceCommunicator::check_arrays(DevicePointer input, DevicePointer output, const Reduction& reduction) const {
  const std::size_t size = info(reduction.dtype).size, bytes = reduction.count * size;
  if (bytes == 0) return;
  for (const DevicePointer address : {input, output}) {
    if (address % size != 0)
      fail_usage("A tensor must lie at a multiple of its element's size, " + std::to_string(size) + " bytes for " +
                 std::string(info(reduction.dtype).name) + ": it lies at " + std::to_string(address) +
                 ". Copy it first.");
    check_on_device(setup_.gpu, address, bytes);
  }
  if (input != output && input < output + bytes && output < input + bytes)
    fail_usage("Input and output must be the same memory, or not overlap: " + std::to_string(bytes) + " bytes lie " +
               std::to_string(input < output ? output - input : input - output) + " bytes apart. Copy one of them.");
}

// All that may be refused without a word to peers comes before.
void DeviceCommunicator::announce(const Announcement& announcement) {
  last_ = announcement;
  announcements_->announce(announcement);
  throw_if_different();
}

void DeviceCommunicator::start(const CallerStream& caller, Announcement announcement,
                               FunctionRef<void(Stream own)> enqueue) {
  or_break_off([&] {
    throw_if_broken();
    throw_if_reported();
  });
  const Driver& driver = *setup_.gpu.driver;
  bool announced = false;
  try {
    order_->around(caller, [&](Stream own) {
      announcement.captured = capture_of(driver, own).has_value();
      announced = true;
      announce(announcement);
      enqueue(own);
    });
    if (announcement.captured) return;
    done_.reset();
    done_.emplace(events_->record(order_->stream()));
    began_ = std::chrono::steady_clock::now();
  } catch (...) {
    if (announced) or_break_off([] { throw; });
    throw;
  }
}

void DeviceCommunicator::stage(const CallerStream& caller, DevicePointer input, DevicePointer output,
                               const Reduction& reduction, const Announcement& announcement) {
  or_break_off([&] { throw_if_broken(); });
  const Stream theirs = caller.get();
  require_no_capture(*setup_.gpu.driver, theirs, "An allreduce through host memory",
                     "each replay would need numbers of its own");
  const auto [count, dtype, op, prescale, postscale, algorithm, tag] = reduction;
  const auto reduce = [&](Stream stream, const DevicePointer* inputs, DevicePointer result, std::size_t elements) {
    ReduceArrays arrays{};
    for (int rank = 0; rank < size(); ++rank) arrays.inputs[rank] = reinterpret_cast<const void*>(inputs[rank]);
    arrays.outputs[0] = reinterpret_cast<void*>(result);
    arrays.input_count = size();
    arrays.output_count = 1;
    setup_.kernels->reduce(arrays, elements, dtype, op, size(), stream);
  };
  or_break_off([&] {
    const CurrentContext current(setup_.gpu);
    announce(announcement);
    if (prescale != 1) setup_.kernels->scale(input, output, count, dtype, prescale, theirs);
    explained(
        [&] { staging_->allreduce(caller, prescale == 1 ? input : output, output, count, info(dtype).size, reduce); });
    setup_.kernels->scale(output, output, count, dtype, postscale, theirs);
  });
}

}  // namespace ringred::cuda
