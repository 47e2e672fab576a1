#include "csrc/queue/mirrors.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "csrc/base/error.h"
#include "csrc/base/futex.h"

namespace ringred {

Mirrors::Mirrors(Setup setup, const Nodes& nodes)
    : setup_(std::move(setup)),
      nodes_(nodes),
      mine_(*block(setup_.index)),
      told_(static_cast<std::size_t>(nodes.count())),
      committed_(setup_.blocks.size()) {
  for (const int member : nodes_.kept_by(setup_.index)) {
    GroupBlock& mirror = *block(member);
    mirror.entries_at = setup_.layout.entries();
    mirror.group = mine_.group;
    mirror.size = mine_.size;
    mirror.index = static_cast<std::uint32_t>(member);
    std::copy(mine_.ranks, mine_.ranks + mine_.size, mirror.ranks);
    kept_.push_back(std::make_unique<Incoming>());
    kept_.back()->member = member;
    kept_.back()->bytes.resize(sizeof(Note) + inline_bytes);
    await_note(*kept_.back());
  }
}

// What the network still reads or writes stays where it is.
Mirrors::~Mirrors() {
  for (auto& outgoing : sending_) static_cast<void>(outgoing.release());
  for (auto& incoming : kept_)
    if (incoming->transfer.pending) static_cast<void>(incoming.release());
}

Mirrors::Words Mirrors::words() const {
  const auto now = [](const auto& word) { return word.load(std::memory_order_relaxed); };
  return {told_tail_,      told_logged_,        now(mine_.copied), now(mine_.combined),       now(mine_.reduced),
          now(mine_.left), now(mine_.consumed), now(mine_.joined), now(mine_.departure.state)};
}

void Mirrors::send(int node, std::size_t offset, std::size_t bytes, bool last) {
  send_note(node, {last ? words() : told_[static_cast<std::size_t>(node)], offset, bytes, What::stretch, 0});
}

void Mirrors::send_note(int node, Note note) {
  if (spare_.empty()) spare_.push_back(std::make_unique<Outgoing>());
  auto outgoing = std::move(spare_.back());
  spare_.pop_back();
  const int rank = setup_.ranks[static_cast<std::size_t>(nodes_.keeper(setup_.index, node))];
  const std::byte* data = bytes_of(setup_.index) + note.offset;
  const bool whole = note.bytes <= inline_bytes;
  outgoing->bytes.resize(sizeof note + (whole ? note.bytes : 0));
  std::memcpy(outgoing->bytes.data(), &note, sizeof note);
  if (whole) std::memcpy(outgoing->bytes.data() + sizeof note, data, note.bytes);
  outgoing->slot = whole ? -1 : slot_of(note.offset);
  told_[static_cast<std::size_t>(node)] = note.words;
  Outgoing& kept = *outgoing;
  sending_.push_back(std::move(outgoing));
  if (kept.slot >= 0) ++slots_sending_[static_cast<std::size_t>(kept.slot)];
  setup_.network->send(kept.head, rank, setup_.tag, kept.bytes.data(), kept.bytes.size());
  if (!whole) setup_.network->send(kept.body, rank, setup_.tag, data, note.bytes);
}

int Mirrors::slot_of(std::size_t offset) const {
  for (std::uint64_t slot = 0; slot < GroupLayout::slots; ++slot)
    if (offset >= setup_.layout.slot(slot) && offset < setup_.layout.slot(slot) + setup_.layout.slot_bytes)
      return static_cast<int>(slot);
  return -1;
}

void Mirrors::recycle() {
  for (std::size_t at = 0; at < sending_.size();) {
    Outgoing& outgoing = *sending_[at];
    if (outgoing.head.pending || outgoing.body.pending) {
      ++at;
      continue;
    }
    if (outgoing.slot >= 0) --slots_sending_[static_cast<std::size_t>(outgoing.slot)];
    spare_.push_back(std::move(sending_[at]));
    sending_[at] = std::move(sending_.back());
    sending_.pop_back();
  }
}

bool Mirrors::tell() {
  if (over_) return false;
  tell_entries();
  tell_records();
  bool told = false;
  for (int node = 0; node < nodes_.count(); ++node) {
    if (node == nodes_.of(setup_.index)) continue;
    const Words now = words();
    if (now == told_[static_cast<std::size_t>(node)]) continue;
    send_note(node, {now, 0, 0, What::words, 0});
    told = true;
  }
  return told;
}

// An entry is written again only after its operation is over, hence after this.
void Mirrors::tell_entries() {
  const std::uint64_t tail = mine_.tail.load(std::memory_order_acquire);
  while (told_tail_ < tail) {
    const std::uint32_t number = setup_.layout.ring_of(mine_)[told_tail_ % GroupBlock::most_entries];
    ++told_tail_;
    for (int node = 0; node < nodes_.count(); ++node)
      if (node != nodes_.of(setup_.index))
        send_note(node,
                  {words(), setup_.layout.entries() + number * sizeof(Entry), sizeof(Entry), What::entry, number});
  }
}

void Mirrors::tell_records() {
  const std::uint64_t logged = mine_.logged.load(std::memory_order_relaxed);
  while (told_logged_ < logged) {
    const LogRecord* record = setup_.layout.record_of(mine_, told_logged_);
    const auto offset = static_cast<std::size_t>(reinterpret_cast<const std::byte*>(record) - bytes_of(setup_.index));
    ++told_logged_;
    for (int node = 0; node < nodes_.count(); ++node)
      if (node != nodes_.of(setup_.index))
        send_note(node, {words(), offset, record->used_bytes(setup_.ranks.size()), What::record, 0});
  }
}

void Mirrors::depart() {
  if (over_) return;
  try {
    tell_entries();
    tell_records();
    const auto place = reinterpret_cast<std::byte*>(mine_.departure.reason) - bytes_of(setup_.index);
    for (int node = 0; node < nodes_.count(); ++node)
      if (node != nodes_.of(setup_.index))
        send_note(node, {words(), static_cast<std::size_t>(place), sizeof mine_.departure.reason, What::stretch, 0});
  } catch (const Error&) {  // the network is why it leaves
  }
  over_ = true;
  for (auto& incoming : kept_)
    if (incoming->transfer.pending) setup_.network->cancel(incoming->transfer);
}

void Mirrors::await_note(Incoming& incoming) {
  incoming.body = false;
  setup_.network->receive(incoming.transfer, setup_.ranks[static_cast<std::size_t>(incoming.member)], setup_.tag,
                          incoming.bytes.data(), incoming.bytes.size());
}

bool Mirrors::take(std::uint32_t& events) {
  if (over_) return false;
  bool taken = false;
  for (auto& incoming : kept_)
    while (!incoming->transfer.pending && take_note(*incoming, events)) taken = true;
  return taken;
}

bool Mirrors::take_note(Incoming& incoming, std::uint32_t& events) {
  Note note;
  std::memcpy(&note, incoming.bytes.data(), sizeof note);
  if (note.offset > setup_.layout.end() || note.bytes > setup_.layout.end() - note.offset)
    throw Error(ErrorKind::system, "A note of rank " +
                                       std::to_string(setup_.ranks[static_cast<std::size_t>(incoming.member)]) +
                                       " does not fit its mirror: the nodes run different versions of ringred.");
  if (!incoming.body) commit(incoming.member, note);
  if (!incoming.body && note.bytes > inline_bytes) {
    incoming.body = true;
    setup_.network->receive(incoming.transfer, setup_.ranks[static_cast<std::size_t>(incoming.member)], setup_.tag,
                            bytes_of(incoming.member) + note.offset, note.bytes);
    return true;
  }
  const std::byte* bytes = incoming.bytes.data() + sizeof note;
  if (note.what == What::entry)
    store_entry(*block(incoming.member), note, bytes);
  else if (!incoming.body)
    std::memcpy(bytes_of(incoming.member) + note.offset, bytes, note.bytes);
  store(incoming, note, events);
  await_note(incoming);
  return true;
}

// Clocks of different machines have nothing in common: times are those at which things became known here.
void Mirrors::store(Incoming& incoming, const Note& note, std::uint32_t& events) {
  GroupBlock& mirror = *block(incoming.member);
  if (note.what == What::record)
    reinterpret_cast<LogRecord*>(bytes_of(incoming.member) + note.offset)->logged = monotonic_now();
  events |= store_words(mirror, note.words);
}

// How many are over is counted here: what the owner says of it may be older or newer than this node's own part.
void Mirrors::store_entry(GroupBlock& mirror, const Note& note, const std::byte* bytes) {
  constexpr std::size_t plain = offsetof(Entry, hash);
  Entry& entry = setup_.layout.entries_of(mirror)[note.number];
  std::memcpy(reinterpret_cast<std::byte*>(&entry) + plain, bytes + plain, sizeof entry - plain);
  entry.submitted = monotonic_now();
  std::uint64_t submissions = 0;
  std::memcpy(&submissions, bytes + offsetof(Entry, submissions), sizeof submissions);
  entry.submissions.store(submissions, std::memory_order_release);
  setup_.layout.ring_of(mirror)[(note.words.tail - 1) % GroupBlock::most_entries] = note.number;
  if (mirror.entries.load(std::memory_order_relaxed) <= note.number)
    mirror.entries.store(note.number + 1, std::memory_order_release);
}

void Mirrors::finish(const LogRecord& record) {
  const std::size_t members = setup_.blocks.size();
  for (const auto& incoming : kept_)
    for (std::uint32_t operation = 0; operation < record.operations; ++operation) {
      const std::uint32_t number = record.numbers()[operation * members + static_cast<std::size_t>(incoming->member)];
      if (number == LogRecord::no_number) continue;
      auto& completed = setup_.layout.entries_of(*block(incoming->member))[number].completed;
      completed.store(completed.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
}

// The pages of the table of names exist as far as names have come, as those of its owner do.
void Mirrors::commit(int member, const Note& note) {
  std::size_t& committed = committed_[static_cast<std::size_t>(member)];
  const std::size_t begin = setup_.layout.entries();
  if (note.what != What::entry || note.offset + note.bytes <= begin + committed) return;
  const std::size_t more = round_up(note.offset + note.bytes - begin - committed, std::size_t{256} << 10);
  const std::size_t bytes = std::min(more, setup_.layout.end() - begin - committed);
  const auto mirror = static_cast<std::size_t>(bytes_of(member) - setup_.memory->data());
  setup_.memory->commit(mirror + begin + committed, bytes);
  committed += bytes;
}

std::uint32_t Mirrors::store_words(GroupBlock& block, const Words& words) {
  std::uint32_t events = 0;
  const auto raise = [&](auto& word, auto value, std::uint32_t event) {
    if (word.load(std::memory_order_relaxed) == value) return;
    word.store(value, std::memory_order_seq_cst);
    events |= event;
  };
  raise(block.joined, words.joined, 0);
  raise(block.tail, words.tail, tail_raised);
  raise(block.logged, words.logged, logged_raised);
  raise(block.copied, words.copied, copied_raised);
  raise(block.combined, words.combined, combined_raised);
  raise(block.reduced, words.reduced, reduced_raised);
  raise(block.left, words.left, left_raised);
  raise(block.consumed, words.consumed, consumed_raised);
  raise(block.departure.state, words.departed, departed);
  return events;
}

}  // namespace ringred
