// The device's communicator where ranks disagree, do not come, fail, die or leave: everyone ends, and says why.
#include <atomic>
#include <string>
#include <vector>

#include "tests/cuda/device_job.h"

using namespace ringred;
using namespace ringred::cuda;
using namespace ringred::check;

namespace {

void wait_for(const std::atomic<bool>& condition) {
  while (!condition) std::this_thread::yield();
}

// What `work` throws, and of which kind.
template <class Work>
std::string error_of(Work work, ErrorKind kind) {
  try {
    work();
  } catch (const Error& error) {
    CHECK_EQ(static_cast<int>(error.kind()), static_cast<int>(kind));
    return error.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  report(__FILE__, __LINE__, "\"" + text + "\" is without \"" + part + "\"");
  return false;
}

// One call of a rank on memory of its own, in symmetric memory where `region` says so.
struct Made {
  Reduction reduction{.count = 20};
  int region = -1;
  std::size_t offset = 0;
};

void disagree(bool direct, const Made& first, const Made& second, const std::string& difference) {
  DeviceJob job(2);
  job.leaves_nothing = false;
  job.processes.machine.torn = true;
  if (!direct) job.processes.machine.peers.clear();
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    const SymmetricMemory* const regions[] = {&communicator.allocate(256), &communicator.allocate(256)};
    if (direct) communicator.prepare(Algorithm::ring);
    const DeviceMemory memory(communicator.gpu(), 256);
    const OwnStream stream(communicator.gpu());
    const Made& made = rank == 0 ? first : second;
    const auto call = [&] {
      const CallerStream caller(stream.get());
      if (made.region < 0)
        communicator.allreduce(caller, memory.address(), memory.address(), made.reduction);
      else
        communicator.allreduce_symmetric(caller, *regions[made.region], made.offset, made.reduction);
    };
    const std::string text = error_of([&] { (call(), communicator.await()); }, ErrorKind::mismatch);
    CHECK(contains(text, "All ranks must make the same calls in the same order: of call 1, rank 0 called "));
    CHECK(contains(text, difference));
    CHECK(contains(text, "Call shutdown() and init() on all ranks"));
    CHECK(contains(error_of(call, ErrorKind::mismatch), "broke off: All ranks must make the same calls"));
    process.drain();
  });
}

}  // namespace

TEST("ranks that disagree in anything are told both sides, and no one has a result") {
  const Made plain;
  const auto with = [](auto change) {
    Made made;
    change(made);
    return made;
  };
  const Made region = with([](Made& made) { made.region = 0; });
  for (const bool direct : {true, false}) {
    disagree(direct, plain, with([](Made& made) { made.reduction.count = 21; }),
             "rank 0 called allreduce(count=20, dtype=float32, op=Sum); rank 1 called allreduce(count=21, ");
    disagree(direct, plain, with([](Made& made) { made.reduction.dtype = DType::i32; }), "dtype=int32");
    if (sanitized) continue;
    disagree(direct, plain, with([](Made& made) { made.reduction.op = Op::max; }), "op=Max)");
    disagree(direct, with([](Made& made) { made.reduction.prescale = 0.5; }), plain, "prescale=0.5)");
    disagree(direct, plain, with([](Made& made) { made.reduction.postscale = 3; }), "postscale=3)");
    disagree(direct, plain, region, "rank 1 called allreduce(count=20, dtype=float32, op=Sum, symmetric memory 0 from");
    disagree(direct, region, with([](Made& made) { made.region = 1; }), "symmetric memory 1 from byte 0)");
    disagree(direct, region, with([](Made& made) { made.region = 0, made.offset = 16; }), "from byte 16)");
    disagree(direct, plain, with([](Made& made) { made.reduction.tag = 7; }), "op=Sum, tag 7)");
  }
  disagree(true, plain, with([](Made& made) { made.reduction.algorithm = Algorithm::ring; }), "algorithm=ring)");
}

