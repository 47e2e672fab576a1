#include "csrc/queue/announcements.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/error.h"
#include "csrc/base/futex.h"

namespace ringred {

Announcer::Announcer(std::vector<GroupBlock*> blocks, std::vector<int> members, GroupLayout layout)
    : blocks_(std::move(blocks)),
      members_(std::move(members)),
      layout_(layout),
      heads_(members_.size()),
      numbers_(members_.size()),
      names_(join),
      joined_(members_.size()) {}

bool Announcer::advance() {
  for (std::size_t place = 0; place < members_.size(); ++place) {
    GroupBlock& block = *blocks_[static_cast<std::size_t>(members_[place])];
    const std::uint64_t tail = block.tail.load(std::memory_order_seq_cst);
    const std::uint32_t* ring = layout_.ring_of(block);
    for (; heads_[place] < tail; ++heads_[place]) take(place, ring[heads_[place] % GroupBlock::most_entries]);
  }
  if (held_back_.empty()) return false;
  due_ |= monotonic_now() - held_back_since_ > patience;
  return due_;
}

void Announcer::take(std::size_t place, std::uint32_t number) {
  if (held_back_.empty()) held_back_since_ = monotonic_now();
  held_back_.emplace_back(place, number);
  std::vector<Number>& numbers = numbers_[place];
  if (numbers.size() <= number) numbers.resize(number + 1);
  const Submission& submitted = submission(place, number);
  if (submitted.kind == CallKind::join) {
    numbers[number].names.push_back(join);
    ++joined_[place];
    due_ = true;  // others may have waited for this one
    return;
  }
  const std::uint32_t name = names_.take({{submitted.hash[0], submitted.hash[1]}}).number;
  if (under_way_.size() <= name * members_.size()) under_way_.resize((name + 1) * members_.size());
  numbers[number].names.push_back(name);
  ++under_way_[name * members_.size() + place];
  due_ |= is_complete(name);
}

bool Announcer::is_complete(std::uint32_t name) const {
  for (std::size_t place = 0; place < members_.size(); ++place)
    if (under_way_[name * members_.size() + place] == 0 && joined_[place] == 0) return false;
  return true;
}

void Announcer::finish(const LogRecord& record) {
  for (std::uint32_t operation = 0; operation < record.operations; ++operation)
    for (std::size_t place = 0; place < members_.size(); ++place) {
      const std::uint32_t number =
          record.numbers()[operation * blocks_.size() + static_cast<std::size_t>(members_[place])];
      if (number != LogRecord::no_number) end(place, number);
    }
}

void Announcer::end(std::size_t place, std::uint32_t number) {
  std::vector<std::uint32_t>& names = numbers_[place][number].names;
  const std::uint32_t name = names.front();
  names.erase(names.begin());
  if (name == join) {
    --joined_[place];
    return;
  }
  std::uint32_t* counts = &under_way_[name * members_.size()];
  --counts[place];
  if (std::all_of(counts, counts + members_.size(), [](std::uint32_t count) { return count == 0; }))
    names_.release(name);
}

std::span<const std::byte> Announcer::next_message(std::size_t room) {
  message_.clear();
  const std::int64_t now = monotonic_now();
  while (!held_back_.empty() && append(held_back_.front().first, held_back_.front().second, room, now))
    held_back_.pop_front();
  due_ = !held_back_.empty();
  return message_;
}

// What is held back is under way, so its owner does not write it.
bool Announcer::append(std::size_t place, std::uint32_t number, std::size_t room, std::int64_t now) {
  const Submission& submitted = submission(place, number);
  const Identity identity{{submitted.hash[0], submitted.hash[1]}, submitted.fingerprint};
  Identity& announced = numbers_[place][number].announced;
  const bool is_new = announced != identity;
  const Announcement announcement{static_cast<std::uint32_t>(members_[place]), number, is_new ? 1u : 0u, 0,
                                  now - submitted.submitted};
  const std::size_t begin = message_.size(), bytes = sizeof announcement + (is_new ? sizeof submitted : 0);
  if (begin + bytes > room) return false;
  message_.resize(begin + bytes);
  std::memcpy(message_.data() + begin, &announcement, sizeof announcement);
  if (is_new) std::memcpy(message_.data() + begin + sizeof announcement, &submitted, sizeof submitted);
  announced = identity;
  return true;
}

const Submission& Announcer::submission(std::size_t place, std::uint32_t number) const {
  return layout_.entries_of(*blocks_[static_cast<std::size_t>(members_[place])])[number];
}

std::pair<std::size_t, std::uint32_t> FarSubmissions::take(std::span<const std::byte>& message) {
  Announcement announcement{};
  const auto read = [&](void* into, std::size_t bytes) {
    const bool fits = bytes <= message.size();
    if (fits) std::memcpy(into, message.data(), bytes);
    message = message.subspan(fits ? bytes : message.size());
    return fits;
  };
  bool fits = read(&announcement, sizeof announcement) && announcement.member < known_.size() &&
              announcement.number < GroupBlock::most_entries;
  if (fits) {
    std::deque<Submission>& known = known_[announcement.member];
    fits = announcement.is_new != 0 || announcement.number < known.size();
    if (known.size() <= announcement.number) known.resize(announcement.number + 1);
    if (announcement.is_new != 0) fits = read(&known[announcement.number], sizeof(Submission));
    known[announcement.number].submitted = monotonic_now() - announcement.age;
  }
  if (!fits)
    throw Error(ErrorKind::system,
                "An announcement of another node cannot be read: the nodes run different versions of ringred.");
  return {announcement.member, announcement.number};
}

}  // namespace ringred
