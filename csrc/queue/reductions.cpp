#include "csrc/queue/reductions.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/round.h"

namespace ringred {
namespace {

constexpr std::size_t line = 64;

// How many elements of each member's part a slot takes, in whole cache lines.
std::size_t part_room(const Batch& batch, DType wire) {
  return batch.slot_bytes / static_cast<std::size_t>(batch.size) / line * line / info(wire).size;
}

template <class Take>
void for_each_tensor(const Batch& batch, const Run& run, Take&& take) {
  for (const Operation* operation : batch.mine)
    for (const Tensor& tensor : operation->request.tensors)
      if (tensor.dtype == run.dtype) take(tensor);
}

Pieces pieces_of(const Batch& batch, const Run& run) {
  Pieces pieces;
  for_each_tensor(batch, run, [&](const Tensor& tensor) { pieces.add(tensor.input, tensor.output, tensor.count()); });
  return pieces;
}

double prescale_of(const Batch& batch) {
  return batch.mine.empty() ? 1 : batch.mine.front()->request.prescale;
}

double postscale_of(const Batch& batch) {
  return batch.mine.empty() ? 1 : batch.mine.front()->request.postscale;
}

}  // namespace

Reducing::Reducing(const Batch& batch, const Run& run)
    : mine_(batch.mine),
      givers_(batch.givers),
      index_(static_cast<std::size_t>(batch.index)),
      size_(static_cast<std::size_t>(batch.size)),
      wire_bytes_(info(run.wire).size),
      dtype_(run.dtype),
      prescale_(prescale_of(batch)),
      postscale_(postscale_of(batch)),
      plain_(run.dtype == run.wire && prescale_ == 1 && postscale_ == 1),
      to_wire_(scale_kernel(*batch.instruction_set, run.dtype, run.wire)),
      from_wire_(scale_kernel(*batch.instruction_set, run.wire, run.dtype)),
      kernel_(reduce_kernel(*batch.instruction_set, run.wire, batch.op)),
      inputs_(batch.givers.size()) {}

void Reducing::pack(const Pieces& pieces, std::size_t begin, std::size_t end, std::byte* place) const {
  pieces.visit(begin, end, info(dtype_).size,
               [&](const std::byte* input, std::byte*, std::size_t at, std::size_t count) {
                 to_wire_(input, place + at * wire_bytes_, count, prescale_);
               });
}

void Reducing::unpack(const Pieces& pieces, std::size_t begin, std::size_t end, const std::byte* place) const {
  pieces.visit(begin, end, info(dtype_).size,
               [&](const std::byte*, std::byte* output, std::size_t at, std::size_t count) {
                 from_wire_(place + at * wire_bytes_, output, count, postscale_);
               });
}

void Reducing::call(std::size_t count, void* output) {
  kernel_(inputs_.data(), static_cast<int>(inputs_.size()), &output, 1, count, static_cast<std::int64_t>(size_));
}

void Reducing::combine(const Slots& slots, std::size_t offset, const Pieces& pieces, std::size_t begin, std::size_t end,
                       std::byte* share) {
  const auto in_slots = [&](std::size_t at) {
    for (std::size_t i = 0; i < givers_.size(); ++i)
      inputs_[i] = slots.of[static_cast<std::size_t>(givers_[i])] + offset + at * wire_bytes_;
  };
  if (gives() && plain_) {
    const auto me = std::find(givers_.begin(), givers_.end(), static_cast<int>(index_)) - givers_.begin();
    pieces.visit(begin, end, wire_bytes_,
                 [&](const std::byte* input, std::byte* output, std::size_t at, std::size_t count) {
                   in_slots(at);
                   inputs_[static_cast<std::size_t>(me)] = input;
                   call(count, output);
                   // By memcpy, not by the kernel: see docs/decisions/0004.
                   if (share != nullptr) std::memcpy(share + at * wire_bytes_, output, count * wire_bytes_);
                 });
    return;
  }
  if (scratch_.size() < (end - begin) * wire_bytes_) scratch_.resize((end - begin) * wire_bytes_);
  in_slots(0);
  call(end - begin, scratch_.data());
  unpack(pieces, begin, end, scratch_.data());
  if (share != nullptr && end > begin) std::memcpy(share, scratch_.data(), (end - begin) * wire_bytes_);
}

bool OneShotMovement::fits(const Batch& batch, const Run& run) {
  return run.count * info(run.wire).size <= std::min(batch.one_shot_bytes, batch.slot_bytes);
}

OneShotMovement::OneShotMovement(const Batch& batch, const Run& run)
    : Reducing(batch, run), count_(run.count), pieces_(pieces_of(batch, run)) {}

void OneShotMovement::copy_in(std::size_t, const Slots& slots) {
  pack(pieces_, 0, pieces_.count(), slots.of[index_]);
}

void OneShotMovement::copy_out(std::size_t, const Slots& slots) {
  if (gives()) combine(slots, 0, pieces_, 0, count_, nullptr);
}

TwoShotMovement::TwoShotMovement(const Batch& batch, const Run& run)
    : Reducing(batch, run), count_(run.count), pieces_(pieces_of(batch, run)) {
  const std::size_t unit = std::max<std::size_t>(line / wire_bytes_, 1);
  turns_ = std::max<std::size_t>(divide_up(count_, part_room(batch, run.wire) * size_), 1);
  part_elements_ = round_up(divide_up(divide_up(count_, turns_), size_), unit);
}

TwoShotMovement::Part TwoShotMovement::part_of(std::size_t turn, std::size_t owner) const {
  const std::size_t begin = std::min((turn * size_ + owner) * part_elements_, count_);
  return {owner * part_elements_ * wire_bytes_, begin, std::min(begin + part_elements_, count_)};
}

void TwoShotMovement::copy_in(std::size_t turn, const Slots& slots) {
  if (!gives()) return;
  for (std::size_t owner = 0; owner < size_; ++owner) {
    if (owner == index_ && plain()) continue;
    const Part part = part_of(turn, owner);
    pack(pieces_, part.begin, part.end, slots.of[index_] + part.offset);
  }
}

void TwoShotMovement::reduce(std::size_t turn, const Slots& slots) {
  const Part part = part_of(turn, index_);
  combine(slots, part.offset, pieces_, part.begin, part.end, slots.of[index_] + part.offset);
}

void TwoShotMovement::copy_out(std::size_t turn, const Slots& slots) {
  if (!gives()) return;
  for (std::size_t step = 1; step < size_; ++step) {  // every member begins with another one's memory
    const std::size_t owner = (index_ + step) % size_;
    const Part part = part_of(turn, owner);
    unpack(pieces_, part.begin, part.end, slots.of[owner] + part.offset);
  }
}

ReduceScatterMovement::ReduceScatterMovement(const Batch& batch, const Run& run)
    : Reducing(batch, run),
      room_elements_(part_room(batch, run.wire)),
      turns_(divide_up(run.count, room_elements_)),
      parts_(size_) {
  for_each_tensor(batch, run, [&](const Tensor& tensor) {
    for (std::size_t owner = 0; owner < size_; ++owner) {
      const RowRange rows = rows_of(tensor.rows(), static_cast<int>(owner), static_cast<int>(size_));
      parts_[owner].add(tensor.input + rows.begin * tensor.row_bytes(), owner == index_ ? tensor.output : nullptr,
                        (rows.end - rows.begin) * tensor.row_elements());
    }
  });
}

void ReduceScatterMovement::copy_in(std::size_t turn, const Slots& slots) {
  for (std::size_t owner = 0; gives() && owner < size_; ++owner) {
    if (owner == index_ && plain()) continue;
    const std::size_t begin = std::min(turn * room_elements_, parts_[owner].count());
    const std::size_t end = std::min(begin + room_elements_, parts_[owner].count());
    pack(parts_[owner], begin, end, slots.of[index_] + owner * room_elements_ * wire_bytes_);
  }
}

void ReduceScatterMovement::copy_out(std::size_t turn, const Slots& slots) {
  if (!gives()) return;
  const Pieces& own = parts_[index_];
  const std::size_t begin = std::min(turn * room_elements_, own.count());
  combine(slots, index_ * room_elements_ * wire_bytes_, own, begin, std::min(begin + room_elements_, own.count()),
          nullptr);
}

}  // namespace ringred
