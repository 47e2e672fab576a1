#include "csrc/queue/engine.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "csrc/base/text.h"
#include "csrc/queue/bell.h"

namespace ringred {
namespace {

// The interval at which signals, peers' lives and deadlines are looked at.
constexpr std::int64_t look_interval = 100'000'000;
// How long after the last work the engine's thread still wakes up for a look: steady work is not interrupted by
// wake-ups for each operation.
constexpr std::int64_t settling_time = 1'000'000'000;
// How long a driver without a core of its own yields before it sleeps: some turns of the others.
constexpr std::int64_t yield_time = 100'000;

// How long a driver with a core of its own spins before it yields as well: the answer of a peer that runs takes less.
constexpr std::int64_t pure_spin_time = 5'000;

constexpr const char* after_shutdown = "ringred has been shut down on this rank. Call init(), and submit again.";
constexpr const char* after_fork =
    "A forked child cannot take part in its parent's collectives: this process was forked from one that called "
    "ringred.init(). Start ranks with mpirun, and data loaders with multiprocessing_context='forkserver'.";

RankBlock* rank_block(std::byte* base, std::size_t offset) {
  return reinterpret_cast<RankBlock*>(base + offset);
}

std::vector<RankBlock*> rank_blocks(const Engine::Setup& setup) {
  std::vector<RankBlock*> blocks;
  for (std::size_t peer = 0; peer < setup.bases.size(); ++peer)
    blocks.push_back(rank_block(setup.bases[peer], setup.rank_offsets[peer]));
  return blocks;
}

struct SignalsBlocked {
  sigset_t before;
  SignalsBlocked() {
    sigset_t every;
    sigfillset(&every);
    pthread_sigmask(SIG_BLOCK, &every, &before);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
};

void check_group_size(std::size_t ranks) {
  if (ranks < 1 || ranks > GroupBlock::most_ranks)
    fail_usage("A process set on one node has 1 to " + std::to_string(GroupBlock::most_ranks) +
               " ranks: it would have " + std::to_string(ranks) + ".");
}

bool is_alive(int lifeline) {
  pollfd descriptor{lifeline, POLLIN, 0};
  return lifeline < 0 || ::poll(&descriptor, 1, 0) <= 0 || (descriptor.revents & (POLLIN | POLLHUP)) == 0;
}

}  // namespace

Engine::Memory Engine::Memory::make(Arena& arena, int size, const Settings& settings) {
  check_group_size(static_cast<std::size_t>(size));
  Memory memory{arena.allocate(sizeof(RankBlock)), Group::reserve(arena, static_cast<std::size_t>(size), settings)};
  memory.rank->keep();
  memory.world->keep();
  return memory;
}

std::size_t Engine::Memory::bytes(int size, const Settings& settings) {
  constexpr std::size_t huge_page = std::size_t{2} << 20;  // to which large blocks are aligned
  return GroupLayout::round_up(sizeof(RankBlock), huge_page) +
         GroupLayout::round_up(Group::bytes(static_cast<std::size_t>(size), settings), huge_page);
}

Engine::Engine(Setup setup)
    : setup_(std::move(setup)),
      instruction_set_(instruction_set(setup_.settings.isa)),
      ranks_(rank_blocks(setup_)),
      mine_(*ranks_[static_cast<std::size_t>(setup_.rank)]),
      recorder_(mine_) {
  mine_.rank = setup_.rank;
  mine_.size = setup_.size;
  mine_.pid = getpid();
  mine_.started = monotonic_now();
  mine_.offset = setup_.rank_offsets[static_cast<std::size_t>(setup_.rank)];
  mine_.magic.store(RankBlock::magic_value, std::memory_order_release);
  Scene scene;
  for (std::size_t peer = 0; peer < ranks_.size(); ++peer) {
    scene.ranks.push_back(ranks_[peer]);
    scene.bases.push_back(setup_.bases[peer]);
    scene.lengths.push_back(setup_.lengths[peer]);
  }
  scene.alive = [this](int rank) { return is_alive(setup_.lifelines[static_cast<std::size_t>(rank)]); };
  stall_watch_ =
      std::make_unique<StallWatch>(StallWatch::Setup{ranks_, scene, setup_.settings.stall_seconds, setup_.report});
  std::vector<int> all(static_cast<std::size_t>(setup_.size));
  for (int peer = 0; peer < setup_.size; ++peer) all[static_cast<std::size_t>(peer)] = peer;
  add(0, make_group(0, all, setup_.memory.world, setup_.world_offsets));
  // Signals are for the host language's threads.
  const SignalsBlocked blocked;
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  if (abandoned_.load()) {
    new std::thread(std::move(thread_));  // it runs in the parent; there is nothing to join here
    return;
  }
  leave("its engine was destroyed");
}

std::shared_ptr<Operation> Engine::submit(std::uint32_t number, Request request, bool waits) {
  check_usable();
  const std::shared_ptr<Group> group = find(number);
  if (!group)
    fail_usage("Operations need a registered process set, and this rank has to be in it: there is none with number " +
               std::to_string(number) + " here. Call add_process_set on all ranks first.");
  auto operation = group->submit(std::move(request));
  if (sleeps_for_ever_.load(std::memory_order_seq_cst) || (group->is_sequencer() && !waits)) ring(mine_.bell);
  return operation;
}

void Engine::check_usable() const {
  if (abandoned_.load(std::memory_order_acquire)) fail_usage(after_fork);
}

// The role for something else than driving: who drives gives way, and nobody takes the role before this has had it.
class Engine::RoleRequest {
 public:
  explicit RoleRequest(Engine& engine) : engine_(engine) {
    engine_.requests_.fetch_add(1, std::memory_order_seq_cst);
    ring(engine_.mine_.bell);
    engine_.role_.lock();
  }
  ~RoleRequest() {
    engine_.role_.unlock();
    engine_.requests_.fetch_sub(1, std::memory_order_seq_cst);
    ring(engine_.mine_.bell);
  }

