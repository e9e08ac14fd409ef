// SPDX-License-Identifier: Apache-2.0
// What a console's output may be where its process was killed.
#pragma once

#include <string>

namespace bulkhead::test {

// Whether a text is another one, of which what came last may be repeated, from wherever it stopped: a kill in the
// middle of a write leaves nobody who knows how much of it got out.
bool IsRepeating(const std::string& original, const std::string& text);
// The place in the text from which on it is not; npos if it is.
size_t FirstNotRepeating(const std::string& original, const std::string& text);

}  // namespace bulkhead::test
