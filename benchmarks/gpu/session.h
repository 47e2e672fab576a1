// One run of the benchmark: its stream, its plan, what it has measured.
//
// Invariant: a figure is kept only if results were right, before its batches and after them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/gpu/figures.h"
#include "benchmarks/gpu/plan.h"
#include "csrc/cuda/check.h"

namespace ringred::cuda {

class Session {
 public:
  explicit Session(Plan plan) : plan_(std::move(plan)) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream");
    check(cudaEventCreateWithFlags(&start_, cudaEventDefault), "create an event");
    check(cudaEventCreateWithFlags(&end_, cudaEventDefault), "create an event");
  }
  Session(const Session&) = delete;
  ~Session() {
    static_cast<void>(cudaEventDestroy(end_));
    static_cast<void>(cudaEventDestroy(start_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  const Plan& plan() const { return plan_; }
  cudaStream_t stream() const { return stream_; }
  void finish() const { check(cudaStreamSynchronize(stream_), "end the kernels of the benchmark"); }

  // `body` enqueues `calls` calls on the stream.
  Times time(const std::function<void()>& body, int calls = 1) const {
    for (int i = 0; i < plan_.method.warm_ups; ++i) body();
    const double once = seconds_of(body, 1);
    const int repeats = std::clamp(static_cast<int>(plan_.method.least_seconds / std::max(once, 1e-7)) + 1, 1, 10000);
    std::vector<double> batches;
    for (int i = 0; i < plan_.method.batches; ++i) batches.push_back(seconds_of(body, repeats) / repeats / calls);
    std::sort(batches.begin(), batches.end());
    return {batches[batches.size() / 2], batches.front(), batches.back()};
  }
  // The same for calls that a graph launches, many in a row.
  Times time_in_graph(const std::function<void()>& body) const;

  void add(Figure figure) {
    if (!figure.trials.empty()) findings_.figures.push_back(std::move(figure));
  }
  // What fails in it is told of, and is no figure; the others are measured.
  void attempt(const std::function<void()>& body) {
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "# failed: %s\n", error.what());
      findings_.failures.push_back(error.what());
    }
  }
  void found_bandwidth(double bandwidth) { findings_.bandwidth = std::max(findings_.bandwidth, bandwidth); }
  Findings& findings() { return findings_; }

 private:
  double seconds_of(const std::function<void()>& body, int repeats) const {
    check(cudaEventRecord(start_, stream_), "record an event");
    for (int i = 0; i < repeats; ++i) body();
    check(cudaEventRecord(end_, stream_), "record an event");
    check(cudaEventSynchronize(end_), "end a batch of calls");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, end_), "tell the time of a batch");
    return milliseconds * 1e-3;
  }

  Plan plan_;
  Findings findings_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

// Calls that were captured once.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& body, int calls) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
    for (int i = 0; i < calls; ++i) body();
    check(cudaStreamEndCapture(stream, &graph_), "end a capture");
    check(cudaGraphInstantiate(&executable_, graph_, 0), "instantiate a graph");
  }
  Graph(const Graph&) = delete;
  ~Graph() {
    static_cast<void>(cudaGraphExecDestroy(executable_));
    static_cast<void>(cudaGraphDestroy(graph_));
  }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream), "launch a graph"); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

inline Times Session::time_in_graph(const std::function<void()>& body) const {
  const Graph graph(stream_, body, plan_.graph_calls);
  return time([&] { graph.launch(stream_); }, plan_.graph_calls);
}

// What the benchmark measures, in the order of the tables. The copy first: floors need its bandwidth.
void time_copies(Session& session);
void time_fusion(Session& session);
void time_reductions(Session& session);
void time_updates(Session& session);
void time_leaves(Session& session);
void time_schedules(Session& session);

}  // namespace ringred::cuda
