#include "csrc/queue/sequencer.h"

#include <algorithm>

#include "csrc/base/differences.h"
#include "csrc/base/futex.h"
#include "csrc/base/text.h"

namespace ringred {

Sequencer::Sequencer(std::vector<GroupBlock*> blocks, const Nodes& nodes, GroupLayout layout, std::size_t fusion_bytes)
    : blocks_(std::move(blocks)),
      nodes_(nodes),
      layout_(layout),
      size_(blocks_.size()),
      fusion_bytes_(fusion_bytes),
      heads_(size_),
      far_(size_),
      names_(0xfffffff0u),
      joined_(size_, LogRecord::no_number),
      allows_(size_) {}

bool Sequencer::advance() {
  for (const int near : nodes_.members(0)) {
    const auto member = static_cast<std::size_t>(near);
    const std::uint64_t tail = blocks_[member]->tail.load(std::memory_order_seq_cst);
    const std::uint32_t* ring = layout_.ring_of(*blocks_[member]);
    for (; heads_[member] < tail; ++heads_[member]) take(member, ring[heads_[member] % GroupBlock::most_entries]);
  }
  bool grown = false;
  while (!ready_.empty() && log_has_room()) {
    append_next();
    grown = true;
  }
  return grown;
}

void Sequencer::hear(std::span<const std::byte> message) {
  while (!message.empty()) {
    const auto [member, number] = far_.take(message);
    take(member, number);
  }
}

bool Sequencer::fail(const NameHash& hash, const std::string& text) {
  const NameTable::Place place = names_.take(hash);
  if (place.found != NameTable::Found::busy) {
    names_.release(place.number);
    return false;
  }
  if (pending_[place.number].ready || !log_has_room()) return false;
  --open_;
  append_failure(place.number, text);
  return true;
}

void Sequencer::take(std::size_t member, std::uint32_t number) {
  const Submission& submitted = submission(member, number);
  if (submitted.kind == CallKind::join) return take_join(member, submitted, number);
  const NameTable::Place place = names_.take({{submitted.hash[0], submitted.hash[1]}});
  const std::uint32_t name = place.number;
  if (pending_.size() <= name) {
    pending_.resize(name + 1);
    numbers_.resize((name + 1) * size_, LogRecord::no_number);
  }
  if (pending_[name].submitted++ == 0) ++open_;
  numbers_[name * size_ + member] = number;
  check_ready(name);
}

void Sequencer::take_join(std::size_t member, const Submission& submitted, std::uint32_t number) {
  joined_[member] = number;
  allows_[member] = submitted.allow;
  ++joined_count_;
  last_joined_ = member;
  for (std::uint32_t name = 0; name < pending_.size(); ++name)
    if (pending_[name].submitted > 0) check_ready(name);
  if (joined_count_ == size_) ready_.push_back(all_joined);
}

void Sequencer::check_ready(std::uint32_t name) {
  if (pending_[name].ready) return;
  if (pending_[name].submitted < size_) {
    if (joined_count_ == 0) return;
    for (std::size_t member = 0; member < size_; ++member)
      if (!has(name, member) && joined_[member] == LogRecord::no_number) return;
  }
  pending_[name].ready = true;
  --open_;
  ready_.push_back(name);
  note_lateness(name);
}

// The last member to submit has made the others wait since the last but one did.
void Sequencer::note_lateness(std::uint32_t name) {
  std::int64_t last = 0, before = 0;
  std::size_t late = 0;
  for (std::size_t member = 0; member < size_; ++member) {
    if (!has(name, member)) continue;
    const std::int64_t time = submission(member, number_of(name, member)).submitted;
    if (time > last) {
      before = last;
      last = time;
      late = member;
    } else {
      before = std::max(before, time);
    }
  }
  GroupBlock& mine = *blocks_.front();
  const auto add = [](std::atomic<std::uint64_t>& word, std::uint64_t more) {
    word.store(word.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
  };
  if (before == 0) return;
  add(mine.late[late].times, 1);
  add(mine.late[late].nanoseconds, static_cast<std::uint64_t>(last - before));
}

bool Sequencer::log_has_room() const {
  const std::uint64_t logged = blocks_.front()->logged.load(std::memory_order_relaxed);
  if (logged - blocks_.front()->consumed.load(std::memory_order_relaxed) >= ahead) return false;
  return std::all_of(blocks_.begin(), blocks_.end(), [&](const GroupBlock* block) {
    return logged - block->consumed.load(std::memory_order_seq_cst) < GroupBlock::log_records;
  });
}

void Sequencer::append_next() {
  const std::uint32_t name = ready_.front();
  ready_.pop_front();
  if (name == all_joined) return append_joined();
  const std::string problem = problem_of(name);
  problem.empty() ? append_batch(name) : append_failure(name, problem);
}

// Fuses with `first` what is ready, may be fused, and fits.
void Sequencer::append_batch(std::uint32_t first) {
  LogRecord& record = next_record();
  const Submission& submitted = any_submission(first);
  record.type = LogRecord::Type::batch;
  record.kind = submitted.kind;
  record.op = submitted.op;
  record.runs = submitted.runs;
  std::copy_n(submitted.run, submitted.runs, record.run);
  record.operations = 0;
  std::uint64_t bytes = submitted.bytes;
  const std::uint64_t key = submitted.fuse_key;
  std::vector<std::uint32_t> batch{first};
  for (auto it = ready_.begin(); key != 0 && it != ready_.end() && batch.size() < LogRecord::most_operations;) {
    if (*it == all_joined) break;
    const Submission& other = any_submission(*it);
    if (other.fuse_key != key || bytes + other.bytes > fusion_bytes_ || !same_members(first, *it) ||
        !problem_of(*it).empty()) {
      ++it;
      continue;
    }
    bytes += other.bytes;
    record.run[0].count += other.run[0].count;
    batch.push_back(*it);
    it = ready_.erase(it);
  }
  for (const std::uint32_t name : batch) add_to(record, name);
  publish();
  for (const std::uint32_t name : batch) forget(name);
}

void Sequencer::append_failure(std::uint32_t name, const std::string& text) {
  LogRecord& record = next_record();
  record.type = LogRecord::Type::failure;
  record.operations = 0;
  add_to(record, name);
  store_text(record.text(size_), LogRecord::text_bytes, text);
  publish();
  forget(name);
}

void Sequencer::append_joined() {
  LogRecord& record = next_record();
  record.type = LogRecord::Type::joined;
  record.last_joined = static_cast<std::int32_t>(last_joined_);
  record.operations = 1;
  std::copy(joined_.begin(), joined_.end(), record.numbers());
  publish();
  std::fill(joined_.begin(), joined_.end(), LogRecord::no_number);
  joined_count_ = 0;
}

LogRecord& Sequencer::next_record() {
  GroupBlock& mine = *blocks_.front();
  return *layout_.record_of(mine, mine.logged.load(std::memory_order_relaxed));
}

void Sequencer::add_to(LogRecord& record, std::uint32_t name) {
  std::copy_n(numbers_.data() + name * size_, size_, record.numbers() + record.operations * size_);
  ++record.operations;
}

void Sequencer::publish() {
  next_record().logged = monotonic_now();
  std::atomic<std::uint64_t>& logged = blocks_.front()->logged;
  logged.store(logged.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
}

void Sequencer::forget(std::uint32_t name) {
  std::fill_n(numbers_.begin() + static_cast<std::ptrdiff_t>(name * size_), size_, LogRecord::no_number);
  pending_[name] = {};
  names_.release(name);
}

const Submission& Sequencer::submission(std::size_t member, std::uint32_t number) const {
  if (nodes_.of(static_cast<int>(member)) != 0) return far_.of(member, number);
  return layout_.entries_of(*blocks_[member])[number];
}

const Submission& Sequencer::any_submission(std::uint32_t name) const {
  std::size_t member = 0;
  while (!has(name, member)) ++member;
  return submission(member, number_of(name, member));
}

bool Sequencer::same_members(std::uint32_t one, std::uint32_t other) const {
  for (std::size_t member = 0; member < size_; ++member)
    if (has(one, member) != has(other, member)) return false;
  return true;
}

std::string Sequencer::problem_of(std::uint32_t name) const {
  const std::uint64_t expected = any_submission(name).fingerprint;
  for (std::size_t member = 0; member < size_; ++member)
    if (has(name, member) && submission(member, number_of(name, member)).fingerprint != expected)
      return mismatch_text(name);
  return pending_[name].submitted < size_ ? absent_text(name) : std::string();
}

std::string Sequencer::mismatch_text(std::uint32_t name) const {
  Differences differences;
  for (std::size_t member = 0; member < size_; ++member)
    if (has(name, member)) differences.add(rank_of(member), submission(member, number_of(name, member)).description);
  return "All ranks must submit the same operation under one name, and for '" + std::string(any_submission(name).name) +
         "' they differ: " + differences.text("submitted") + ". Nothing was changed, and the next operation works.";
}

// A rank that has joined has zeros for an allreduce and comes to every barrier; for the rest it has to have said so.
std::string Sequencer::absent_text(std::uint32_t name) const {
  const Submission& submitted = any_submission(name);
  std::vector<int> absent;
  bool all_allow = true;
  for (std::size_t member = 0; member < size_; ++member)
    if (!has(name, member)) {
      absent.push_back(rank_of(member));
      all_allow &= allows_[member];
    }
  const std::string who = list_ranks(absent) + (absent.size() == 1 ? " has" : " have") + " joined";
  const std::string what = "'" + std::string(submitted.name) + "', " + submitted.description + ", ";
  if (submitted.kind == CallKind::broadcast && !has(name, static_cast<std::size_t>(submitted.root)))
    return what + "needs its root, and " + who + ". Broadcast before the root joins.";
  if (submitted.kind == CallKind::update || (submitted.runs > 0 && submitted.run[0].measured))
    return what + "takes all ranks, and " + who + ". Let all ranks take equally many steps.";
  if (submitted.kind == CallKind::allreduce || submitted.kind == CallKind::barrier) return {};
  if (all_allow) return {};
  return what + "is not supported while a rank has joined: " + who +
         ". Call join(allow=\"all\") there, for empty contributions to all collectives.";
}

}  // namespace ringred
