#include "csrc/python/gradient_hook.h"

#include <structmember.h>

#include <exception>
#include <utility>

namespace ringred::gradients {
namespace {

struct Hook {
  PyObject_HEAD vectorcallfunc call;
  std::shared_ptr<State>* state;
  std::size_t number;
};

PyObject* call_hook(PyObject* self, PyObject* const* arguments, std::size_t count, PyObject* names) {
  auto* hook = reinterpret_cast<Hook*>(self);
  if (PyVectorcall_NARGS(count) != 1 || (names != nullptr && PyTuple_GET_SIZE(names) != 0)) {
    PyErr_SetString(PyExc_TypeError, "a gradient hook is called with its parameter");
    return nullptr;
  }
  try {
    const std::shared_ptr<State> state = *hook->state;
    arrive(*state, hook->number, arguments[0]);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

void destroy_hook(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<Hook*>(self)->state;
  type->tp_free(self);
  Py_DECREF(type);
}

PyTypeObject* hook_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, call), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(destroy_hook)},
                                {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_members, members},
                                {0, nullptr}};
  static PyType_Spec spec = {"ringred._core.GradientHook", sizeof(Hook), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, slots};
  static auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (type == nullptr) throw py::error_already_set();
  return type;
}

}  // namespace

py::object make_hook(std::shared_ptr<State> state, std::size_t number) {
  PyTypeObject* type = hook_type();
  auto* hook = reinterpret_cast<Hook*>(type->tp_alloc(type, 0));
  if (hook == nullptr) throw py::error_already_set();
  hook->call = call_hook;
  hook->state = new std::shared_ptr<State>(std::move(state));
  hook->number = number;
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(hook));
}

}  // namespace ringred::gradients
