#include "csrc/queue/engine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "csrc/base/lifeline.h"
#include "csrc/base/text.h"
#include "csrc/queue/bell.h"

namespace ringred {
namespace {

constexpr const char* after_shutdown = "ringred has been shut down on this rank. Call init(), and submit again.";
constexpr const char* after_fork =
    "A forked child cannot take part in its parent's collectives: this process was forked from one that called "
    "ringred.init(). Let only the ranks call it; workers of data loaders may ask for rank() and size().";

// MPI has tags up to 32767 at least. The first two groups stay; others have ended long before their tag comes again.
constexpr int lasting_groups = 2, most_tags = 32'000;

int tag_of(int serial) {
  return serial < lasting_groups ? serial : lasting_groups + (serial - lasting_groups) % (most_tags - lasting_groups);
}

RankBlock* rank_block(std::byte* base, std::size_t offset) {
  return reinterpret_cast<RankBlock*>(base + offset);
}

// Null on other nodes.
std::vector<RankBlock*> rank_blocks(const Engine::Setup& setup) {
  std::vector<RankBlock*> blocks;
  for (std::size_t peer = 0; peer < setup.bases.size(); ++peer)
    blocks.push_back(setup.bases[peer] == nullptr ? nullptr : rank_block(setup.bases[peer], setup.rank_offsets[peer]));
  return blocks;
}

// The node of each of these ranks; without `nodes` all share one.
std::vector<int> nodes_of(const std::vector<int>& ranks, const std::vector<int>& nodes) {
  std::vector<int> chosen;
  for (const int rank : ranks) chosen.push_back(nodes.empty() ? 0 : nodes[static_cast<std::size_t>(rank)]);
  return chosen;
}

int place_of(int rank, const std::vector<int>& ranks) {
  return static_cast<int>(std::find(ranks.begin(), ranks.end(), rank) - ranks.begin());
}

std::vector<int> all_ranks(int size) {
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

void check_group_size(std::size_t ranks) {
  if (ranks < 1 || ranks > GroupBlock::most_ranks)
    fail_usage("A process set has 1 to " + std::to_string(GroupBlock::most_ranks) + " ranks: it would have " +
               std::to_string(ranks) + ".");
}

}  // namespace

Engine::Memory Engine::Memory::make(Arena& arena, int size) {
  check_group_size(static_cast<std::size_t>(size));
  Memory memory{arena.allocate(sizeof(RankBlock)), nullptr};
  memory.rank->keep();
  return memory;
}

void Engine::Memory::make_world(Arena& arena, int own, int size, const std::vector<int>& nodes,
                                const Settings& settings) {
  world = Group::reserve(arena, Nodes(nodes_of(all_ranks(size), nodes)), own, settings);
  world->keep();
}

std::size_t Engine::Memory::bytes(int size, const Settings& settings) {
  constexpr std::size_t huge_page = std::size_t{2} << 20;  // to which large blocks are aligned
  return round_up(sizeof(RankBlock), huge_page) +
         round_up(Group::bytes(Nodes(nodes_of(all_ranks(size), {})), settings), huge_page);
}

Engine::Engine(Setup setup)
    : setup_(std::move(setup)),
      instruction_set_(instruction_set(setup_.settings.isa)),
      ranks_(rank_blocks(setup_)),
      mine_(*ranks_[static_cast<std::size_t>(setup_.rank)]),
      records_(mine_),
      driver_(mine_.bell, *this, {setup_.cores_suffice, std::int64_t{setup_.settings.spin_microseconds} * 1000}) {
  mine_.rank = setup_.rank;
  mine_.size = setup_.size;
  mine_.pid = getpid();
  mine_.magic.store(RankBlock::magic_value, std::memory_order_release);
  Scene scene;
  for (std::size_t peer = 0; peer < ranks_.size(); ++peer) {
    scene.ranks.push_back(ranks_[peer]);
    scene.bases.push_back(setup_.bases[peer]);
    scene.lengths.push_back(setup_.lengths[peer]);
  }
  scene.alive = [this](int rank) { return !has_ended(setup_.lifelines[static_cast<std::size_t>(rank)]); };
  stall_watch_ =
      std::make_unique<StallWatch>(StallWatch::Setup{ranks_, scene, setup_.settings.stall_seconds, setup_.report});
  add(0, make_group(0, all_ranks(setup_.size), setup_.memory.world, setup_.world_offsets, 0));
  driver_.start();
}

Engine::~Engine() {
  is_abandoned() ? driver_.abandon() : leave("its engine was destroyed");
}

std::shared_ptr<Operation> Engine::submit(std::uint32_t number, Request request, bool waits) {
  check_usable();
  const std::shared_ptr<Group> group = find(number);
  if (!group)
    fail_usage("Operations need a registered process set, and this rank has to be in it: there is none with number " +
               std::to_string(number) + " here. Call add_process_set on all ranks first.");
  check_direct(request);
  auto operation = group->submit(std::move(request));
  driver_.notice(!waits && (group->acts_on_submissions() || !group->hears()));
  return operation;
}

void Engine::check_direct(const Request& request) const {
  if (!request.direct && !request.update) return;
  const bool alone = request.tensors.size() == 1 && request.tensors.front().input == request.tensors.front().output;
  if (!alone || request.wire || request.prescale != 1 || request.postscale != 1)
    fail_usage("What is reduced in place is one array, neither scaled nor cast.");
  const Tensor& tensor = request.tensors.front();
  if (request.norm || request.update) {
    if (request.op != Op::sum && request.op != Op::average)
      fail_usage("A norm or an update takes Sum or Average: op is " + std::string(name_of(request.op)) + ".");
    static_cast<void>(norm_kernel(instruction_set_, tensor.dtype));  // throws for dtypes that have none
  }
  static_cast<void>(offset_of(tensor.input, tensor.count() * info(tensor.dtype).size));
}

std::pair<std::uintptr_t, std::uintptr_t> Engine::arena() const {
  const auto place = static_cast<std::size_t>(rank());
  const auto begin = reinterpret_cast<std::uintptr_t>(setup_.bases[place]);
  return {begin, begin + setup_.lengths[place]};
}

std::size_t Engine::offset_of(const std::byte* data, std::size_t bytes) const {
  const std::size_t location = setup_.arena->location(data, bytes);
  if (location == 0) fail_usage("What ranks work on in place lies in the arena: allocate it with empty().");
  return location - 1;
}

void Engine::check_usable() const {
  if (abandoned_.load(std::memory_order_acquire)) fail_usage(after_fork);
}

void Engine::wait(Operation& operation, WaitHooks& hooks) {
  check_usable();
  if (!operation.done()) driver_.wait(operation, hooks);
  operation.raise();
}

// A failure in the middle of a step, a lack of memory as a rule, ends the group it happened in.
template <class Step>
bool Engine::guarded(Group& group, Step&& step) {
  try {
    return step();
  } catch (const std::exception& error) {
    return end_after(group, error);
  }
}

bool Engine::end_after(Group& group, const std::exception& error) {
  try {
    const auto* known = dynamic_cast<const Error*>(&error);
    if (known != nullptr && known->kind() == ErrorKind::peer_lost) {  // of the network
      group.close(Error(known->kind(), std::string(known->what()) + "." + restart_remedy),
                  std::string("broke off (") + known->what() + ")");
      return false;
    }
    const std::string reason =
        std::string("an operation failed on rank ") + std::to_string(rank()) + ": " + error.what();
    group.close(Error(ErrorKind::system, reason + ". Call shutdown() and init() on all ranks to go on."),
                "broke off (" + reason + ")");
  } catch (const std::exception&) {  // no memory even for that: the next step tries again
  }
  return false;
}

// Reports are left out where they fail: nobody waits for one for ever.
template <class Report>
void Engine::report_if_possible(Report&& report) {
  try {
    report();
  } catch (const std::exception&) {
  }
}

// Where MPI allows one thread at a time, that is one that the user has sent here.
bool Engine::may_drive(const Group& group, bool by_caller) const {
  return by_caller || !group.spans_nodes() || setup_.network->any_thread();
}

bool Engine::advance(bool by_caller) {
  bool moved = false;
  if (!rests()) poll_network(by_caller);
  if (mine_.requests.load(std::memory_order_acquire) != mine_.answers.load(std::memory_order_relaxed)) {
    answer_requests();
    moved = true;
  }
  if (const std::uint32_t wished = mine_.reports.load(std::memory_order_acquire); wished != reports_) {
    reports_ = wished;
    report_if_possible([&] { stall_watch_->start_report(monotonic_now()); });
    moved = true;
  }
  for (const auto& group : driven())
    if (may_drive(*group, by_caller)) moved |= guarded(*group, [&] { return group->advance(); });
  return moved;
}

bool Engine::busy() const {
  return stall_watch_->reporting() ||
         std::any_of(driven_.begin(), driven_.end(), [](const auto& group) { return group->busy(); });
}

bool Engine::rests() const {
  const auto waits = [](const auto& group) { return group->waits_for_relay(); };
  const auto rests = [](const auto& group) { return !group->busy() || group->waits_for_relay(); };
  return std::any_of(driven_.begin(), driven_.end(), waits) && std::all_of(driven_.begin(), driven_.end(), rests) &&
         !polls();
}

bool Engine::polls() const {
  return std::any_of(driven_.begin(), driven_.end(), [](const auto& group) { return group->polls(); });
}

// A network that fails takes the groups with it that need it.
void Engine::poll_network(bool by_caller) {
  if (!setup_.network || !(by_caller || setup_.network->any_thread())) return;
  try {
    setup_.network->poll();
  } catch (const Error& error) {
    for (const auto& group : driven())
      if (group->spans_nodes())
        group->close(Error(ErrorKind::peer_lost, std::string(error.what()) + "." + restart_remedy),
                     std::string("broke off (") + error.what() + ")");
  }
}

// What this rank has to say last is to leave it. With groups_mutex_.
void Engine::leave_network() {
  constexpr std::int64_t patience = 2'000'000'000;
  const std::int64_t deadline = monotonic_now() + patience;
  const auto sending = [](const auto& group) { return group && group->is_sending(); };
  while (std::any_of(groups_.begin(), groups_.end(), sending) && monotonic_now() < deadline) {
    try {
      setup_.network->poll();
    } catch (const Error&) {
      break;
    }
    for (const auto& group : groups_)
      if (group) group->advance();  // closed by now: it looks at what has been sent
    sched_yield();
  }
  setup_.network->leave(deadline);
}

bool Engine::moving() const {
  return std::any_of(driven_.begin(), driven_.end(), [](const auto& group) { return group->moving(); });
}

void Engine::look(std::int64_t now, bool by_caller) {
  poll_network(by_caller);  // also where nobody here waits for it: a member of another node may have gone
  for (const auto& group : driven())
    if (may_drive(*group, by_caller))
      guarded(*group, [&] {
        group->look(now);
        return true;
      });
  report_if_possible([&] { stall_watch_->look(now, driven()); });
}

void Engine::about_to_sleep(const Operation& operation) {
  if (const auto group = find(operation.group)) group->note_awaited(operation);
}

// Several requests that come together have one answer.
void Engine::answer_requests() {
  const std::uint32_t number = mine_.requests.load(std::memory_order_acquire);
  mine_.stacks[0] = '\0';
  report_if_possible([&] { store_text(mine_.stacks, setup_.stacks ? setup_.stacks() : std::string()); });
  mine_.answers.store(number, std::memory_order_seq_cst);
  for (RankBlock* rank : ranks_)
    if (rank != nullptr && rank != &mine_) ring(rank->bell);
}

std::size_t Engine::prepare_group(const std::vector<int>& ranks) {
  check_usable();
  check_group_size(ranks.size());
  auto memory =
      Group::reserve(*setup_.arena, Nodes(nodes_of(ranks, setup_.nodes)), place_of(rank(), ranks), setup_.settings);
  const std::lock_guard lock(groups_mutex_);
  const std::size_t offset = memory->offset();
  prepared_[offset] = std::move(memory);
  return offset;
}

void Engine::connect_group(std::uint32_t number, std::vector<int> ranks, const std::vector<std::size_t>& offsets,
                           int serial) {
  check_usable();
  const auto me = std::find(ranks.begin(), ranks.end(), rank());
  const bool in_order = std::is_sorted(ranks.begin(), ranks.end()) && !ranks.empty() && ranks.front() >= 0 &&
                        ranks.back() < size() && std::adjacent_find(ranks.begin(), ranks.end()) == ranks.end();
  if (me == ranks.end() || !in_order || offsets.size() != ranks.size() || number >= RankBlock::most_groups)
    fail_usage("A process set is made of distinct ranks of the world in ascending order, this one among them.");
  std::shared_ptr<Arena::Block> memory;
  {
    const Driver::Exclusive exclusive(driver_);  // the network may still write to removed groups
    const std::lock_guard lock(groups_mutex_);
    const auto prepared = prepared_.find(offsets[static_cast<std::size_t>(me - ranks.begin())]);
    if (prepared == prepared_.end() || groups_[number])
      fail_usage("A process set is connected once, after it was prepared, under a number that is free.");
    memory = std::move(prepared->second);
    prepared_.erase(prepared);
    removed_.clear();
  }
  add(number, make_group(number, std::move(ranks), std::move(memory), offsets, serial));
}

std::shared_ptr<Group> Engine::make_group(std::uint32_t number, std::vector<int> ranks,
                                          std::shared_ptr<Arena::Block> memory, const std::vector<std::size_t>& offsets,
                                          int serial) {
  Group::Setup setup;
  setup.number = number;
  setup.memory = std::move(memory);
  setup.index = place_of(rank(), ranks);
  setup.nodes = nodes_of(ranks, setup_.nodes);
  setup.network = setup_.network.get();
  setup.tag = tag_of(serial);
  const Nodes nodes(setup.nodes);
  const std::size_t distance = Group::bytes(nodes, setup_.settings);
  for (std::size_t member = 0; member < ranks.size(); ++member) {
    const auto peer = static_cast<std::size_t>(ranks[member]);
    std::size_t holder = member, place = 0;  // the place-th block in the memory of the holder
    if (nodes.of(static_cast<int>(member)) != nodes.of(setup.index)) {
      holder = static_cast<std::size_t>(nodes.keeper(static_cast<int>(member), nodes.of(setup.index)));
      place = 1 + static_cast<std::size_t>(place_of(static_cast<int>(member), nodes.kept_by(static_cast<int>(holder))));
    }
    std::byte* base = setup_.bases[static_cast<std::size_t>(ranks[holder])];
    setup.blocks.push_back(reinterpret_cast<GroupBlock*>(base + offsets[holder] + place * distance));
    setup.members.push_back(ranks_[peer]);
    setup.bases.push_back(setup_.bases[peer]);
    setup.lifelines.push_back(setup_.lifelines[peer]);
  }
  setup.ranks = std::move(ranks);
  setup.settings = &setup_.settings;
  setup.instruction_set = &instruction_set_;
  setup.observer = &records_;
  return std::make_shared<Group>(std::move(setup));
}

void Engine::add(std::uint32_t number, std::shared_ptr<Group> group) {
  const std::lock_guard lock(groups_mutex_);
  if (driver_.is_stopping()) fail_usage(after_shutdown);
  mine_.groups[number].store(group->memory().offset(), std::memory_order_release);
  groups_[number] = std::move(group);
  groups_version_.fetch_add(1, std::memory_order_seq_cst);
}

void Engine::remove_group(std::uint32_t number) {
  check_usable();
  const Driver::Exclusive exclusive(driver_);
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

void Engine::tell(const std::shared_ptr<Operation>& operation) {
  check_usable();
  records_.tell(operation);
}

std::vector<std::shared_ptr<Operation>> Engine::await_told() {
  check_usable();
  return records_.await_told();
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
  // The first rank of this node.
  RankBlock& reporter =
      **std::find_if(ranks_.begin(), ranks_.end(), [](const RankBlock* one) { return one != nullptr; });
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
  for (int peer = 0; peer < size(); ++peer) {
    const RankBlock* block = ranks_[static_cast<std::size_t>(peer)];
    if (block == nullptr) continue;
    if (const std::int64_t at = block->failed.load(std::memory_order_acquire); at != 0) order.emplace_back(at, peer);
  }
  std::sort(order.begin(), order.end());
  std::vector<std::pair<int, std::string>> all;
  for (const auto& [at, peer] : order) all.emplace_back(peer, ranks_[static_cast<std::size_t>(peer)]->failure);
  return all;
}

std::string Engine::flight_recorder() const {
  return flight_recorder_json(mine_);
}

void Engine::leave(const std::string& reason) {
  if (is_abandoned()) return;
  const bool first = driver_.stop([&] {
    const std::lock_guard lock(groups_mutex_);
    for (const auto& group : removed_) group->memory().keep();
    for (const auto& group : groups_) {
      if (!group) continue;
      group->memory().keep();
      group->close(Error(ErrorKind::usage, after_shutdown), "left (" + reason + ")");
    }
    if (setup_.network) leave_network();
    mine_.magic.store(0, std::memory_order_release);
  });
  if (first) records_.close();
}

void Engine::abandon() {
  abandoned_.store(true, std::memory_order_release);
}

}  // namespace ringred
