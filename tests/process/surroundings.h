// SPDX-License-Identifier: Apache-2.0
// Other hosts than this one, as far as one process can be made to see them: without KVM, with a KVM that may not be
// opened, without user namespaces, with a full disk. Each function runs in a forked child before `bulkhead` is
// executed, changes what that child sees and nothing else, and returns false if it cannot.
#pragma once

#include <string>

#include "tests/process/harness.h"

namespace bulkhead::test {

// A mount namespace of its own; for an ordinary user within a user namespace in which the user keeps the own id.
bool EnterMountNamespace();
// After EnterMountNamespace:
bool HideKvm();                          // /dev has null and nothing else
bool ReplaceKvm(const std::string& by);  // by another file
// As root: a device file that anyone may open, made in this empty directory.
bool ReplaceKvmByDevice(const std::string& directory, unsigned major, unsigned minor);
bool MountSmallDisk(const std::string& at, unsigned size_bytes);
bool MakeSparseFile(const std::string& path, unsigned size_bytes);
// No user namespace may be made any more.
bool ForbidUserNamespaces();
// clone3 says EPERM in a changed root.
bool ChangeRoot(const std::string& empty_directory);
// As root, in a mount namespace: gives up root for good; `directory`, which must be empty, gets what that user needs.
// Otherwise nothing.
bool BecomeOrdinaryUser(const std::string& directory, Launch& launch);

}  // namespace bulkhead::test
