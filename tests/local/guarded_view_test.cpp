// Guarded views: two mappings of the same pages, and what a stray write says before its process dies of it.
#include "csrc/memory/guarded_view.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "csrc/memory/segment.h"
#include "tests/check.h"

// The sanitizers have handlers of SIGSEGV, which end the process in another way. Their libraries look for these.
#define VISIBLE extern "C" __attribute__((visibility("default")))
VISIBLE const char* __asan_default_options();
VISIBLE const char* __tsan_default_options();
VISIBLE const char* __ubsan_default_options();
const char* __asan_default_options() {
  return "handle_segv=0";
}
const char* __tsan_default_options() {
  return "handle_segv=0";
}
const char* __ubsan_default_options() {
  return "handle_segv=0";
}

using namespace ringred;

namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20, page = 4096;
const std::string words = "ringred: rank 3: something wrote to ";
const std::string remedy = "share_parameters=False.\n";

// Memory of a segment, and a view of a part of it that begins and ends inside of pages.
struct Shared {
  static constexpr std::size_t begin = mebibyte + 1000, bytes = 5 * page + 77;
  Segment segment = Segment::create(8 * mebibyte, false);
  std::byte* owners;
  std::optional<GuardedView> view;

  Shared() : owners(segment.base() + begin) {
    segment.commit(mebibyte, mebibyte);
    view.emplace(owners, bytes, 3);
    view->name_ranges({{4096, 9000, "layers.1.weight"}, {0, 100, "first"}, {100, 101, "one"}, {20000, bytes, "last"}});
  }
  volatile std::byte& at(std::size_t offset) { return view->data()[offset]; }
};

struct Ended {
  int status;
  std::string text;
  bool by_fault() const { return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV; }
  int code() const { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
  std::size_t count(const std::string& part) const {
    std::size_t times = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++times;
    return times;
  }
};

// How a child ends that does this, and what it writes to stderr.
template <class Body>
Ended in_child(Body&& body) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  Ended ended{};
  std::array<char, 4096> buffer;
  for (ssize_t got = 0; (got = read(ends[0], buffer.data(), buffer.size())) > 0;)
    ended.text.append(buffer.data(), static_cast<std::size_t>(got));
  close(ends[0]);
  CHECK_EQ(waitpid(child, &ended.status, 0), child);
  return ended;
}

void say(const char* text) {
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) _exit(99);
}

void handle(void (*function)(int, siginfo_t*, void*), int flags, struct sigaction* previous = nullptr) {
  struct sigaction action{};
  action.sa_sigaction = function;
  action.sa_flags = SA_SIGINFO | flags;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, previous);
}

void handle(void (*function)(int)) {
  struct sigaction action{};
  action.sa_handler = function;
  sigaction(SIGSEGV, &action, nullptr);
}

// A page that may not be touched: a fault elsewhere.
std::byte* forbidden = nullptr;

