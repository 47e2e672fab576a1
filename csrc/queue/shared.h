// What the engines of a node share: one RankBlock for each rank and one GroupBlock for each rank and group, both in the
// rank's own segment, zero when new.
//
// Invariant: every word has one writer, the rank in whose segment it lies, but for the bell, which its owner sets and
// peers clear, and for `requests` and `reports`, which peers raise.
//
// How operations are agreed on, in one group:
//   1. Submit. A rank finds the name's number: an entry of its own table, known since the name's first appearance. It
//      fills in the entry, raises the entry's word `submissions` by one (seq_cst), appends the number to its ring and
//      raises `tail` (seq_cst).
//   2. Agree. The sequencer reads the rings of the members of its node, and hears of the others' (announcements.h).
//      When every member that has not joined has submitted a name, it compares their fingerprints and appends a record
//      to the order log, which all follow: a batch of operations (each given by its number on every rank), or a failure
//      with its text. It raises `logged` (seq_cst).
//   3. Execute. Each member takes the records in order. A batch is moved in turns through the staging slots, see
//      turns.h. When it has finished a record it raises `consumed` (seq_cst); the sequencer uses a record's place again
//      when all have consumed it.
// Whoever raises a word then rings the members that have said that they wait for that: see GroupBlock::awaits, bell.h.
// An entry is written again only by its owner, only after its operation has completed there: by then the sequencer, or
// the announcer of the node, has read it, and nobody else does but reports, which read racing text on purpose.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "csrc/base/types.h"
#include "csrc/base/wait.h"
#include "csrc/engine/call.h"

namespace ringred {

// Who sleeps: nobody, the engine's own thread, or a caller that drives the engine in its place. See driver.h.
struct alignas(64) EngineBell {
  static constexpr std::uint32_t awake = 0, engine_sleeps = 1, caller_sleeps = 2;
  std::atomic<std::uint32_t> state{awake};
};

// One finished operation. Written by its rank's engine, `sequence` last (release) and zero meanwhile.
struct FlightRecord {
  static constexpr std::size_t name_bytes = 68;
  std::atomic<std::uint64_t> sequence;              // from 1
  std::uint64_t bytes;                              // of this rank's data
  std::uint64_t submitted, agreed, started, ended;  // nanoseconds of CLOCK_MONOTONIC; 0: not reached
  std::uint32_t group;                              // the process set's number
  std::uint8_t kind;                                // CallKind
  std::uint8_t state;                               // 0 done, 1 failed
  std::uint8_t dtype, op;                           // DType, Op
  char name[name_bytes];                            // cut, ends with 0
};
static_assert(sizeof(FlightRecord) == 128);

struct RankBlock {
  static constexpr std::uint64_t magic_value = 0x72696e6772656431;  // "ringred1"
  static constexpr std::size_t stack_bytes = 64 << 10, failure_bytes = 8 << 10;
  // Process sets, by their numbers, and one more for the callers' synchronous calls where the world spans nodes.
  static constexpr std::size_t callers_group = 256, most_groups = callers_group + 1;
  static constexpr std::size_t flight_records = 4096;

  std::atomic<std::uint64_t> magic;  // written last
  std::int32_t rank, size, pid;

  EngineBell bell;

  // Stacks on request: a peer raises `requests` and rings; the owner's engine writes `stacks`, then stores the number
  // of the request that it answered.
  alignas(64) std::atomic<std::uint32_t> requests;
  alignas(64) std::atomic<std::uint32_t> answers;
  char stacks[stack_bytes];

  // Raised by a rank that waits for long in a synchronous call, in the block of rank 0, which then reports; see
  // waiting_in.
  alignas(64) std::atomic<std::uint32_t> reports;

  // The first failure of this rank, such as the traceback of an uncaught exception: the text, then the time (release).
  alignas(64) std::atomic<std::int64_t> failed;
  char failure[failure_bytes];

  // The synchronous call (rr.*) in which the rank waits for long: the sentence, "rank 0 waits for rank 1 in ...", then
  // the time since when; 0: none.
  alignas(64) std::atomic<std::int64_t> waiting_since;
  char waiting_in[1024];

  // Where this rank's GroupBlocks lie: offset in the segment, 0: none. The index is the process set's number.
  alignas(64) std::atomic<std::uint64_t> groups[most_groups];

  alignas(64) std::atomic<std::uint64_t> flights;  // how many operations have been recorded
  FlightRecord flight[flight_records];
};

// What a rank that has joined needs to know of an operation to take its part in it: the element type that travels, and
// a count. Allreduce: elements. Reducescatter: elements of the largest part. Broadcast: bytes. Allgather and alltoall:
// tensors.
struct Run {
  std::uint64_t count;
  DType dtype;
  DType wire;             // what its numbers travel as
  bool direct = false;    // reduced where it lies, see direct.h
  bool measured = false;  // with the sum of squares, for which all members are needed
};

// What a rank submits under a name.
struct alignas(64) Submission {
  static constexpr std::size_t most_runs = 16, name_bytes = 192, description_bytes = 320;

