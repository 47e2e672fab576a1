// Allreduce through host memory: ranks are threads, each in a process of its own on a machine without peer access.
#include "csrc/cuda/staging.h"

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "csrc/base/error.h"
#include "tests/cuda/fakes.h"

using namespace ringred;
using namespace ringred::cuda;
using namespace ringred::check;

namespace {

using Element = std::uint32_t;

// Neither commutative nor associative: the order of the ranks shows, and so does a rank that is missing or doubled.
Element combine(Element left, Element right) {
  return left * 31 + right;
}

Element value_of(int rank, std::size_t i, std::uint32_t round) {
  return static_cast<Element>(i) * 7 + static_cast<Element>(rank) * 1000003 + round * 17;
}

Element expected(int size, std::size_t i, std::uint32_t round) {
  Element sum = value_of(0, i, round);
  for (int rank = 1; rank < size; ++rank) sum = combine(sum, value_of(rank, i, round));
  return sum;
}

struct Blocks {
  StagingLayout layout;
  std::vector<std::vector<StagingBlock>> rooms;  // for their alignment
  std::vector<std::byte*> starts;

  Blocks(int size, std::size_t slice_bytes, std::uint32_t chunks_before) : layout{slice_bytes, size} {
    for (int rank = 0; rank < size; ++rank) {
      rooms.emplace_back(layout.bytes() / sizeof(StagingBlock) + 1);
      for (auto& counter : rooms.back()[0].done) counter.chunk = chunks_before;
      starts.push_back(reinterpret_cast<std::byte*>(rooms.back().data()));
    }
  }
};

struct Options {
  int size = 2;
  std::size_t slice_bytes = 128;
  std::uint32_t chunks_before = 0;
  double timeout = 30;
  std::vector<int> without_memory_operations = {};
};

struct Job {
  FakeRanks processes;
  Blocks blocks;
  Options options;

  explicit Job(Options chosen)
      : processes(chosen.size), blocks(chosen.size, chosen.slice_bytes, chosen.chunks_before), options(chosen) {
    processes.machine.peers.clear();
    processes.machine.slow = true;
    for (const int rank : chosen.without_memory_operations)
      processes.machine.devices[static_cast<std::size_t>(rank)].memory_operations = false;
  }

  Staging::Setup setup(const Gpu& gpu, int rank) {
    return {gpu,
            rank,
            blocks.layout,
            blocks.starts,
            {{false, std::chrono::microseconds(50), options.timeout, 0}, nullptr},
            nullptr,
            options.chunks_before};
  }

  // body(rank, staging, process, gpu) on a thread for each rank; afterwards nothing is open and no mistake was made.
  template <class Body>
  void run(Body body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < options.size; ++rank)
      threads.emplace_back([&, rank] {
        const InProcess inside(processes[rank]);
        try {
          const Gpu gpu = Gpu::open(fake_driver(), 0);
          Staging staging(setup(gpu, rank));
          body(rank, staging, processes[rank], gpu);
        } catch (const std::exception& error) {
          report("rank", rank, std::string("uncaught: ") + error.what());
        }
      });
    for (std::thread& thread : threads) thread.join();
    for (int rank = 0; rank < options.size; ++rank) CHECK_EQ(processes[rank].open_things(), "");
    CHECK_EQ(processes.machine.mistakes(), "");
  }
};

Element* elements(FakeProcess& process, DevicePointer address, std::size_t count) {
  return reinterpret_cast<Element*>(process.host(address, count * sizeof(Element)));
}

// A kernel: combines the inputs in their order.
auto reduction_of(FakeProcess& process, int size) {
  return [&process, size](Stream stream, const DevicePointer* inputs, DevicePointer output, std::size_t count) {
    std::vector<const Element*> from;
    for (int rank = 0; rank < size; ++rank) from.push_back(elements(process, inputs[rank], count));
    process.enqueue(stream, [from, to = elements(process, output, count), count] {
      for (std::size_t i = 0; i < count; ++i) {
        Element sum = from[0][i];
        for (std::size_t rank = 1; rank < from.size(); ++rank) sum = combine(sum, from[rank][i]);
        to[i] = sum;
      }
    });
  };
}

