// SPDX-License-Identifier: Apache-2.0
// The broker, started and spoken to. Launcher, main thread; throws FatalError.
#pragma once

#include <kj/async-io.h>
#include <sys/types.h>

#include <optional>
#include <string>

#include "broker/launcher/runtime_dir.h"
#include "ipc/broker.capnp.h"
#include "ipc/rpc.h"

namespace bulkhead::launcher {

// Where Bulkhead's other executables are: beside this one in a build tree, or in PREFIX/libexec/bulkhead.
std::string HelpersDirectory();

class BrokerProcess {
 public:
  // `title` names it in process lists.
  BrokerProcess(kj::AsyncIoContext& io, const std::string& title);
  ~BrokerProcess() { Finish(); }  // upon which the broker ends everything

  control::Broker::Client broker() { return connection_->Bootstrap<control::Broker>(); }
  // Hangs up and waits for the broker's end: every descriptor given to it is then closed.
  void Finish();
  // What became of a broker that hung up: "the broker ended unexpectedly (killed by signal 9)".
  std::string DescribeEnd();
  // Whether one that hung up did so for another to take over (`bulkhead upgrade NAME broker`). Waits for its end.
  bool HandedOver();

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  bool reaped_ = false;
  std::optional<RpcConnection> connection_;
};

// The control capability of a running VM, through its socket; FatalError lists the VMs there are if this one is not.
class VmConnection {
 public:
  // Throws FatalError where no VM of the directory's owner has this name.
  VmConnection(kj::AsyncIoContext& io, const std::string& name, RuntimeDir::Whose whose = RuntimeDir::Whose::kMine);
  control::VmControl::Client control() { return connection_->Bootstrap<control::VmControl>(); }
  pid_t broker_pid() const { return broker_pid_; }

 private:
  pid_t broker_pid_ = -1;
  std::optional<RpcConnection> connection_;
};

}  // namespace bulkhead::launcher
