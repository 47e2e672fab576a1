#include "csrc/python/arrays.h"

#include <optional>
#include <string>
#include <string_view>

#include "csrc/base/error.h"
#include "csrc/python/dlpack.h"

namespace py = pybind11;

namespace ringred {
namespace {

std::string type_name(py::handle array) {
  const py::handle type = py::type::handle_of(array);
  return py::str(type.attr("__module__")).cast<std::string>() + "." +
         py::str(type.attr("__qualname__")).cast<std::string>();
}

[[noreturn]] void fail_contiguous(py::handle array) {
  const std::string shape =
      py::hasattr(array, "shape") ? " of shape " + py::str(array.attr("shape")).cast<std::string>() : "";
  fail_usage("An array must be contiguous (C order) to be reduced where it lies: this " + type_name(array) + shape +
             " is not. Call the form without underscore, or copy it (numpy.ascontiguousarray, tensor.contiguous()).");
}

[[noreturn]] void fail_read_only(py::handle array) {
  fail_usage("An array that is reduced in place must be writable: this " + type_name(array) +
             " is read-only. Call the form without underscore, or copy it.");
}

[[noreturn]] void fail_dtype(const std::string& dtype) {
  std::string text = "The dtype must be one of";
  for (const DTypeInfo& row : dtype_table) {
    text += &row == dtype_table.data() ? " " : ", ";
    text += row.name;
  }
  text += ": it is ";
  text += dtype;
  fail_usage(text + ". Convert the array first.");
}

[[noreturn]] void fail_device(py::handle array, const std::string& device) {
  fail_usage("An array must lie in main memory where the core is to reach it: this " + type_name(array) + " is on " +
             device + ". Copy it to the CPU first.");
}

DType sized(std::size_t bytes, std::span<const DType> candidates, std::string_view name) {
  for (const DType dtype : candidates)
    if (info(dtype).size == bytes) return dtype;
  fail_dtype(std::string(name));
}

constexpr DType signed_types[] = {DType::i8, DType::i16, DType::i32, DType::i64};
constexpr DType unsigned_types[] = {DType::u8, DType::u16, DType::u32, DType::u64};
constexpr DType float_types[] = {DType::f16, DType::f32, DType::f64};
constexpr DType complex_types[] = {DType::c64, DType::c128};

// The format letters of Python's struct module; 'Z' before a float letter is a complex number.
DType dtype_of_format(const char* format, std::size_t item_bytes, py::handle array) {
  const std::string_view whole = format ? format : "B";
  const bool native = whole.starts_with('@') || whole.starts_with('=') || whole.starts_with('<');
  const std::string_view letter = native ? whole.substr(1) : whole;
  const auto is_one_of = [&](std::string_view letters) {
    return letter.size() == 1 && letters.find(letter[0]) != std::string_view::npos;
  };
  const auto sized_as = [&](std::span<const DType> candidates) { return sized(item_bytes, candidates, whole); };
  if (is_one_of("efd")) return sized_as(float_types);
  if (is_one_of("bhilq")) return sized_as(signed_types);
  if (is_one_of("BHILQ")) return sized_as(unsigned_types);
  if (letter == "?") return DType::boolean;
  if (letter == "Zf" || letter == "Zd") return sized_as(complex_types);
  if (py::hasattr(array, "dtype")) fail_dtype(py::str(array.attr("dtype")).cast<std::string>());
  fail_dtype("'" + std::string(whole) + "' (a struct format of " + std::to_string(item_bytes) + " bytes)");
}

DType dtype_of_dlpack(dlpack::DataType type) {
  const std::string name = "DLPack code " + std::to_string(type.code) + " with " + std::to_string(type.bits) + " bits";
  if (type.lanes != 1) fail_dtype(name + " and several lanes");
  const std::size_t bytes = type.bits / 8;
  switch (type.code) {
    case dlpack::code_int:
      return sized(bytes, signed_types, name);
    case dlpack::code_uint:
      return sized(bytes, unsigned_types, name);
    case dlpack::code_float:
      return sized(bytes, float_types, name);
    case dlpack::code_complex:
      return sized(bytes, complex_types, name);
    case dlpack::code_bool:
      return DType::boolean;
    case dlpack::code_bfloat:
      if (bytes == 2) return DType::bf16;
      break;
    default:
      break;
  }
  fail_dtype(name);
}

// An attribute's name as an interned string, made once: looking one up by a C string costs a string each time.
py::str interned(const char* name) {
  return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
}

// torch's classes, dtype objects and attribute names, looked up once after the user imported torch.
struct Torch {
  py::object tensor_class, strided;
  std::array<py::object, dtype_table.size()> dtypes;  // null where this torch has none
  py::str is_cpu = interned("is_cpu"), layout = interned("layout"), dtype = interned("dtype"),
          shape = interned("shape"), is_neg = interned("is_neg"), is_conj = interned("is_conj"),
          is_contiguous = interned("is_contiguous"), data_ptr = interned("data_ptr");

