// SPDX-License-Identifier: Apache-2.0
// What the values of several options are made of: words between commas, numbers, limits. Launcher, main thread; throws
// UsageError.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "broker/launcher/options.h"

namespace bulkhead::launcher {

// The pieces between single commas; a double comma stands for a comma.
std::vector<std::string> SplitAtCommas(const std::string& text);
// False where it is not a number and nothing else.
bool ParseNumber(std::string_view text, uint64_t& value);

// Whether `key` is one of user-mode networking's; sets it.
bool SetUserNetWord(UserNetOption& user, const std::string& key, const std::string& value);
// What the words have to fit together for, once all are there.
void CheckUserNet(UserNetOption& user);

// Whether `key` is one of a throttle's: bps, and "iops" or "pps" as `operations` says, each with its burst. `what`
// names the option in errors.
bool SetThrottleWord(const std::string& what, const std::string& operations, ThrottleOption& throttle,
                     const std::string& key, const std::string& value);
// A burst stands beside the limit that it is of.
void CheckBursts(const std::string& what, const std::string& operations, const ThrottleOption& throttle);

}  // namespace bulkhead::launcher
