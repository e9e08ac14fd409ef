// SPDX-License-Identifier: Apache-2.0
#include "ipc/landlock.h"

#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "ipc/fd.h"

namespace bulkhead {
namespace {

// struct landlock_ruleset_attr as of ABI 6; Debian 12's header ends after the first member. Kernels with an earlier
// ABI get as much as they know.
struct RulesetAttributes {
  uint64_t handled_access_fs;
  uint64_t handled_access_net;
  uint64_t scoped;
};

// Access rights to files that each ABI version knows, as a count of bits from bit 0.
constexpr unsigned kFileRights[] = {13, 14, 15, 15, 16};
constexpr uint64_t kBindTcp = 1, kConnectTcp = 2;       // ABI 4
constexpr uint64_t kAbstractSockets = 1, kSignals = 2;  // ABI 6
constexpr int kAbiWithNetwork = 4;
constexpr int kAbiWithScopes = 6;

}  // namespace

bool DenyPaths(const std::vector<PathRight>& rights, LandlockScope scope) {
  const long abi = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (abi < 1) return false;
  const unsigned file_rights = kFileRights[std::min<size_t>(static_cast<size_t>(abi), std::size(kFileRights)) - 1];
  RulesetAttributes attributes{
      .handled_access_fs = (uint64_t{1} << file_rights) - 1, .handled_access_net = 0, .scoped = 0};
  size_t size = sizeof attributes.handled_access_fs;
  if (abi >= kAbiWithNetwork) {
    attributes.handled_access_net = scope == LandlockScope::kConnectionsAllowed ? kBindTcp : kBindTcp | kConnectTcp;
    size = offsetof(RulesetAttributes, scoped);
  }
  if (abi >= kAbiWithScopes) {
    attributes.scoped = scope == LandlockScope::kSignalsAllowed ? kAbstractSockets : kAbstractSockets | kSignals;
    size = sizeof attributes;
  }
  const OwnFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attributes, size, 0)));
  if (!ruleset.valid()) ThrowErrno("create a Landlock ruleset");
  for (const PathRight& right : rights) {
    landlock_path_beneath_attr rule{.allowed_access = right.access, .parent_fd = right.directory};
    if (::syscall(SYS_landlock_add_rule, ruleset.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0) {
      ThrowErrno("add a Landlock rule");
    }
  }
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) ThrowErrno("restrict this process by Landlock");
  return true;
}

}  // namespace bulkhead
