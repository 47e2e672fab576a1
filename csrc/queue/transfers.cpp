#include "csrc/queue/transfers.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "csrc/base/round.h"
#include "csrc/queue/nodes.h"

namespace ringred {
namespace {

void copy_in_pieces(const Pieces& pieces, std::size_t begin, std::size_t room, std::byte* place) {
  const std::size_t first = std::min(begin, pieces.count()), last = std::min(begin + room, pieces.count());
  pieces.visit(first, last, 1, [&](const std::byte* input, std::byte*, std::size_t at, std::size_t count) {
    std::memcpy(place + at, input, count);
  });
}

void copy_out_pieces(const Pieces& pieces, std::size_t begin, std::size_t room, const std::byte* place) {
  const std::size_t first = std::min(begin, pieces.count()), last = std::min(begin + room, pieces.count());
  pieces.visit(first, last, 1, [&](const std::byte*, std::byte* output, std::size_t at, std::size_t count) {
    std::memcpy(output, place + at, count);
  });
}

// Room in a slot for what one member gives another, after `used` bytes: whole cache lines.
std::size_t pair_room(const Batch& batch, std::size_t used) {
  const std::size_t left = batch.slot_bytes > used ? batch.slot_bytes - used : 0;
  return left / static_cast<std::size_t>(batch.size) / 64 * 64;
}

Result make_result(std::size_t bytes, std::vector<std::int64_t> rows) {
  return {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes, std::move(rows)};
}

}  // namespace

BroadcastMovement::BroadcastMovement(const Batch& batch)
    : bytes_(batch.runs.front().count),
      slot_bytes_(batch.slot_bytes),
      index_(static_cast<std::size_t>(batch.index)),
      root_(index_) {
  for (const Operation* operation : batch.mine) {
    root_ = static_cast<std::size_t>(operation->request.root);
    for (const Tensor& tensor : operation->request.tensors)
      pieces_.add(tensor.input, tensor.output, tensor.count() * info(tensor.dtype).size);
  }
}

std::size_t BroadcastMovement::turns() const {
  return divide_up(bytes_, slot_bytes_);
}

void BroadcastMovement::copy_in(std::size_t turn, const Slots& slots) {
  if (index_ == root_) copy_in_pieces(pieces_, turn * slot_bytes_, slot_bytes_, slots.of[index_]);
}

void BroadcastMovement::copy_out(std::size_t turn, const Slots& slots) {
  if (index_ != root_) copy_out_pieces(pieces_, turn * slot_bytes_, slot_bytes_, slots.of[root_]);
}

void BroadcastMovement::needed(Stage stage, std::size_t turn, int, std::vector<Stretch>& stretches) const {
  if (stage == Stage::copy_in && index_ == root_ && pieces_.count() > 0)  // a joined member has nothing
    stretches.push_back({0, std::min(slot_bytes_, bytes_ - turn * slot_bytes_)});
}

Announced::Announced(const Batch& batch, std::size_t counts, std::size_t first_room, std::size_t room)
    : mine_(batch.mine),
      index_(static_cast<std::size_t>(batch.index)),
      size_(static_cast<std::size_t>(batch.size)),
      counts_(counts),
      first_room_(first_room),
      room_(room) {}

void Announced::copy_in(std::size_t turn, const Slots& slots) {
  std::byte* place = slots.of[index_];
  if (turn > 0) {
    if (gives()) give(first_room_ + (turn - 1) * room_, room_, place);
    return;
  }
  auto* numbers = reinterpret_cast<std::uint64_t*>(place);
  std::fill_n(numbers, counts_ + 1, 0);
  if (!gives()) return;
  numbers[0] = announce(numbers + 1);
  give(0, first_room_, place + header_bytes());
}

void Announced::copy_out(std::size_t turn, const Slots& slots) {
  if (turn == 0) {
    std::uint64_t most = 0;
    std::vector<const std::uint64_t*> counts;
    for (std::size_t member = 0; member < size_; ++member) {
      const auto* numbers = reinterpret_cast<const std::uint64_t*>(slots.of[member]);
      most = std::max(most, numbers[0]);
      counts.push_back(numbers + 1);
    }
    turns_ = 1 + divide_up(most - std::min<std::size_t>(most, first_room_), room_);
    known_ = true;
    if (gives()) learn_if_possible(counts);
  }
  const std::size_t begin = turn == 0 ? 0 : first_room_ + (turn - 1) * room_;
  for (std::size_t step = 0; gives() && takes_ && step < size_; ++step) {
    const std::size_t member = (index_ + step) % size_;  // every member begins with another one's memory
    take(begin, turn == 0 ? first_room_ : room_, member, slots.of[member] + (turn == 0 ? header_bytes() : 0));
  }
}

void Announced::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  if (stage != Stage::copy_in) return;
  if (turn == 0) stretches.push_back({0, header_bytes()});
  if (!gives()) return;
  if (turn == 0)
    given(0, first_room_, node, header_bytes(), stretches);
  else
    given(first_room_ + (turn - 1) * room_, room_, node, 0, stretches);
}

