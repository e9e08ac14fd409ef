// SPDX-License-Identifier: Apache-2.0
#include "broker/spawner.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "broker/spawner/protocol.h"

namespace bulkhead::broker {
namespace {

using FdObserver = kj::UnixEventPort::FdObserver;

// Descriptors above those that the spawner is born with.
constexpr int kFirstFreeFd = kSpawnerFd + 1;

pid_t Start(const std::string& executable, const std::string& title, const OwnFd& socket) {
  // A number that the child's are not moved onto.
  const OwnFd source(::fcntl(socket.get(), F_DUPFD_CLOEXEC, kFirstFreeFd));
  if (!source.valid()) ThrowErrno("duplicate a descriptor");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, source.get(), kSpawnerFd);
  ::posix_spawn_file_actions_addclosefrom_np(&actions, kFirstFreeFd);
  std::string argument = title;
  char* const arguments[] = {argument.data(), nullptr};
  char* const environment[] = {nullptr};
  pid_t pid;
  const int error = ::posix_spawn(&pid, executable.c_str(), &actions, nullptr, arguments, environment);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw FatalError(ErrnoError(error, "start " + executable + " (is Bulkhead installed completely?)"));
  return pid;
}

}  // namespace

SpawnerProcess::SpawnerProcess(kj::AsyncIoContext& io, const std::string& executable, const std::string& vm) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) ThrowErrno("make a socketpair");
  socket_ = OwnFd(ends[0]);
  const OwnFd theirs(ends[1]);
  pid_ = Start(executable, ChildTitle(vm, "spawner"), theirs);
  answers_.emplace(io.unixEventPort, socket_.get(), FdObserver::OBSERVE_READ);
}

void SpawnerProcess::Enroll(const std::string& executable, const std::string& title, const Birthplace& place) {
  SpawnerRequest request{.kind = SpawnerRequest::kEnroll,
                         .uid = place.uid.value_or(0),
                         .has_uid = place.uid.has_value(),
                         .keeps_network = place.keeps_network};
  PutText(request.executable, executable);
  PutText(request.title, title);
  std::vector<int> fds;
  if (place.cgroup.valid()) fds.push_back(place.cgroup.get());
  OrThrow(SendPacket(socket_, &request, sizeof request, fds));
}

void SpawnerProcess::Seal() {
  const SpawnerRequest request{.kind = SpawnerRequest::kSeal};
  OrThrow(SendPacket(socket_, &request, sizeof request, {}));
  // From now on this process has others to see to.
  ::fcntl(socket_.get(), F_SETFL, O_NONBLOCK);
}

kj::Promise<SpawnerProcess::Answer> SpawnerProcess::Ask(const SpawnerRequest& request, OwnFd fd, size_t fds_expected) {
  auto answered = kj::newPromiseAndFulfiller<Answer>();
  questions_.push_back({request, std::move(fd), fds_expected, kj::mv(answered.fulfiller)});
  if (questions_.size() == 1) SendNext();
  return kj::mv(answered.promise);
}

void SpawnerProcess::SendNext() {
  if (questions_.empty()) return;
  tasks_.add(kj::evalNow([this]() -> kj::Promise<Answer> {
               const Question& question = questions_.front();
               std::vector<int> fds;
               if (question.fd.valid()) fds.push_back(question.fd.get());
               auto sent = SendPacket(socket_, &question.request, sizeof question.request, fds);
               if (!sent.ok()) return Failure(sent.error().message);
               return Receive(question.fds_expected);
             })
                 .then([this](Answer answer) { questions_.front().fulfiller->fulfill(std::move(answer)); },
                       [this](kj::Exception&& error) { questions_.front().fulfiller->reject(kj::mv(error)); })
                 .then([this] {
                   questions_.pop_front();
                   SendNext();
                 }));
}

kj::Promise<SpawnerProcess::Answer> SpawnerProcess::Receive(size_t fds_expected) {
  return answers_->whenBecomesReadable().then([this, fds_expected]() -> kj::Promise<Answer> {
    SpawnerReply reply;
    Answer answer;
    auto received = ReceivePacket(socket_, &reply, sizeof reply, answer.fds);
    if (!received.ok() && received.error().code == EAGAIN) return Receive(fds_expected);
    if (!received.ok()) return Failure(received.error().message);
    if (reply.code != 0) return Failure(GetText(reply.message));
    if (answer.fds.size() != fds_expected) return Failure("the spawner gave another number of descriptors");
    answer.pid = reply.pid;
    return answer;
  });
}

kj::Promise<Newborn> SpawnerProcess::Spawn(uint32_t number, bool anew, bool reports_violations) {
  const SpawnerRequest request{.kind = anew ? SpawnerRequest::kRenew : SpawnerRequest::kSpawn, .number = number};
  return Ask(request, OwnFd(), 3).then([this, reports_violations](Answer answer) {
    return Newborn{.process = {.pid = answer.pid,
                               .pidfd = std::move(answer.fds[0]),
                               .control = std::move(answer.fds[1]),
                               .log = std::move(answer.fds[2])},
                   .reports_violations = reports_violations,
                   .take_listener = [this](const OwnFd& pidfd, int listener) { return TakeListener(pidfd, listener); }};
  });
}

void SpawnerProcess::Keep(uint32_t number) {
  const SpawnerRequest request{.kind = SpawnerRequest::kKeep, .number = number};
  tasks_.add(Ask(request, OwnFd(), 0).ignoreResult());
}

kj::Promise<OwnFd> SpawnerProcess::TakeListener(const OwnFd& pidfd, int listener) {
  const SpawnerRequest request{.kind = SpawnerRequest::kListener, .number = static_cast<uint32_t>(listener)};
  return Ask(request, OrThrow(DuplicateFd(pidfd.get())), 1).then([](Answer answer) {
    return std::move(answer.fds[0]);
  });
}

}  // namespace bulkhead::broker