// Rounds of an allreduce in order with the caller's stream: filled before, compared after, without a wait in between.
void reduce_rounds(Job& job, int rank, Staging& staging, FakeProcess& process, const Gpu& gpu, std::size_t count,
                   std::uint32_t rounds, bool in_place) {
  const OwnStream caller(gpu);
  const DeviceMemory input(gpu, count * sizeof(Element) + 1), output(gpu, count * sizeof(Element) + 1);
  const DevicePointer to = in_place ? input.address() : output.address();
  Element* const in = elements(process, input.address(), count);
  const Element* const out = elements(process, to, count);
  const int size = job.options.size;
  const auto reduction = reduction_of(process, size);
  for (std::uint32_t round = 0; round < rounds; ++round) {
    process.enqueue(caller.get(), [=] {
      for (std::size_t i = 0; i < count; ++i) in[i] = value_of(rank, i, round);
    });
    staging.allreduce(CallerStream(caller.get()), input.address(), to, count, sizeof(Element), reduction);
    process.enqueue(caller.get(), [=] {
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < count; ++i) wrong += out[i] != expected(size, i, round);
      if (wrong > 0) report("rank", rank, std::to_string(wrong) + " of " + std::to_string(count) + " are wrong");
    });
  }
  staging.await();
  process.drain();
}

}  // namespace

TEST("every rank gets every element, of all sizes, in and out of place, for 1 to 4 ranks") {
  for (int size = 1; size <= 4; ++size) {
    Job job({.size = size});
    const std::size_t ranks = static_cast<std::size_t>(size), chunk = 32 * ranks;
    job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
      CHECK(staging.on_device());
      for (const std::size_t count : {std::size_t{0}, std::size_t{1}, ranks - 1, ranks, ranks + 1, std::size_t{17},
                                      chunk, chunk + 1, 5 * chunk - 3, std::size_t{997}})
        for (const bool in_place : {true, false}) reduce_rounds(job, rank, staging, process, gpu, count, 2, in_place);
    });
  }
}

TEST("many calls in a row wait for nothing on the host and make no events") {
  Job job({.size = 3, .slice_bytes = 64});
  std::vector<int> events(3);
  job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
    reduce_rounds(job, rank, staging, process, gpu, 100, 2, true);
    const int before = process.calls_of("cuEventCreate");
    reduce_rounds(job, rank, staging, process, gpu, 100, 40, true);
    events[static_cast<std::size_t>(rank)] = process.calls_of("cuEventCreate") - before;
  });
  for (const int count : events) CHECK_EQ(count, 0);
}

TEST("ranks without stream memory operations take part, alone and among others") {
  for (const std::vector<int>& without : {std::vector<int>{0, 1, 2}, std::vector<int>{1}}) {
    Job job({.size = 3, .without_memory_operations = without});
    job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
      CHECK_EQ(staging.on_device(), std::find(without.begin(), without.end(), rank) == without.end());
      for (const std::size_t count : {std::size_t{1}, std::size_t{95}, std::size_t{2000}})
        reduce_rounds(job, rank, staging, process, gpu, count, 3, true);
    });
  }
}

TEST("counters go on from 2^32 to 0") {
  for (const bool on_device : {true, false}) {
    Options options{.size = 2, .slice_bytes = 64, .chunks_before = 0xfffffffbu};
    if (!on_device) options.without_memory_operations = {0, 1};
    Job job(options);
    job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
      reduce_rounds(job, rank, staging, process, gpu, 500, 3, false);
    });
  }
}