 private:
  Engine& engine_;
};

// One caller's wait, with the role or without.
class Engine::Drive {
 public:
  Drive(Engine& engine, Operation& operation, WaitHooks& hooks)
      : engine_(engine), operation_(operation), hooks_(hooks), next_poll_(monotonic_now() + look_interval) {}

  void run() {
    while (!operation_.done()) {
      if (take_role()) {
        drive();
        engine_.role_.unlock();
      } else if (!operation_.done()) {
        // The one who drives, or the engine's thread, does not know yet what this one has submitted.
        note_awaited();
        ring(engine_.mine_.bell);
        operation_.sleep(must_give_way() ? monotonic_now() + give_way_time : next_poll_);
      }
      poll();
    }
  }

 private:
  // How long a caller that has given way sleeps before it tries again.
  static constexpr std::int64_t give_way_time = 1'000'000;

  bool must_give_way() const {
    return engine_.stopping_.load(std::memory_order_seq_cst) || engine_.requests_.load(std::memory_order_seq_cst) > 0;
  }

  // Takes the role at once, or from the engine's thread at its next step. Not from another caller, who keeps it.
  bool take_role() {
    if (must_give_way()) return false;
    if (engine_.role_.try_lock()) return true;
    engine_.callers_.fetch_add(1, std::memory_order_seq_cst);
    const bool taken = pause([&] { return operation_.done() || engine_.role_.try_lock(); }) && !operation_.done();
    engine_.callers_.fetch_sub(1, std::memory_order_seq_cst);
    return taken;
  }

  // With the role, until the operation is done or the hooks want to be asked.
  void drive() {
    EngineBell& bell = engine_.mine_.bell;
    bell.state.store(EngineBell::awake, std::memory_order_seq_cst);
    const auto moves = [&] { return operation_.done() || engine_.advance() || operation_.done(); };
    while (!operation_.done() && !must_give_way() && monotonic_now() < next_poll_) {
      if (moves() || pause(moves)) continue;
      note_awaited();
      bell.state.store(EngineBell::caller_sleeps, std::memory_order_seq_cst);  // (1)
      if (!moves() && !must_give_way()) {                                      // (2)
        const Slept slept = futex_sleep(bell.state, EngineBell::caller_sleeps, EngineBell::caller_sleeps, next_poll_);
        if (slept == Slept::signalled) next_poll_ = 0;
      }
      bell.state.store(EngineBell::awake, std::memory_order_seq_cst);
    }
    if (!operation_.done()) engine_.look();
    if (!engine_.stopping_.load(std::memory_order_seq_cst)) engine_.hand_over();
  }