void fault_elsewhere() {
  forbidden = static_cast<std::byte*>(mmap(nullptr, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  *const_cast<volatile std::byte*>(forbidden + 5) = std::byte{1};
}

// Handlers that others may have.

void ends_with_7(int, siginfo_t* information, void*) {
  say(information->si_addr == forbidden + 5 ? "previous, elsewhere\n" : "previous\n");
  _exit(7);
}

void makes_the_best_of_it(int, siginfo_t* information, void*) {
  say("mended\n");
  if (information->si_addr != forbidden + 5) _exit(8);
  mprotect(forbidden, page, PROT_READ | PROT_WRITE);
}

void says_once(int, siginfo_t*, void*) {
  say("once\n");
}

// What Python's faulthandler does.
struct sigaction before_dump;
void dumps(int signal, siginfo_t*, void*) {
  say("stacks\n");
  sigaction(SIGSEGV, &before_dump, nullptr);
  raise(signal);
}

}  // namespace

// First the tests whose child is the first one to have a view: the handler that is installed then stays in a process.

TEST("a handler from before the first view is called after the text") {
  const Ended ended = in_child([] {
    handle(ends_with_7, 0);
    Shared().at(50) = std::byte{1};
  });
  CHECK_EQ(ended.code(), 7);
  CHECK(ended.text.starts_with(words + "the parameter 'first' outside of step()."));
  CHECK(ended.text.ends_with(remedy + "previous\n"));
}

TEST("a handler from before the first view is called for faults elsewhere, as if ours did not exist") {
  const Ended ended = in_child([] {
    handle(ends_with_7, 0);
    const Shared shared;
    fault_elsewhere();
  });
  CHECK_EQ(ended.code(), 7);
  CHECK_EQ(ended.text, "previous, elsewhere\n");
}

TEST("a handler that lets the process live on does so again, and ours stays") {
  const Ended ended = in_child([] {
    handle(makes_the_best_of_it, 0);
    Shared shared;
    fault_elsewhere();
    fault_elsewhere();
    shared.at(100) = std::byte{1};
  });
  CHECK_EQ(ended.code(), 8);
  CHECK(ended.text.starts_with("mended\nmended\n" + words + "the parameter 'one'"));
}

TEST("a handler that is called once is called once") {
  const Ended ended = in_child([] {
    handle(says_once, static_cast<int>(SA_RESETHAND));
    const Shared shared;
    fault_elsewhere();
  });
  CHECK(ended.by_fault());
  CHECK_EQ(ended.text, "once\n");
}

TEST("faulthandler enabled before the first view: the text, then the stacks") {
  const Ended ended = in_child([] {
    handle(dumps, SA_NODEFER, &before_dump);
    Shared().at(0) = std::byte{1};
  });
  CHECK(ended.by_fault());
  CHECK(ended.text.starts_with(words) && ended.text.ends_with(remedy + "stacks\n"));
  CHECK_EQ(ended.count(words), 1u);
}

TEST("faulthandler enabled after the first view: the stacks, then the text") {
  const Ended ended = in_child([] {
    Shared shared;
    handle(dumps, SA_NODEFER, &before_dump);
    shared.view->protect();
    shared.at(0) = std::byte{1};
  });
  CHECK(ended.by_fault());
  CHECK(ended.text.starts_with("stacks\n" + words + "the parameter 'first'") && ended.text.ends_with(remedy));
  CHECK_EQ(ended.count(words), 1u);
}

TEST("faulthandler enabled after the first view, and a fault elsewhere: the stacks only") {
  const Ended ended = in_child([] {
    const Shared shared;
    handle(dumps, SA_NODEFER, &before_dump);
    fault_elsewhere();
  });
  CHECK(ended.by_fault());
  CHECK_EQ(ended.text, "stacks\n");
}

TEST("a signal that is sent ends the process, or is ignored, as before") {
  for (const bool ignored : {false, true}) {
    const Ended ended = in_child([ignored] {
      if (ignored) handle(SIG_IGN);
      const Shared shared;
      raise(SIGSEGV);
      kill(getpid(), SIGSEGV);
    });
    CHECK(ignored ? ended.code() == 0 : ended.by_fault());
    CHECK_EQ(ended.text, "");
  }
}

TEST("the handler comes back after it was removed") {
  const Ended ended = in_child([] {
    Shared shared;
    handle(SIG_DFL);
    shared.view->protect();
    shared.at(0) = std::byte{1};
  });
  CHECK(ended.by_fault());
  CHECK_EQ(ended.count(words), 1u);
}

TEST("the view and the segment are one memory") {
  Shared shared;
  for (const std::size_t offset : {std::size_t{0}, page - 1, Shared::bytes - 1}) {
    shared.owners[offset] = std::byte{17};
    CHECK(shared.at(offset) == std::byte{17});
    shared.view->unprotect();
    shared.at(offset) = std::byte{18};
    shared.view->protect();
    CHECK(shared.owners[offset] == std::byte{18});
  }
  CHECK_EQ(shared.view->size(), Shared::bytes);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(shared.view->data()) % (2 * mebibyte), Shared::begin % (2 * mebibyte));
}

TEST("a view of a peer's segment outlives the mapping that it was made from") {
  Segment mine = Segment::create(8 * mebibyte, true);
  mine.commit(0, 4 * mebibyte);
  auto peers = std::make_unique<Segment>(Segment::map(mine.descriptor()));
  GuardedView view(peers->base() + 2 * mebibyte, 2 * mebibyte, 0);
  peers.reset();
  std::memset(mine.base() + 2 * mebibyte, 9, 2 * mebibyte);
  CHECK(view.data()[0] == std::byte{9} && view.data()[2 * mebibyte - 1] == std::byte{9});
}

TEST("a stray write dies with the name of what it wrote to") {
  Shared shared;
  const auto named = [&](std::size_t offset, const std::string& name) {
    const Ended ended = in_child([&] { shared.at(offset) = std::byte{1}; });
    CHECK(ended.by_fault());
    CHECK_EQ(ended.text.substr(0, ended.text.find(" outside of step()")), words + name);
    CHECK(ended.text.ends_with(remedy));
  };
  const std::string none = "the memory of the parameters";
  named(0, "the parameter 'first'");
  named(99, "the parameter 'first'");
  named(100, "the parameter 'one'");
  named(101, none);
  named(4095, none);
  named(4096, "the parameter 'layers.1.weight'");
  named(8999, "the parameter 'layers.1.weight'");
  named(9000, none);
  named(Shared::bytes - 1, "the parameter 'last'");
  named(Shared::bytes, none);  // the rest of the last page
  CHECK(shared.at(0) == std::byte{0});
}

