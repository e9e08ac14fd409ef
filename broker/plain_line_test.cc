// SPDX-License-Identifier: Apache-2.0
#include "broker/plain_line.h"

#include <gtest/gtest.h>

namespace bulkhead::broker {
namespace {

TEST(PlainLine, LeavesNothingThatATerminalObeys) {
  EXPECT_EQ(PlainLine("an ordinary line, ~100%"), "an ordinary line, ~100%");
  EXPECT_EQ(PlainLine("\x1B[2J\nroot#\x7F\xC2\x9B"), "?[2J?root#???");
}

TEST(PlainLine, CutsWhatHasNoEnd) { EXPECT_EQ(PlainLine(std::string(1 << 20, 'x')), std::string(kMaxLineBytes, 'x')); }

}  // namespace
}  // namespace bulkhead::broker
