// The machine that the simulator plays schedules on: nodes of several ranks, each with memory and one network card.
//
// A message inside a node passes the node's memory. Between nodes it passes the sender's card, then, if they hang on
// different switches, the way up to the core and the way down from it, then the receiver's card.
//
// Invariant: plain figures, in seconds and seconds per byte; 0 is a cost that is left out.
#pragma once

namespace ringred {

struct LinkCost {
  double alpha = 0;  // seconds from a message's first byte going in to its coming out, on an idle link
  double beta = 0;   // seconds for which a byte keeps the link busy: one over its bandwidth
};

// Ranks node * local .. node * local + local - 1 share a node, nodes rack * nodes_per_switch .. a switch.
struct Hardware {
  int local = 1;             // ranks of a node
  LinkCost memory{};         // one for each node, shared by its ranks
  LinkCost card{};           // two for each node: one out, one in
  int nodes_per_switch = 0;  // 0: one switch for all, no core
  int uplinks = 1;           // of each switch to the core, and as many back; a message takes the first that is free
  LinkCost core{};           // each of them
  double gamma = 0;          // seconds in which a rank reduces a byte
  double step = 0;           // seconds in which a rank interprets a step
};

}  // namespace ringred
