// What hooks ask torch's tensors, by way of Python, since torch's C++ interface differs between its releases.
//
// A property of a torch.Tensor or a torch.nn.Parameter is read through torch's own descriptor, without a lookup by
// name, which takes a third of the time; of any other type as Python does.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

#include "csrc/python/dlpack.h"

namespace ringred::tensors {

pybind11::object grad(PyObject* parameter);
void set_grad(PyObject* parameter, const pybind11::object& gradient);
bool requires_grad(PyObject* parameter);

// How often a tensor has been written in place.
std::uint64_t version(const pybind11::object& tensor);
std::byte* address(const pybind11::object& tensor);

// What a tensor is, told at once, through DLPack. False: this torch, or this tensor, does not tell.
bool describe(const pybind11::object& tensor, dlpack::Tensor& found);
pybind11::object layout(const pybind11::object& tensor);
pybind11::object dtype(const pybind11::object& tensor);
pybind11::object data(const pybind11::object& tensor);
void set_data(const pybind11::object& tensor, const pybind11::object& data);

std::size_t bytes(const pybind11::object& tensor);

// Whether it is a part of its storage.
bool is_part(const pybind11::object& tensor);

// Whether no other tensor has its storage.
bool is_alone(const pybind11::object& tensor);
bool is_contiguous(const pybind11::object& tensor);

// Whether torch conjugates or negates its elements as it reads them.
bool is_conjugate(const pybind11::object& tensor);
bool is_negative(const pybind11::object& tensor);

}  // namespace ringred::tensors
