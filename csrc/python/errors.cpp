#include "csrc/python/errors.h"

#include "csrc/base/error.h"

namespace py = pybind11;

namespace ringred {
namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
      return "UsageError";
    case ErrorKind::mismatch:
      return "MismatchError";
    case ErrorKind::peer_lost:
      return "PeerLostError";
    case ErrorKind::timeout:
      return "TimeoutError";
    case ErrorKind::interrupted:
      return "InterruptedError";
    case ErrorKind::system:
      return "SystemError";
  }
  return "RingredError";
}

void translate(std::exception_ptr pending) {
  if (!pending) return;
  try {
    std::rethrow_exception(pending);
  } catch (const Error& error) {
    // An interrupted wait carries what the signal handler raised, a KeyboardInterrupt as a rule.
    if (error.kind() == ErrorKind::interrupted && PyErr_Occurred()) return;
    const py::object type = py::module_::import("ringred.errors").attr(class_name(error.kind()));
    PyErr_SetString(type.ptr(), error.what());
  }
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator(&translate);
}

}  // namespace ringred
