#include "csrc/queue/mirrors.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "csrc/base/error.h"
#include "csrc/base/futex.h"
#include "csrc/base/round.h"
#include "csrc/queue/announcements.h"
#include "csrc/queue/sequencer.h"
#include "csrc/queue/turns.h"

namespace ringred {

Mirrors::Mirrors(Setup setup, const Nodes& nodes)
    : setup_(std::move(setup)),
      nodes_(nodes),
      mine_(*block(setup_.index)),
      told_(static_cast<std::size_t>(nodes.count())),
      committed_(setup_.blocks.size()),
      exists_(setup_.blocks.size()) {
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
  }
}

// What the network still reads or writes stays where it is, for as long as the process lives: also this member's
// memory, from which long notes are sent and into which they come.
Mirrors::~Mirrors() {
  bool in_use = false;
  const auto leak = [&](auto& one) {
    static_cast<void>(one.release());
    in_use = true;
  };
  for (auto& outgoing : sending_)
    if (outgoing->head.pending || outgoing->body.pending) leak(outgoing);
  for (auto& incoming : kept_)
    if (incoming->transfer.pending) leak(incoming);
  if (in_use) static_cast<void>(new std::shared_ptr<Arena::Block>(setup_.memory));
}

Mirrors::Words Mirrors::words() const {
  const auto now = [](const auto& word) { return word.load(std::memory_order_relaxed); };
  return {told_logged_,       now(mine_.copied),   now(mine_.combined), now(mine_.reduced),
          left_by_all_here(), now(mine_.consumed), now(mine_.joined),   now(mine_.departure.state)};
}

std::uint64_t Mirrors::left_by_all_here() const {
  std::uint64_t least = ~std::uint64_t{0};
  for (const int member : nodes_.members(nodes_.of(setup_.index)))
    least = std::min(least, block(member)->left.load(std::memory_order_seq_cst));
  return least;
}

void Mirrors::send(int node, std::size_t offset, std::size_t bytes, bool last) {
  send_stretch(node, Kind::stretch, offset, bytes, last ? words() : told_[static_cast<std::size_t>(node)]);
}

void Mirrors::send_stretch(int node, Kind kind, std::size_t offset, std::size_t bytes, const Words& words) {
  send_note(node, {words, offset, bytes, kind}, bytes_of(setup_.index) + offset);
}

Mirrors::Outgoing& Mirrors::send_note(int node, const Note& note, const std::byte* data) {
  if (spare_.empty()) spare_.push_back(std::make_unique<Outgoing>());
  sending_.push_back(std::move(spare_.back()));
  spare_.pop_back();
  Outgoing& outgoing = *sending_.back();
  const bool whole = note.bytes <= inline_bytes;
  outgoing.bytes.resize(sizeof note + (whole ? note.bytes : 0));
  std::memcpy(outgoing.bytes.data(), &note, sizeof note);
  if (whole && note.bytes > 0) std::memcpy(outgoing.bytes.data() + sizeof note, data, note.bytes);
  outgoing.slot = whole || note.kind == Kind::packet ? -1 : slot_of(note.offset);
  if (outgoing.slot >= 0) ++slots_sending_[static_cast<std::size_t>(outgoing.slot)];
  told_[static_cast<std::size_t>(node)] = note.words;
  const int rank = setup_.ranks[static_cast<std::size_t>(nodes_.keeper(setup_.index, node))];
  setup_.network->send(outgoing.head, rank, setup_.tag, outgoing.bytes.data(), outgoing.bytes.size());
  if (!whole) setup_.network->send(outgoing.body, rank, setup_.tag, data, note.bytes);
  return outgoing;
}

void Mirrors::send(int node, std::unique_ptr<Packet> packet) {
  const Note note{told_[static_cast<std::size_t>(node)], packet->key, packet->bytes, Kind::packet};
  Outgoing& outgoing = send_note(node, note, packet->data.get());
  if (note.bytes > inline_bytes)
    outgoing.packet = std::move(packet);
  else
    setup_.packets->give_back(std::move(packet));
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
    if (outgoing.packet) setup_.packets->give_back(std::move(outgoing.packet));
    if (outgoing.slot >= 0) --slots_sending_[static_cast<std::size_t>(outgoing.slot)];
    spare_.push_back(std::move(sending_[at]));
    sending_[at] = std::move(sending_.back());
    sending_.pop_back();
  }
}

// What only says that this member has finished something may wait for the next note, as long as nobody is held up by
// it. To copy in turn t the others need to know that this member has left turn t-3. With nothing under way here it has
// left all turns, so it may keep two of them to itself. Records: GroupBlock::log_records of them may be unfinished.
// Nor is anyone held up by words that only matter on the own node, nor by turns that were left while they concern no
// other node. In a turn that begins a call all have left the one before the last, or will be told.
bool Mirrors::is_due(const Words& now, const Words& told, std::uint32_t local) const {
  constexpr std::uint64_t late_records = GroupBlock::log_records / 2;
  Words early = now;
  early.left = told.left;
  if ((local & combined_raised) != 0) early.combined = told.combined;
  early.consumed = told.consumed;
  if ((local & copied_raised) != 0) early.copied = told.copied;
  if ((local & reduced_raised) != 0) early.reduced = told.reduced;
  if (early != told) return true;
  const bool idle = now.left == now.copied, speaks = nodes_.members(nodes_.of(setup_.index)).front() == setup_.index;
  const std::uint64_t late_turns = idle                           ? 2
                                   : local == Movement::all_local ? ~std::uint64_t{0}
                                   : (local & left_raised) != 0   ? 1
                                                                  : 0;
  return (speaks && now.left - told.left > late_turns) || now.consumed - told.consumed > late_records;
}