  // A short wait for something that changes soon: with enough cores spinning, else yielding. After some microseconds of
  // spinning it yields as well: engines' threads take cores too, and the one that is waited for may be on this core.
  template <class Ready>
  bool pause(Ready&& ready) const {
    const bool spins = engine_.setup_.cores_suffice;
    const std::int64_t start = monotonic_now();
    const std::int64_t limit = spins ? std::int64_t{engine_.setup_.settings.spin_microseconds} * 1000 : yield_time;
    for (std::int64_t waited = 0; waited < limit; waited = monotonic_now() - start) {
      if (ready()) return true;
      if (spins && waited < pure_spin_time)
        for (int turn = 0; turn < 16; ++turn) relax_processor();
      else
        sched_yield();
    }
    return false;
  }

  void note_awaited() {
    if (std::exchange(noted_, true)) return;
    if (const auto group = engine_.find(operation_.group)) group->note_awaited(operation_);
  }

  void poll() {
    if (operation_.done() || monotonic_now() < next_poll_) return;
    next_poll_ = monotonic_now() + look_interval;
    if (!hooks_.poll())
      throw Error(ErrorKind::interrupted,
                  "interrupted by a signal while waiting for '" + operation_.request.name + "', which stays in flight");
  }

  Engine& engine_;
  Operation& operation_;
  WaitHooks& hooks_;
  std::int64_t next_poll_;
  bool noted_ = false;
};

void Engine::wait(Operation& operation, WaitHooks& hooks) {
  check_usable();
  if (!operation.done()) {
    struct Inside {
      WaitHooks& hooks;
      explicit Inside(WaitHooks& own) : hooks(own) { hooks.enter(); }
      ~Inside() { hooks.leave(); }
    } inside(hooks);
    Drive(*this, operation, hooks).run();
  }
  operation.raise();
}

// (3)
void Engine::hand_over() {
  mine_.bell.state.store(EngineBell::engine_sleeps, std::memory_order_seq_cst);
  if (advance() || (busy() && sleeps_for_ever_.load(std::memory_order_seq_cst))) ring(mine_.bell);
}

void Engine::run() {
  std::int64_t last_work = monotonic_now();
  while (!stopping_.load(std::memory_order_seq_cst)) {
    while (callers_.load(std::memory_order_seq_cst) > 0 || requests_.load(std::memory_order_seq_cst) > 0) sched_yield();
    std::int64_t deadline = 0;
    {
      const std::lock_guard role(role_);
      if (stopping_.load(std::memory_order_seq_cst)) return;
      mine_.bell.state.store(EngineBell::awake, std::memory_order_seq_cst);
      if (!drive_until_still(last_work)) continue;
      look();
      if (busy()) last_work = monotonic_now();
      mine_.bell.state.store(EngineBell::engine_sleeps, std::memory_order_seq_cst);  // (1)
      const bool settled = monotonic_now() - last_work > settling_time;
      sleeps_for_ever_.store(settled, std::memory_order_seq_cst);
      if (advance() || (settled && busy())) {  // (2)
        sleeps_for_ever_.store(false, std::memory_order_seq_cst);
        last_work = monotonic_now();
        continue;
      }
      deadline = settled ? 0 : monotonic_now() + look_interval;
    }
    if (!stopping_.load(std::memory_order_seq_cst))
      futex_sleep(mine_.bell.state, EngineBell::engine_sleeps, EngineBell::engine_sleeps, deadline);
    sleeps_for_ever_.store(false, std::memory_order_seq_cst);
  }
}

// The engine's thread: takes steps, and while something runs waits a little for the next. Returns false where it has to
// give up the role with steps left to take, or to look around.
bool Engine::drive_until_still(std::int64_t& last_work) {
  for (std::int64_t still = monotonic_now(); !stopping_.load(std::memory_order_seq_cst);) {
    if (callers_.load(std::memory_order_seq_cst) > 0 || requests_.load(std::memory_order_seq_cst) > 0) return false;
    if (advance()) {
      last_work = still = monotonic_now();
      look();
    } else if (moving() && monotonic_now() - still < yield_time) {
      sched_yield();
    } else {
      return true;
    }
  }
  return false;
}

// A failure in the middle of a step, a lack of memory as a rule, ends the group it happened in.
template <class Step>
bool Engine::guarded(Group& group, Step&& step) {
  try {
    return step();
  } catch (const std::exception& error) {
    const std::string reason =
        std::string("an operation failed on rank ") + std::to_string(rank()) + ": " + error.what();
    group.close(Error(ErrorKind::system, reason + ". Call shutdown() and init() on all ranks to go on."),
                "broke off (" + reason + ")");
    return true;
  }
}

bool Engine::advance() {
  bool moved = false;
  if (mine_.requests.load(std::memory_order_acquire) != mine_.answers.load(std::memory_order_relaxed)) {
    answer_requests();
    moved = true;
  }
  if (const std::uint32_t wished = mine_.reports.load(std::memory_order_acquire); wished != reports_) {
    reports_ = wished;
    stall_watch_->start_report(monotonic_now());
    moved = true;
  }
  for (const auto& group : driven()) moved |= guarded(*group, [&] { return group->advance(); });
  return moved;
}

bool Engine::busy() const {
  return stall_watch_->reporting() ||
         std::any_of(driven_.begin(), driven_.end(), [](const auto& group) { return group->busy(); });
}

bool Engine::moving() const {
  return std::any_of(driven_.begin(), driven_.end(), [](const auto& group) { return group->moving(); });
}

void Engine::look() {
  const std::int64_t now = monotonic_now();
  if (now < next_look_) return;
  next_look_ = now + look_interval;
  if (!busy()) return;
  for (const auto& group : driven())
    guarded(*group, [&] {
      group->look(now);
      return true;
    });
  try {
    stall_watch_->look(now, driven());
  } catch (const std::bad_alloc&) {  // then there is no report
  }
}

// Several requests that come together have one answer.
void Engine::answer_requests() {
  const std::uint32_t number = mine_.requests.load(std::memory_order_acquire);
  store_text(mine_.stacks, setup_.stacks ? setup_.stacks() : std::string());
  mine_.answers.store(number, std::memory_order_seq_cst);
  for (RankBlock* rank : ranks_)
    if (rank != &mine_) ring(rank->bell);
}

std::size_t Engine::prepare_group(std::size_t members) {
  check_usable();
  check_group_size(members);
  auto memory = Group::reserve(*setup_.arena, members, setup_.settings);
  const std::lock_guard lock(groups_mutex_);
  const std::size_t offset = memory->offset();
  prepared_[offset] = std::move(memory);
  return offset;
}

void Engine::connect_group(std::uint32_t number, std::vector<int> ranks, const std::vector<std::size_t>& offsets) {
  check_usable();
  const auto me = std::find(ranks.begin(), ranks.end(), rank());
  const bool in_order = std::is_sorted(ranks.begin(), ranks.end()) && !ranks.empty() && ranks.front() >= 0 &&
                        ranks.back() < size() && std::adjacent_find(ranks.begin(), ranks.end()) == ranks.end();
  if (me == ranks.end() || !in_order || offsets.size() != ranks.size() || number >= RankBlock::most_groups)
    fail_usage("A process set is made of distinct ranks of the world in ascending order, this one among them.");
  std::shared_ptr<Arena::Block> memory;
  {
    const std::lock_guard lock(groups_mutex_);
    const auto prepared = prepared_.find(offsets[static_cast<std::size_t>(me - ranks.begin())]);
    if (prepared == prepared_.end() || groups_[number])
      fail_usage("A process set is connected once, after it was prepared, under a number that is free.");
    memory = std::move(prepared->second);
    prepared_.erase(prepared);
    removed_.clear();
  }
  add(number, make_group(number, std::move(ranks), std::move(memory), offsets));
}

std::shared_ptr<Group> Engine::make_group(std::uint32_t number, std::vector<int> ranks,
                                          std::shared_ptr<Arena::Block> memory,
                                          const std::vector<std::size_t>& offsets) {
  Group::Setup setup;
  setup.number = number;
  setup.memory = std::move(memory);
  for (std::size_t member = 0; member < ranks.size(); ++member) {
    const auto peer = static_cast<std::size_t>(ranks[member]);
    if (ranks[member] == rank()) setup.index = static_cast<int>(member);
    setup.blocks.push_back(reinterpret_cast<GroupBlock*>(setup_.bases[peer] + offsets[member]));
    setup.members.push_back(ranks_[peer]);
    setup.lifelines.push_back(setup_.lifelines[peer]);
  }
  setup.ranks = std::move(ranks);
  setup.settings = &setup_.settings;
  setup.instruction_set = &instruction_set_;
  setup.observer = this;
  return std::make_shared<Group>(std::move(setup));
}

void Engine::add(std::uint32_t number, std::shared_ptr<Group> group) {
  const std::lock_guard lock(groups_mutex_);
  if (stopping_.load(std::memory_order_seq_cst)) fail_usage(after_shutdown);
  mine_.groups[number].store(group->memory().offset(), std::memory_order_release);
  groups_[number] = std::move(group);
  groups_version_.fetch_add(1, std::memory_order_seq_cst);
}

void Engine::remove_group(std::uint32_t number) {
  check_usable();
  const RoleRequest role(*this);
  std::shared_ptr<Group> removed;
  {
    const std::lock_guard lock(groups_mutex_);
    if (number == 0 || number >= groups_.size() || !groups_[number])
      fail_usage("Only a process set that has been added can be removed: there is none with number " +
                 std::to_string(number) + ".");
    removed = std::exchange(groups_[number], nullptr);
    mine_.groups[number].store(0, std::memory_order_release);
    groups_version_.fetch_add(1, std::memory_order_seq_cst);
  }
  removed->close(Error(ErrorKind::usage, "the process set was removed. Submit to another one."),
                 "removed the process set");
  const std::lock_guard lock(groups_mutex_);
  removed_.push_back(std::move(removed));
}

std::shared_ptr<Group> Engine::find(std::uint32_t number) const {
  const std::lock_guard lock(groups_mutex_);
  return number < groups_.size() ? groups_[number] : nullptr;
}

std::shared_ptr<const Group> Engine::group(std::uint32_t number) const {
  return find(number);
}

const std::vector<std::shared_ptr<Group>>& Engine::driven() {
  if (groups_version_.load(std::memory_order_acquire) == driven_version_) return driven_;
  const std::lock_guard lock(groups_mutex_);
  driven_.clear();
  std::copy_if(groups_.begin(), groups_.end(), std::back_inserter(driven_), [](const auto& group) { return !!group; });
  driven_version_ = groups_version_.load(std::memory_order_relaxed);
  return driven_;
}

void Engine::stage(std::uint32_t group, TurnPlayer::Stage stage, std::int64_t begin, std::int64_t end) {
  const char* name = stage == TurnPlayer::Stage::copy_in  ? "pack"
                     : stage == TurnPlayer::Stage::reduce ? "reduce"
                                                          : "unpack";
  timeline_.span(track_of(group), name, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end));
}

void Engine::batch(std::uint32_t group, const std::vector<std::shared_ptr<Operation>>& operations, std::int64_t begin,
                   std::int64_t end) {
  const Request& first = operations.front()->request;
  const std::string name = operations.size() == 1 ? std::string(name_of(first.kind)) + " " + first.name
                                                  : std::string(name_of(first.kind)) + " of " +
                                                        std::to_string(operations.size()) + " tensors";
  timeline_.span(track_of(group), name, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end));
}