  static const Torch* if_imported() {
    static py::gil_safe_call_once_and_store<std::optional<Torch>> store;
    if (PyDict_GetItemString(PyImport_GetModuleDict(), "torch") == nullptr) return nullptr;
    return &*store.call_once_and_store_result([]() -> std::optional<Torch> { return Torch(); }).get_stored();
  }

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    tensor_class = torch.attr("Tensor");
    strided = torch.attr("strided");
    for (std::size_t i = 0; i < dtypes.size(); ++i) {
      const std::string name(dtype_table[i].name);
      if (py::hasattr(torch, name.c_str())) dtypes[i] = torch.attr(name.c_str());
    }
  }

  DType dtype_of(py::handle tensor) const {
    const py::object own = get(tensor, dtype);
    for (std::size_t i = 0; i < dtypes.size(); ++i)
      if (dtypes[i].is(own)) return dtype_table[i].dtype;
    fail_dtype(py::str(own).cast<std::string>());
  }

  static py::object get(py::handle tensor, const py::str& name) {
    PyObject* value = PyObject_GetAttr(tensor.ptr(), name.ptr());
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }

  static py::object call(py::handle tensor, const py::str& method) {
    PyObject* value = PyObject_CallMethodNoArgs(tensor.ptr(), method.ptr());
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }

  static bool is(py::handle tensor, const py::str& method) { return call(tensor, method).ptr() == Py_True; }
};

[[noreturn]] void fail_memory(py::handle tensor) {
  fail_usage("A tensor must have memory: this " + type_name(tensor) + " has none (a fake or functional tensor?).");
}

std::byte* address_of(py::handle tensor, const Torch& torch) {
  try {
    return static_cast<std::byte*>(PyLong_AsVoidPtr(Torch::call(tensor, torch.data_ptr).ptr()));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_RuntimeError)) throw;
  }
  fail_memory(tensor);
}

}  // namespace

ArrayView::ArrayView(py::handle array, Access access) {
  const Torch* torch = PyObject_CheckBuffer(array.ptr()) ? nullptr : Torch::if_imported();
  if (PyObject_CheckBuffer(array.ptr()))
    from_buffer(array, access);
  else if (torch && py::isinstance(array, torch->tensor_class))
    from_tensor(array, access);
  else if (py::hasattr(array, "__dlpack__"))
    from_dlpack(array, access);
  else
    fail_usage("An array must be a numpy array, a torch tensor, or have the buffer protocol or __dlpack__: this is a " +
               type_name(array) + ". Wrap it with numpy.asarray first.");
}

void ArrayView::add_extent(std::int64_t extent) {
  if (dimensions_ == most_dimensions) fail_usage("An array may have at most 64 dimensions: this one has more.");
  shape_[dimensions_++] = extent;
  count_ *= static_cast<std::size_t>(extent);
}

void ArrayView::from_buffer(py::handle array, Access access) {
  Py_buffer& buffer = buffer_.view;
  if (PyObject_GetBuffer(array.ptr(), &buffer, PyBUF_FULL_RO) != 0) {
    PyErr_Clear();
    buffer = {};
    // numpy cannot describe bfloat16 (ml_dtypes) as a buffer; its bits it can.
    const std::string dtype = py::str(py::getattr(array, "dtype", py::str("unknown"))).cast<std::string>();
    if (dtype != "bfloat16") fail_dtype(dtype);
    keep_alive_ = array.attr("view")("uint16");
    from_buffer(keep_alive_, access);
    dtype_ = DType::bf16;
    return;
  }
  dtype_ = dtype_of_format(buffer.format, static_cast<std::size_t>(buffer.itemsize), array);
  const bool plain = std::string_view(Py_TYPE(array.ptr())->tp_name) == "numpy.ndarray";
  if (!plain && py::hasattr(array, "mask"))
    fail_usage(
        "An array must not be masked, since masks are not combined: pass its data, or fill it (array.filled()).");
  if (!PyBuffer_IsContiguous(&buffer, 'C')) fail_contiguous(array);
  if (access == Access::write && buffer.readonly) fail_read_only(array);
  data_ = static_cast<std::byte*>(buffer.buf);
  for (int i = 0; i < buffer.ndim; ++i) add_extent(buffer.shape[i]);
}

