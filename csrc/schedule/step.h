// What a schedule is made of: plain data, one list of lanes for each rank.
//
// Invariant: one step's `out` is one message, and the peer's step that takes it lists the same chunks in `in`, in the
// same order. Messages from a rank to a peer on a lane arrive in the order in which they were sent.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ringred {

enum class Act : std::uint8_t {
  none,     // the step only sends
  receive,  // what comes in replaces the chunk
  reduce,   // what comes in is combined with the chunk
};

// Step `step` of lane `lane` of the same rank must have ended.
struct Dependency {
  int lane = 0;
  int step = 0;
  friend bool operator==(const Dependency&, const Dependency&) = default;
};

// Both directions of a step progress together: neither waits for the other to end. If `out` and `in` share a chunk they
// are the same list, and then no part of the chunk is written before that part has been sent.
struct Step {
  Act act = Act::none;
  int to = -1;           // -1: sends nothing
  std::vector<int> out;  // chunks
  int from = -1;         // -1: takes nothing
  std::vector<int> in;   // chunks
  std::vector<Dependency> after;
};

// The steps of a lane run in order; the lanes of a rank run side by side, held together by dependencies alone.
using Lane = std::vector<Step>;

struct Schedule {
  std::string algorithm;
  int size = 0;
  int chunks = 0;
  std::vector<std::vector<Lane>> ranks;  // ranks[rank][lane]
};

// What a verb takes: one chunk, or several.
struct Chunks {
  Chunks(int chunk) : list{chunk} {}
  Chunks(std::vector<int> chunks) : list(std::move(chunks)) {}
  std::vector<int> list;
};

// first, first + 1, ..., first + count - 1; with `modulus` the numbers wrap around.
inline Chunks chunk_range(int first, int count) {
  std::vector<int> list;
  for (int index = 0; index < count; ++index) list.push_back(first + index);
  return list;
}

inline Chunks chunk_range(int first, int count, int modulus) {
  Chunks chunks = chunk_range(first, count);
  for (int& chunk : chunks.list) chunk = ((chunk % modulus) + modulus) % modulus;
  return chunks;
}

}  // namespace ringred
