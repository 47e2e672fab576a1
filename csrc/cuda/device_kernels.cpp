#include "csrc/cuda/device_kernels.h"

#include <cuda_runtime.h>

#include <type_traits>

#include "csrc/cuda/check.h"
#include "csrc/cuda/device_tape.h"
#include "csrc/cuda/scale.h"

namespace ringred::cuda {
namespace {

static_assert(std::is_same_v<Stream, cudaStream_t>);
static_assert(sizeof(DevicePointer) == sizeof(void*));

void* pointer(DevicePointer address) {
  return reinterpret_cast<void*>(address);
}

class TapeOnDevice final : public UploadedTape {
 public:
  TapeOnDevice(const Tape& tape, const Wiring& wiring, int stripes) : memory_(tape, wiring, stripes) {}
  const DeviceTape& view() const override { return memory_.view(); }

 private:
  TapeMemory memory_;
};

class DeviceKernels final : public Kernels {
 public:
  void allreduce(Leaf leaf, const LeafCall& call, Stream stream) override { cuda::allreduce(leaf, call, stream); }
  void play(const Performance& performance, Stream stream) override { cuda::play(performance, stream); }
  void reduce(const ReduceArrays& arrays, std::size_t count, DType dtype, Op op, std::int64_t divisor,
              Stream stream) override {
    cuda::reduce(arrays, count, dtype, op, divisor, stream);
  }
  void scale(DevicePointer from, DevicePointer to, std::size_t count, DType dtype, double factor,
             Stream stream) override {
    cuda::scale(pointer(from), pointer(to), count, dtype, factor, stream);
  }
  void zero(DevicePointer address, std::size_t bytes, Stream stream) override {
    check(cudaMemsetAsync(pointer(address), 0, bytes, stream), "clear device memory");
  }
  std::unique_ptr<UploadedTape> upload(const Tape& tape, const Wiring& wiring, int stripes) override {
    return std::make_unique<TapeOnDevice>(tape, wiring, stripes);
  }
  int most_blocks(Leaf leaf, DType dtype, int seats, unsigned threads) override {
    return cuda::most_blocks(leaf, dtype, seats, threads);
  }
  int most_stripes(DType dtype, int seats, int lanes, unsigned threads) override {
    return cuda::most_stripes(dtype, seats, lanes, threads);
  }
  long long ticks(double seconds) override {
    int device = 0, kilohertz = 0;
    check(cudaGetDevice(&device), "tell which device is current");
    check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device), "tell the clock's rate");
    return static_cast<long long>(seconds * 1000.0 * kilohertz);
  }
};

}  // namespace

std::unique_ptr<Kernels> device_kernels() {
  return std::make_unique<DeviceKernels>();
}

}  // namespace ringred::cuda
