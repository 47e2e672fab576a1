// One operation that a rank has submitted: what it asks for, and how far it has come.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/base/error.h"
#include "csrc/base/types.h"
#include "csrc/engine/call.h"
#include "csrc/queue/shared.h"
#include "csrc/reduce/update.h"
#include "csrc/select/way.h"

namespace ringred {

// One array of an operation. The caller keeps its memory alive until the operation is done.
struct Tensor {
  const std::byte* input = nullptr;
  std::byte* output = nullptr;  // may be the input; null where the engine allocates the result
  DType dtype = DType::u8;
  std::vector<std::int64_t> shape;   // of the input
  std::vector<std::int64_t> splits;  // alltoall: rows for each member

  std::size_t count() const;  // elements
  std::size_t rows() const { return shape.empty() ? 1 : static_cast<std::size_t>(shape[0]); }
  std::size_t row_elements() const;
  std::size_t row_bytes() const { return row_elements() * info(dtype).size; }
};

// The step of an optimizer: the members reduce their gradients, and each updates its parts of the parameters in the
// memory of all members of its node. The operation has one array, the gradients of all parameters, in place in the
// arena; parameters and gradients have the same places in their arrays. Nobody may read or write parameters meanwhile.
struct Update {
  struct Stretch {
    std::size_t begin, end;  // in elements
    std::uint32_t rates;     // which of them hold for it
  };

  Rule rule = Rule::sgd;
  bool measures = false;         // only adds up the squares of the reduced gradients
  bool keeps_gradients = false;  // the reduced ones replace the members' own
  double factor = 1;             // for the reduced gradients, before the step
  std::vector<Rates> rates;
  std::vector<Stretch> stretches;         // ascending and apart: the parameters that step
  bool shares_parameters = false;         // the members of each node have one copy
  std::vector<std::byte*> parameters;     // of this node's members in their order, mapped here; one if they share it
  std::array<std::byte*, 3> states = {};  // of this member's parts (steps.h), see UpdateArrays

  std::uint64_t fingerprint() const;  // of what the members must agree on
  std::string describe() const;
};

struct Request {
  CallKind kind = CallKind::barrier;
  Op op = Op::sum;
  double prescale = 1, postscale = 1;
  int root = -1;              // its place in the group
  std::optional<DType> wire;  // allreduce: what floating-point numbers travel as
  bool allow = false;         // join: see Entry
  bool direct = false;        // allreduce: the one array lies in the arena on all members, and is reduced there
  bool norm = false;          // direct: with the sum of squares of the result
  std::shared_ptr<const Update> update;
  std::string name;
  bool call = false;         // synchronous: it reads like a Call, see describe()
  std::optional<Way> way;    // of a synchronous allreduce, where it is not the usual one; all members choose alike
  std::size_t location = 0;  // a call's: where its one array lies in the arena, see Arena::location
  std::string tag;           // a call's: the caller's own name for it, on which the members agree
  std::vector<Tensor> tensors;

  // Throws a usage error where the request makes no sense in a group of `size` ranks.
  void check(int size) const;

  DType wire_dtype(DType dtype) const;
  std::uint64_t fingerprint() const;  // of all that the members must agree on
  std::uint64_t fuse_key() const;     // see Entry
  std::uint64_t bytes() const;        // that travel
  std::string describe() const;       // "allreduce(op=Sum, dtype=float32, shape=[4, 3])"

  // Where an output ends that is as long as its input, which are those that callers pass in; null for others.
  const std::byte* end_of_output(const Tensor& tensor) const;

  // Fills in what joined ranks need, one run for each dtype in order of first appearance.
  std::uint32_t runs_into(Run (&run)[Entry::most_runs], int size) const;

 private:
  void check_outputs_apart() const;
};

// Rows [begin, end) of `rows` that member `index` of `size` gets of a reduce-scatter: the first rows % size get one
// more.
struct RowRange {
  std::size_t begin, end;
};
RowRange rows_of(std::size_t rows, int index, int size);

// What an allgather or alltoall brought: memory of the engine's making, and how many rows came from each member.
struct Result {
  std::unique_ptr<std::byte[]> data;
  std::size_t bytes = 0;
  std::vector<std::int64_t> rows;
};

// An error that other threads raise. Not an Error itself: copies of one share their text, unseen by ThreadSanitizer.
struct Failure {
  ErrorKind kind;
  std::string text;

  explicit Failure(const Error& error) : kind(error.kind()), text(error.what()) {}
  [[noreturn]] void raise() const { throw Error(kind, text); }
};

class Operation {
 public:
  explicit Operation(Request asked) : request(std::move(asked)) {}

  const Request request;

  bool done() const { return state_.load(std::memory_order_acquire) == finished; }

  // Sleeps until the operation is over, at most until `deadline`. Any thread.
  void sleep(std::int64_t deadline);

  // After done(): throws the operation's error, if it has failed.
  void raise() const;

  // The engine's, once.
  void finish(const std::optional<Error>& error);

  // Written by the engine before it is done, by others read after.
  std::vector<Result> results;
  std::optional<Error> problem;  // what failed on this rank alone, such as memory for the result
  double squares = 0;            // of the results in this member's parts, where asked for
  int last_joined = -1;          // of a join: the rank of the world that joined last
  std::int64_t submitted = 0, agreed = 0, started = 0, ended = 0;

  std::uint32_t group = 0;          // the process set's number
  std::uint32_t number = 0;         // of its name; the group's
  bool is_known_to_wait = false;    // on other nodes; the group's
  bool tell = false, told = false;  // whether somebody wants to hear of its end, and has; the engine's, under a lock

 private:
  static constexpr std::uint32_t pending = 0, awaited = 1, finished = 2;
  std::atomic<std::uint32_t> state_{pending};
  std::optional<Failure> failure_;
};

}  // namespace ringred
