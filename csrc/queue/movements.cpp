#include "csrc/queue/movements.h"

#include "csrc/queue/direct.h"
#include "csrc/queue/reductions.h"
#include "csrc/queue/steps.h"
#include "csrc/queue/sums_in_place.h"
#include "csrc/queue/transfers.h"
#include "csrc/queue/two_shots.h"

namespace ringred {

std::vector<std::unique_ptr<Movement>> movements_of(const Batch& batch) {
  std::vector<std::unique_ptr<Movement>> movements;
  switch (batch.kind) {
    case CallKind::allreduce:
      for (const Run& run : batch.runs) {
        if (run.count == 0) continue;
        if (run.direct && !batch.nodes->several())
          movements.push_back(std::make_unique<AllreduceInPlace>(batch, run));
        else if (!run.measured && OneShotMovement::fits(batch, run))
          movements.push_back(std::make_unique<OneShotMovement>(batch, run));
        else if (SumsInPlace::fits(batch, run))
          movements.push_back(std::make_unique<SumsInPlace>(batch, run));
        else
          movements.push_back(std::make_unique<TwoShotMovement>(batch, run));
      }
      break;
    case CallKind::reducescatter:
      for (const Run& run : batch.runs) movements.push_back(std::make_unique<ReduceScatterMovement>(batch, run));
      break;
    case CallKind::update:
      if (batch.nodes->several())
        movements.push_back(std::make_unique<UpdateAcrossNodes>(batch, batch.runs.front()));
      else
        movements.push_back(std::make_unique<UpdateInPlace>(batch, batch.runs.front()));
      break;
    case CallKind::broadcast:
      movements.push_back(std::make_unique<BroadcastMovement>(batch));
      break;
    case CallKind::allgather:
      movements.push_back(std::make_unique<AllgatherMovement>(batch));
      break;
    case CallKind::alltoall:
      movements.push_back(std::make_unique<AlltoallMovement>(batch));
      break;
    case CallKind::barrier:
    case CallKind::join:
      break;  // agreement is all there is to them
  }
  return movements;
}

}  // namespace ringred
