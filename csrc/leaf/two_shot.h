// Two-shot allreduce: rank r owns slice r, reads it from all n buffers, adds in registers in rank order and hands the
// result to all. 2S bytes of memory traffic for each rank, the least there is for n private results.
//
// direct: all buffers lie in arenas. Every rank writes its slice into all n buffers. Only the owner touches slice r, so
// there is no barrier in the middle; the opening line and one closing phase suffice.
//
// staged: some buffer is private. Chunk by chunk, through three slots for each rank that stay in cache:
//   A  copy the slices that others own from the private buffer into the own slot        (arena buffers: nothing)
//   B  add the own slice from all ranks' slots or arena buffers; store it into the own slot and the own buffer
//   C  copy the slices that others own from their slots into the own buffer
// in the order  A(0) | A(1) B(0) | A(2) B(1) C(0) | A(3) B(2) C(1) | ...  with a phase posted after each A and B.
// Three slots suffice, with chunk c in slot c mod 3:
//   1. A(c+1) overwrites what others read in B(c-2): it comes after C(c-2), which waited for everybody's B(c-2).
//   2. B(c) overwrites what others read in C(c-3): it waits for everybody's A(c), which comes after their C(c-3).
//   3. A(0) of the next call comes before its line. It overwrites the slot of the last chunk but two, which everybody
//      had left when it posted the last B, and this rank has waited for those. A(1) comes after all lines, so after
//      everybody left the call before.
// The slots go on in turn across calls, hence (3). Within a call all chunks have the same slice boundaries, so A never
// touches the place of a result that others may still read in C.
#pragma once

#include "csrc/leaf/reduction.h"
#include "csrc/leaf/team.h"

namespace ringred {

// The two halves of the call; in between the caller waits for the lines and compares the fingerprints. Which form is
// taken follows from the lines alone, so all ranks take the same.
void two_shot_publish(Team& team, const Reduction& reduction);
void two_shot_complete(Team& team, const Reduction& reduction, Sentence sentence);

}  // namespace ringred