void Engine::ended(std::uint32_t group, const Operation& operation, bool failed) {
  const Request& request = operation.request;
  const auto time = [](std::int64_t at) { return static_cast<std::uint64_t>(at); };
  const DType dtype = request.tensors.empty() ? DType::u8 : request.tensors.front().dtype;
  recorder_.record({request.name, request.kind, request.op, dtype, group, request.bytes(), time(operation.submitted),
                    time(operation.agreed), time(operation.started), time(operation.ended), failed});
  if (timeline_.on())
    timeline_.operation(reinterpret_cast<std::uintptr_t>(&operation), request.name, time(operation.submitted),
                        time(operation.agreed), time(operation.started), time(operation.ended), request.kind,
                        request.bytes());
}

void Engine::completed(const std::shared_ptr<Operation>& operation) {
  const std::lock_guard lock(told_mutex_);
  if (!operation->tell || operation->told) return;
  operation->told = true;
  told_.push_back(operation);
  told_change_.notify_all();
}

void Engine::tell(const std::shared_ptr<Operation>& operation) {
  check_usable();
  const std::lock_guard lock(told_mutex_);
  operation->tell = true;
  if (!operation->done()) return;
  operation->told = true;
  told_.push_back(operation);
  told_change_.notify_all();
}

std::vector<std::shared_ptr<Operation>> Engine::await_told() {
  check_usable();
  std::unique_lock lock(told_mutex_);
  told_change_.wait(lock, [&] { return !told_.empty() || told_closed_; });
  return std::exchange(told_, {});
}