void ArrayView::from_tensor(py::handle tensor, Access) {
  const Torch& torch = *Torch::if_imported();
  if (Torch::get(tensor, torch.is_cpu).ptr() != Py_True)
    fail_device(tensor, py::str(tensor.attr("device")).cast<std::string>());
  if (!Torch::get(tensor, torch.layout).is(torch.strided))
    fail_usage("A tensor must be dense: its layout is " + py::str(tensor.attr("layout")).cast<std::string>() +
               ". Convert it with to_dense().");
  dtype_ = torch.dtype_of(tensor);
  const bool is_complex = info(dtype_).type_class == TypeClass::complex;
  if (Torch::is(tensor, torch.is_neg) || (is_complex && Torch::is(tensor, torch.is_conj)))
    fail_usage("A tensor must not be a lazy conjugate or negative: this one is. Call resolve_conj() or resolve_neg().");
  if (!Torch::is(tensor, torch.is_contiguous)) fail_contiguous(tensor);
  const py::object shape = Torch::get(tensor, torch.shape);
  for (py::ssize_t i = 0; i < PyTuple_GET_SIZE(shape.ptr()); ++i) {
    const long long extent = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
    if (extent < 0) throw py::error_already_set();  // a symbolic extent is no number
    add_extent(extent);
  }
  data_ = address_of(tensor, torch);
  if (data_ == nullptr && count_ > 0) fail_memory(tensor);
}

void ArrayView::from_dlpack(py::handle array, Access access) {
  const auto device = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  if (device.first != dlpack::cpu && device.first != dlpack::cuda_host)
    fail_device(array, "DLPack device type " + std::to_string(device.first));
  py::object capsule;
  try {
    capsule = array.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = array.attr("__dlpack__")();
  }
  const bool versioned = PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned");
  const char* name = versioned ? "dltensor_versioned" : "dltensor";
  void* pointer = PyCapsule_GetPointer(capsule.ptr(), name);
  if (!pointer) throw py::error_already_set();
  const auto* whole = static_cast<const dlpack::Versioned*>(pointer);
  const dlpack::Tensor& tensor = versioned ? whole->tensor : static_cast<const dlpack::Managed*>(pointer)->tensor;
  // A capsule of the old form does not say whether its memory may be written.
  const bool read_only = !versioned || (whole->flags & dlpack::flag_read_only) != 0;
  if (access == Access::write && read_only) fail_read_only(array);
  dtype_ = dtype_of_dlpack(tensor.dtype);
  std::int64_t stride = 1;
  for (int i = tensor.dimensions - 1; i >= 0 && tensor.strides; --i) {
    if (tensor.shape[i] > 1 && tensor.strides[i] != stride) fail_contiguous(array);
    stride *= tensor.shape[i];
  }
  for (int i = 0; i < tensor.dimensions; ++i) add_extent(tensor.shape[i]);
  data_ = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  keep_alive_ = capsule;  // its destructor calls the deleter, since nobody renames the capsule
}

void check_result(const ArrayView& from, const ArrayView& to) {
  if (from.dtype() != to.dtype() || from.count() != to.count())
    fail_usage("Input and output must have the same dtype and number of elements: they have " +
               std::string(info(from.dtype()).name) + " x " + std::to_string(from.count()) + " and " +
               std::string(info(to.dtype()).name) + " x " + std::to_string(to.count()) + ".");
  const bool apart = from.data() + from.bytes() <= to.data() || to.data() + to.bytes() <= from.data();
  if (!apart && from.data() != to.data())
    fail_usage("Input and output must be the same memory or not overlap: they overlap in part. Use another output.");
}

}  // namespace ringred