  std::uint64_t hash[2];      // of the name
  std::uint64_t fingerprint;  // of all that must agree
  std::uint64_t fuse_key;     // operations with the same one may be a batch; 0: alone
  std::uint64_t bytes;        // that the batch grows by
  CallKind kind;
  Op op;
  bool allow;          // of a join: whether it stands for empty contributions to all collectives
  std::int32_t root;   // of a broadcast: its place in the group
  std::uint32_t runs;  // how many of run[] hold
  Run run[most_runs];
  std::int64_t submitted;  // CLOCK_MONOTONIC, nanoseconds
  char name[name_bytes];
  char description[description_bytes];
};

// One name of one rank, with what it submitted last under it.
struct Entry : Submission {
  alignas(64) std::atomic<std::uint64_t> submissions;  // the word: how often the rank has submitted the name
  std::atomic<std::uint64_t> completed;                // how many of these are over
  std::atomic<std::uint32_t> awaited;                  // 1: a thread of the rank sleeps until this operation is over
};

struct LogRecord {
  enum class Type : std::uint32_t { batch, failure, joined };
  static constexpr std::uint32_t most_operations = 256, text_bytes = 3072;
  static constexpr std::uint32_t no_number = 0xffffffffu;

  Type type;
  std::uint32_t operations;
  std::int64_t logged;  // when; CLOCK_MONOTONIC, nanoseconds
  CallKind kind;
  Op op;
  std::int32_t last_joined;  // of type joined: the group rank that joined last
  std::uint32_t runs;        // of a batch: what is reduced, all operations together, for joined ranks
  Run run[Entry::most_runs];
  // Followed by operations x group size numbers: the operation's entry on each member, or no_number. Of a failure,
  // which is one operation's, its text comes after them.
  std::uint32_t* numbers() { return reinterpret_cast<std::uint32_t*>(this + 1); }
  const std::uint32_t* numbers() const { return reinterpret_cast<const std::uint32_t*>(this + 1); }
  char* text(std::size_t members) { return reinterpret_cast<char*>(numbers() + members); }
  const char* text(std::size_t members) const { return reinterpret_cast<const char*>(numbers() + members); }

  static constexpr std::size_t most_bytes(std::size_t members);
  std::size_t used_bytes(std::size_t members) const;
};

constexpr std::size_t LogRecord::most_bytes(std::size_t members) {
  const std::size_t numbers = most_operations * members * sizeof(std::uint32_t);
  const std::size_t failure = members * sizeof(std::uint32_t) + text_bytes;
  return sizeof(LogRecord) + (numbers > failure ? numbers : failure);
}

inline std::size_t LogRecord::used_bytes(std::size_t members) const {
  return sizeof(LogRecord) + operations * members * sizeof(std::uint32_t) +
         (type == Type::failure ? std::size_t{text_bytes} : 0);
}

// What a member may wait for: that a word of another one is raised.
enum Event : std::uint32_t {
  tail_raised = 1,
  logged_raised = 2,
  copied_raised = 4,
  reduced_raised = 8,
  left_raised = 16,
  consumed_raised = 32,
  departed = 64,
  combined_raised = 128
};

struct GroupBlock {
  static constexpr std::size_t most_ranks = 512;
  static constexpr std::uint32_t most_entries = 16384, log_records = 16;

  std::uint64_t entries_at;            // where the table of names lies, from the beginning of this block
  std::uint32_t group, size, index;    // the process set's number, its number of ranks, this rank's place in it
  std::int32_t ranks[most_ranks];      // of the world
  std::atomic<std::uint32_t> entries;  // how many of the table are in use, from the front

  Departure departure;

  alignas(64) std::atomic<std::uint64_t> tail;    // how many numbers have been appended to the ring
  alignas(64) std::atomic<std::uint64_t> logged;  // the sequencer's: how many records
  // How many turns this rank has copied in, combined, reduced, and left: see turns.h.
  alignas(64) std::atomic<std::uint64_t> copied;
  std::atomic<std::uint64_t> combined, reduced, left;
  alignas(64) std::atomic<std::uint64_t> consumed;  // how many records of the log
  // Which events of others this rank can do nothing without, at the moment: bits of Event. Stored (seq_cst) before the
  // rank looks once more and sleeps; a peer looks (seq_cst) after it has raised a word, and rings only if it is wanted.
  alignas(64) std::atomic<std::uint32_t> awaits;
  std::atomic<std::uint32_t> joined;  // for reports: 1 while this rank has joined

  // The sequencer's: who was late. For each member, of the operations that it was the last to submit: how many, and how
  // many nanoseconds after the last but one, together.
  struct Lateness {
    std::atomic<std::uint64_t> times, nanoseconds;
  };
  alignas(64) Lateness late[most_ranks];
};

}  // namespace ringred