std::vector<Engine::Lateness> Engine::lateness(std::uint32_t number) const {
  const std::shared_ptr<Group> group = find(number);
  if (!group) fail_usage("There is no process set with number " + std::to_string(number) + " on this rank.");
  std::vector<Lateness> all;
  for (int member = 0; member < group->size(); ++member) {
    const auto& late = group->sequencer_block().late[member];
    all.push_back({late.times.load(std::memory_order_relaxed),
                   static_cast<double>(late.nanoseconds.load(std::memory_order_relaxed)) / 1e9});
  }
  return all;
}

void Engine::stalls_in(const std::string& call) {
  if (abandoned_.load(std::memory_order_acquire)) return;
  store_text(mine_.waiting_in, call);
  mine_.waiting_since.store(monotonic_now(), std::memory_order_release);
  RankBlock& reporter = *ranks_.front();
  if (reporter.magic.load(std::memory_order_acquire) == 0) {
    if (setup_.report) setup_.report("ringred: " + call + "\n");  // rank 0 has left
    return;
  }
  reporter.reports.fetch_add(1, std::memory_order_seq_cst);
  ring(reporter.bell);
}

void Engine::goes_on() {
  if (!abandoned_.load(std::memory_order_acquire)) mine_.waiting_since.store(0, std::memory_order_release);
}

