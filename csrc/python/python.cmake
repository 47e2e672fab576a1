# How a Python module is built: with pybind11's package, or with the headers of pybind11 that torch carries, where there
# is no such package.

set(RINGRED_PYBIND11 auto CACHE STRING "Where pybind11 comes from: auto, package or torch")
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# Sets `result` to what a line of Python prints; empty if it fails.
function(ringred_ask_python result line)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${line}" OUTPUT_VARIABLE output ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(${result} "${output}" PARENT_SCOPE)
endfunction()

# Sets `result` to the folder of torch's headers, if it has pybind11 of 2.13 or newer among them; else empty.
function(ringred_find_torch_headers result)
  set(${result} "" PARENT_SCOPE)
  ringred_ask_python(torch "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
  set(header "${torch}/include/pybind11/detail/common.h")
  if(NOT torch OR NOT EXISTS "${header}")
    return()
  endif()
  file(STRINGS "${header}" lines REGEX "define PYBIND11_VERSION_(MAJOR|MINOR) ")
  string(REGEX MATCH "MAJOR ([0-9]+).*MINOR ([0-9]+)" _ "${lines}")
  if("${CMAKE_MATCH_1}.${CMAKE_MATCH_2}" VERSION_GREATER_EQUAL 2.13)
    set(${result} "${torch}/include" PARENT_SCOPE)
  endif()
endfunction()

if(NOT RINGRED_PYBIND11 STREQUAL "torch")
  find_package(pybind11 CONFIG QUIET)
  if(NOT pybind11_FOUND)
    ringred_ask_python(directory "import pybind11; print(pybind11.get_cmake_dir())")
    find_package(pybind11 CONFIG QUIET PATHS "${directory}" NO_DEFAULT_PATH)
  endif()
endif()
if(NOT pybind11_FOUND AND NOT RINGRED_PYBIND11 STREQUAL "package")
  ringred_find_torch_headers(ringred_torch_headers)
endif()
if(NOT pybind11_FOUND AND NOT ringred_torch_headers)
  message(FATAL_ERROR
          "The Python module needs pybind11 2.13 or newer: ${Python_EXECUTABLE} has neither that nor a torch that "
          "carries it (RINGRED_PYBIND11 is ${RINGRED_PYBIND11}). Install it: pip install pybind11")
endif()

# ringred_python_headers(NAME): lets a library include pybind11.
function(ringred_python_headers name)
  if(pybind11_FOUND)
    target_link_libraries(${name} PRIVATE pybind11::headers)
  else()
    target_include_directories(${name} SYSTEM PRIVATE ${ringred_torch_headers})
  endif()
  target_link_libraries(${name} PRIVATE Python::Module)
endfunction()

# ringred_python_module(NAME SOURCE...)
function(ringred_python_module name)
  if(pybind11_FOUND)
    pybind11_add_module(${name} MODULE ${ARGN})
  else()
    Python_add_library(${name} MODULE WITH_SOABI ${ARGN})
    ringred_python_headers(${name})
    set_target_properties(${name} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  endif()
endfunction()
