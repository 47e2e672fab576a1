// Order between the caller's stream and ringred's, also in captures of CUDA graphs; and waiting on the host.
#include "csrc/cuda/streams.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/cuda/host_wait.h"
#include "tests/cuda/fakes.h"

using namespace ringred;
using namespace ringred::cuda;
using namespace ringred::check;

namespace {

struct Setup {
  FakeMachine machine{1};
  FakeProcess process{machine, 0, {0}};
  InProcess inside{process};
  Gpu gpu = Gpu::open(fake_driver(), 0);

  Stream make_stream() {
    Stream stream = nullptr;
    CHECK((*gpu.driver)->stream_create(&stream, 0, 0) == Result::success);
    return stream;
  }
};

HostWait host_wait(WaitHooks* hooks = nullptr, double timeout = 60, double stall = 0) {
  return {{true, std::chrono::microseconds(50), timeout, stall}, hooks};
}

// Work that ends when the test says so.
struct Gate {
  std::atomic<bool> open{false};
  void enqueue(FakeProcess& process, Stream stream) {
    process.enqueue(stream, [this] {
      while (!open) std::this_thread::yield();
    });
  }
};

}  // namespace

TEST("work on our stream comes between what the caller enqueued before and after, for every kind of stream") {
  Setup setup;
  setup.machine.slow = true;
  StreamOrder order(setup.gpu);
  const int rounds = sanitized ? 25 : 100;
  for (const Stream caller : {Stream(nullptr), legacy_stream(), per_thread_stream(), setup.make_stream()}) {
    int value = 0;  // not atomic: ThreadSanitizer sees what is not ordered
    for (int round = 0; round < rounds; ++round) {
      setup.process.enqueue(caller, [&] { value = 3 * round; });
      order.around(CallerStream(caller), [&](Stream own) {
        CHECK(own != caller);
        setup.process.enqueue(own, [&value, round] {
          CHECK_EQ(value, 3 * round);
          value = 3 * round + 1;
        });
      });
      setup.process.enqueue(caller, [&value, round] {
        CHECK_EQ(value, 3 * round + 1);
        value = 3 * round + 2;
      });
      setup.process.drain();
      CHECK_EQ(value, 3 * round + 2);
    }
  }
  CHECK_EQ(setup.process.calls_of("cuEventCreate"), 2);  // none is made on the way
  CHECK_EQ(setup.machine.mistakes(), "");
}

TEST("without the order, the fake streams do run in another one") {
  Setup setup;
  setup.machine.slow = true;
  const Stream one = setup.make_stream(), other = setup.make_stream();
  int overtaken = 0;
  for (int round = 0; round < 300; ++round) {
    std::atomic<int> value{0};
    setup.process.enqueue(one, [&] { value = 1; });
    setup.process.enqueue(other, [&] { overtaken += value == 0; });
    setup.process.drain();
  }
  CHECK(overtaken > 0);
}

TEST("enqueueing waits for nothing, and other streams go on") {
  Setup setup;
  StreamOrder order(setup.gpu);
  const Stream caller = setup.make_stream(), other = setup.make_stream();
  Gate gate;
  gate.enqueue(setup.process, caller);
  std::atomic<int> done{0};
  order.around(CallerStream(caller), [&](Stream own) { setup.process.enqueue(own, [&] { ++done; }); });
  setup.process.enqueue(other, [&] { done += 10; });
  while (done != 10) std::this_thread::yield();
  gate.open = true;
  setup.process.drain();
  CHECK_EQ(done.load(), 11);
}

TEST("streams are numbered as the array protocols do") {
  Setup setup;
  CHECK(!CallerStream::from_protocol(-1).has_value());
  CHECK(CallerStream::from_protocol(1)->get() == legacy_stream());
  CHECK(CallerStream::from_protocol(2)->get() == per_thread_stream());
  const Stream made = setup.make_stream();
  CHECK(CallerStream::from_protocol(reinterpret_cast<std::int64_t>(made))->get() == made);
  CHECK_THROWS(CallerStream::from_protocol(0), "or a handle: it is 0");
  CHECK_THROWS(CallerStream::from_protocol(-2), "it is -2");
}

TEST("a thread's default stream is refused on another thread") {
  const CallerStream stream(per_thread_stream());
  std::thread([&] { CHECK_THROWS(stream.get(), "must be used on that thread"); }).join();
  const CallerStream legacy(legacy_stream());
  std::thread([&] { CHECK(legacy.get() == legacy_stream()); }).join();
}

