// The device's communicator: what its calls compute, on every way and from every kind of memory.
#include "csrc/cuda/communicator.h"

#include <string>
#include <vector>

#include "tests/cuda/device_job.h"

using namespace ringred;
using namespace ringred::cuda;
using namespace ringred::check;

namespace {

// Around every threshold of small_sizes.
std::vector<std::size_t> interesting_counts(std::size_t element_size) {
  std::vector<std::size_t> counts{0, 1, 2, 3};
  for (const std::size_t bytes : {256u, 1024u, 2048u, 5u * 1024}) {
    counts.push_back(bytes / element_size - 1);
    counts.push_back(bytes / element_size);
    counts.push_back(bytes / element_size + 1);
  }
  if (sanitized) return {1, 256 / element_size + 1, 3 * 1024 / element_size + 1};
  return counts;
}

template <class T>
void reduce_all(DeviceJob& job, Op op, const std::vector<std::size_t>& counts) {
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    Caller<T> caller(rank, communicator, process);
    unsigned seed = 0;
    for (const std::size_t count : counts)
      caller.reduce(count, op, ++seed, {.in_place = seed % 2 == 0, .shift = seed % 3 == 0 ? 1u : 0u});
    caller.finish();
  });
}

}  // namespace

TEST("sums of integers are exact: all sizes, in and out of place, aligned and not, 1 to 4 ranks") {
  for (int size = 1; size <= 4; ++size) {
    DeviceJob job(size);
    job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
      CHECK(communicator.is_direct());
      CHECK_EQ(communicator.sentence(), "Tensors on GPUs go directly from device to device.");
      Caller<std::int64_t> caller(rank, communicator, process);
      unsigned seed = 0;
      for (const std::size_t count : interesting_counts(sizeof(std::int64_t)))
        for (const bool in_place : {true, false})
          for (const std::size_t shift : {0u, 1u})
            caller.reduce(count, Op::sum, ++seed, {.in_place = in_place, .shift = shift});
      caller.finish();
    });
  }
}

TEST("every dtype and operator, directly and through host memory") {
  for (const bool direct : {true, false})
    for (const Op op : {Op::sum, Op::average, Op::min, Op::max, Op::product}) {
      if (sanitized && op != Op::average) continue;
      const auto job = [&] {
        auto made = std::make_unique<DeviceJob>(3);
        if (!direct) made->processes.machine.peers.clear();
        return made;
      };
      reduce_all<float>(*job(), op, {5, 100, 700});
      reduce_all<__half>(*job(), op, {5, 300, 1500});
      if (sanitized) continue;
      reduce_all<__nv_bfloat16>(*job(), op, {5, 300, 1500});
      reduce_all<double>(*job(), op, {5, 100, 350});
      reduce_all<std::int32_t>(*job(), op, {5, 100, 700});
      reduce_all<std::int64_t>(*job(), op, {5, 100, 350});
    }
}

TEST("vectors are scaled before and after") {
  for (const bool direct : {true, false}) {
    DeviceJob job(2);
    if (!direct) job.processes.machine.peers.clear();
    job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
      CHECK_EQ(communicator.is_direct(), direct);
      Caller<float> caller(rank, communicator, process);
      unsigned seed = 0;
      for (const std::size_t count : {10u, 200u, 900u})
        for (const std::size_t shift : {0u, 1u})
          caller.reduce(count, Op::sum, ++seed,
                        {.in_place = shift == 0, .shift = shift, .prescale = 0.5, .postscale = 4});
      caller.finish();
    });
  }
}

TEST("algorithms that are named play any vector") {
  for (const int size : {2, 3}) {
    DeviceJob job(size);
    job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
      Caller<float> caller(rank, communicator, process);
      CHECK_THROWS(caller.reduce(10, Op::sum, 1, {.algorithm = Algorithm::ring}),
                   "An algorithm must be prepared before it is named: ring is not");
      unsigned seed = 0;
      for (const AlgorithmInfo& row : algorithm_table) {
        communicator.prepare(row.algorithm);
        communicator.prepare(row.algorithm);
        for (const std::size_t count : {1u, 63u, 777u})
          caller.reduce(count, Op::sum, ++seed, {.shift = seed % 2, .algorithm = row.algorithm});
        caller.reduce(50, Op::sum, ++seed);
      }
      caller.finish();
    });
  }
}

