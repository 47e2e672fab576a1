#include "tests/cuda/emulation/streams.h"

#include <algorithm>
#include <memory>
#include <optional>

namespace ringred::emulation {
namespace {

// What handles point to, which are opaque as CUDA's are.
struct MadeGraph {
  std::vector<Work> work;
};
struct MadeStream {
  unsigned flags;
  std::optional<MadeGraph> capture;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;  // of the capture
};
struct MadeEvent {
  std::int64_t recorded;  // 0: never
  bool captured;
};

MadeStream* made(cudaStream_t stream) {
  return reinterpret_cast<MadeStream*>(stream);
}
MadeEvent* made(cudaEvent_t event) {
  return reinterpret_cast<MadeEvent*>(event);
}
MadeGraph* made(cudaGraph_t graph) {
  return reinterpret_cast<MadeGraph*>(graph);
}
MadeGraph* made(cudaGraphExec_t executable) {
  return reinterpret_cast<MadeGraph*>(executable);
}

thread_local std::vector<cudaStream_t> capturing;  // by calls of this thread

cudaError_t break_capture(cudaStream_t stream) {
  made(stream)->invalid = true;
  return answer(cudaErrorStreamCaptureUnsupported);
}

bool captures(cudaStream_t stream) {
  return stream != nullptr && made(stream)->capture.has_value();
}

cudaError_t check_event(cudaEvent_t event) {
  return answer(made(event)->captured ? cudaErrorCapturedEvent : cudaSuccess);
}

}  // namespace

cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (!captures(stream)) return answer(work());
  if (made(stream)->invalid) return answer(cudaErrorStreamCaptureInvalidated);
  made(stream)->capture->work.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t outside_of_captures() {
  cudaError_t error = cudaSuccess;
  for (const cudaStream_t stream : capturing)
    if (made(stream)->mode != cudaStreamCaptureModeRelaxed) error = break_capture(stream);
  return error;
}

}  // namespace ringred::emulation

using namespace ringred::emulation;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = reinterpret_cast<cudaStream_t>(new MadeStream{.flags = flags, .capture = {}});
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete made(stream);
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
  *event = reinterpret_cast<cudaEvent_t>(new MadeEvent{0, false});
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete made(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  made(event)->recorded = now();
  made(event)->captured = captures(stream);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return check_event(event);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return check_event(event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (made(start)->captured || made(end)->captured || made(start)->recorded == 0 || made(end)->recorded == 0)
    return answer(cudaErrorInvalidValue);
  *milliseconds = static_cast<float>(static_cast<double>(made(end)->recorded - made(start)->recorded) * 1e-6);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr) return answer(cudaErrorStreamCaptureUnsupported);  // the default stream cannot
  if (captures(stream)) return answer(cudaErrorInvalidValue);
  made(stream)->capture.emplace();
  made(stream)->mode = mode;
  made(stream)->invalid = false;
  capturing.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const auto place = std::find(capturing.begin(), capturing.end(), stream);
  if (place == capturing.end()) return answer(cudaErrorInvalidValue);
  capturing.erase(place);
  const bool invalid = made(stream)->invalid;
  if (!invalid) *graph = reinterpret_cast<cudaGraph_t>(new MadeGraph(std::move(*made(stream)->capture)));
  made(stream)->capture.reset();
  return answer(invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  if (graph == nullptr) return answer(cudaErrorInvalidValue);
  *executable = reinterpret_cast<cudaGraphExec_t>(new MadeGraph{made(graph)->work});
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (executable == nullptr) return answer(cudaErrorInvalidValue);
  for (const Work& work : made(executable)->work)
    if (const cudaError_t error = enqueue(stream, work); error != cudaSuccess) return error;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete made(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete made(executable);
  return cudaSuccess;
}
