// SPDX-License-Identifier: Apache-2.0
// A VM from its start, or from where another broker had brought it, to its end, and what its user may do with it
// meanwhile. Broker, main thread.
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
#include "ipc/journal.h"

namespace bulkhead::broker {

class VmService {
 public:
  VmService(kj::AsyncIoContext& io, std::string helpers, VmSettings settings);
  ~VmService();

  // Up to the guest's first instruction, which waits for resume, and then locks this process down. Throws with the line
  // for the user.
  void Prepare();
  // Instead of that: takes over the VM of the same settings that runs, from a broker which has ended. `spawner` is its
  // socket. Throws; the VM cannot go on then.
  void TakeOver(OwnFd spawner);
  bool prepared() const { return prepared_; }
  // Runs the VM until it ends.
  VmEnd RunToEnd();
  // What the launcher keeps so that another broker can take over.
  const OwnFd& spawner_socket() const { return spawner_->socket(); }
  void Kill() { End({control::ExitReport::Kind::KILLED, ""}); }
  // Leaves nothing behind; for who is about to end this process while the VM is starting.
  void Abandon();
  // Which walls of the sandbox this VM does without, since the host has them not. Known once prepared.
  const std::vector<std::string>& missing_walls() const { return missing_walls_; }

  control::VmControl::Client MakeControl();

 private:
  class ControlServer;
  class WriteLogServer;
  struct Connection;

  void MakeConsoleListeners();
  void ServeConsoles();
  void LockDownAndForget(int cgroup_parent);
  void WriteDown();
  kj::Promise<void> HandOver();
  void MakeRun(OwnFd memory);
  void OpenControlSocket();
  void ServeControlSocket(OwnFd socket);
  void RemoveControlSocket();
  std::string SocketName() const { return settings_.name + ".sock"; }
  void AddConnection(OwnFd socket);
  void SetState(const std::string& state);
  void End(VmEnd end);
  void Describe(control::VmReport::Builder out) const;

  kj::AsyncIoContext& io_;
  std::string helpers_;
  VmSettings settings_;
  OwnFd kvm_;
  OwnFd memory_;
  std::optional<ChildUids> uids_;
  std::vector<std::string> missing_walls_;
  std::optional<VmCgroup> cgroup_;  // ends after those who live in it
  std::optional<SpawnerProcess> spawner_;
  pid_t spawner_pid_ = -1;
  OwnFd journal_file_;
  std::optional<Journal> journal_;  // of this process
  std::optional<VmEnd> told_end_;
  std::unique_ptr<VmRun> run_;
  bool prepared_ = false;
  std::string state_ = "starting";
  int64_t started_at_unix_ = 0;
  kj::PromiseFulfillerPair<VmEnd> end_;
  kj::ForkedPromise<VmEnd> ended_;
  kj::PromiseFulfillerPair<void> serve_;  // once calls of the VM's user can be carried out
  kj::ForkedPromise<void> serves_;
  OwnFd runtime_dir_;  // invalid: no control socket
  std::optional<Listener> control_listener_;
  std::list<Listener> listeners_;  // of the consoles
  std::list<std::unique_ptr<Connection>> connections_;
  Revoker<VmService> self_{*this};  // last, so that it goes first
};

}  // namespace bulkhead::broker
