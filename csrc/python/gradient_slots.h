// The state of a round of gradients, and what is done for each of them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/memory/pool.h"
#include "csrc/python/dlpack.h"

namespace ringred::gradients {

namespace py = pybind11;

// One parameter's gradient in the current round.
struct Slot {
  int passes = 0;         // backward passes that have reached it
  bool complete = false;  // it must not change any more: `sent` and `version` tell what it was
  py::object sent;        // the gradient, or None
  std::uint64_t version = 0;
  int unit = 0;     // number of what it travels in
  py::object view;  // its place in a bucket, as a tensor; None: it travels from where it lies
  std::byte* place = nullptr;
  std::size_t bytes = 0;
  py::object layout{}, dtype{};  // of the view
  dlpack::DataType type{};       // the same as the dtype, if torch tells
  py::object keeper{};  // a second tensor of the place: what the view is to show again if its data was assigned
  bool contiguous = false, complex = false;
  bool pooled = false;  // it travels from where autograd has put it, if that is in the pool; the view comes when needed
  const std::byte* at = nullptr;  // where it lies there
  std::byte* origin = nullptr;    // where it was copied from, and the average goes
};

struct Unit {
  std::vector<std::size_t> slots;
  bool late = false;        // its gradients stay where autograd has put them until `fill`
  std::size_t missing = 0;  // slots that are not complete; 0 if it is late
};

// Shared with the hooks, which parameters own: so it holds no parameter, or there would be cycles through torch that
// Python cannot collect.
struct State {
  std::vector<Slot> slots;
  std::vector<Unit> units;
  int passes = 1;
  bool paused = false;  // inside no_sync()
  bool clear = false;   // nothing has come since a round began
  double began = 0;     // when the first gradient of the last round came, in seconds of CLOCK_MONOTONIC
  bool closed = false;  // gradients are averages: one more backward pass is unusual
  bool sums = false;    // reducing what has been reduced gives something else: for averages it does not
  py::object unusual;   // called with a slot's number before it counts a pass that it should not get
  py::object ready;     // called with a unit's number when its last slot is complete, and whether all of its slots are
  py::object strided;   // torch.strided
  std::shared_ptr<Pool> pool;  // null: no slot is pooled
  py::object make_view;        // called with a pooled slot's number for its view
  std::size_t waiting = 0;     // units with missing slots
  py::object move;             // called with (slot's number, gradient, place) for what cannot be copied as bytes
};

// A backward pass has accumulated the gradient of a slot.
void arrive(State& state, std::size_t number, PyObject* parameter);

// Has a gradient in its place: where it is in the pool, or in the bucket.
void settle(State& state, std::size_t number, PyObject* parameter);

// Copies a gradient of a late unit to its place; `origin` tells where the average goes. What is not plain is settled.
void pack(State& state, std::size_t number, PyObject* parameter);

// Has the place of a slot hold zeros, which stand for a gradient that there is not.
void put_zeros(State& state, std::size_t number);

// Takes note of the gradient, which is in its place by now.
void complete(State& state, Slot& slot, py::object gradient);

// Makes a tensor the view of a slot.
void set_view(Slot& slot, py::object view);

// Whether somebody has assigned the data of the view, so that it does not show its place.
bool is_elsewhere(const Slot& slot);

}  // namespace ringred::gradients
