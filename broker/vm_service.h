// SPDX-License-Identifier: Apache-2.0
// A VM from its start to its end, and what its user may do with it meanwhile. Broker, main thread.
#pragma once

#include <kj/async.h>

#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "broker/cgroup.h"
#include "broker/child_uids.h"
#include "broker/listener.h"
#include "broker/revoker.h"
#include "broker/vm_run.h"

namespace bulkhead::broker {

class VmService {
 public:
  VmService(kj::AsyncIoContext& io, std::string helpers, VmSettings settings);
  ~VmService();

  // Up to the guest's first instruction, which waits for resume, and then locks this process down. Throws with the line
  // for the user.
  void Prepare();
  bool prepared() const { return prepared_; }
  // Runs the VM until it ends.
  VmEnd RunToEnd();
  void Kill() { End({control::ExitReport::Kind::KILLED, ""}); }
  // Leaves nothing behind; for who is about to end this process while the VM is starting.
  void Abandon();
  // Which walls of the sandbox this VM does without, since the host has them not. Known once prepared.
  const std::vector<std::string>& missing_walls() const { return missing_walls_; }

  control::VmControl::Client MakeControl();

 private:
  class ControlServer;
  struct Connection;

  void OpenControlSocket();
  void RemoveControlSocket();
  std::string SocketName() const { return settings_.name + ".sock"; }
  void AddConnection(OwnFd socket);
  void End(VmEnd end);
  void Describe(control::VmReport::Builder out) const;

  kj::AsyncIoContext& io_;
  std::string helpers_;
  VmSettings settings_;
  OwnFd kvm_;
  ChildUids uids_;
  std::vector<std::string> missing_walls_;
  std::optional<VmCgroup> cgroup_;  // ends after those who live in it
  std::optional<SpawnerProcess> spawner_;
  std::unique_ptr<VmRun> run_;
  bool prepared_ = false;
  std::string state_ = "starting";
  int64_t started_at_unix_ = 0;
  kj::PromiseFulfillerPair<VmEnd> end_;
  kj::ForkedPromise<VmEnd> ended_;
  OwnFd runtime_dir_;  // invalid: no control socket
  std::optional<Listener> control_listener_;
  std::list<Listener> listeners_;  // of the consoles
  std::list<std::unique_ptr<Connection>> connections_;
  Revoker<VmService> self_{*this};  // last, so that it goes first
};

}  // namespace bulkhead::broker
