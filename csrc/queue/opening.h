// How a group agrees in which all members submit the same operations in the same order, one at a time (synchronous
// calls across nodes): without a sequencer, in one message.
//
// Every operation begins with a turn of its own. With `copied` of that turn a member tells what it has submitted, and
// what it gives if that is little. When all have copied in, all entries are there: each member compares them for
// itself, and all come to the same answer. Then a small allreduce, a small broadcast or a barrier is over; others go on
// with movements; and where entries differ all members fail the operation, each with the same text.
//
// Others may still compare a member's entry when its operation is over. So operations have two names in turn, hence two
// entries: whoever submits the next but one has seen that all have copied in for the next, after they compared.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/queue/layout.h"
#include "csrc/queue/movements.h"

namespace ringred {

class Opening : public Movement {
 public:
  // `position`: of the submission, in all members' rings. `batch` is of this member's operation alone.
  Opening(const Batch& batch, std::vector<GroupBlock*> blocks, GroupLayout layout, std::uint64_t position);

  std::size_t turns() const override { return 1; }
  void copy_in(std::size_t turn, const Slots& slots) override;
  void copy_out(std::size_t turn, const Slots& slots) override;
  void needed(Stage stage, std::size_t turn, int node, std::vector<Stretch>& stretches) const override;

  // After it is done: why the members disagree, or "". And whether the operation is over with it.
  const std::string& problem() const { return problem_; }
  bool was_all() const { return whole_ || nothing_; }

 private:
  const Entry& entry_of(std::size_t member) const;
  std::string mismatch_text() const;

  const std::vector<GroupBlock*> blocks_;
  const GroupLayout layout_;
  const std::uint64_t position_;
  std::unique_ptr<Movement> whole_;  // what one turn is enough for
  const bool nothing_;               // no data moves at all
  std::string problem_;
};

}  // namespace ringred
