#include "csrc/queue/group.h"

#include <algorithm>
#include <new>
#include <numeric>

#include "csrc/base/text.h"
#include "csrc/memory/limits.h"
#include "csrc/queue/bell.h"
#include "csrc/queue/exchange.h"

namespace ringred {
namespace {

constexpr std::size_t entries_at_a_time = 256;

GroupLayout layout_for(const Nodes& nodes, const Settings& settings) {
  const auto parts = static_cast<std::size_t>(nodes.columns() * nodes.count());
  return GroupLayout::of(nodes.size(), parts, nodes.several(), settings.slot_bytes);
}

Event event_of(Stage stage) {
  return stage == Stage::copy_in   ? copied_raised
         : stage == Stage::combine ? combined_raised
         : stage == Stage::reduce  ? reduced_raised
                                   : left_raised;
}

}  // namespace

std::shared_ptr<Arena::Block> Group::reserve(Arena& arena, const Nodes& nodes, int index, const Settings& settings) {
  const GroupLayout layout = layout_for(nodes, settings);
  const std::vector<int> kept = nodes.kept_by(index);
  auto block = arena.reserve((1 + kept.size()) * layout.end());
  const auto commit_log = [&](std::size_t place, int member) {  // of the sequencer alone
    if (member == 0) block->commit(place * layout.end() + layout.log(), layout.slot(0) - layout.log());
  };
  block->commit(0, layout.log());
  commit_log(0, index);
  block->commit(layout.slot(0), layout.entries() - layout.slot(0));
  for (std::size_t place = 1; place <= kept.size(); ++place) {  // mirrors of slots exist as far as they are used
    block->commit(place * layout.end(), round_up(layout.ring(), GroupLayout::page));
    commit_log(place, kept[place - 1]);
  }
  return block;
}

std::size_t Group::bytes(const Nodes& nodes, const Settings& settings) {
  return layout_for(nodes, settings).end();
}

Group::Group(Setup setup)
    : setup_(std::move(setup)),
      nodes_(setup_.nodes),
      layout_(layout_for(nodes_, *setup_.settings)),
      mine_(*setup_.blocks[static_cast<std::size_t>(setup_.index)]),
      names_(GroupBlock::most_entries) {
  mine_.entries_at = layout_.entries();
  mine_.group = setup_.number;
  mine_.size = static_cast<std::uint32_t>(size());
  mine_.index = static_cast<std::uint32_t>(setup_.index);
  std::copy(setup_.ranks.begin(), setup_.ranks.end(), mine_.ranks);
  const int node = nodes_.of(setup_.index);
  if (is_sequencer() && !in_step())
    sequencer_ = std::make_unique<Sequencer>(setup_.blocks, nodes_, layout_, setup_.settings->fusion_bytes);
  else if (reader() == setup_.index && !in_step())
    announcer_ = std::make_unique<Announcer>(setup_.blocks, nodes_.members(node), layout_);
  if (nodes_.several()) {
    packets_.emplace(nodes_.count());
    mirrors_ =
        std::make_unique<Mirrors>(Mirrors::Setup{setup_.network, setup_.tag, setup_.index, setup_.ranks, setup_.blocks,
                                                 setup_.memory, layout_, sequencer_.get(), &*packets_},
                                  nodes_);
    columns_.emplace(*mirrors_, *packets_, nodes_, setup_.index);
    across_nodes_ = Choice::across_nodes(setup_.settings->algorithm, placement_of(nodes_, *setup_.settings), false);
  }
  player_.emplace(setup_.blocks, setup_.index, layout_, nodes_, mirrors_.get());
}

Entry& Group::entry(std::uint32_t number) const {
  return layout_.entries_of(mine_)[number];
}

std::shared_ptr<Operation> Group::submit(Request request) {
  request.check(size());
  if (request.update) check_update(*request.update);
  check_announcement(request);
  std::shared_ptr<Operation> operation;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) closed_->raise();
    const bool unnamed = request.name.empty();
    if (unnamed) request.name = unnamed_prefix + std::to_string(unnamed_);
    if (request.kind == CallKind::join) request.name = "join";  // a rank joins once at a time
    operation = introduce(std::move(request));
    if (operation->request.kind == CallKind::join) mine_.joined.store(1, std::memory_order_relaxed);
    if (unnamed) ++unnamed_;
    publish(operation);
  }
  if (reader() != setup_.index && !in_step()) wake(static_cast<std::size_t>(reader()), tail_raised);
  return operation;
}