TEST("symmetric memory is reduced where it lies") {
  for (const bool direct : {true, false}) {
    DeviceJob job(3);
    if (!direct) job.processes.machine.peers.clear();
    job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
      const SymmetricMemory& first = communicator.allocate(8192);
      const SymmetricMemory& second = communicator.allocate(4000);
      Caller<float> caller(rank, communicator, process);
      if (direct) communicator.prepare(Algorithm::ring);
      unsigned seed = 0;
      for (const std::size_t count : {20u, 200u, 900u}) {
        caller.reduce_symmetric(first, 0, count, Op::average, ++seed);
        caller.reduce_symmetric(second, 64, count, Op::sum, ++seed, {.prescale = 0.5, .postscale = 2});
        caller.reduce_symmetric(first, 4004, count, Op::sum, ++seed);
        if (direct) caller.reduce_symmetric(second, 16, count, Op::sum, ++seed, {.algorithm = Algorithm::ring});
      }
      caller.finish();
      CHECK_THROWS(communicator.allreduce_symmetric(caller.caller(), second, 3600, {.count = 101}),
                   "404 bytes from byte 3600 on");
      CHECK_THROWS(communicator.allocate(0), "a byte or more");
    });
  }
}

TEST("what goes through host memory says why") {
  const auto sentence_of = [](DeviceJob& job) {
    std::string sentence;
    job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
      CHECK(communicator.way() == DeviceCommunicator::Way::staged);
      if (rank == 0) sentence = communicator.sentence();
      Caller<float> caller(rank, communicator, process);
      for (const std::size_t count : {0u, 1u, 100u, 1000u}) caller.reduce(count, Op::sum, 1, {.in_place = false});
      caller.finish();
      CHECK_THROWS(communicator.prepare(Algorithm::ring), "An algorithm may be prepared where devices reach");
    });
    return sentence;
  };
  DeviceJob refused(2);
  refused.processes.machine.ipc_refused = true;
  CHECK(sentence_of(refused).find("rank 0 cannot reach the device memory of rank 1: opening a peer's memory") !=
        std::string::npos);
  DeviceJob apart(2);
  apart.processes.machine.peers = {{0, 1}};
  CHECK(sentence_of(apart).find("rank 1 cannot reach the device memory of rank 0") != std::string::npos);
  DeviceJob shared(2, true);
  CHECK(sentence_of(shared).find("ranks of several processes share a device") != std::string::npos);
  DeviceJob without(2);
  without.processes.machine.ipc_refused = true;
  for (FakeDevice& device : without.processes.machine.devices) device.memory_operations = false;
  CHECK(!sentence_of(without).empty());
  DeviceJob many(9);
  CHECK(sentence_of(many).find("at most 8 ranks work on each other's memory, and there are 9") != std::string::npos);
}

namespace {

// A graph: captured once, its nodes run as often as wanted.
class Graph {
 public:
  template <class Record>
  Graph(FakeProcess& process, Stream stream, Record record) : process_(process), stream_(stream) {
    process.begin_capture(stream, CaptureMode::global);
    record();
    CHECK(process.end_capture(stream, &nodes_) == Result::success);
    CHECK(!nodes_.empty());
  }
  void replay() {
    for (const auto& node : nodes_) process_.enqueue(stream_, node);
  }

 private:
  FakeProcess& process_;
  const Stream stream_;
  std::vector<std::function<void()>> nodes_;
};

}  // namespace

TEST("calls of every kind are captured, and replayed several times among others") {
  DeviceJob job(3);
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    communicator.prepare(Algorithm::double_tree);
    const SymmetricMemory& memory = communicator.allocate(8192);
    Caller<float> caller(rank, communicator, process);
    std::vector<Graph> graphs;
    unsigned seed = 0;
    for (const std::size_t count : {10u, 200u, 900u})
      graphs.emplace_back(process, caller.stream(), [&] {
        caller.reduce(count, Op::sum, ++seed, {.in_place = false, .shift = seed % 2});
        caller.reduce_symmetric(memory, 0, count, Op::sum, ++seed);
        caller.reduce(count, Op::sum, ++seed, {.algorithm = Algorithm::double_tree});
      });
    for (int turn = 0; turn < 3; ++turn) {
      for (Graph& graph : graphs) graph.replay();
      caller.reduce(300, Op::sum, ++seed);
    }
    caller.finish();
    communicator.check();
  });
}

