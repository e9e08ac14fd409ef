// SPDX-License-Identifier: Apache-2.0
// Who starts processes once the broker is locked down: for the broker an interface, behind it a process of its own
// (broker/spawner/). Broker, main thread.
#pragma once

#include <kj/async-io.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "broker/child.h"
#include "broker/spawn.h"
#include "broker/spawner/protocol.h"

namespace bulkhead::broker {

class Spawner {
 public:
  virtual ~Spawner() noexcept(false) = default;
  // Before lock-down: the program that stands for the next number, from 0 on.
  virtual void Enroll(const std::string& executable, const std::string& title, const Birthplace& place) = 0;
  // Starts it; `anew`: as it is installed now, not as it was. A failure is one line.
  virtual kj::Promise<Newborn> Spawn(uint32_t number, bool anew, bool reports_violations) = 0;
  // From now on it is as it was when it was last started anew.
  virtual void Keep(uint32_t number) = 0;
};

class SpawnerProcess final : public Spawner {
 public:
  // Throws FatalError. `vm` is for its name in process lists.
  SpawnerProcess(kj::AsyncIoContext& io, const std::string& executable, const std::string& vm);

  void Enroll(const std::string& executable, const std::string& title, const Birthplace& place) override;
  pid_t pid() const { return pid_; }
  // No more can be enrolled; before that nothing is started.
  void Seal();
  kj::Promise<Newborn> Spawn(uint32_t number, bool anew, bool reports_violations) override;
  void Keep(uint32_t number) override;

 private:
  struct Answer {
    int32_t pid = 0;
    std::vector<OwnFd> fds;
  };
  struct Question {
    SpawnerRequest request;
    OwnFd fd;
    size_t fds_expected;
    kj::Own<kj::PromiseFulfiller<Answer>> fulfiller;
  };
  struct Ignore final : kj::TaskSet::ErrorHandler {
    void taskFailed(kj::Exception&&) override {}
  };
  kj::Promise<Answer> Ask(const SpawnerRequest& request, OwnFd fd, size_t fds_expected);
  void SendNext();
  kj::Promise<Answer> Receive(size_t fds_expected);
  kj::Promise<OwnFd> TakeListener(const OwnFd& pidfd, int listener);

  OwnFd socket_;
  pid_t pid_ = -1;
  std::optional<kj::UnixEventPort::FdObserver> answers_;
  std::deque<Question> questions_;  // the first has been sent
  Ignore ignore_;
  kj::TaskSet tasks_{ignore_};
};

}  // namespace bulkhead::broker