void Group::check_announcement(const Request& request) const {
  const std::size_t numbers = request.kind == CallKind::alltoall    ? static_cast<std::size_t>(size())
                              : request.kind == CallKind::allgather ? 1
                                                                    : 0;
  if ((request.tensors.size() * numbers + 1) * sizeof(std::uint64_t) > layout_.slot_bytes)
    fail_usage("A grouped " + std::string(name_of(request.kind)) + " has to announce its rows in one slot of " +
               in_words(layout_.slot_bytes) + ", and " + std::to_string(request.tensors.size()) +
               " tensors do not fit. Use smaller groups, or raise RINGRED_SLOT_BYTES.");
}

void Group::check_update(const Update& update) const {
  const std::size_t wanted = update.shares_parameters ? 1 : nodes_.members(nodes_.of(setup_.index)).size();
  if (update.parameters.size() != wanted)
    fail_usage("A step writes the parameters of each member of its node, or those that they share: it needs " +
               std::to_string(wanted) + " addresses, and got " + std::to_string(update.parameters.size()) + ".");
}

// Gives the operation the number of its name, and fills in its entry. If that fails the name is free as before.
std::shared_ptr<Operation> Group::introduce(Request request) {
  const NameHash hash = hash_of(request.name);
  const NameTable::Place place = names_.take(hash);
  if (place.found == NameTable::Found::busy)
    fail_usage("A name stands for one operation at a time: '" + request.name +
               "' has been submitted and is not done. Synchronize it first, or give this one another name.");
  if (place.found == NameTable::Found::full)
    fail_usage("At most " + std::to_string(GroupBlock::most_entries) +
               " operations may be in flight in a process set: '" + request.name +
               "' would be one more. Synchronize some first, or use grouped operations.");
  try {
    auto operation = std::make_shared<Operation>(std::move(request));
    operation->group = number();
    operation->number = place.number;
    write_entry(*operation, hash);
    if (in_flight_.size() <= place.number) in_flight_.resize(place.number + 1);
    return operation;
  } catch (...) {
    names_.release(place.number);
    throw;
  }
}