// Without memory for the result this member takes nothing, and its operation fails; the others' do not.
void Announced::learn_if_possible(const std::vector<const std::uint64_t*>& counts) {
  try {
    learn(counts);
  } catch (const std::bad_alloc&) {
    results().clear();
    takes_ = false;
    mine_.front()->problem =
        Error(ErrorKind::system, "There was no memory for the result of '" + mine_.front()->request.name +
                                     "'. Gather less at once, or use a machine with more memory.");
  }
}

AllgatherMovement::AllgatherMovement(const Batch& batch)
    : Announced(batch, batch.runs.front().count,
                batch.slot_bytes - (batch.runs.front().count + 1) * sizeof(std::uint64_t), batch.slot_bytes),
      places_(size_) {
  if (!gives()) return;
  for (const Tensor& tensor : tensors()) own_.add(tensor.input, nullptr, tensor.rows() * tensor.row_bytes());
}

std::uint64_t AllgatherMovement::announce(std::uint64_t* counts) {
  for (const Tensor& tensor : tensors()) *counts++ = tensor.rows();
  return own_.count();
}

void AllgatherMovement::learn(const std::vector<const std::uint64_t*>& counts) {
  for (std::size_t i = 0; i < tensors().size(); ++i) {
    std::vector<std::int64_t> rows;
    std::size_t sum = 0;
    for (const std::uint64_t* of_member : counts) {
      rows.push_back(static_cast<std::int64_t>(of_member[i]));
      sum += of_member[i];
    }
    const std::size_t row_bytes = tensors()[i].row_bytes();
    results().push_back(make_result(sum * row_bytes, std::move(rows)));
    std::byte* place = results().back().data.get();
    for (std::size_t member = 0; member < size_; ++member) {
      const std::size_t bytes = counts[member][i] * row_bytes;
      places_[member].add(nullptr, place, bytes);
      place += bytes;
    }
  }
}

void AllgatherMovement::give(std::size_t begin, std::size_t room, std::byte* place) {
  copy_in_pieces(own_, begin, room, place);
}

void AllgatherMovement::take(std::size_t begin, std::size_t room, std::size_t member, const std::byte* place) {
  copy_out_pieces(places_[member], begin, room, place);
}

void AllgatherMovement::given(std::size_t begin, std::size_t room, int, std::size_t place,
                              std::vector<Stretch>& stretches) const {
  const std::size_t first = std::min(begin, own_.count()), last = std::min(begin + room, own_.count());
  if (first == last) return;
  if (!stretches.empty())
    stretches.back().bytes += last - first;  // the announcement, which lies right before it
  else
    stretches.push_back({place, last - first});
}

AlltoallMovement::AlltoallMovement(const Batch& batch)
    : Announced(batch, batch.runs.front().count * static_cast<std::size_t>(batch.size),
                pair_room(batch, (batch.runs.front().count * static_cast<std::size_t>(batch.size) + 1) * 8),
                pair_room(batch, 0)),
      nodes_(*batch.nodes),
      own_(size_),
      places_(size_) {
  if (!gives()) return;
  for (const Tensor& tensor : tensors()) {
    const std::byte* row = tensor.input;
    for (std::size_t member = 0; member < size_; ++member) {
      const std::size_t bytes = static_cast<std::size_t>(tensor.splits[member]) * tensor.row_bytes();
      own_[member].add(row, nullptr, bytes);
      row += bytes;
    }
  }
}

std::uint64_t AlltoallMovement::announce(std::uint64_t* counts) {
  std::size_t most = 0;
  for (const Tensor& tensor : tensors())
    for (const std::int64_t rows : tensor.splits) *counts++ = static_cast<std::uint64_t>(rows);
  for (const Pieces& pieces : own_) most = std::max(most, pieces.count());
  return most;
}

void AlltoallMovement::learn(const std::vector<const std::uint64_t*>& counts) {
  for (std::size_t i = 0; i < tensors().size(); ++i) {
    std::vector<std::int64_t> rows;
    std::size_t sum = 0;
    for (const std::uint64_t* of_member : counts) {
      rows.push_back(static_cast<std::int64_t>(of_member[i * size_ + index_]));
      sum += of_member[i * size_ + index_];
    }
    const std::size_t row_bytes = tensors()[i].row_bytes();
    results().push_back(make_result(sum * row_bytes, rows));
    std::byte* place = results().back().data.get();
    for (std::size_t member = 0; member < size_; ++member) {
      const std::size_t bytes = static_cast<std::size_t>(rows[member]) * row_bytes;
      places_[member].add(nullptr, place, bytes);
      place += bytes;
    }
  }
}

void AlltoallMovement::give(std::size_t begin, std::size_t room, std::byte* place) {
  for (std::size_t member = 0; member < size_; ++member)
    copy_in_pieces(own_[member], begin, room, place + member * room);
}

void AlltoallMovement::take(std::size_t begin, std::size_t room, std::size_t member, const std::byte* place) {
  copy_out_pieces(places_[member], begin, room, place + index_ * room);
}

void AlltoallMovement::given(std::size_t begin, std::size_t room, int node, std::size_t place,
                             std::vector<Stretch>& stretches) const {
  for (const int member : nodes_.members(node)) {
    const Pieces& own = own_[static_cast<std::size_t>(member)];
    const std::size_t first = std::min(begin, own.count()), last = std::min(begin + room, own.count());
    if (first < last) stretches.push_back({place + static_cast<std::size_t>(member) * room, last - first});
  }
}

}  // namespace ringred
