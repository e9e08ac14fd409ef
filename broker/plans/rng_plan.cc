// SPDX-License-Identifier: Apache-2.0
// The entropy process: virtio-rng, with no host resource but the getrandom system call.
#include "broker/device_plan.h"

namespace bulkhead::broker {

void PlanRng(Planner& planner) {
  DevicePlan& plan = planner.Add("rng", "bulkhead-rng");
  planner.AddVirtioFunction(plan, 1);
  plan.replacement = DevicePlan::Replacement::kAlways;
}

}  // namespace bulkhead::broker