// (1) of shared.h.
void Group::publish(const std::shared_ptr<Operation>& operation) {
  const std::uint32_t number_of_name = operation->number;
  in_flight_[number_of_name] = operation;
  in_flight_count_.fetch_add(1, std::memory_order_seq_cst);
  Entry& mine = entry(number_of_name);
  mine.submissions.store(mine.submissions.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
  const std::uint64_t tail = mine_.tail.load(std::memory_order_relaxed);
  layout_.ring_of(mine_)[tail % GroupBlock::most_entries] = number_of_name;
  mine_.tail.store(tail + 1, std::memory_order_seq_cst);
}

void Group::write_entry(Operation& operation, const NameHash& hash) {
  const Request& request = operation.request;
  while (operation.number >= committed_entries_) {
    setup_.memory->commit(layout_.entries() + committed_entries_ * sizeof(Entry), entries_at_a_time * sizeof(Entry));
    committed_entries_ += entries_at_a_time;
  }
  Entry& mine = entry(operation.number);
  const bool other_name = mine.hash[0] != hash.words[0] || mine.hash[1] != hash.words[1];
  const std::uint64_t fingerprint = request.fingerprint();
  if (other_name || mine.fingerprint != fingerprint)
    store_text(mine.description, fit_description(request.describe(), fingerprint, Entry::description_bytes - 1));
  if (other_name) {
    mine.hash[0] = hash.words[0];
    mine.hash[1] = hash.words[1];
    store_text(mine.name, request.name);
  }
  mine.awaited.store(0, std::memory_order_relaxed);
  mine.fingerprint = fingerprint;
  mine.kind = request.kind;
  mine.op = request.op;
  mine.allow = request.allow;
  mine.root = request.root;
  mine.bytes = request.bytes();
  mine.runs = request.runs_into(mine.run, size());
  const bool fuses = (request.kind == CallKind::allreduce || request.kind == CallKind::broadcast) && mine.runs == 1 &&
                     !mine.run[0].direct;
  mine.fuse_key = fuses
                      ? request.fuse_key() ^ (static_cast<std::uint64_t>(mine.run[0].dtype) + 1) * 0x9e3779b97f4a7c15 ^
                            static_cast<std::uint64_t>(request.root + 1) << 40
                      : 0;
  operation.submitted = mine.submitted = monotonic_now();
  mine_.entries.store(names_.used(), std::memory_order_release);
}

bool Group::advance() {
  if (mirrors_) mirrors_->recycle();
  if (over_) return false;
  bool moved = mirrors_ && take_notes();
  if (sequencer_ && sequencer_->advance()) {
    wake_others(logged_raised);
    moved = true;
  }
  if (announcer_ && announcer_->advance()) {
    mirrors_->announce(*announcer_);
    moved = true;
  }
  if (in_step()) {
    moved |= !playing_ && open_next();
    moved |= playing_ && play();  // at once: what it gives goes with what it is
    if (mirrors_) moved |= mirrors_->tell(player_->local_events());
    // What comes between two calls is for the next one: nobody has to be woken for it.
    return (moved && in_flight_count_.load(std::memory_order_relaxed) > 0) || note_awaits();
  }
  if (mirrors_) moved |= mirrors_->tell(player_->local_events());  // records before anything that follows from them
  moved |= playing_ ? play() : begin_next();
  if (mirrors_) moved |= mirrors_->tell(player_->local_events());
  return moved || note_awaits();
}

// What other nodes' members tell is new to all of this node.
bool Group::take_notes() {
  std::uint32_t events = 0;
  const bool taken = mirrors_->take(events);
  for (std::uint32_t event = 1; event <= events; event <<= 1)
    if ((events & event) != 0) wake_others(static_cast<Event>(event));
  return taken;
}

bool Group::play() {
  bool moved = false;
  const std::int64_t begin = setup_.observer->wants_stages() ? monotonic_now() : 0;
  const Stage stage = player_->step();
  if (stage != Stage::none) {
    wake_others(event_of(stage));
    if (begin != 0) setup_.observer->stage(number(), stage, begin, monotonic_now());
    moved = true;
  }
  if (player_->done()) {
    play_next();
    moved = true;
  }
  return moved;
}

// To be told of what this rank can do nothing without, and of nothing else: with nothing in flight here, no operation
// can become ready or run without this rank. Returns whether the caller has to look once more: peers did not know of a
// bit that is new, or what is awaited has come meanwhile. The count is read anew after each change, see submit().
bool Group::note_awaits() {
  for (bool more = false;;) {
    std::uint32_t bits = sequencer_ && sequencer_->is_held_up() ? consumed_raised : 0u;
    bool came = false;
    if (in_flight_count_.load(std::memory_order_seq_cst) > 0) {
      const TurnPlayer::Awaited awaited = playing_    ? player_->awaits()
                                          : in_step() ? TurnPlayer::Awaited{-1, tail_raised}
                                                      : TurnPlayer::Awaited{0, logged_raised};
      bits |= awaited.event | (sequencer_ || announcer_ ? tail_raised : 0u);
      came = awaited.member < 0;
    }
    if (bits == awaits_) return more || came;
    more |= (bits & ~awaits_) != 0;
    awaits_ = bits;
    mine_.awaits.store(bits, std::memory_order_seq_cst);
  }
}

const LogRecord* Group::next_record() const {
  GroupBlock& sequencer = *setup_.blocks.front();
  const std::uint64_t position = mine_.consumed.load(std::memory_order_relaxed);
  if (sequencer.logged.load(std::memory_order_seq_cst) <= position) return nullptr;
  return layout_.record_of(sequencer, position);
}

bool Group::begin_next() {
  const LogRecord* record = next_record();
  if (record == nullptr) return false;
  const auto me = static_cast<std::size_t>(setup_.index);
  if (record->type == LogRecord::Type::batch) {
    begin_batch(*record);
    return true;
  }
  if (const std::uint32_t number = record->numbers()[me]; number != LogRecord::no_number) {
    const std::shared_ptr<Operation> operation = in_flight(number);
    operation->agreed = record->logged;
    operation->started = monotonic_now();
    if (record->type == LogRecord::Type::joined) {
      operation->last_joined = setup_.ranks[static_cast<std::size_t>(record->last_joined)];
      end_join();
      complete(operation, std::nullopt);
    } else {
      complete(operation, Error(ErrorKind::mismatch, record->text(setup_.ranks.size())));
    }
  }
  finish_record();
  return true;
}

bool Group::open_next() {
  if (mine_.tail.load(std::memory_order_acquire) <= calls_) return false;
  const std::uint32_t number_of_name = layout_.ring_of(mine_)[calls_ % GroupBlock::most_entries];
  mine_in_batch_ = {in_flight(number_of_name)};
  Operation& operation = *mine_in_batch_.front();
  operation.started = operation.agreed = monotonic_now();
  mine_as_pointers_ = {&operation};
  givers_.resize(static_cast<std::size_t>(size()));
  std::iota(givers_.begin(), givers_.end(), 0);
  const Entry& mine = entry(number_of_name);
  runs_.assign(mine.run, mine.run + mine.runs);
  opening_ = std::make_unique<Opening>(batch_of(mine.kind, mine.op), setup_.blocks, layout_, calls_);
  movements_.clear();
  movement_ = 0;
  playing_ = true;
  player_->start(*opening_);
  return true;
}

// What comes after the opening of a call, if anything does.
void Group::end_opening() {
  const std::unique_ptr<Opening> opening = std::move(opening_);
  const Operation& operation = *mine_in_batch_.front();
  Batch batch = batch_of(operation.request.kind, operation.request.op);
  batch.arrays = opening->arrays();
  ++calls_;
  if (!opening->agreed())
    movements_.push_back(std::make_unique<Disagreement>(batch, entry(operation.number), setup_.ranks));
  else if (!opening->was_all())
    movements_ = movements_of(batch);
}

// What the movements of the operations in mine_as_pointers_ need to know.
Batch Group::batch_of(CallKind kind, Op op) {
  return {kind,
          op,
          runs_,
          givers_,
          mine_as_pointers_,
          setup_.index,
          size(),
          setup_.bases,
          setup_.settings->one_shot_bytes,
          layout_.slot_bytes,
          way_of_batch(),
          setup_.instruction_set,
          &nodes_,
          columns_ ? &*columns_ : nullptr};
}

// Calls say their way. What else is submitted may be known here by its record alone.
std::optional<Way> Group::way_of_batch() const {
  if (in_step()) return mine_as_pointers_.front()->request.way;
  if (!across_nodes_) return std::nullopt;
  std::size_t bytes = 0;
  for (const Run& run : runs_) bytes += run.count * info(run.wire).size;
  const Way way = across_nodes_->of(bytes, false);
  return way == Way::hierarchical ? std::nullopt : std::optional(way);
}

// Members that joined early have counted fewer unnamed operations than the others: all begin anew.
void Group::end_join() {
  mine_.joined.store(0, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  unnamed_ = 0;
}

void Group::begin_batch(const LogRecord& record) {
  const auto ranks = static_cast<std::size_t>(size());
  const auto me = static_cast<std::size_t>(setup_.index);
  const std::int64_t now = monotonic_now();
  mine_in_batch_.clear();  // an attempt before may have failed half-way
  mine_as_pointers_.clear();
  givers_.clear();
  for (std::size_t member = 0; member < ranks; ++member)
    if (record.numbers()[member] != LogRecord::no_number) givers_.push_back(static_cast<int>(member));
  runs_.assign(record.run, record.run + record.runs);
  for (std::size_t i = 0; i < record.operations; ++i) {
    const std::uint32_t number = record.numbers()[i * ranks + me];
    if (number == LogRecord::no_number) continue;
    mine_in_batch_.push_back(in_flight(number));
    mine_in_batch_.back()->agreed = record.logged;
    mine_in_batch_.back()->started = now;
    mine_as_pointers_.push_back(mine_in_batch_.back().get());
  }
  movements_ = movements_of(batch_of(record.kind, record.op));
  movement_ = 0;
  playing_ = true;
  play_next();
}

// The next movement of the batch; after the last one the batch is over.
void Group::play_next() {
  if (opening_) end_opening();
  while (movement_ < movements_.size()) {
    player_->start(*movements_[movement_++]);
    if (!player_->done()) return;
  }
  playing_ = false;
  if (setup_.observer->wants_stages() && !mine_in_batch_.empty())
    setup_.observer->batch(number(), mine_in_batch_, mine_in_batch_.front()->started, monotonic_now());
  const auto finished = std::exchange(mine_in_batch_, {});
  mine_as_pointers_.clear();
  movements_.clear();
  if (!in_step()) finish_record();
  for (const auto& operation : finished) complete(operation, operation->problem);
}

void Group::finish_record() {
  if (mirrors_) mirrors_->finish(*next_record());
  if (announcer_) announcer_->finish(*next_record());
  mine_.consumed.store(mine_.consumed.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
  if (!is_sequencer()) wake(0, consumed_raised);
}

std::shared_ptr<Operation> Group::in_flight(std::uint32_t number) {
  const std::lock_guard lock(mutex_);
  return in_flight_[number];
}

// The name is free again before anyone hears that the operation is done: it may be submitted at once.
void Group::complete(const std::shared_ptr<Operation>& operation, const std::optional<Error>& error) {
  {
    const std::lock_guard lock(mutex_);
    if (in_flight_[operation->number] != operation) return;
    in_flight_[operation->number].reset();
    in_flight_count_.fetch_sub(1, std::memory_order_seq_cst);
    names_.release(operation->number);
    Entry& mine = entry(operation->number);
    mine.completed.store(mine.submissions.load(std::memory_order_relaxed), std::memory_order_release);
  }
  operation->ended = monotonic_now();
  try {
    setup_.observer->ended(number(), *operation, error.has_value());
  } catch (const std::bad_alloc&) {  // then nothing is kept of it
  }
  operation->finish(error);
  setup_.observer->completed(operation);
}

void Group::fail_name(const NameHash& name, const std::string& text) {
  if (!over_ && sequencer_ && sequencer_->fail(name, text)) wake_others(logged_raised);
}

std::int64_t Group::oldest_in_flight() const {
  const std::lock_guard lock(mutex_);
  std::int64_t oldest = 0;
  for (const auto& operation : in_flight_)
    if (operation && (oldest == 0 || operation->submitted < oldest)) oldest = operation->submitted;
  return oldest;
}

void Group::note_awaited(const Operation& operation) {
  const std::lock_guard lock(mutex_);
  if (operation.number < in_flight_.size() && in_flight_[operation.number].get() == &operation)
    entry(operation.number).awaited.store(1, std::memory_order_relaxed);
}

void Group::wake_reader() {
  if (reader() != setup_.index) ring(setup_.members[static_cast<std::size_t>(reader())]->bell);
}

void Group::wake_others(Event event) {
  for (std::size_t member = 0; member < setup_.members.size(); ++member)
    if (static_cast<int>(member) != setup_.index) wake(member, event);
}

void Group::wake(std::size_t member, Event event) {
  if (setup_.members[member] == nullptr) return;  // on another node, which is told by a note
  if (event == departed || (setup_.blocks[member]->awaits.load(std::memory_order_seq_cst) & event) != 0)
    ring(setup_.members[member]->bell);
}

}  // namespace ringred
