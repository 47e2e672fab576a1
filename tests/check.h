// The test harness: one file of tests is one program. It runs all tests, or those whose name contains its argument, and
// ends with the line "N passed, N failed".
//
// Invariant: a failed check is reported with its place and values and fails its test, on whichever thread it happens; a
// test that takes longer than its limit ends the program with its name.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace ringred::check {

// Whether a sanitizer slows the program down by a factor of ten: long loops are shorter then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif

inline constexpr unsigned limit_seconds = 120;
inline constexpr double slow_seconds = 1.0;  // tests that take longer are listed with their time
inline constexpr int most_reports = 20;      // of one test

struct Test {
  const char* name;
  void (*body)();
};

// State of the program: the tests, the one that runs, its failed checks.
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline const char* running = "";
inline std::atomic<int> failures{0};

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// One write to stderr, so that lines of several threads do not mix.
inline void report(const char* file, int line, const std::string& text) {
  if (failures.fetch_add(1) >= most_reports) return;
  const std::string whole = std::string(file) + ":" + std::to_string(line) + ": " + text + "\n";
  std::fputs(whole.c_str(), stderr);
}

template <class Value>
std::string shown(const Value& value) {
  std::ostringstream stream;
  if constexpr (requires { stream << value; })
    stream << value;
  else
    stream << "(" << sizeof value << " bytes)";
  return stream.str();
}

inline void holds(bool condition, const char* text, const char* file, int line) {
  if (!condition) report(file, line, std::string("not true: ") + text);
}

template <class Left, class Right>
void equal(const Left& left, const Right& right, const char* text, const char* file, int line) {
  if (!(left == right)) report(file, line, std::string(text) + ": " + shown(left) + " is not " + shown(right));
}

template <class Function>
void throws(Function&& function, std::string_view part, const char* text, const char* file, int line) {
  try {
    function();
  } catch (const std::exception& error) {
    if (std::string_view(error.what()).find(part) == std::string_view::npos)
      report(file, line, std::string(text) + " threw \"" + error.what() + "\", without \"" + std::string(part) + "\"");
    return;
  }
  report(file, line, std::string(text) + " threw nothing");
}

inline void watchdog(int) {
  const auto say = [](const char* text) { return write(STDERR_FILENO, text, std::string_view(text).size()); };
  if (say("too slow or stuck: ") < 0 || say(running) < 0 || say("\n") < 0) _exit(3);
  _exit(2);
}

inline bool passes(const Test& test) {
  failures = 0;
  running = test.name;
  alarm(limit_seconds);
  const auto began = std::chrono::steady_clock::now();
  try {
    test.body();
  } catch (const std::exception& error) {
    report(test.name, 0, std::string("uncaught: ") + error.what());
  }
  alarm(0);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  if (took.count() > slow_seconds) std::printf("%.1f s: %s\n", took.count(), test.name);
  if (failures > 0) std::fprintf(stderr, "FAILED %s (%d failed checks)\n", test.name, failures.load());
  return failures == 0;
}

inline int run(int argc, char** argv) {
  std::signal(SIGALRM, watchdog);
  int passed = 0, failed = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::string_view(test.name).find(argv[1]) == std::string_view::npos) continue;
    ++(passes(test) ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace ringred::check

#define RINGRED_JOIN_(left, right) left##right
#define RINGRED_JOIN(left, right) RINGRED_JOIN_(left, right)
#define TEST(name)                                                                                                \
  static void RINGRED_JOIN(test_, __LINE__)();                                                                    \
  static const ringred::check::Registration RINGRED_JOIN(registration_, __LINE__)(name,                           \
                                                                                  RINGRED_JOIN(test_, __LINE__)); \
  static void RINGRED_JOIN(test_, __LINE__)()
#define CHECK(...) ringred::check::holds(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define CHECK_EQ(left, right) ringred::check::equal(left, right, #left, __FILE__, __LINE__)
#define CHECK_THROWS(expression, part) \
  ringred::check::throws([&] { static_cast<void>(expression); }, part, #expression, __FILE__, __LINE__)

int main(int argc, char** argv) {
  return ringred::check::run(argc, argv);
}
