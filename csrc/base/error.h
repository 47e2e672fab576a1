// The one exception family. Every error states the rule, then the values, then, where there is one, the remedy.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace ringred {

// What went wrong decides what the caller can do about it; Python has one exception class for each kind.
enum class ErrorKind {
  usage,        // a wrong argument, here and now; nothing was started
  mismatch,     // ranks disagree; raised on all of them, and the next call works
  peer_lost,    // a peer died or left; the communicator is broken
  timeout,      // a deadline passed; the communicator is broken
  interrupted,  // Ctrl-C or a signal handler that raised; the communicator is broken
  system,       // memory, permissions, limits; the text names the remedy
};

// What helps where a communicator or a group is broken; a sentence that follows on others.
inline constexpr const char* restart_remedy =
    " Call shutdown() and init() on all ranks to go on; if the process of one has ended, restart the job.";

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string text) : std::runtime_error(std::move(text)), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

[[noreturn]] inline void fail_usage(std::string text) {
  throw Error(ErrorKind::usage, std::move(text));
}
[[noreturn]] inline void fail_system(std::string text) {
  throw Error(ErrorKind::system, std::move(text));
}

}  // namespace ringred
