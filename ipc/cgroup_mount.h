// SPDX-License-Identifier: Apache-2.0
// Where cgroups (version 2) are, for who sets limits there and who reads them. Broker and launcher, main thread.
#pragma once

#include <string>

namespace bulkhead {

// Where cgroup v2 is mounted, from the text of a mountinfo; empty if nowhere.
std::string FindCgroupMount(const std::string& mountinfo);

// A process's place below that mount, from the text of its /proc/PID/cgroup: the line of version 2, "0::/PATH"
// (cgroups(7)); empty if there is none.
std::string FindCgroupPath(const std::string& cgroups);

}  // namespace bulkhead
