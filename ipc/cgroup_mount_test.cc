// SPDX-License-Identifier: Apache-2.0
#include "ipc/cgroup_mount.h"

#include <gtest/gtest.h>

namespace bulkhead {
namespace {

TEST(CgroupMount, IsThatOfVersion2AmongTheMounts) {
  EXPECT_EQ(FindCgroupMount("30 23 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
                            "31 23 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"),
            "/sys/fs/cgroup/unified");
  EXPECT_EQ(FindCgroupMount("30 23 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"), "");
}

TEST(CgroupPath, IsTheLineWithoutControllers) {
  EXPECT_EQ(FindCgroupPath("4:pids:/a\n0::/user.slice/b.scope\n"), "/user.slice/b.scope");
  EXPECT_EQ(FindCgroupPath("4:pids:/a\n"), "");
}

}  // namespace
}  // namespace bulkhead
