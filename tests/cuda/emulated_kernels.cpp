#include "tests/cuda/emulated_kernels.h"

#include <vector>

#include "csrc/base/error.h"
#include "csrc/cuda/device_kernels.h"
#include "tests/cuda/fake_call.h"

namespace ringred::check {
namespace {

class EmulatedKernels final : public Kernels {
 public:
  explicit EmulatedKernels(FakeProcess& process) : process_(process) {}

  void allreduce(Leaf leaf, const LeafCall& call, Stream stream) override {
    Used used;
    LeafCall translated = call;
    const std::size_t bytes = call.count * info(call.dtype).size;
    for (int number = 0; number < call.seat_count; ++number) {
      LeafSeat& seat = translated.seats[number];
      for (int rank = 0; rank < call.shape.size; ++rank) {
        seat.memory[rank] = used.at(seat.memory[rank], call.shape.bytes());
        if (leaf == Leaf::two_shot || rank == seat.rank) seat.buffers[rank] = used.at(seat.buffers[rank], bytes);
      }
      seat.report = used.at(seat.report, sizeof(Report));
    }
    launch(stream, used, [=](Kernels& kernels) { kernels.allreduce(leaf, translated, nullptr); });
  }

  void play(const Performance& performance, Stream stream) override {
    Used used;
    Performance translated = performance;
    for (int number = 0; number < performance.seat_count; ++number) {
      Seat& seat = translated.seats[number];
      seat.data = used.at(seat.data, performance.count * info(performance.dtype).size);
      for (int rank = 0; rank < performance.shape.size; ++rank)
        seat.mail[rank] = used.at(seat.mail[rank], performance.shape.bytes());
      seat.report = used.at(seat.report, sizeof(Report));
    }
    launch(stream, used, [=](Kernels& kernels) { kernels.play(translated, nullptr); });
  }

  void reduce(const ReduceArrays& arrays, std::size_t count, DType dtype, Op op, std::int64_t divisor,
              Stream stream) override {
    Used used;
    ReduceArrays translated = arrays;
    const std::size_t bytes = count * info(dtype).size;
    for (int i = 0; i < arrays.input_count; ++i)
      translated.inputs[i] = used.at(const_cast<void*>(arrays.inputs[i]), bytes);
    for (int i = 0; i < arrays.output_count; ++i) translated.outputs[i] = used.at(arrays.outputs[i], bytes);
    launch(stream, used, [=](Kernels& kernels) { kernels.reduce(translated, count, dtype, op, divisor, nullptr); });
  }

  void scale(DevicePointer from, DevicePointer to, std::size_t count, DType dtype, double factor,
             Stream stream) override {
    if (count == 0 || (factor == 1 && from == to)) return;
    Used used;
    const DevicePointer source = used.at(from, count * info(dtype).size),
                        target = used.at(to, count * info(dtype).size);
    launch(stream, used, [=](Kernels& kernels) { kernels.scale(source, target, count, dtype, factor, nullptr); });
  }

  void zero(DevicePointer address, std::size_t bytes, Stream stream) override {
    Used used;
    const DevicePointer start = used.at(address, bytes);
    launch(stream, used, [=](Kernels& kernels) { kernels.zero(start, bytes, nullptr); });
  }

  std::unique_ptr<UploadedTape> upload(const Tape& tape, const Wiring& wiring, int stripes) override {
    const Call call("upload");
    if (call.fails()) fail_system("CUDA could not copy a table to the device.");
    return kernels_->upload(tape, wiring, stripes);
  }
  int most_blocks(Leaf leaf, DType dtype, int seats, unsigned threads) override {
    return kernels_->most_blocks(leaf, dtype, seats, threads);
  }
  int most_stripes(DType dtype, int seats, int lanes, unsigned threads) override {
    return kernels_->most_stripes(dtype, seats, lanes, threads);
  }
  long long ticks(double seconds) override { return kernels_->ticks(seconds); }

 private:
  // The memory that a kernel uses.
  struct Used {
    std::vector<Place> places;

    DevicePointer at(DevicePointer address, std::size_t bytes) {
      const std::lock_guard lock(here().machine.mutex);
      places.push_back(place_of(address, bytes));
      return reinterpret_cast<DevicePointer>(places.back().data);
    }
    template <class T>
    T* at(T* address, std::size_t bytes) {
      return reinterpret_cast<T*>(at(reinterpret_cast<DevicePointer>(address), bytes));
    }
  };

  template <class Work>
  void launch(Stream stream, const Used& used, Work work) {
    const Call call("launch");
    if (call.fails()) fail_system("CUDA could not launch a kernel.");
    for (const Place& place : used.places)
      if (place.data == nullptr) return;  // which is a mistake of the machine already
    enqueue(stream, [&process = process_, kernels = kernels_, places = used.places, work] {
      for (const Place& place : places) still_there(process, place);
      try {
        work(*kernels);
      } catch (const Error& error) {
        process.machine.note_mistake(error.what());
      }
    });
  }

  FakeProcess& process_;
  const std::shared_ptr<Kernels> kernels_ = device_kernels();  // held by what is enqueued, too
};

}  // namespace

std::unique_ptr<Kernels> emulated_kernels(FakeProcess& process) {
  return std::make_unique<EmulatedKernels>(process);
}

}  // namespace ringred::check
