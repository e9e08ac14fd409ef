// SPDX-License-Identifier: Apache-2.0
// The commands of `bulkhead`; each returns the exit status. Launcher, main thread; FatalError and kj::Exception carry
// the line for the user.
#pragma once

#include "broker/launcher/options.h"

namespace bulkhead::launcher {

int RunCommand(const RunOptions& options);
int CheckCommand(const CheckOptions& options);
int PsCommand(const VmCommandOptions& options);
int StopCommand(const VmCommandOptions& options);
int KillCommand(const VmCommandOptions& options);
int ThrottleCommand(const VmCommandOptions& options);
int SetLinkCommand(const VmCommandOptions& options);
int UpgradeCommand(const VmCommandOptions& options);
int InspectCommand(const VmCommandOptions& options);
int DirtyRateCommand(const VmCommandOptions& options);
int ImgCommand(const ImgOptions& options);

}  // namespace bulkhead::launcher
