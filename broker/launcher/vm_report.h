// SPDX-License-Identifier: Apache-2.0
// What a running VM says of itself. Launcher, main thread.
#pragma once

#include <kj/async-io.h>

#include "ipc/broker.capnp.h"

namespace bulkhead::launcher {

// A broker answers at once; one that takes longer than this is stopped or stuck.
inline constexpr auto kPatience = 5 * kj::SECONDS;

// Nothing if the VM does not answer, or ends meanwhile.
using MaybeReport = kj::Maybe<capnp::Response<control::VmControl::ReportResults>>;
MaybeReport AskForReport(kj::AsyncIoContext& io, control::VmControl::Client vm);

}  // namespace bulkhead::launcher
