// Diagnosis: the flight recorder, the timeline and the autopsy, on hand-built shared memory.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <thread>

#include "csrc/base/json.h"
#include "csrc/base/text.h"
#include "csrc/queue/autopsy.h"
#include "csrc/queue/flight_recorder.h"
#include "csrc/queue/timeline.h"
#include "tests/check.h"

using namespace ringred;

namespace {

constexpr std::uint64_t second = 1'000'000'000, now = 1000 * second;

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != text.npos;
}

// Fails with the whole text, which says more than a condition.
void check_has(const std::string& text, std::string_view part, int line) {
  if (!has(text, part)) ringred::check::report(__FILE__, line, "no \"" + std::string(part) + "\" in:\n" + text);
}
#define CHECK_HAS(text, part) check_has(text, part, __LINE__)

// Whether a text is one JSON value, and of UTF-8. RFC 8259, without the limits of numbers.
class JsonChecker {
 public:
  static bool valid(std::string_view text) {
    JsonChecker checker{text};
    return checker.value() && (checker.space(), checker.rest_.empty());
  }

 private:
  explicit JsonChecker(std::string_view text) : rest_(text) {}
  void space() {
    while (!rest_.empty() && has(" \n\r\t", rest_.substr(0, 1))) rest_.remove_prefix(1);
  }
  bool take(std::string_view wanted) {
    if (!rest_.starts_with(wanted)) return false;
    rest_.remove_prefix(wanted.size());
    return true;
  }
  bool value() {
    space();
    if (rest_.empty()) return false;
    if (rest_[0] == '"') return string();
    if (take("{")) return list('}', [&] { return space(), string() && (space(), take(":")) && value(); });
    if (take("[")) return list(']', [&] { return value(); });
    return take("true") || take("false") || take("null") || number();
  }
  template <class Item>
  bool list(char end, Item&& item) {
    const std::string_view close(&end, 1);
    space();
    if (take(close)) return true;
    do {
      if (!item()) return false;
      space();
    } while (take(","));
    return take(close);
  }
  bool number() {
    const std::size_t size = std::min(rest_.find_first_not_of("-+.eE0123456789"), rest_.size());
    rest_.remove_prefix(size);
    return size > 0;
  }
  bool string() {
    if (!take("\"")) return false;
    while (!rest_.empty() && rest_[0] != '"') {
      const bool escape = rest_[0] == '\\';
      const std::size_t bytes = escape ? (rest_.substr(0, 2) == "\\u" ? 6 : 2) : letter_bytes(rest_);
      if (bytes == 0 || bytes > rest_.size() || static_cast<unsigned char>(rest_[0]) < 0x20) return false;
      if (escape && !has("\"\\/bfnrtu", rest_.substr(1, 1))) return false;
      rest_.remove_prefix(bytes);
    }
    return take("\"");
  }
  std::string_view rest_;
};