TEST("the halves of the order may be taken by different threads") {
  Setup setup;
  setup.machine.slow = true;
  EventPool submitted(setup.gpu, 4), completed(setup.gpu, 4);
  const OwnStream own(setup.gpu);
  const Stream caller = setup.make_stream();
  int value = 0;
  for (int round = 0; round < 50; ++round) {
    setup.process.enqueue(caller, [&] { value = round; });
    std::optional<EventPool::Lease> done;
    {
      const EventPool::Lease ready = submitted.record(caller);
      std::thread([&] {  // the engine
        const InProcess inside(setup.process);
        follow(*setup.gpu.driver, own.get(), ready);
        setup.process.enqueue(own.get(), [&] { value += 1000; });
        done.emplace(completed.record(own.get()));
      })
          .join();
    }
    follow(*setup.gpu.driver, caller, *done);
    setup.process.enqueue(caller, [&value, round] { CHECK_EQ(value, 1000 + round); });
    setup.process.drain();
  }
  CHECK_EQ(submitted.made() + completed.made(), 8u);
}

TEST("a pool makes events only while all are out") {
  Setup setup;
  EventPool pool(setup.gpu, 1);
  const OwnStream own(setup.gpu);
  for (int round = 0; round < 3; ++round) {
    const auto one = pool.record(own.get()), two = pool.record(own.get()), three = pool.record(own.get());
    CHECK(one.get() != two.get() && two.get() != three.get());
  }
  CHECK_EQ(pool.made(), 3u);
}

TEST("in a capture our stream joins the graph and the replay is in order") {
  Setup setup;
  StreamOrder order(setup.gpu);
  const Stream caller = setup.make_stream();
  std::string text;
  std::vector<std::function<void()>> graph;
  setup.process.begin_capture(caller, CaptureMode::global);
  setup.process.enqueue(caller, [&] { text += "a"; });
  for (const char* call : {"b", "c"})
    order.around(CallerStream(caller),
                 [&](Stream own) { setup.process.enqueue(own, [&text, call] { text += call; }); });
  setup.process.enqueue(caller, [&] { text += "d"; });
  CHECK(setup.process.end_capture(caller, &graph) == Result::success);
  setup.process.drain();
  CHECK_EQ(text, "");  // nothing ran yet
  for (int replay = 0; replay < 2; ++replay)
    for (const auto& node : graph) node();
  CHECK_EQ(text, "abcdabcd");
  // Afterwards all is as before.
  order.around(CallerStream(caller), [&](Stream own) { setup.process.enqueue(own, [&] { text = "e"; }); });
  setup.process.drain();
  CHECK_EQ(text, "e");
}

TEST("work that throws in a capture leaves our stream joined") {
  Setup setup;
  StreamOrder order(setup.gpu);
  const Stream caller = setup.make_stream();
  std::vector<std::function<void()>> graph;
  setup.process.begin_capture(caller, CaptureMode::global);
  CHECK_THROWS(order.around(CallerStream(caller),
                            [&](Stream own) {
                              setup.process.enqueue(own, [] {});
                              fail_usage("something else");
                            }),
               "something else");
  CHECK(setup.process.end_capture(caller, &graph) == Result::success);
}

TEST("the fake driver notices a stream that is not joined") {
  Setup setup;
  const OwnStream own(setup.gpu);
  EventPool pool(setup.gpu, 1);
  const Stream caller = setup.make_stream();
  std::vector<std::function<void()>> graph;
  setup.process.begin_capture(caller, CaptureMode::global);
  follow(*setup.gpu.driver, own.get(), pool.record(caller));
  setup.process.enqueue(own.get(), [] {});
  CHECK(setup.process.end_capture(caller, &graph) == Result::capture_unjoined);
}

TEST("misuse of captures is an error with a sentence, and spoils no capture") {
  Setup setup;
  StreamOrder order(setup.gpu);
  const Stream capturing = setup.make_stream(), other = setup.make_stream();
  std::vector<std::function<void()>> graph;
  const auto around = [&](Stream stream) { order.around(CallerStream(stream), [](Stream) {}); };
  const Driver& driver = *setup.gpu.driver;

  setup.process.begin_capture(capturing, CaptureMode::global);
  CHECK_THROWS(around(legacy_stream()), "The default stream cannot be used while another stream captures");
  CHECK_THROWS(require_no_capture(driver, capturing, "Staging", "its flags count"),
               "Staging cannot be captured in a CUDA graph: its flags count. Make the call outside");
  require_no_capture(driver, other, "Staging", "its flags count");
  around(other);  // not part of the capture, nor is our stream
  around(capturing);
  CHECK_THROWS(around(other), "One communicator cannot be used outside of a capture");
  CHECK(setup.process.end_capture(capturing, &graph) == Result::success);
  around(other);

  setup.process.begin_capture(capturing, CaptureMode::global);
  DevicePointer memory = 0;
  {
    const CurrentContext current(setup.gpu);
    CHECK(driver->memory_allocate(&memory, 8) == Result::capture_unsupported);  // somebody's mistake
  }
  CHECK_THROWS(around(capturing), "after its capture of a CUDA graph has failed");
  CHECK(setup.process.end_capture(capturing, &graph) == Result::capture_invalidated);
}