void Engine::record_failure(const std::string& text) {
  if (abandoned_.load() || mine_.failed.load(std::memory_order_relaxed) != 0) return;
  store_text(mine_.failure, text);
  mine_.failed.store(monotonic_now(), std::memory_order_release);
}

std::vector<std::pair<int, std::string>> Engine::failures() const {
  std::vector<std::pair<std::int64_t, int>> order;
  for (int peer = 0; peer < size(); ++peer)
    if (const std::int64_t at = ranks_[static_cast<std::size_t>(peer)]->failed.load(std::memory_order_acquire); at != 0)
      order.emplace_back(at, peer);
  std::sort(order.begin(), order.end());
  std::vector<std::pair<int, std::string>> all;
  for (const auto& [at, peer] : order) all.emplace_back(peer, ranks_[static_cast<std::size_t>(peer)]->failure);
  return all;
}

std::string Engine::flight_recorder() const {
  return flight_recorder_json(mine_);
}

void Engine::leave(const std::string& reason) {
  if (abandoned_.load() || stopping_.exchange(true, std::memory_order_seq_cst)) return;
  {
    const RoleRequest role(*this);
    const std::lock_guard lock(groups_mutex_);
    for (const auto& group : removed_) group->memory().keep();
    for (const auto& group : groups_) {
      if (!group) continue;
      group->memory().keep();
      group->close(Error(ErrorKind::usage, after_shutdown), "left (" + reason + ")");
    }
    mine_.magic.store(0, std::memory_order_release);
  }
  mine_.bell.state.store(EngineBell::awake, std::memory_order_seq_cst);
  futex_wake(mine_.bell.state, INT_MAX, EngineBell::engine_sleeps | EngineBell::caller_sleeps);
  thread_.join();
  const std::lock_guard lock(told_mutex_);
  told_closed_ = true;
  told_change_.notify_all();
}

void Engine::abandon() {
  abandoned_.store(true, std::memory_order_release);
}

}  // namespace ringred