std::size_t count_of(std::string_view text, std::string_view part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

constexpr std::size_t round_up(std::size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// The segments of a job's ranks, each in memory of its own that ends where the segment ends.
struct Job {
  static constexpr std::size_t entries = 160, groups_at = round_up(sizeof(RankBlock));
  static constexpr std::size_t entries_at = round_up(sizeof(GroupBlock));
  static constexpr std::size_t group_bytes = entries_at + entries * sizeof(Entry);
  static constexpr std::size_t bytes = groups_at + 2 * group_bytes;  // two process sets

  struct Freed {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<std::byte, Freed>> segments;
  std::set<int> dead;
  std::vector<std::uint32_t> requests;  // for stacks
  Scene scene;

  explicit Job(int size) {
    for (int rank = 0; rank < size; ++rank) {
      segments.emplace_back(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
      std::memset(segments.back().get(), 0, bytes);
      RankBlock& block = this->block(rank);
      block.magic = RankBlock::magic_value;
      block.rank = rank;
      block.size = size;
      block.pid = 0;  // no process: its state is not known
      scene.ranks.push_back(&block);
      scene.bases.push_back(segments.back().get());
      scene.lengths.push_back(bytes);
      requests.push_back(request_stacks(block));
    }
    scene.alive = [this](int rank) { return !dead.contains(rank); };
    std::vector<int> all;
    for (int rank = 0; rank < size; ++rank) all.push_back(rank);
    add_group(0, all);
  }

  RankBlock& block(int rank) { return *reinterpret_cast<RankBlock*>(segments[static_cast<std::size_t>(rank)].get()); }
  GroupBlock& group(int rank, std::uint32_t number) {
    std::byte* base = segments[static_cast<std::size_t>(rank)].get();
    return *reinterpret_cast<GroupBlock*>(base + groups_at + number * group_bytes);
  }
  Entry* table(int rank, std::uint32_t number) {
    return reinterpret_cast<Entry*>(reinterpret_cast<std::byte*>(&group(rank, number)) + entries_at);
  }

  void add_group(std::uint32_t number, const std::vector<int>& members) {
    for (std::size_t index = 0; index < members.size(); ++index) {
      GroupBlock& block = group(members[index], number);
      block.entries_at = entries_at;
      block.group = number;
      block.size = static_cast<std::uint32_t>(members.size());
      block.index = static_cast<std::uint32_t>(index);
      std::copy(members.begin(), members.end(), block.ranks);
      this->block(members[index]).groups[number] = groups_at + number * group_bytes;
    }
  }

  Entry& submit(int rank, std::string_view name, std::uint64_t seconds_ago = 31, std::uint32_t number = 0) {
    GroupBlock& block = group(rank, number);
    Entry& entry = table(rank, number)[block.entries.load()];
    entry.hash[0] = std::hash<std::string_view>()(name);
    entry.submitted = static_cast<std::int64_t>(now - seconds_ago * second);
    store_text(entry.name, name);
    store_text(entry.description, "allreduce(op=Average, dtype=float32, shape=[64, 3])");
    ++entry.submissions;
    ++block.entries;
    return entry;
  }

  void complete(int rank, std::string_view name, std::uint64_t seconds_ago) {
    const std::uint64_t ended = now - seconds_ago * second;
    FlightRecorder(block(rank)).record({.name = name, .kind = CallKind::allreduce, .agreed = ended, .ended = ended});
  }

  void put_stack(int rank, std::string_view text) {
    store_text(block(rank).stacks, text);
    block(rank).answers = requests[static_cast<std::size_t>(rank)];
  }

  void fail(int rank, std::string_view text, std::uint64_t seconds_ago = 20) {
    store_text(block(rank).failure, text);
    block(rank).failed = static_cast<std::int64_t>(now - seconds_ago * second);
  }

  void wait_in_call(int rank, std::string_view sentence, std::uint64_t seconds_ago = 1) {
    store_text(block(rank).waiting_in, sentence);
    block(rank).waiting_since = static_cast<std::int64_t>(now - seconds_ago * second);
  }

  std::string report(AutopsyOptions options = {}) const {
    options.now = now;
    options.requests = requests;
    return autopsy(scene, options);
  }
};

constexpr char pool_thread[] =
    "Thread 0x00007f06a26916c0 (most recent call first):\n"
    "  File \"/usr/lib/python3.11/threading.py\", line 324 in wait\n"
    "  File \"/usr/lib/python3.11/threading.py\", line 1002 in _bootstrap\n\n";

std::string stack_of(std::string_view frames) {
  return pool_thread + std::string("Thread 0x00007f06a33f4b80 (most recent call first):\n") + std::string(frames);
}

constexpr char in_synchronize[] =
    "  File \"/venv/ringred/torch/handles.py\", line 10 in synchronize\n"
    "  File \"/home/u/train.py\", line 3 in <module>\n";

// A child that stays as it is until it is killed.
class Child {
 public:
  template <class Body>
  explicit Child(Body&& body) : pid(fork()) {
    if (pid != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    _exit(0);
  }
  ~Child() {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  const pid_t pid;
};

}  // namespace

TEST("pending: who has submitted, who not, who has joined, who is through") {
  Job job(6);
  for (const int rank : {0, 1, 3}) job.submit(rank, "a", static_cast<std::uint64_t>(10 + rank));
  job.submit(4, "a", 50).completed = 1;
  job.submit(2, "other").completed = 1;
  job.group(2, 0).joined = 1;
  job.scene.ranks[5] = nullptr;

  std::vector<PendingOperation> found = pending(job.scene);
  CHECK_EQ(found.size(), 1u);
  CHECK_EQ(found[0].name, "a");
  CHECK_EQ(found[0].since, now - 13 * second);
  CHECK(found[0].submitted == std::vector<int>({0, 1, 3}));
  CHECK(found[0].missing == std::vector<int>({4}));
  CHECK(found[0].joined == std::vector<int>({2}));
  CHECK(found[0].unseen == std::vector<int>({5}));

  // Rank 4 has done its part, since it has completed an "a" that was agreed on after the others submitted theirs; but
  // only if the others may have records to carry out.
  job.complete(4, "a", 1);
  CHECK(pending(job.scene)[0].missing == std::vector<int>({4}));
  job.group(0, 0).logged = 1;
  found = pending(job.scene);
  CHECK(found[0].missing.empty());
  CHECK(found[0].finished == std::vector<int>({4}));
}

TEST("pending: the same name in two process sets is two operations, the oldest first") {
  Job job(3);
  job.add_group(1, {2, 0});
  job.submit(0, "a", 5, 0);
  job.submit(2, "a", 9, 1);
  const std::vector<PendingOperation> found = pending(job.scene);
  CHECK_EQ(found.size(), 2u);
  CHECK_EQ(found[0].group, 1u);
  CHECK(found[0].missing == std::vector<int>({0}));
  CHECK_EQ(found[1].group, 0u);
  CHECK(found[1].missing == std::vector<int>({1, 2}));
  CHECK(found[0].hash == found[1].hash);
}

TEST("autopsy: header, operation, last completed") {
  Job job(4);
  for (const int rank : {0, 1, 2}) job.submit(rank, "layer1.weight");
  job.complete(3, "layer0.weight", 32);
  job.put_stack(3, "");
  const std::string text = job.report();
  CHECK_HAS(text, "ringred autopsy, 20");
  CHECK_HAS(text, ": 1 operation waits\n");
  CHECK_HAS(text, "'layer1.weight' waits for 31 s: allreduce(op=Average, dtype=float32, shape=[64, 3])\n");
  CHECK_HAS(text, "  submitted by ranks 0-2; missing: rank 3\n");
  CHECK_HAS(text, "rank 3, likely cause: not known: it has no Python stack\n");
  CHECK_HAS(text, "  has not submitted 'layer1.weight'\n");
  CHECK_HAS(text, "last completed 'layer0.weight' 32 s ago\n");
  CHECK(!has(text, "rank 0,"));
}

TEST("cause: the process has ended") {
  Job job(2);
  job.submit(0, "a");
  job.dead.insert(1);
  CHECK_HAS(job.report(), "likely cause: its process has ended and left no word");
  job.fail(1, "ValueError: 'x'\nTraceback (most recent call last):\n  File \"t.py\", line 1\nValueError: 'x'\n\ny\n");
  const std::string text = job.report();
  CHECK_HAS(text, "likely cause: its process ended after a failure: ValueError: 'x'\n");
  CHECK(!has(text, "its engine did not answer"));
}

TEST("cause: stopped, or a zombie") {
  Job job(3);
  job.submit(0, "a");
  const Child stopped([] { raise(SIGSTOP); });
  const Child zombie([] {});
  siginfo_t info{};
  waitid(P_PID, static_cast<id_t>(zombie.pid), &info, WEXITED | WNOWAIT);
  waitpid(stopped.pid, nullptr, WUNTRACED);
  job.block(1).pid = stopped.pid;
  job.block(2).pid = zombie.pid;
  const std::string text = job.report();
  CHECK_HAS(text,
            "rank 1, likely cause: its process is stopped (SIGSTOP, SIGTSTP or Ctrl-Z); kill -CONT lets it go on\n");
  CHECK_HAS(text, "process " + std::to_string(stopped.pid) + " is stopped by a signal;");
  CHECK_HAS(text, "rank 2, likely cause: its process has ended");
  CHECK_HAS(text, "has ended (a zombie");
}

TEST("cause: failed; the summary is the cause, and the traceback's end is shown") {
  Job job(2);
  job.submit(0, "a");
  const std::string head = "Traceback (most recent call last):\n", end = "ValueError: no such layer\n";
  std::string frames = "  File \"/home/u/train.py\", line 9 in <module>\n    load(7)\n";
  job.fail(1, end + head + frames + end);
  CHECK_HAS(job.report(), "rank 1, likely cause: it failed: ValueError: no such layer\n  has not submitted 'a'\n");
  CHECK_HAS(job.report(),
            "  first failure, 20 s ago:\n    Traceback (most recent call last):\n"
            "      File \"/home/u/train.py\", line 9 in <module>\n        load(7)\n    ValueError: no such layer\n");

  for (int i = 0; i < 20; ++i) frames += "  line " + std::to_string(i) + "\n";
  job.fail(1, "KeyError: \x1b[31m\xff\n" + head + frames + end);
  CHECK_HAS(job.report(), "rank 1, likely cause: it failed: KeyError:  [31m\xef\xbf\xbd\n");
  CHECK_HAS(job.report(), "first failure, 20 s ago (18 lines above not shown):\n      line 15\n");

  job.fail(1, "KeyError: 3");
  CHECK_HAS(job.report(), "it failed: KeyError: 3\n");
  CHECK(!has(job.report(), "first failure"));
}

TEST("cause: joined in another process set") {
  Job job(2);
  job.add_group(1, {0, 1});
  job.submit(0, "a", 31, 1);
  job.group(1, 0).joined = 1;
  CHECK_HAS(job.report(),
            "rank 1, likely cause: it has called join() and submits nothing until all ranks have joined\n");
}

TEST("cause: the other process set, or none") {
  Job job(2);
  job.add_group(1, {0, 1});
  job.submit(0, "a", 31, 0);
  job.submit(1, "a", 31, 1);
  const std::string text = job.report();
  CHECK_HAS(text, "rank 1, likely cause: it has submitted 'a' to process set 1, the others to process set 0\n");
  CHECK_HAS(text, "rank 0, likely cause: it has submitted 'a' to process set 0, the others to process set 1\n");

  Job other(2);
  other.add_group(1, {0, 1});
  other.submit(0, "a", 31, 1);
  other.block(1).groups[1] = 0;
  CHECK_HAS(other.report(), "rank 1, likely cause: it does not have process set 1 (not yet, or no longer)\n");
}

TEST("cause: different order") {
  Job job(3);
  job.submit(0, "a");
  job.submit(1, "b");
  for (const int rank : {0, 1}) job.put_stack(rank, stack_of(in_synchronize));
  job.submit(2, "a");
  job.submit(2, "b");
  const std::string text = job.report();
  const std::string cause = "likely cause: rank 0 waits for 'a', rank 1 for 'b': they call in different order\n";
  CHECK_HAS(text, "rank 0, " + cause);
  CHECK_HAS(text, "rank 1, " + cause);
  CHECK_HAS(text, "    File \"/venv/ringred/torch/handles.py\", line 10 in synchronize\n");

  // Who computes does not wait: asynchronous operations may come in any order.
  job.put_stack(1, stack_of("  File \"/home/u/train.py\", line 7 in forward\n"));
  CHECK_HAS(job.report(),
            "rank 1, likely cause: it is still computing: File \"/home/u/train.py\", line 7 in forward\n");
}

TEST("cause: waits in an operation that a third has not submitted") {
  Job chain(3);
  chain.add_group(1, {1, 2});
  chain.submit(0, "a");
  chain.submit(1, "b", 31, 1);
  CHECK_HAS(chain.report(),
            "rank 1, likely cause: it waits for 'b' of process set 1, which rank 2 has not submitted\n");
}

TEST("cause: DataLoader, MPI, sleep, computing, by the stack of the main thread") {
  const auto cause_of = [](const std::string& frames) {
    Job job(2);
    job.submit(0, "a");
    job.put_stack(1, stack_of(frames));
    return job.report();
  };
  CHECK_HAS(
      cause_of(
          "  File \"/p/queues.py\", line 1 in get\n  File \"/v/torch/utils/data/dataloader.py\", line 2 in _next\n"),
      "rank 1, likely cause: it waits for its DataLoader\n");
  CHECK_HAS(cause_of("  File \"/v/mpi4py/util/pool.py\", line 2 in wait\n"), "it seems to be in an MPI call");

  // C functions have no frame: their caller's line tells.
  const std::string path =
      std::filesystem::temp_directory_path() / ("ringred_diagnosis_" + std::to_string(getpid()) + ".py");
  std::ofstream(path) << "import time\n    time.sleep(100)\nMPI.COMM_WORLD.Barrier()\nx = y @ z\n";
  const auto line = [&](int number) { return "  File \"" + path + "\", line " + std::to_string(number) + " in f\n"; };
  CHECK_HAS(cause_of(line(2)), "likely cause: it sleeps (time.sleep)\n");
  CHECK_HAS(cause_of(line(2)), "line 2 in f:  time.sleep(100)\n");
  CHECK_HAS(cause_of(line(3)), "it seems to be in an MPI call");
  CHECK_HAS(cause_of(line(4)), "likely cause: it is still computing: File \"" + path + "\", line 4 in f\n");
  CHECK_HAS(cause_of(line(99)), "it is still computing");
  std::remove(path.c_str());
  CHECK_HAS(cause_of("  File \"/v/ringred/world.py\", line 4 in init\n"), "likely cause: it is in ringred: File");
}

TEST("cause: synchronous calls, with and without named operations") {
  Job job(4);
  job.submit(0, "a");
  job.wait_in_call(1, "rank 1 waits for rank 0 in call 2, barrier(), for 30 s so far.");
  CHECK_HAS(job.report(),
            "rank 1, likely cause: it waits for rank 0 in call 2, barrier(), for 30 s so far, and submits 'a' only "
            "then: the ranks call in different order, or some do not make this call\n");

  // Ranks that wait for the same are one line; the rank that does not wait has a section.
  Job only(4);
  for (const int rank : {0, 1, 2})
    only.wait_in_call(rank,
                      "rank " + std::to_string(rank) + " waits for rank 3 in call 1, barrier(), for 30 s so far.");
  std::string text = only.report();
  CHECK_HAS(text, "no named operation waits\nranks 0-2 wait for rank 3 in call 1, barrier(), for 30 s so far.\n\n");
  CHECK_HAS(text, "\nrank 3, likely cause: not known");
  CHECK(!has(text, "rank 0, likely"));

  only.wait_in_call(0, "rank 0 waits for rank 1 in call 1, barrier(), for 30 s so far.", 31);
  text = only.report();
  CHECK_HAS(text, "\nrank 0 waits for rank 1 in call 1, barrier(), for 30 s so far. That was 31 s ago.\n");
  CHECK_HAS(text, "\nranks 1, 2 wait for rank 3 in call 1, barrier(), for 30 s so far.\n");

  Job many(8);
  for (int rank = 0; rank < 8; ++rank) many.wait_in_call(rank, "other words of " + std::to_string(rank));
  CHECK_HAS(many.report(), "\nrank 3 waits: other words of 3\nand 4 more ranks\n");
}

TEST("stacks are shown if they answer this report's request, not an earlier one") {
  Job job(2);
  job.submit(0, "a");
  job.put_stack(1, stack_of(in_synchronize));
  CHECK_HAS(job.report(), "in synchronize\n");

  job.requests[1] = request_stacks(job.block(1));
  std::string text = job.report();
  CHECK(!has(text, "in synchronize"));
  CHECK_HAS(text, "rank 1, likely cause: not known: its engine did not answer\n");
  CHECK_HAS(text, "  no Python stack: its engine did not answer\n");

  job.requests[1] = 0;
  text = job.report();
  CHECK(!has(text, "in synchronize"));
  CHECK_HAS(text, "rank 1, likely cause: not known: it was not asked for its Python stack\n");
  CHECK(!has(text, "did not answer"));
  job.requests.clear();
  CHECK_EQ(job.report(), text);
}

TEST("an operation that all have submitted is being carried out") {
  Job job(2);
  for (const int rank : {0, 1}) job.submit(rank, "a");
  const std::string text = job.report();
  CHECK_HAS(text, "submitted by ranks 0, 1; nobody is missing, it is being carried out\n");
  CHECK_HAS(text, "ranks 0, 1, likely cause: 'a' is submitted everywhere and being carried out\n");
}

TEST("ranks in one state are one section; the screen is bounded") {
  Job job(64);
  for (int name = 0; name < 100; ++name) job.submit(0, "gradient." + std::to_string(name));
  std::string frames;
  for (int i = 0; i < 40; ++i) frames += "  File \"/home/u/train.py\", line " + std::to_string(i) + " in f\n";
  for (int rank = 1; rank < 64; ++rank) {
    job.put_stack(rank, stack_of(frames));
    job.complete(rank, "loss", static_cast<std::uint64_t>(30 + rank % 3));
  }
  std::string text = job.report();
  CHECK_HAS(text, "100 operations wait\n");
  CHECK_HAS(text, "and 92 more\n");
  CHECK_HAS(text, "ranks 1-63, likely cause: it is still computing");
  CHECK_HAS(text, "'gradient.2' and 97 more\n");
  CHECK_HAS(text, "last completed 'loss' 30 s to 32 s ago\n");
  CHECK_HAS(text, "line 11 in f\n    and 28 more\n");

  for (int rank = 1; rank < 64; ++rank)
    job.fail(rank, "Error " + std::to_string(rank), 100 - static_cast<unsigned>(rank));
  text = job.report();
  CHECK_HAS(text, "more ranks\n");
  CHECK(text.find("rank 1, likely cause: it failed: Error 1\n") < text.find("rank 2, likely cause: it failed"));
  CHECK(std::count(text.begin(), text.end(), '\n') <= 61);
}

TEST("stacks: a request and its answer") {
  Job job(1);
  RankBlock& block = job.block(0);
  const std::uint32_t first = request_stacks(block), later = request_stacks(block);
  CHECK(!answered(block, first));
  block.answers = later;
  CHECK(answered(block, first) && answered(block, later));
  block.requests = block.answers = 0xffffffffu;
  CHECK_EQ(request_stacks(block), 0u);
  CHECK(!answered(block, 0));
}

namespace {

// Words that are likely to be taken for something, and others.
std::uint64_t random_word(std::mt19937_64& random) {
  switch (random() % 6) {
    case 0:
      return random() % 8;
    case 1:
      return random() % (2 * Job::bytes) & ~std::uint64_t{63};
    case 2:
      return Job::bytes - random() % 4096;
    case 3:
      return ~std::uint64_t{0} - random() % 4096;
    case 4:
      return Job::groups_at + random() % 2 * Job::group_bytes;
    default:
      return random();
  }
}

void scribble(Job& job, int rank, std::mt19937_64& random, bool everywhere) {
  auto* words = reinterpret_cast<std::uint64_t*>(job.segments[static_cast<std::size_t>(rank)].get());
  const std::size_t count = Job::bytes / sizeof *words;
  if (everywhere)
    for (std::size_t i = 0; i < count; ++i) words[i] = random();
  // Some near the structures' heads, some anywhere.
  for (int i = 0; i < 60; ++i) {
    words[random() % count] = random_word(random);
    words[(Job::groups_at + random() % 2 * Job::group_bytes) / 8 + random() % 40] = random_word(random);
  }
  RankBlock& block = job.block(rank);
  if (random() % 8 != 0) block.magic = RankBlock::magic_value;
  for (int i = 0; i < 10; ++i) block.groups[random() % 4] = random_word(random);
  for (const std::uint32_t group : {0u, 1u}) {
    if (random() % 2 == 0) continue;
    block.groups[group] = Job::groups_at + group * Job::group_bytes;
    GroupBlock& head = job.group(rank, group);
    head.size = 3;
    for (int member = 0; member < 3; ++member) head.ranks[member] = member;
    if (random() % 2 == 0) head.entries_at = Job::entries_at;
    if (random() % 2 == 0) head.entries = static_cast<std::uint32_t>(random() % 200);
  }
}

void check_garbage(unsigned seed) {
  std::mt19937_64 random(seed);
  auto job = std::make_unique<Job>(3);
  std::size_t found = 0;
  constexpr std::size_t rounds = check::sanitized ? 500 : 2500;
  for (std::size_t round = 0; round < rounds; ++round) {
    if (round % 100 == 0) {
      job = std::make_unique<Job>(3);
      for (const int rank : {0, 1, 2}) job->put_stack(rank, stack_of(in_synchronize));
    }
    const bool everywhere = round % 50 == 49;
    for (const int rank : {0, 1, 2}) scribble(*job, rank, random, everywhere);
    found += pending(job->scene).size();
    const std::string text = job->report({.source_lines = false});
    CHECK(std::count(text.begin(), text.end(), '\n') <= 61);
    for (std::string_view rest = text; !rest.empty(); rest.remove_prefix(letter_bytes(rest)))
      if (letter_bytes(rest) == 0) return CHECK(!"a report of UTF-8");
    if (round % 50 == 0) CHECK(JsonChecker::valid(flight_recorder_json(job->block(0))));
  }
  CHECK(found > rounds);  // the rounds do reach the entries
}

}  // namespace

TEST("garbage in shared memory crashes no report") {
  check_garbage(1);
}

TEST("an autopsy while ranks submit and complete") {
  Job job(2);
  std::atomic<bool> stop{false};
  std::thread rank([&] {
    GroupBlock& group = job.group(0, 0);
    Entry& entry = *job.table(0, 0);
    group.entries = 1;
    for (std::uint64_t turn = 1; !stop; ++turn) {
      const std::string name = "name " + std::to_string(turn);
      entry.hash[0] = turn;
      entry.submitted = static_cast<std::int64_t>(now);
      store_text(entry.name, name);
      entry.submissions.store(turn);
      job.complete(0, name, 0);
      store_text(job.block(0).stacks, name);
      job.block(0).answers.store(static_cast<std::uint32_t>(turn));
      entry.completed.store(turn);
    }
  });
  while (job.block(0).flights < 100) std::this_thread::yield();
  std::size_t found = 0;
  for (int i = 0; i < 2000; ++i) found += has(job.report(), ": 1 operation waits\n");
  CHECK(found > 0);
  stop = true;
  rank.join();
}

TEST("flight recorder: JSON of any name, the oldest first, the last 4096") {
  Job job(2);
  FlightRecorder recorder(job.block(1));
  CHECK(JsonChecker::valid(flight_recorder_json(job.block(1))));
  recorder.record({.name = "a\"\\\n\x01\xff\xc3",
                   .kind = CallKind::allreduce,
                   .op = Op::sum,
                   .dtype = DType::f32,
                   .group = 2,
                   .bytes = 400,
                   .submitted = 1,
                   .agreed = 2,
                   .started = 3,
                   .ended = 4});
  recorder.record({.name = std::string(100, 'x'), .kind = CallKind::barrier, .failed = true});
  std::string json = flight_recorder_json(job.block(1));
  CHECK(JsonChecker::valid(json));
  CHECK_HAS(json, "{\"version\":1,\"rank\":1,\"size\":2,\"pid\":0,\"clock\":\"CLOCK_MONOTONIC ns\",\"entries\":[\n");
  CHECK_HAS(json,
            "{\"sequence\":1,\"name\":\"a\\\"\\\\\\u000a\\u0001\xef\xbf\xbd\xef\xbf\xbd\",\"kind\":\"allreduce\","
            "\"op\":\"Sum\",\"dtype\":\"float32\",\"bytes\":400,\"process_set\":2,\"submitted\":1,\"agreed\":2,"
            "\"started\":3,\"ended\":4,\"state\":\"done\"},\n{\"sequence\":2,\"name\":\"xxx");
  CHECK_HAS(json, "\"state\":\"failed\"}]}");

  recorder.record({.kind = static_cast<CallKind>(200), .op = static_cast<Op>(200), .dtype = static_cast<DType>(200)});
  CHECK_HAS(flight_recorder_json(job.block(1)), "\"kind\":\"?\",\"op\":\"?\",\"dtype\":\"?\"");

  for (int i = 0; i < 5000; ++i) FlightRecorder(job.block(1)).record({.name = "next"});
  json = flight_recorder_json(job.block(1));
  CHECK(JsonChecker::valid(json));
  CHECK_EQ(count_of(json, "\"sequence\":"), 4096u);
  CHECK(json.find("\"sequence\":908,") < json.find("\"sequence\":909,"));
  CHECK(!has(json, "\"sequence\":907,"));
}

TEST("flight recorder: a reader never gets half a record") {
  Job job(1);
  RankBlock& block = job.block(0);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    FlightRecorder recorder(block);
    for (std::uint64_t turn = 1; !stop; ++turn) {
      const std::string name(60, static_cast<char>('a' + turn % 26));
      recorder.record({.name = name, .bytes = turn, .submitted = turn, .agreed = turn, .started = turn, .ended = turn});
    }
  });
  // The oldest ones are overwritten next: many of the reads meet their writer.
  std::size_t seen = 0, overwritten = 0, torn = 0;
  FlightCopy copy;
  while (seen < 100000 || overwritten < 100000) {
    const std::uint64_t sequence = flights_of(block).first + (seen + overwritten) % 8;
    if (!read_flight(block, sequence, copy)) {
      ++overwritten;
      continue;
    }
    ++seen;
    const Flight& flight = copy.flight;
    const char letter = static_cast<char>('a' + sequence % 26);
    if (flight.bytes != sequence || flight.submitted != sequence || flight.ended != sequence ||
        flight.name.size() != 60 || flight.name.find_first_not_of(letter) != flight.name.npos)
      ++torn;
  }
  stop = true;
  writer.join();
  CHECK_EQ(torn, 0u);
}

TEST("timeline: nothing while off, events that nest, each once") {
  Timeline timeline;
  timeline.span(Track::engine, "batch", 1, 2);
  CHECK(!timeline.on());
  CHECK_EQ(timeline.drain(), "");
  timeline.start(3);
  CHECK(timeline.on());
  timeline.operation(7, "grad\xff", 1000, 2500, 4000, 9000, CallKind::allreduce, 64);
  timeline.span(Track::engine, "batch", 4000, 9000);
  timeline.span(Track::engine, "pack", 4100, 5100);
  timeline.span(track_of(2), "reduce", 4100, 5100);
  const std::string json = timeline.drain();
  CHECK(JsonChecker::valid("[" + json + "]"));
  CHECK_HAS(json, R"("pid":3,"tid":3,"name":"process_name","args":{"name":"rank 3"}})");
  CHECK_HAS(json, R"("tid":4096,"name":"thread_name","args":{"name":"engine"}})");
  CHECK_HAS(json, R"("tid":4098,"name":"thread_name","args":{"name":"engine, process set 2"}})");
  CHECK_HAS(json, R"({"ph":"X","pid":3,"tid":4096,"name":"batch","ts":4.000,"dur":5.000})");
  CHECK_HAS(json, R"("name":"negotiation","ts":1.000,"cat":"operation","id2":{"local":"7"}})");
  const std::vector<std::string> order{R"("b","pid":3,"tid":3,"name":"grad)",
                                       R"("b","pid":3,"tid":3,"name":"negotiation")",
                                       R"("e","pid":3,"tid":3,"name":"negotiation","ts":2.500)",
                                       R"("b","pid":3,"tid":3,"name":"wait","ts":2.500)",
                                       R"("e","pid":3,"tid":3,"name":"execute","ts":9.000)",
                                       R"("e","pid":3,"tid":3,"name":"grad)"};
  for (std::size_t i = 1; i < order.size(); ++i) CHECK(json.find(order[i - 1]) < json.find(order[i]));
  CHECK_HAS(json, order.back());

  timeline.stop();
  timeline.span(Track::engine, "late", 1, 2);
  CHECK_EQ(timeline.drain(), "");
}

TEST("timeline: parts that were not reached end with the operation") {
  Timeline timeline;
  timeline.start(0);
  timeline.operation(1, "failed", 1000, 0, 0, 5000, CallKind::barrier, 0);
  const std::string json = timeline.drain();
  CHECK_HAS(json, R"("e","pid":0,"tid":0,"name":"negotiation","ts":5.000)");
  CHECK(!has(json, "execute"));
  CHECK_EQ(count_of(json, R"("ph":"b")"), count_of(json, R"("ph":"e")"));
}

TEST("timeline: bounded, and it says what it dropped") {
  Timeline timeline;
  timeline.start(0);
  for (std::size_t i = 0; i < Timeline::most_events + 5; ++i) timeline.span(Track::engine, "s", i, i + 1);
  const std::string json = timeline.drain();
  CHECK_EQ(count_of(json, R"("ph":"X")"), Timeline::most_events);
  CHECK_HAS(json, R"("args":{"dropped":5,)");
  timeline.span(Track::engine, "after", 1, 2);
  CHECK_HAS(timeline.drain(), "after");
}

TEST("timeline: several threads record while one drains") {
  Timeline timeline;
  timeline.start(0);
  constexpr std::size_t each = 20000;
  std::atomic<int> running{3};
  std::vector<std::thread> threads;
  for (std::uint32_t number = 0; number < 3; ++number)
    threads.emplace_back([&, number] {
      for (std::size_t i = 0; i < each; ++i)
        timeline.span(track_of(number), "span " + std::to_string(i % 10), i, i + 1);
      --running;
    });
  std::string json;
  const auto drain = [&] {
    const std::string part = timeline.drain();
    if (!part.empty()) json += (json.empty() ? "" : ",\n") + part;
  };
  while (running > 0) drain();
  drain();
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(count_of(json, R"("ph":"X")"), 3 * each);
  CHECK_EQ(count_of(json, R"("process_name")"), 1u);
  CHECK(JsonChecker::valid("[" + json + "]"));
}