TEST("announcements that were overwritten are compared by what follows them") {
  for (const bool differ : {false, true}) {
    std::vector<HostBlock> blocks(2);
    Announcements ahead({&blocks[0], &blocks[1]}, 0), behind({&blocks[0], &blocks[1]}, 1);
    const std::size_t calls = 3 * HostBlock::entries / 2;
    for (std::size_t call = 1; call <= calls; ++call) {
      ahead.announce({.count = call});
      CHECK_EQ(ahead.difference(), "");
    }
    for (std::size_t call = 1; call <= calls; ++call) behind.announce({.count = differ && call == 7 ? 8 : call});
    const std::string text = differ ? "ranks 0 and 1 differ in a call between 1 and 1536, too long ago" : "";
    for (Announcements* side : {&ahead, &behind}) CHECK(contains(side->difference() + " ", text + (differ ? "" : " ")));
    ahead.announce({.dtype = DType::f64, .offset = 3});
    behind.announce({.dtype = DType::f16, .offset = 3});
    if (!differ) CHECK(contains(behind.difference(), "of call 1537, rank 0 called allreduce(count=0, dtype=float64"));
  }
}

namespace {

// Rank 0 calls and waits; rank 1 calls when rank 0 has given up.
template <class Waiting>
void one_rank_alone(bool direct, Waiting waiting) {
  DeviceJob job(2);
  job.leaves_nothing = false;
  job.timeout = 0.3;
  job.processes.machine.torn = true;
  if (!direct) job.processes.machine.peers.clear();
  std::atomic<bool> gave_up{false};
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    const DeviceMemory memory(communicator.gpu(), 4000);
    const OwnStream stream(communicator.gpu());
    const auto call = [&] {
      communicator.allreduce(CallerStream(stream.get()), memory.address(), memory.address(), {.count = 1000});
    };
    if (rank == 0) {
      waiting(communicator, call);
      process.drain();  // nothing is left running
      gave_up = true;
    } else {
      wait_for(gave_up);
    }
    CHECK(contains(error_of(call, ErrorKind::peer_lost), "rank 0 broke off: rank 0 waits for rank 1"));
    CHECK(contains(error_of([&] { communicator.await(); }, ErrorKind::peer_lost), "rank 0 broke off"));
    CHECK(contains(error_of([&] { communicator.check(); }, ErrorKind::peer_lost), "RINGRED_TIMEOUT_SECONDS=0.3"));
  });
}

}  // namespace

TEST("whoever waits for a rank that does not come ends with a sentence, and all ranks are broken") {
  const std::string sentence =
      "rank 0 waits for rank 1 in call 1, allreduce(count=1000, dtype=float32, op=Sum): it has made 0 calls";
  one_rank_alone(true, [&](DeviceCommunicator& communicator, auto& call) {
    call();
    communicator.check();
    CHECK(contains(error_of([&] { communicator.await(); }, ErrorKind::timeout), sentence));
  });
  one_rank_alone(true, [&](DeviceCommunicator& communicator, auto& call) {
    call();
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    CHECK(contains(error_of([&] { communicator.check(); }, ErrorKind::timeout), sentence));
  });
  one_rank_alone(false, [&](DeviceCommunicator& communicator, auto& call) {
    CHECK(contains(error_of([&] { (call(), communicator.await()); }, ErrorKind::timeout), "rank 0 waits for rank 1"));
  });
}

TEST("a device that is kept waiting by its own stream is told from a rank that does not call") {
  DeviceJob job(2);
  job.leaves_nothing = false;
  job.timeout = 0.3;
  std::atomic<bool> over{false}, made{false};
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    const DeviceMemory memory(communicator.gpu(), 400);
    const OwnStream stream(communicator.gpu());
    if (rank == 1) process.enqueue(stream.get(), [&] { wait_for(over); });
    communicator.allreduce(CallerStream(stream.get()), memory.address(), memory.address(), {.count = 10});
    if (rank == 1) {
      made = true;
      wait_for(over);
      CHECK(contains(error_of([&] { communicator.await(); }, ErrorKind::peer_lost), "rank 0 broke off: rank 0 waits"));
    } else {
      wait_for(made);
      std::this_thread::sleep_for(std::chrono::milliseconds(400));  // its kernel gives up
      process.drain();
      CHECK(
          contains(error_of([&] { communicator.await(); }, ErrorKind::timeout),
                   "rank 0 waits for its device in call 1, allreduce(count=10, dtype=float32, op=Sum), which all ranks "
                   "have made; the device of rank 0 waited too long for packets from rank 1 (block 0): expected number "
                   "1, saw 0, for more than RINGRED_TIMEOUT_SECONDS=0.3"));
      over = true;
    }
    process.drain();
  });
}

