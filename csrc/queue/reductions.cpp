#include "csrc/queue/reductions.h"

#include <algorithm>
#include <cstring>

#include "csrc/base/round.h"
#include "csrc/queue/exchange.h"

namespace ringred {
namespace {

// Where each node makes all results, the first one counts their squares.
NormKernel norm_of(const Batch& batch, const Run& run) {
  const bool elsewhere = batch.nodes->of(batch.index) > 0 && keeps_results(exchange_of(batch, run));
  const bool counts = run.measured && !batch.mine.empty() && !elsewhere;
  return counts ? norm_kernel(*batch.instruction_set, run.dtype) : nullptr;
}

template <class Take>
void for_each_tensor(const Batch& batch, const Run& run, Take&& take) {
  for (const Operation* operation : batch.mine)
    for (const Tensor& tensor : operation->request.tensors)
      if (tensor.dtype == run.dtype) take(tensor);
}

double prescale_of(const Batch& batch) {
  return batch.mine.empty() ? 1 : batch.mine.front()->request.prescale;
}

double postscale_of(const Batch& batch) {
  return batch.mine.empty() ? 1 : batch.mine.front()->request.postscale;
}

bool divides_first(const Batch& batch, const Run& run) {
  return batch.op == Op::average && info(run.wire).type_class == TypeClass::half;
}

}  // namespace

std::size_t part_room(const Batch& batch, std::size_t parts, DType wire) {
  constexpr std::size_t line = 64;
  return batch.slot_bytes / parts / line * line / info(wire).size;
}

Pieces pieces_of(const Batch& batch, const Run& run) {
  Pieces pieces;
  for_each_tensor(batch, run, [&](const Tensor& tensor) { pieces.add(tensor.input, tensor.output, tensor.count()); });
  return pieces;
}

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
      by_node_(ringred::adds_by_node(batch, run)),
      kernel_(
          reduce_kernel(*batch.instruction_set, run.wire, by_node_ && divides_first(batch, run) ? Op::sum : batch.op)),
      adding_(reduce_kernel(*batch.instruction_set, run.wire,
                            batch.op == Op::average && !divides_first(batch, run) ? Op::sum : batch.op)),
      norm_(norm_of(batch, run)),
      divides_(batch.op == Op::average),
      divides_first_(divides_first(batch, run)),
      here_(batch.nodes->of(batch.index)),
      givers_of_(static_cast<std::size_t>(batch.nodes->count())),
      sums_(givers_of_.size()) {
  for (const int giver : givers_) givers_of_[static_cast<std::size_t>(batch.nodes->of(giver))].push_back(giver);
}

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
  const auto inputs = static_cast<int>(inputs_.size());
  const std::int64_t divisor = divides_ ? static_cast<std::int64_t>(size_) : 1;
  if (norm_ == nullptr)
    kernel_(inputs_.data(), inputs, &output, 1, count, divisor);
  else
    mine_.front()->squares += norm_(inputs_.data(), inputs, output, count, divisor);
}

void Reducing::add(std::size_t count, void* output) {
  adding_(inputs_.data(), static_cast<int>(inputs_.size()), &output, 1, count, static_cast<std::int64_t>(size_));
}

void Reducing::add_arrays(std::span<const void* const> arrays, std::size_t count, void* output) {
  inputs_.assign(arrays.begin(), arrays.end());
  add(count, output);
}

void Reducing::reduce_arrays(std::span<const void* const> arrays, std::size_t count, void* output) {
  inputs_.assign(arrays.begin(), arrays.end());
  call(count, output);
}

void Reducing::find_inputs(const Slots& slots, std::span<const int> members, std::size_t offset, const std::byte* own) {
  inputs_.resize(members.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    const auto member = static_cast<std::size_t>(members[i]);
    inputs_[i] = own != nullptr && member == index_ ? own : slots.of[member] + offset;
  }
}

void Reducing::call_by_node(const Slots& slots, std::size_t offset, const std::byte* own, std::size_t count,
                            void* output) {
  std::vector<const void*> sums;
  for (std::size_t node = 0; node < givers_of_.size(); ++node) {
    if (givers_of_[node].empty()) continue;
    find_inputs(slots, givers_of_[node], offset, own);
    if (inputs_.size() == 1 && !divides_first_) {
      sums.push_back(inputs_.front());
      continue;
    }
    if (sums_[node].size() < count * wire_bytes_) sums_[node].resize(count * wire_bytes_);
    add(count, sums_[node].data());
    sums.push_back(sums_[node].data());
  }
  inputs_ = std::move(sums);
  call(count, output);
}

