// The network that an MPI library carries: non-blocking point-to-point of the libmpi that is loaded already.
//
// Nothing of MPI is known at compile time. Its functions are found by name at run time, and its handles are passed on
// as the library gave them: 4-byte numbers in MPICH and its kin, pointers in Open MPI and in the MPI 5 standard's ABI.
// Both travel in one register, so one shim for each width is all there is; no constant of any implementation is needed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/link/network.h"

namespace ringred {

// What the host language knows of the loaded library.
struct MpiSetup {
  std::string library;             // its file, or "" for whatever the process has loaded
  std::size_t handle_bytes = 8;    // of MPI_Comm, MPI_Datatype and MPI_Request
  std::uint64_t communicator = 0;  // the handle of a communicator that is ringred's alone, with errors returned
  std::uint64_t byte_type = 0;     // the handle of MPI_BYTE
  std::vector<int> ranks;          // of each rank of the world: its number in the communicator
  bool any_thread = true;          // MPI_THREAD_MULTIPLE: see Network::any_thread
  std::size_t largest = std::size_t{1} << 30;  // bytes of one MPI message; longer ones are cut. A count is an int.
};

// Throws a system error where a function is missing.
std::unique_ptr<Network> make_mpi_network(MpiSetup setup);

}  // namespace ringred
