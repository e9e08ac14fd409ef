// SPDX-License-Identifier: Apache-2.0
#include "ipc/start_up_memory.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace bulkhead {
namespace {

// KiB of this process's memory that files are behind.
long FilePages() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string word; rollup >> word;) {
    long kib = 0;
    if (word == "Pss_File:" && rollup >> kib) return kib;
  }
  return -1;
}

TEST(StartUpMemoryTest, ProgramIsForgottenAndGoesOn) {
  const long before = FilePages();
  ASSERT_GT(before, 0);
  ForgetStartUpMemory();
  const long after = FilePages();
  EXPECT_GT(after, 0);
  EXPECT_LT(after, before);
}

}  // namespace
}  // namespace bulkhead