TEST("a rank moves S bytes to the host and 2(n-1)/n S from it") {
  for (const int size : {2, 4}) {
    Job job({.size = size});
    const std::size_t count = 32 * static_cast<std::size_t>(size) * 5, bytes = count * sizeof(Element);
    job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
      reduce_rounds(job, rank, staging, process, gpu, count, 1, true);
    });
    for (int rank = 0; rank < size; ++rank) {
      CHECK_EQ(job.processes[rank].bytes_to_host.load(), bytes);
      CHECK_EQ(job.processes[rank].bytes_to_device.load(),
               2 * bytes * static_cast<std::size_t>(size - 1) / static_cast<std::size_t>(size));
    }
  }
}

TEST("a chunk is read while the next one cannot leave yet") {
  Job job({.size = 2});
  auto& peer = *reinterpret_cast<StagingBlock*>(job.blocks.starts[1]);
  const auto& own = *reinterpret_cast<StagingBlock*>(job.blocks.starts[0]);
  peer.done[StagingBlock::send].chunk = 2;
  const InProcess inside(job.processes[0]);
  const Gpu gpu = Gpu::open(fake_driver(), 0);
  const DeviceMemory memory(gpu, 3 * 256);
  Staging staging(job.setup(gpu, 0));
  staging.allreduce(CallerStream(nullptr), memory.address(), memory.address(), 192, sizeof(Element),
                    reduction_of(job.processes[0], 2));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (own.done[StagingBlock::read].chunk != 2 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  CHECK_EQ(own.done[StagingBlock::read].chunk.load(), 2u);
  CHECK_EQ(own.done[StagingBlock::send].chunk.load(), 2u);  // the third waits until the peer has read the first
  for (auto& counter : peer.done) counter.chunk = 3;
  staging.await();
}

TEST("a capture is refused, and neither it nor the communicator is spoilt") {
  Job job({.size = 2});
  job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
    {
      const OwnStream caller(gpu);
      const DeviceMemory memory(gpu, 64);
      std::vector<std::function<void()>> graph;
      process.begin_capture(caller.get(), CaptureMode::global);
      CHECK_THROWS(staging.allreduce(CallerStream(caller.get()), memory.address(), memory.address(), 16,
                                     sizeof(Element), reduction_of(process, 2)),
                   "An allreduce through host memory cannot be captured in a CUDA graph: each replay");
      CHECK(process.end_capture(caller.get(), &graph) == Result::success);
    }
    reduce_rounds(job, rank, staging, process, gpu, 100, 1, true);
  });
}

namespace {

// Rank 0 calls, rank 1 does not: what rank 0 sees, and what rank 1 does afterwards.
template <class Waiting>
void one_rank_alone(bool on_device, Waiting&& waiting) {
  Options options{.size = 2, .timeout = 0.3};
  if (!on_device) options.without_memory_operations = {0, 1};
  Job job(options);
  job.processes.machine.torn = true;
  std::atomic<bool> gave_up{false};
  job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
    const DeviceMemory memory(gpu, 400);
    const auto call = [&] {
      staging.allreduce(CallerStream(nullptr), memory.address(), memory.address(), 100, sizeof(Element),
                        reduction_of(process, 2));
    };
    if (rank == 0) {
      waiting(staging, call);
      CHECK_THROWS(call(), "rank 0 broke off: rank 0 waits for rank 1");
      gave_up = true;
      return;
    }
    while (!gave_up) std::this_thread::yield();
    CHECK_THROWS(call(), "rank 0 broke off: rank 0 waits for rank 1");
    CHECK_THROWS(staging.await(), "or raise the limit. Call shutdown() and init() on all ranks");
  });
}

}  // namespace

