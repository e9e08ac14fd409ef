// SPDX-License-Identifier: Apache-2.0
// The cgroups (version 2) of one VM: one for the VM, in it one for each process, which is born there. They end with
// this object, and what a broker that was killed left behind is removed by the next one. Made by the broker's main
// thread before lock-down and removed after it: that takes no more than write, unlinkat, futex and close.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "broker/cgroup_limits.h"
#include "broker/cgroup_place.h"

namespace bulkhead::broker {

class VmCgroup {
 public:
  // Where the host has no such cgroups there are none, and missing() says why. Throws FatalError where the user asked
  // for a limit that so cannot be.
  VmCgroup(const CgroupPlan& plan, Result<CgroupPlace> place);
  // One that another broker made, of the plan: with its directory's name and what Share gave of it; empty: there is
  // none.
  VmCgroup(const CgroupPlan& plan, const std::string& name, std::vector<OwnFd> kept);
  ~VmCgroup();
  VmCgroup(const VmCgroup&) = delete;
  VmCgroup& operator=(const VmCgroup&) = delete;

  // What of the limits this VM lacks, in one line; empty: nothing.
  const std::string& missing() const { return missing_; }
  // The cgroup that a process is to be started in; invalid: none.
  OwnFd OpenLeaf(const std::string& process) const;
  // Where the VM's own directory is, for the right to remove it; -1: nowhere.
  int parent() const { return tree_ ? tree_->parent.get() : -1; }
  // What another broker needs of it: no descriptors if there is none.
  std::vector<int> Share() const;
  std::string name() const { return tree_ ? tree_->name : ""; }
  // Kills what is left in it and removes it; the VM cannot go on.
  void Remove();

 private:
  struct Tree {
    OwnFd parent;
    std::string name;
    OwnFd directory;  // locked for as long as the VM lives
    OwnFd kill;       // invalid: the kernel has no cgroup.kill (before 5.14)
    std::vector<std::string> leaves;
  };

  static Result<Tree> Make(const CgroupPlan& plan, CgroupPlace place);
  static Result<void> Fill(Tree& tree, const CgroupPlan& plan);
  static void Sweep(int parent);
  static bool Remove(const Tree& tree);

  std::unique_ptr<Tree> tree_;
  std::string missing_;
};

}  // namespace bulkhead::broker