TEST("a replay that a peer does not make ends by its patience, and check() says so") {
  DeviceJob job(2);
  job.leaves_nothing = false;
  job.timeout = 0.3;
  std::atomic<bool> over{false};
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    const DeviceMemory memory(communicator.gpu(), 400);
    const OwnStream stream(communicator.gpu());
    std::vector<std::function<void()>> nodes;
    process.begin_capture(stream.get(), CaptureMode::global);
    communicator.allreduce(CallerStream(stream.get()), memory.address(), memory.address(), {.count = 10});
    CHECK(process.end_capture(stream.get(), &nodes) == Result::success);
    communicator.await();  // a captured call is not waited for
    if (rank == 1) return wait_for(over);
    for (const auto& node : nodes) process.enqueue(stream.get(), node);
    process.drain();
    CHECK(contains(error_of([&] { communicator.check(); }, ErrorKind::timeout), "packets from rank 1"));
    over = true;
  });
}

TEST("a rank that dies is noticed while others wait for it") {
  for (const bool direct : {true, false}) {
    DeviceJob job(3);
    job.leaves_nothing = false;
    job.processes.machine.torn = true;
    if (!direct) job.processes.machine.peers.clear();
    std::atomic<bool> dead{false};
    std::atomic<int> ended{0};
    job.look_around = [&](int rank) {
      if (dead && rank != 1) throw Error(ErrorKind::peer_lost, "rank 1 has died");
    };
    job.run_alone([&](int rank, const Gpu& gpu) {
      const DeviceMemory memory(gpu, 4000);
      DeviceCommunicator communicator(job.setup(gpu, rank));
      if (rank == 1) {
        job.processes[1].drain();  // a real one leaves no destructor that would wait for its streams
        job.processes[1].kill();
        dead = true;
        while (ended < 2) std::this_thread::yield();
        return;
      }
      const auto call = [&] {
        communicator.allreduce(CallerStream(nullptr), memory.address(), memory.address(), {.count = 1000});
      };
      CHECK(contains(error_of([&] { (call(), communicator.await()); }, ErrorKind::peer_lost), "rank 1 has died"));
      job.processes[rank].drain();
      ++ended;
    });
  }
}

TEST("a rank that leaves is missed by those who go on") {
  DeviceJob job(2);
  job.leaves_nothing = false;
  job.run([&](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    Caller<float> caller(rank, communicator, process);
    caller.reduce(100, Op::sum, 1);
    caller.finish();
    if (rank == 1) return;
    while (job.block(1).state != HostBlock::left) std::this_thread::yield();
    CHECK_THROWS(caller.reduce(100, Op::sum, 2), "rank 1 has left after 1 calls, and rank 0 is in call 2");
  });
}

TEST("a communicator may go in any state") {
  for (const bool direct : {true, false}) {
    DeviceJob job(2);
    if (!direct) job.processes.machine.peers.clear();
    job.run([](int, DeviceCommunicator&, FakeProcess&) {});
  }
  for (const bool direct : {true, false}) {
    DeviceJob job(2);
    if (!direct) job.processes.machine.peers.clear();
    job.run_alone([&](int rank, const Gpu& gpu) {
      const DeviceMemory memory(gpu, 8000);
      {
        DeviceCommunicator communicator(job.setup(gpu, rank));
        communicator.allocate(100);
        for (const std::size_t count : {10u, 200u, 2000u})
          communicator.allreduce(CallerStream(nullptr), memory.address(), memory.address(), {.count = count});
      }
      job.processes[rank].drain();
    });
  }
  DeviceJob job(2);
  job.run([](int, DeviceCommunicator& communicator, FakeProcess&) {
    const DeviceMemory memory(communicator.gpu(), 400);
    communicator.end();
    communicator.end();
    CHECK_THROWS(communicator.allreduce(CallerStream(nullptr), memory.address(), memory.address(), {.count = 1}),
                 "cannot be used after its end()");
    CHECK_THROWS(communicator.await(), "cannot be used after its end()");
    CHECK_THROWS(communicator.allocate(1), "cannot be used after its end()");
  });
}

