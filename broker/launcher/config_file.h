// SPDX-License-Identifier: Apache-2.0
// `--config FILE`: the options of `bulkhead run` in TOML, under the same names. Launcher, main thread; the file is the
// user's own.
#pragma once

#include <string>
#include <vector>

namespace bulkhead::launcher {

// The file's settings as command-line words, to stand before the user's own, which win. Throws UsageError.
std::vector<std::string> ReadConfigFile(const std::string& path);

}  // namespace bulkhead::launcher
