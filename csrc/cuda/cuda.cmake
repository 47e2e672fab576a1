# The device part: whether there is a compiler for it, its flags, and the library ringred_cuda. One status line says what
# was found. tests/cuda builds the same sources a second time, for the CPU.

set(RINGRED_CUDA auto CACHE STRING "Build the CUDA part: auto (if a compiler is found), ON or OFF")
option(RINGRED_CUDA_FAST "Compile kernels for compute capability 9.0 only" OFF)

set(ringred_cuda_sources
  ${CMAKE_CURRENT_LIST_DIR}/check.cu
  ${CMAKE_CURRENT_LIST_DIR}/device_kernels.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device_tape.cu
  ${CMAKE_CURRENT_LIST_DIR}/fusion.cu
  ${CMAKE_CURRENT_LIST_DIR}/leaf.cu
  ${CMAKE_CURRENT_LIST_DIR}/player.cu
  ${CMAKE_CURRENT_LIST_DIR}/reduce.cu
  ${CMAKE_CURRENT_LIST_DIR}/reduce_integers.cu
  ${CMAKE_CURRENT_LIST_DIR}/scale.cu
  ${CMAKE_CURRENT_LIST_DIR}/update.cu)

# Sets `reason` to why the CUDA part cannot be built here; empty if it can.
function(ringred_find_cuda reason)
  set(${reason} "" PARENT_SCOPE)
  if(CMAKE_VERSION VERSION_LESS 3.25)
    set(${reason} "CMake 3.25 or newer is needed, this is ${CMAKE_VERSION}" PARENT_SCOPE)
    return()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${reason} "no nvcc found; set CUDACXX or CMAKE_CUDA_COMPILER to it" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE output ERROR_QUIET)
  if(NOT output MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS 12.8)
    set(${reason} "${CMAKE_CUDA_COMPILER} must be of CUDA 12.8 or newer, it is of '${CMAKE_MATCH_1}'" PARENT_SCOPE)
  endif()
endfunction()

set(ringred_cuda_reason "RINGRED_CUDA is ${RINGRED_CUDA}")
if(RINGRED_CUDA STREQUAL "auto" AND RINGRED_SANITIZE)
  set(ringred_cuda_reason "sanitizers see the CPU only")
elseif(RINGRED_CUDA STREQUAL "auto" OR RINGRED_CUDA)
  ringred_find_cuda(ringred_cuda_reason)
  if(ringred_cuda_reason AND NOT RINGRED_CUDA STREQUAL "auto")
    message(FATAL_ERROR "ringred: RINGRED_CUDA=${RINGRED_CUDA}, but ${ringred_cuda_reason}.")
  endif()
endif()
if(ringred_cuda_reason)
  message(STATUS "ringred: CUDA not used (${ringred_cuda_reason}); building for CPUs")
  set(ringred_cuda_found OFF)
  return()
endif()
set(ringred_cuda_found ON)

# 10.0 as PTX, too: newer devices compile that when they load it.
if(RINGRED_CUDA_FAST)
  set(CMAKE_CUDA_ARCHITECTURES 90-real)
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()
if(RINGRED_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${RINGRED_CCACHE})
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # which CMake before 3.26 does not know of nvcc
endif()
message(STATUS "ringred: CUDA ${CMAKE_CUDA_COMPILER_VERSION} found (${CMAKE_CUDA_COMPILER}), architectures "
               "${CMAKE_CUDA_ARCHITECTURES}")

# No contraction: a sum of products gives the bits that the CPU's kernels give. Kernels wait for memory, not for
# arithmetic. Host warnings without -Wpedantic, which objects to the code that nvcc makes.
add_library(ringred_cuda_options INTERFACE)
target_include_directories(ringred_cuda_options INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(ringred_cuda_options SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(ringred_cuda_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;-fmad=false;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Wshadow,-Wconversion>"
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${RINGRED_WERROR}>>:-Werror=all-warnings;-Xcompiler=-Werror>")

# Built where something links it.
add_library(ringred_cuda STATIC EXCLUDE_FROM_ALL ${ringred_cuda_sources})
target_link_libraries(ringred_cuda PUBLIC ringred_cuda_options ringred_cuda_communicator)
