#include "tests/cuda/emulation/streams.h"

#include <algorithm>
#include <memory>
#include <optional>

struct CUgraph_st {
  std::vector<ringred::emulation::Work> work;
};
struct CUgraphExec_st {
  std::vector<ringred::emulation::Work> work;
};
struct CUstream_st {
  unsigned flags;
  std::optional<CUgraph_st> capture;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;  // of the capture
};
struct CUevent_st {
  std::int64_t recorded;  // 0: never
  bool captured;
};

namespace ringred::emulation {
namespace {

thread_local std::vector<cudaStream_t> capturing;  // by calls of this thread

cudaError_t break_capture(cudaStream_t stream) {
  stream->invalid = true;
  return answer(cudaErrorStreamCaptureUnsupported);
}

bool captures(cudaStream_t stream) {
  return stream != nullptr && stream->capture.has_value();
}

cudaError_t check_event(cudaEvent_t event) {
  return answer(event->captured ? cudaErrorCapturedEvent : cudaSuccess);
}

}  // namespace

cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (!captures(stream)) return answer(work());
  if (stream->invalid) return answer(cudaErrorStreamCaptureInvalidated);
  stream->capture->work.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t outside_of_captures() {
  cudaError_t error = cudaSuccess;
  for (const cudaStream_t stream : capturing)
    if (stream->mode != cudaStreamCaptureModeRelaxed) error = break_capture(stream);
  return error;
}

}  // namespace ringred::emulation

using namespace ringred::emulation;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st{.flags = flags, .capture = {}};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return captures(stream) ? break_capture(stream) : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
  return answer(event == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}
cudaError_t cudaDeviceSynchronize() {
  return outside_of_captures();
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{0, false};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->recorded = now();
  event->captured = captures(stream);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return check_event(event);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return check_event(event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (start->captured || end->captured || start->recorded == 0 || end->recorded == 0)
    return answer(cudaErrorInvalidValue);
  *milliseconds = static_cast<float>(static_cast<double>(end->recorded - start->recorded) * 1e-6);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr) return answer(cudaErrorStreamCaptureUnsupported);  // the default stream cannot
  if (captures(stream)) return answer(cudaErrorInvalidValue);
  stream->capture.emplace();
  stream->mode = mode;
  stream->invalid = false;
  capturing.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const auto place = std::find(capturing.begin(), capturing.end(), stream);
  if (place == capturing.end()) return answer(cudaErrorInvalidValue);
  capturing.erase(place);
  const bool invalid = stream->invalid;
  if (!invalid) *graph = new CUgraph_st(std::move(*stream->capture));
  stream->capture.reset();
  return answer(invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  if (graph == nullptr) return answer(cudaErrorInvalidValue);
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (executable == nullptr) return answer(cudaErrorInvalidValue);
  for (const Work& work : executable->work)
    if (const cudaError_t error = enqueue(stream, work); error != cudaSuccess) return error;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