TEST("a thread that asks whether an event is over does not spoil another's capture") {
  Setup setup;
  EventPool pool(setup.gpu, 1);
  const OwnStream own(setup.gpu);
  const Stream caller = setup.make_stream();
  Gate gate;
  gate.enqueue(setup.process, own.get());
  const auto event = pool.record(own.get());
  std::vector<std::function<void()>> graph;
  setup.process.begin_capture(caller, CaptureMode::global);
  std::thread([&] {
    const InProcess inside(setup.process);
    CHECK(!is_over(*setup.gpu.driver, event.get()));
    CHECK((*setup.gpu.driver)->event_query(event.get()) == Result::capture_unsupported);  // this would
  }).join();
  CHECK(setup.process.end_capture(caller, &graph) == Result::capture_invalidated);
  setup.process.begin_capture(caller, CaptureMode::global);
  std::thread([&] {
    const InProcess inside(setup.process);
    for (int i = 0; i < 10; ++i) CHECK(!is_over(*setup.gpu.driver, event.get()));
  }).join();
  CHECK(setup.process.end_capture(caller, &graph) == Result::success);
  gate.open = true;
  setup.process.drain();
  CHECK(is_over(*setup.gpu.driver, event.get()));
}

TEST("work that failed is an error of whoever waits for it") {
  Setup setup;
  EventPool pool(setup.gpu, 1);
  const OwnStream own(setup.gpu);
  const auto event = pool.record(own.get());
  setup.process.fail("cuEventQuery", static_cast<Result>(700));
  CHECK_THROWS(is_over(*setup.gpu.driver, event.get()),
               "A kernel that ran before has failed, not necessarily ringred's");
  setup.process.failing.clear();
}

namespace {

struct Hooks : WaitHooks {
  std::string calls;
  bool goes_on = true;
  void enter() override { calls += "enter "; }
  bool poll() override {
    calls += calls.ends_with("poll ") ? "" : "poll ";
    return goes_on;
  }
  void leave() override { calls += "leave "; }
  void report(const std::string& text) override { calls += "[" + text + "] "; }
};

const auto nothing = [] {};
const auto sentence = [] { return std::string("rank 0 waits for rank 1 to begin"); };

}  // namespace

TEST("a short wait on the host tells nobody; a long one tells the hooks, reports once, and ends") {
  Hooks hooks;
  int asked = 0;
  host_wait(&hooks).until([&] { return ++asked == 5; }, nothing, sentence);
  CHECK_EQ(hooks.calls, "");
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(250);
  host_wait(&hooks, 60, 0.05).until([&] { return std::chrono::steady_clock::now() > end; }, nothing, sentence);
  CHECK_EQ(hooks.calls, "enter poll [rank 0 waits for rank 1 to begin, for 0.05 s so far.] poll leave ");
}

TEST("a wait on the host ends at its deadline, at a signal, and where a peer is lost") {
  const auto never = [] { return false; };
  Hooks hooks;
  CHECK_THROWS(host_wait(&hooks, 0.15).until(never, nothing, sentence),
               "rank 0 waits for rank 1 to begin, for more than RINGRED_TIMEOUT_SECONDS=0.15. Look at what that rank");
  CHECK(hooks.calls.ends_with("leave "));
  hooks.goes_on = false;
  CHECK_THROWS(host_wait(&hooks).until(never, nothing, sentence),
               "interrupted by a signal while rank 0 waits for rank");
  const auto lost = [] { throw Error(ErrorKind::peer_lost, "rank 1 has gone"); };
  CHECK_THROWS(host_wait().until(never, lost, sentence), "rank 1 has gone");
}

TEST("whatever call fails while streams are ordered, nothing is left open") {
  const int calls = fail_each_call(1, [](FakeProcess& process, FakeMachine&) {
    const Gpu gpu = Gpu::open(fake_driver(), 0);
    StreamOrder order(gpu);
    EventPool pool(gpu, 1);
    const OwnStream caller(gpu);
    int value = 0;
    const auto first = pool.record(caller.get()), second = pool.record(caller.get());
    try {
      order.around(CallerStream(caller.get()), [&](Stream own) { process.enqueue(own, [&] { ++value; }); });
      is_over(*gpu.driver, second.get());
    } catch (const Error&) {
      process.drain();  // value is still used
      throw;
    }
    process.drain();
    CHECK_EQ(value, 1);
  });
  CHECK(calls > 30);
}