TEST("a rank that cannot take part is named by all others, and nothing is left") {
  const auto opening = [](DeviceJob& job, auto change, const char* mine, const char* theirs) {
    job.run_alone([&](int rank, const Gpu& gpu) {
      DeviceCommunicator::Setup setup = job.setup(gpu, rank);
      if (rank == 1) change(setup, job.processes[1]);
      CHECK_THROWS(DeviceCommunicator(std::move(setup)), rank == 1 ? mine : theirs);
      if (rank == 1) job.processes[1].failing.clear();
    });
  };
  DeviceJob poor(3);
  opening(
      poor, [](auto&, FakeProcess& process) { process.fail("cuMemAlloc_v2", Result::out_of_memory); },
      "CUDA could not allocate", "Rank 1 could not take part: CUDA could not allocate");
  DeviceJob odd(3);
  opening(
      odd, [](auto& setup, FakeProcess&) { setup.sizes.piece_bytes = 2048; },
      "All ranks of a group must be set up alike", "All ranks of a group must be set up alike");
  DeviceJob wrong(2);
  opening(
      wrong, [](auto& setup, FakeProcess&) { setup.sizes.piece_bytes = 100; }, "a multiple of 256 bytes: it is 100",
      "Rank 1 could not take part: A piece must have");
}

TEST("ranks that allocate or prepare differently are told so, and go on") {
  DeviceJob job(2);
  job.run([](int rank, DeviceCommunicator& communicator, FakeProcess& process) {
    CHECK_THROWS(communicator.allocate(rank == 0 ? 64 : 128), "rank 0 wants 64");
    CHECK_THROWS(communicator.prepare(rank == 0 ? Algorithm::ring : Algorithm::circulant), "the same algorithm");
    Caller<float> caller(rank, communicator, process);
    caller.reduce_symmetric(communicator.allocate(4096), 0, 900, Op::sum, 1);
    caller.finish();
  });
}

TEST("a rank whose peers do not come to a meeting ends") {
  DeviceJob job(2);
  job.leaves_nothing = false;
  job.meeting.limit = std::chrono::milliseconds(100);
  job.run_alone([&](int rank, const Gpu& gpu) {
    if (rank == 0) CHECK_THROWS(DeviceCommunicator(job.setup(gpu, 0)), "rank 0 waited too long for a meeting");
  });
}

namespace {

void use_everything(DeviceCommunicator& communicator, DevicePointer memory, Stream stream) {
  const SymmetricMemory& region = communicator.allocate(4096);
  if (communicator.is_direct()) communicator.prepare(Algorithm::ring);
  const CallerStream caller(stream);
  communicator.allreduce(caller, memory, memory + 4096, {.count = 40, .prescale = 2});
  communicator.allreduce(caller, memory, memory, {.count = 900});
  communicator.allreduce_symmetric(caller, region, 0, {.count = 500});
  if (communicator.is_direct())
    communicator.allreduce(caller, memory, memory, {.count = 100, .algorithm = Algorithm::ring});
  communicator.check();
  communicator.await();
}

}  // namespace

TEST("whatever driver call fails, nothing is left open") {
  const int calls = fail_each_call(1, [&](FakeProcess& process, FakeMachine&) {
    DeviceJob job(1);
    const Gpu gpu = Gpu::open(fake_driver(), 0);
    const DeviceMemory memory(gpu, 8192);
    const OwnStream stream(gpu);
    DeviceCommunicator::Setup setup = job.setup(gpu, 0);
    setup.kernels = emulated_kernels(process);
    DeviceCommunicator communicator(std::move(setup));
    use_everything(communicator, memory.address(), stream.get());
  });
  CHECK(calls > 100);
}

TEST("whatever driver call of one rank fails, all ranks end, and none with a mistake") {
  for (const bool direct : {true, false}) {
    // Kernels that are cut off in the middle of a vector touch what others still work on: its result is worthless, and
    // ThreadSanitizer is right.
    if (sanitized && direct) continue;
    bool failed_all = false;
    int number = 0;
    for (; !failed_all; number += sanitized ? 37 : 13) {
      DeviceJob job(2);
      job.leaves_nothing = false;
      job.timeout = 20;
      job.processes.machine.torn = true;
      job.processes.machine.slow = false;
      if (!direct) job.processes.machine.peers.clear();
      std::atomic<int> errors{0};
      job.run_alone([&](int rank, const Gpu& gpu) {
        const DeviceMemory memory(gpu, 8192);
        const OwnStream stream(gpu);
        FakeProcess& process = job.processes[rank];
        const int first = process.calls();
        if (rank == 1) process.fail_call(first + number);
        try {
          DeviceCommunicator communicator(job.setup(gpu, rank));
          use_everything(communicator, memory.address(), stream.get());
        } catch (const Error&) {
          ++errors;
        }
        process.drain();
        if (rank == 1) failed_all = process.calls() - first <= number;
      });
      if (failed_all) CHECK_EQ(errors.load(), 0);
    }
    CHECK(number > 100);
  }
}