// combine(at, own, count, output) makes `count` elements of the result, the first of which is the at-th of all.
template <class Combine>
void Reducing::store(const Pieces& pieces, std::size_t begin, std::size_t end, std::byte* share, Combine&& combine) {
  if (gives() && plain_) {
    pieces.visit(begin, end, wire_bytes_,
                 [&](const std::byte* input, std::byte* output, std::size_t at, std::size_t count) {
                   combine(at, input, count, output);
                   // By memcpy, not by the kernel: see docs/decisions/0004.
                   if (share != nullptr) std::memcpy(share + at * wire_bytes_, output, count * wire_bytes_);
                 });
    return;
  }
  if (scratch_.size() < (end - begin) * wire_bytes_) scratch_.resize((end - begin) * wire_bytes_);
  combine(0, nullptr, end - begin, scratch_.data());
  unpack(pieces, begin, end, scratch_.data());
  if (share != nullptr && end > begin) std::memcpy(share, scratch_.data(), (end - begin) * wire_bytes_);
}

void Reducing::finish(const Slots& slots, std::size_t offset, const Pieces& pieces, std::size_t begin, std::size_t end,
                      std::byte* share) {
  store(pieces, begin, end, share, [&](std::size_t at, const std::byte* own, std::size_t count, std::byte* output) {
    if (by_node_) return call_by_node(slots, offset + at * wire_bytes_, own, count, output);
    find_inputs(slots, givers_, offset + at * wire_bytes_, own);
    call(count, output);
  });
}

void Reducing::finish_sums(const Slots& slots, std::span<const int> members, std::size_t offset, const Pieces& pieces,
                           std::size_t begin, std::size_t end, std::byte* share) {
  store(pieces, begin, end, share, [&](std::size_t at, const std::byte*, std::size_t count, std::byte* output) {
    find_inputs(slots, members, offset + at * wire_bytes_, nullptr);
    call(count, output);
  });
}

void Reducing::add_up(const Slots& slots, std::size_t offset, const Pieces& pieces, std::size_t begin,
                      std::size_t end) {
  const std::vector<int>& members = givers_of(here_);
  if (members.empty() || begin == end) return;
  std::byte* share = slots.of[index_] + offset;
  if (!gives() || !plain_) {
    find_inputs(slots, members, offset, nullptr);
    return add(end - begin, share);
  }
  pieces.visit(begin, end, wire_bytes_, [&](const std::byte* input, std::byte*, std::size_t at, std::size_t count) {
    find_inputs(slots, members, offset + at * wire_bytes_, input);
    add(count, share + at * wire_bytes_);
  });
}

bool OneShotMovement::fits(const Batch& batch, const Run& run) {
  if (batch.way == Way::two_shot || schedule_of(batch, run)) return false;
  const bool asked = batch.way == Way::one_shot;
  const std::size_t most = asked ? batch.slot_bytes : std::min(batch.one_shot_bytes, batch.slot_bytes);
  return run.count * info(run.wire).size <= most;
}

OneShotMovement::OneShotMovement(const Batch& batch, const Run& run)
    : Reducing(batch, run), count_(run.count), pieces_(pieces_of(batch, run)) {}

void OneShotMovement::copy_in(std::size_t, const Slots& slots) {
  pack(pieces_, 0, pieces_.count(), slots.of[index_]);
}

void OneShotMovement::copy_out(std::size_t, const Slots& slots) {
  if (gives()) finish(slots, 0, pieces_, 0, count_, nullptr);
}

void OneShotMovement::needed(Stage stage, std::size_t, int, std::vector<Stretch>& stretches) const {
  if (stage == Stage::copy_in && gives()) stretches.push_back({0, count_ * wire_bytes_});
}

ReduceScatterMovement::ReduceScatterMovement(const Batch& batch, const Run& run)
    : Reducing(batch, run),
      nodes_(*batch.nodes),
      room_elements_(part_room(batch, size_, run.wire)),
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

RowRange ReduceScatterMovement::part_of(std::size_t turn, std::size_t owner) const {
  const std::size_t begin = std::min(turn * room_elements_, parts_[owner].count());
  return {begin, std::min(begin + room_elements_, parts_[owner].count())};
}

void ReduceScatterMovement::copy_in(std::size_t turn, const Slots& slots) {
  for (std::size_t owner = 0; gives() && owner < size_; ++owner) {
    if (owner == index_ && plain()) continue;
    const RowRange part = part_of(turn, owner);
    pack(parts_[owner], part.begin, part.end, slots.of[index_] + owner * room_elements_ * wire_bytes_);
  }
}

void ReduceScatterMovement::copy_out(std::size_t turn, const Slots& slots) {
  if (!gives()) return;
  const RowRange part = part_of(turn, index_);
  finish(slots, index_ * room_elements_ * wire_bytes_, parts_[index_], part.begin, part.end, nullptr);
}

void ReduceScatterMovement::needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const {
  if (stage != Stage::copy_in || !gives()) return;
  for (const int member : nodes_.members(node)) {
    const auto owner = static_cast<std::size_t>(member);
    const RowRange part = part_of(turn, owner);
    if (part.begin < part.end)
      stretches.push_back({owner * room_elements_ * wire_bytes_, (part.end - part.begin) * wire_bytes_});
  }
}

}  // namespace ringred
