// The table of contents of ringred._core.
#include <pybind11/pybind11.h>

#include "csrc/python/communicator.h"
#include "csrc/python/engine.h"
#include "csrc/python/errors.h"
#include "csrc/python/gradients.h"
#include "csrc/python/guarded.h"
#include "csrc/python/outside.h"
#include "csrc/python/pool.h"
#include "csrc/python/schedules.h"
#include "csrc/python/selection.h"
#include "csrc/python/settings.h"
#include "csrc/python/spanning.h"
#include "csrc/python/updates.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of ringred. Use the ringred package instead.";
  ringred::bind_errors(module);
  ringred::bind_settings(module);
  ringred::bind_schedules(module);
  ringred::bind_engine(module);
  ringred::bind_updates(module);
  ringred::bind_pool(module);
  ringred::bind_gradients(module);
  ringred::bind_guarded(module);
  ringred::bind_spanning(module);
  ringred::bind_selection(module);
  ringred::bind_communicator(module);
  ringred::bind_outside(module);
}