bool Mirrors::tell(std::uint32_t local) {
  if (over_) return false;
  tell_records();
  bool told = false;
  const Words now = words();
  for (int node = 0; node < nodes_.count(); ++node) {
    if (node == nodes_.of(setup_.index) || !is_due(now, told_[static_cast<std::size_t>(node)], local)) continue;
    send_stretch(node, Kind::stretch, 0, 0, now);
    told = true;
  }
  return told;
}

void Mirrors::announce(Announcer& announcer) {
  constexpr int sequencers_node = 0;
  for (auto message = announcer.next_message(inline_bytes); !over_ && !message.empty();
       message = announcer.next_message(inline_bytes))
    send_note(sequencers_node, {words(), 0, message.size(), Kind::announcements}, message.data());
}

void Mirrors::tell_waiting(const std::vector<std::uint32_t>& numbers) {
  std::vector<Waiting> all;
  for (const std::uint32_t number : numbers) {
    const Entry& entry = setup_.layout.entries_of(mine_)[number];
    all.push_back({{entry.hash[0], entry.hash[1]}, number, entry.submissions.load(std::memory_order_relaxed)});
  }
  constexpr std::size_t most = inline_bytes / sizeof(Waiting);
  for (std::size_t begin = 0; !over_ && begin < all.size(); begin += most) {
    const std::size_t bytes = std::min(most, all.size() - begin) * sizeof(Waiting);
    for (int node = 0; node < nodes_.count(); ++node)
      if (node != nodes_.of(setup_.index))
        send_note(node, {words(), 0, bytes, Kind::waiting}, reinterpret_cast<const std::byte*>(&all[begin]));
  }
}

void Mirrors::tell_late() {
  if (over_) return;
  const Words now = words();
  for (int node = 0; node < nodes_.count(); ++node)
    if (node != nodes_.of(setup_.index) && now != told_[static_cast<std::size_t>(node)])
      send_stretch(node, Kind::stretch, 0, 0, now);
}

void Mirrors::tell_records() {
  const std::uint64_t logged = mine_.logged.load(std::memory_order_relaxed);
  while (told_logged_ < logged) {
    const LogRecord* record = setup_.layout.record_of(mine_, told_logged_);
    const auto offset = static_cast<std::size_t>(reinterpret_cast<const std::byte*>(record) - bytes_of(setup_.index));
    ++told_logged_;
    for (int node = 0; node < nodes_.count(); ++node)
      if (node != nodes_.of(setup_.index))
        send_stretch(node, Kind::record, offset, record->used_bytes(setup_.ranks.size()), words());
  }
}