TEST("before the first range, after new names, and without any") {
  Shared shared;
  const auto text = [&](std::ptrdiff_t offset) {
    return in_child([&] { *const_cast<volatile std::byte*>(shared.view->data() + offset) = std::byte{1}; }).text;
  };
  CHECK(text(-1).starts_with(words + "the memory of the parameters outside"));
  shared.view->name_ranges({{50, 60, std::string(5000, 'x')}});
  CHECK(text(49).starts_with(words + "the memory of the parameters outside"));
  CHECK(text(55).starts_with(words + "the parameter '" + std::string(5000, 'x') + "' outside"));
  shared.view->name_ranges({});
  CHECK(text(55).starts_with(words + "the memory of the parameters outside"));
}

TEST("an unprotected view may be written to, and is protected again") {
  Shared shared;
  shared.view->unprotect();
  const Ended ended = in_child([&] {
    for (std::size_t i = 0; i < Shared::bytes; ++i) shared.at(i) = std::byte{5};
    shared.view->protect();
    shared.at(0) = std::byte{6};
  });
  CHECK(ended.by_fault());
  CHECK_EQ(ended.count(words), 1u);
  CHECK(shared.owners[0] == std::byte{5} && shared.owners[Shared::bytes - 1] == std::byte{5});
}

TEST("faults elsewhere die without our words") {
  Shared shared;
  const Ended other = in_child(fault_elsewhere);
  CHECK(other.by_fault());
  CHECK_EQ(other.text, "");
  const Ended after = in_child([&] {
    std::byte* gone = shared.view->data() - Shared::begin % page;
    shared.view.reset();
    if (mmap(gone, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != gone) _exit(1);
    *const_cast<volatile std::byte*>(gone) = std::byte{1};
  });
  CHECK(after.by_fault());
  CHECK_EQ(after.text, "");
}

TEST("a system call that writes to the view fails") {
  Shared shared;
  int ends[2];
  CHECK(pipe(ends) == 0);
  CHECK(write(ends[1], "ab", 2) == 2);
  CHECK(read(ends[0], shared.view->data(), 2) == -1 && errno == EFAULT);
  close(ends[0]);
  close(ends[1]);
}

TEST("of threads that fault at once, one speaks") {
  const Ended ended = in_child([] {
    Shared shared;
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 4; ++i) threads.emplace_back([&shared, i] { shared.at(i * page) = std::byte{1}; });
    for (std::thread& thread : threads) thread.join();
  });
  CHECK(ended.by_fault());
  CHECK_EQ(ended.count(words), 1u);
}

TEST("views come and go in threads while a process faults") {
  for (int round = 0; round < 10; ++round) {
    const Ended ended = in_child([round] {
      Shared shared;
      std::atomic<int> made{0};
      std::vector<std::thread> threads;
      for (int i = 0; i < 3; ++i)
        threads.emplace_back([&shared, &made] {
          for (;; ++made) {
            GuardedView view(shared.owners, Shared::bytes, 1);
            view.name_ranges({{0, 10, "a"}, {20, 30, "another one"}});
            view.protect();
          }
        });
      while (made < 20 * round) std::this_thread::yield();
      shared.at(4096) = std::byte{1};
    });
    CHECK(ended.by_fault());
    CHECK(ended.text.starts_with(words + "the parameter 'layers.1.weight'"));
    CHECK_EQ(ended.count(words), 1u);
  }
}

TEST("views come and go in threads, and none is left") {
  Shared shared;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&shared] {
      for (int round = 0; round < 200; ++round) {
        GuardedView first(shared.owners, 100, 1), second(shared.owners + page, page, 1);
        first.name_ranges({{0, 100, "name of a range"}});
        CHECK(first.data()[5] == std::byte{0});
      }
    });
  for (std::thread& thread : threads) thread.join();
}

TEST("what cannot be guarded or named is refused in words") {
  Shared shared;
  CHECK_THROWS(GuardedView(shared.owners, 0, 0), "has at least one byte");
  CHECK_THROWS(shared.view->name_ranges({{5, 4, "a"}}), "'a' is [5, 4)");
  CHECK_THROWS(shared.view->name_ranges({{0, 5, "a"}, {4, 6, "b"}}), "do not overlap: 'b' is [4, 6)");
  CHECK_THROWS(shared.view->name_ranges({{0, Shared::bytes + 1, "a"}}), "lie in its 20557 bytes");
  int on_the_stack = 0;
  CHECK_THROWS(GuardedView(reinterpret_cast<std::byte*>(&on_the_stack), 4, 0), "Invalid argument");
}