TEST("calls through host memory cannot be captured, and none is spoilt") {
  DeviceJob job(2);
  job.processes.machine.peers.clear();
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    Caller<float> caller(rank, communicator, process);
    const DeviceMemory memory(communicator.gpu(), 64);
    std::vector<std::function<void()>> nodes;
    process.begin_capture(caller.stream(), CaptureMode::global);
    CHECK_THROWS(communicator.allreduce(caller.caller(), memory.address(), memory.address(), {.count = 16}),
                 "An allreduce through host memory cannot be captured in a CUDA graph");
    CHECK(process.end_capture(caller.stream(), &nodes) == Result::success);
    caller.reduce(100, Op::sum, 1);
    caller.finish();
  });
}

TEST("ranks that are threads of one process use each other's memory as it is") {
  DeviceJob job(2);
  FakeProcess process(job.processes.machine, 9, {0, 1});
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank)
    threads.emplace_back([&, rank] {
      const InProcess inside(process);
      DeviceCommunicator::Setup setup = job.setup(Gpu::open(fake_driver(), rank), rank);
      setup.kernels = emulated_kernels(process);
      setup.self = {9, 1};
      DeviceCommunicator communicator(std::move(setup));
      CHECK(communicator.is_direct());
      Caller<float> caller(rank, communicator, process);
      for (const std::size_t count : {10u, 200u, 900u}) caller.reduce(count, Op::sum, 1);
      caller.finish();
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(process.open_things(), "");
  CHECK_EQ(process.calls_of("cuIpcOpenMemHandle_v2"), 0);
  CHECK_EQ(job.processes.machine.mistakes(), "");
}

TEST("calls wait for nothing on the host and make no events, after the first ones") {
  DeviceJob job(2);
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    Caller<float> caller(rank, communicator, process);
    const auto calls = [&](int rounds) {
      for (int round = 0; round < rounds; ++round)
        for (const std::size_t count : {10u, 200u, 900u}) caller.reduce(count, Op::sum, 1);
    };
    calls(1);
    caller.finish();
    const int events = process.calls_of("cuEventCreate"), questions = process.calls_of("cuEventQuery");
    calls(3);
    CHECK_EQ(process.calls_of("cuEventCreate"), events);
    CHECK_EQ(process.calls_of("cuEventQuery"), questions);
    caller.finish();
  });
}

TEST("what cannot be done is refused before anything has started, and nobody is broken") {
  DeviceJob job(2);
  FakeMachine& machine = job.processes.machine;
  machine.devices.resize(3);
  machine.devices[2].uuid.bytes[0] = 7;
  job.processes.processes.clear();
  for (int rank = 0; rank < 2; ++rank)
    job.processes.processes.push_back(std::make_unique<FakeProcess>(machine, rank, std::vector<int>{rank, 2}));
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    Caller<float> caller(rank, communicator, process);
    const DeviceMemory memory(communicator.gpu(), 400), elsewhere(Gpu::open(fake_driver(), 1), 400);
    const auto call = [&](DevicePointer input, DevicePointer output, Reduction reduction) {
      communicator.allreduce(caller.caller(), input, output, reduction);
    };
    const DevicePointer here = memory.address();
    CHECK_THROWS(call(here, here, {.count = 1, .dtype = DType::u8}), "int32 and int64: the dtype is uint8");
    CHECK_THROWS(call(here, here, {.count = 1, .dtype = DType::i32, .prescale = 0.5}), "Integers cannot be scaled");
    CHECK_THROWS(call(here + 2, here + 2, {.count = 1}), "4 bytes for float32");
    CHECK_THROWS(call(here, here + 8, {.count = 3}), "12 bytes lie 8 bytes apart");
    CHECK_THROWS(call(here, elsewhere.address(), {.count = 3}), "its device, device 0 (Fake GPU");
    CHECK_THROWS(call(elsewhere.address(), here, {.count = 3}), "this one lies on device 1");
    CHECK_THROWS(call(0, here, {.count = 3}), "must lie in device memory");
    const SymmetricMemory foreign(communicator.gpu(), 64);
    CHECK_THROWS(communicator.allreduce_symmetric(caller.caller(), foreign, 0, {.count = 1}), "of this communicator");
    communicator.prepare(Algorithm::ring);
    CHECK_THROWS(call(here, here, {.count = 1, .dtype = DType::i32, .op = Op::average, .algorithm = Algorithm::ring}),
                 "Take int64, or name no algorithm");
    caller.reduce(100, Op::sum, 1);
    caller.finish();
  });
}