void Mirrors::depart() {
  if (over_) return;
  try {
    const auto place =
        static_cast<std::size_t>(reinterpret_cast<std::byte*>(mine_.departure.reason) - bytes_of(setup_.index));
    for (int node = 0; node < nodes_.count(); ++node)
      if (node != nodes_.of(setup_.index))
        send_stretch(node, Kind::stretch, place, sizeof mine_.departure.reason, words());
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
  if (!std::exchange(listens_, true))
    for (auto& incoming : kept_) await_note(*incoming);
  bool taken = false;
  for (auto& incoming : kept_)
    while (!incoming->transfer.pending && take_note(*incoming, events)) taken = true;
  return taken;
}

bool Mirrors::take_note(Incoming& incoming, std::uint32_t& events) {
  Note note;
  std::memcpy(&note, incoming.bytes.data(), sizeof note);
  check(incoming, note);
  std::byte* place = place_of(incoming, note);
  if (!incoming.body) {
    std::span<const std::byte> bytes(incoming.bytes.data() + sizeof note, std::min(note.bytes, inline_bytes));
    if (note.kind == Kind::announcements) {
      setup_.sequencer->hear(bytes);
    } else if (note.kind == Kind::waiting) {
      store_waiting(incoming.member, bytes);
    } else if (note.bytes > inline_bytes) {
      incoming.body = true;
      setup_.network->receive(incoming.transfer, setup_.ranks[static_cast<std::size_t>(incoming.member)], setup_.tag,
                              place, note.bytes);
      return true;
    } else if (note.bytes > 0) {
      std::memcpy(place, bytes.data(), bytes.size());
    }
  }
  if (incoming.packet) setup_.packets->arrive(nodes_.of(incoming.member), std::move(incoming.packet));
  // Clocks of different machines have nothing in common: times are those at which things became known here.
  if (note.kind == Kind::record) reinterpret_cast<LogRecord*>(place)->logged = monotonic_now();
  events |= store_words(*block(incoming.member), note.words);
  await_note(incoming);
  return true;
}

// Where what follows the note's head belongs.
std::byte* Mirrors::place_of(Incoming& incoming, const Note& note) {
  if (note.kind == Kind::stretch && !incoming.body) commit_slots(incoming.member, note.offset, note.bytes);
  if (note.kind != Kind::packet) return bytes_of(incoming.member) + note.offset;
  if (!incoming.packet) {
    incoming.packet = setup_.packets->spare();
    incoming.packet->key = note.offset;
    incoming.packet->bytes = note.bytes;
  }
  return incoming.packet->data.get();
}

void Mirrors::check(const Incoming& incoming, const Note& note) const {
  const bool is_whole = note.kind == Kind::waiting || note.kind == Kind::announcements;
  const std::uint64_t room = is_whole ? inline_bytes : note.kind == Kind::packet ? Packet::room : setup_.layout.end();
  const std::uint64_t offset = note.kind == Kind::packet ? 0 : note.offset;
  if (offset <= room && note.bytes <= room - offset && note.kind <= Kind::packet &&
      (note.kind != Kind::announcements || setup_.sequencer != nullptr))
    return;
  throw Error(ErrorKind::system, "A note of rank " +
                                     std::to_string(setup_.ranks[static_cast<std::size_t>(incoming.member)]) +
                                     " does not fit its mirror: the nodes run different versions of ringred.");
}

// How many are over is counted here: what the owner says of it may be older or newer than this node's own part.
void Mirrors::store_waiting(int member, std::span<const std::byte> bytes) {
  GroupBlock& mirror = *block(member);
  for (Waiting waiting; bytes.size() >= sizeof waiting; bytes = bytes.subspan(sizeof waiting)) {
    std::memcpy(&waiting, bytes.data(), sizeof waiting);
    if (waiting.number >= GroupBlock::most_entries) continue;
    const auto number = static_cast<std::uint32_t>(waiting.number);
    commit(member, number);
    Entry& entry = setup_.layout.entries_of(mirror)[number];
    std::copy_n(waiting.hash, 2, entry.hash);
    entry.submissions.store(waiting.submissions, std::memory_order_release);
    if (mirror.entries.load(std::memory_order_relaxed) <= number)
      mirror.entries.store(number + 1, std::memory_order_release);
  }
}

void Mirrors::finish(const LogRecord& record) {
  const std::size_t members = setup_.blocks.size();
  for (const auto& incoming : kept_)
    for (std::uint32_t operation = 0; operation < record.operations; ++operation)
      note_finished(*incoming, record.numbers()[operation * members + static_cast<std::size_t>(incoming->member)]);
}

void Mirrors::note_finished(const Incoming& incoming, std::uint32_t number) {
  if (number == LogRecord::no_number) return;
  commit(incoming.member, number);
  auto& completed = setup_.layout.entries_of(*block(incoming.member))[number].completed;
  completed.store(completed.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

// The pages of the table of names exist as far as names have come, as those of its owner do.
void Mirrors::commit(int member, std::uint32_t entry) {
  std::size_t& committed = committed_[static_cast<std::size_t>(member)];
  const std::size_t needed = (entry + std::size_t{1}) * sizeof(Entry), begin = setup_.layout.entries();
  if (needed <= committed) return;
  const std::size_t more = round_up(needed - committed, std::size_t{256} << 10);
  const std::size_t bytes = std::min(more, setup_.layout.end() - begin - committed);
  const auto mirror = static_cast<std::size_t>(bytes_of(member) - setup_.memory->data());
  setup_.memory->commit(mirror + begin + committed, bytes);
  committed += bytes;
}

// Of its slots, what is stored there.
void Mirrors::commit_slots(int member, std::size_t offset, std::size_t bytes) {
  constexpr std::size_t unit = std::size_t{64} << 10;
  const std::size_t first = setup_.layout.slot(0), end = setup_.layout.entries();
  if (bytes == 0 || offset < first || offset >= end) return;
  std::vector<bool>& exists = exists_[static_cast<std::size_t>(member)];
  exists.resize(divide_up(end - first, unit));
  const auto mirror = static_cast<std::size_t>(bytes_of(member) - setup_.memory->data());
  for (std::size_t at = (offset - first) / unit; first + at * unit < offset + bytes; ++at) {
    if (exists[at]) continue;
    const std::size_t begin = first + at * unit;
    setup_.memory->commit(mirror + begin, std::min(unit, end - begin));
    exists[at] = true;
  }
}

std::uint32_t Mirrors::store_words(GroupBlock& block, const Words& words) {
  std::uint32_t events = 0;
  const auto raise = [&](auto& word, auto value, std::uint32_t event) {
    if (word.load(std::memory_order_relaxed) == value) return;
    word.store(value, std::memory_order_seq_cst);
    events |= event;
  };
  raise(block.joined, words.joined, 0);
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
