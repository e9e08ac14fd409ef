// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/vm_report.h"

namespace bulkhead::launcher {

MaybeReport AskForReport(kj::AsyncIoContext& io, control::VmControl::Client vm) {
  auto answer = vm.reportRequest().send().then([](auto response) -> MaybeReport { return kj::mv(response); },
                                               [](kj::Exception&&) -> MaybeReport { return nullptr; });
  auto late = io.provider->getTimer().afterDelay(kPatience).then([]() -> MaybeReport { return nullptr; });
  return answer.exclusiveJoin(kj::mv(late)).wait(io.waitScope);
}

}  // namespace bulkhead::launcher
