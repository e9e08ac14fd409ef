// SPDX-License-Identifier: Apache-2.0
// The disk that tells cloud-init in a guest what to set up: its NoCloud source looks for a file system with the label
// "cidata" and these files in it (cloud-init's reference, "NoCloud"). Launcher, main thread; the files are the user's
// own.
#pragma once

#include "broker/launcher/host_files.h"
#include "broker/launcher/options.h"

namespace bulkhead::launcher {

// A read-only disk in memory, in which nothing can be written any more. Where the user gives no meta-data it says what
// the guest's name is, and an instance that is another one whenever the rest is different. Throws FatalError.
OpenDisk MakeCloudInitDisk(const CloudInitOption& option);

}  // namespace bulkhead::launcher