TEST("whoever waits for a rank that does not come ends at the deadline with a sentence, and all ranks are broken") {
  constexpr const char* sentence =
      "rank 0 waits for rank 1 in allreduce 1 through host memory: it has copied to host memory chunk 0 of 2, for more "
      "than RINGRED_TIMEOUT_SECONDS=0.3";
  one_rank_alone(true, [&](Staging& staging, auto& call) {
    call();
    CHECK_THROWS(staging.await(), sentence);
  });
  one_rank_alone(true, [&](Staging& staging, auto& call) {
    call();
    staging.check();
    std::this_thread::sleep_for(std::chrono::milliseconds(350));
    CHECK_THROWS(staging.check(), sentence);
  });
  one_rank_alone(false, [&](Staging&, auto& call) { CHECK_THROWS(call(), sentence); });
}

TEST("a rank that fails in a call tells the others why") {
  Job job({.size = 2});
  job.processes.machine.torn = true;
  job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
    const DeviceMemory memory(gpu, 4000);
    const auto call = [&] {
      staging.allreduce(CallerStream(nullptr), memory.address(), memory.address(), 1000, sizeof(Element),
                        reduction_of(process, 2));
    };
    if (rank == 1) {
      process.fail("cuMemcpyHtoDAsync_v2", Result::unknown);
      CHECK_THROWS(call(), "CUDA could not copy from host memory: CUDA_ERROR_UNKNOWN");
      process.failing.clear();
      CHECK_THROWS(call(), "rank 1 broke off: CUDA could not copy");
      return;
    }
    CHECK_THROWS((call(), staging.await()), "rank 1 broke off: CUDA could not copy from host memory");
  });
}

TEST("a rank may leave while its last call is under way") {
  Job job({.size = 3});
  job.run([&](int rank, Staging& staging, FakeProcess& process, const Gpu& gpu) {
    auto memory = std::make_shared<DeviceMemory>(gpu, 4000);
    staging.allreduce(CallerStream(nullptr), memory->address(), memory->address(), 1000, sizeof(Element),
                      reduction_of(process, 3));
    CHECK(rank >= 0);
    process.drain();  // the array is the caller's, who waits for its own stream
  });
}

TEST("what staging needs is checked") {
  Job job({.size = 2});
  const InProcess inside(job.processes[0]);
  {
    const Gpu gpu = Gpu::open(fake_driver(), 0);
    const auto make = [&](auto change) {
      Staging::Setup setup = job.setup(gpu, 0);
      change(setup);
      Staging staging(std::move(setup));
    };
    CHECK_THROWS(make([](Staging::Setup& setup) { setup.layout.slice_bytes = 100; }),
                 "2 blocks for 2 ranks, and slices of 100 bytes");
    CHECK_THROWS(make([](Staging::Setup& setup) { setup.layout.size = 3; }), "2 blocks for 3 ranks");
    CHECK_THROWS(make([](Staging::Setup& setup) { setup.gpu.facts.can_register_host_memory = false; }),
                 "Staging needs host memory that the device can use");
    job.processes[0].fail("cuMemHostRegister_v2", Result::out_of_memory);
    CHECK_THROWS(make([](Staging::Setup&) {}),
                 "of pinned host memory, and the system refused: CUDA_ERROR_OUT_OF_MEMORY");
  }
  CHECK_EQ(job.processes[0].open_things(), "");
}

TEST("whatever call fails in staging, nothing is left open and nothing is lost") {
  for (const bool on_device : {true, false}) {
    const int calls = fail_each_call(1, [&](FakeProcess& process, FakeMachine& machine) {
      machine.devices[0].memory_operations = on_device;
      Job job({.size = 2});
      for (auto& counter : reinterpret_cast<StagingBlock*>(job.blocks.starts[1])->done) counter.chunk = 1000;
      const Gpu gpu = Gpu::open(fake_driver(), 0);
      const DeviceMemory memory(gpu, 1200);
      {
        Staging staging(job.setup(gpu, 0));
        staging.allreduce(CallerStream(nullptr), memory.address(), memory.address(), 300, sizeof(Element),
                          reduction_of(process, 2));
        staging.check();
        staging.await();
      }
    });
    CHECK(calls > 100);
  }
}
