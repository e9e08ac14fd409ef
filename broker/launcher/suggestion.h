// SPDX-License-Identifier: Apache-2.0
// "did you mean": the known word nearest to one that was mistyped. Launcher, main thread.
#pragma once

#include <string>
#include <vector>

namespace bulkhead::launcher {

// The nearest of `known` if it is near enough to be meant, else "". Leading dashes do not count.
std::string NearestWord(const std::string& word, const std::vector<std::string>& known);

}  // namespace bulkhead::launcher
