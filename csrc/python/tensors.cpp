#include "csrc/python/tensors.h"

#include <array>

namespace py = pybind11;

namespace ringred::tensors {
namespace {

py::object stolen(PyObject* value) {
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// The types that have torch's own properties. They live as long as the program.
const std::array<PyTypeObject*, 2>& torch_types() {
  static const std::array<PyTypeObject*, 2> types = [] {
    const auto type = [](const char* module, const char* name) {
      return reinterpret_cast<PyTypeObject*>(py::object(py::module_::import(module).attr(name)).release().ptr());
    };
    return std::array{type("torch", "Tensor"), type("torch.nn", "Parameter")};
  }();
  return types;
}

bool is_torchs(PyObject* object) {
  return Py_TYPE(object) == torch_types()[0] || Py_TYPE(object) == torch_types()[1];
}

// What both types have under a name, if it is the same and of this type; otherwise null. For ever.
PyObject* descriptor_of(PyObject* name, const PyTypeObject* wanted) {
  py::object found = stolen(PyObject_GetAttr(reinterpret_cast<PyObject*>(torch_types()[0]), name));
  const py::object other = stolen(PyObject_GetAttr(reinterpret_cast<PyObject*>(torch_types()[1]), name));
  return found.is(other) && Py_TYPE(found.ptr()) == wanted ? found.release().ptr() : nullptr;
}

class Property {
 public:
  explicit Property(const char* name) : name_(PyUnicode_InternFromString(name)) {
    if (PyObject* found = descriptor_of(name_, &PyGetSetDescr_Type))
      torchs_ = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
  }
  py::object of(PyObject* object) const {
    if (torchs_ != nullptr && is_torchs(object)) return stolen(torchs_->get(object, torchs_->closure));
    return stolen(PyObject_GetAttr(object, name_));
  }
  void set(PyObject* object, PyObject* value) const {
    const bool direct = torchs_ != nullptr && torchs_->set != nullptr && is_torchs(object);
    if ((direct ? torchs_->set(object, value, torchs_->closure) : PyObject_SetAttr(object, name_, value)) != 0)
      throw py::error_already_set();
  }

 private:
  PyObject* const name_;
  const PyGetSetDef* torchs_ = nullptr;
};

class Method {
 public:
  explicit Method(const char* name)
      : name_(PyUnicode_InternFromString(name)), torchs_(descriptor_of(name_, &PyMethodDescr_Type)) {}
  py::object of(PyObject* object) const {
    if (torchs_ != nullptr && is_torchs(object)) return stolen(PyObject_Vectorcall(torchs_, &object, 1, nullptr));
    return stolen(PyObject_CallMethodNoArgs(object, name_));
  }

 private:
  PyObject* const name_;
  PyObject* const torchs_;
};

bool truth(const py::object& value) {
  return value.is(py::bool_(true));
}

const Property& grad_property() {
  static const Property property("grad");
  return property;
}

py::object storage(const py::object& tensor) {
  static const Method method("untyped_storage");
  return method.of(tensor.ptr());
}

const dlpack::Exchange* find_exchange() {
  constexpr const char* name = "dlpack_exchange_api";
  const py::object capsule =
      py::getattr(py::module_::import("torch").attr("Tensor"), "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), name)) return nullptr;
  const auto* exchange = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), name));
  while (exchange != nullptr && exchange->major > 1) exchange = exchange->previous;
  return exchange != nullptr && exchange->major == 1 && exchange->describe != nullptr ? exchange : nullptr;
}

const Property& data_property() {
  static const Property property("data");
  return property;
}

}  // namespace

py::object grad(PyObject* parameter) {
  return grad_property().of(parameter);
}

void set_grad(PyObject* parameter, const py::object& gradient) {
  grad_property().set(parameter, gradient.ptr());
}

bool requires_grad(PyObject* parameter) {
  static const Property property("requires_grad");
  return truth(property.of(parameter));
}

std::uint64_t version(const py::object& tensor) {
  static const Property property("_version");
  const std::uint64_t version = PyLong_AsUnsignedLongLong(property.of(tensor.ptr()).ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return version;
}

std::byte* address(const py::object& tensor) {
  static const Method method("data_ptr");
  void* address = PyLong_AsVoidPtr(method.of(tensor.ptr()).ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return static_cast<std::byte*>(address);
}

bool describe(const py::object& tensor, dlpack::Tensor& found) {
  static const dlpack::Exchange* const exchange = find_exchange();
  if (exchange == nullptr || !is_torchs(tensor.ptr())) return false;
  if (exchange->describe(tensor.ptr(), &found) == 0) return true;
  PyErr_Clear();  // such as a sparse one
  return false;
}

py::object layout(const py::object& tensor) {
  static const Property property("layout");
  return property.of(tensor.ptr());
}

py::object dtype(const py::object& tensor) {
  static const Property property("dtype");
  return property.of(tensor.ptr());
}

py::object data(const py::object& tensor) {
  return data_property().of(tensor.ptr());
}

void set_data(const py::object& tensor, const py::object& data) {
  data_property().set(tensor.ptr(), data.ptr());
}

std::size_t bytes(const py::object& tensor) {
  static const Property property("nbytes");
  return property.of(tensor.ptr()).cast<std::size_t>();
}

bool is_part(const py::object& tensor) {
  const py::object whole = stolen(PyObject_CallMethod(storage(tensor).ptr(), "nbytes", nullptr));
  return whole.cast<std::size_t>() != bytes(tensor);
}

// The owners are the tensor and the storage object of this call. A torch that does not tell has none that is alone.
bool is_alone(const py::object& tensor) {
  static const py::handle count =
      py::getattr(py::module_::import("torch").attr("_C"), "_storage_Use_Count", py::none()).release();
  if (count.is_none()) return false;
  const py::object own = storage(tensor);
  return count(own.attr("_cdata")).cast<long>() == 2;
}

bool is_contiguous(const py::object& tensor) {
  static const Method method("is_contiguous");
  return truth(method.of(tensor.ptr()));
}

bool is_conjugate(const py::object& tensor) {
  static const Method method("is_conj");
  return truth(method.of(tensor.ptr()));
}

bool is_negative(const py::object& tensor) {
  static const Method method("is_neg");
  return truth(method.of(tensor.ptr()));
}

}  // namespace ringred::tensors
