// SPDX-License-Identifier: Apache-2.0
#include "broker/spawner.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>

#include "ipc/fd_message.h"
#include "ipc/ring.h"

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

SpawnerProcess::SpawnerProcess(kj::AsyncIoContext& io, const std::string& executable, const std::string& vm)
    : port_(io.unixEventPort), next_id_(static_cast<uint64_t>(MonotonicNow())) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) ThrowErrno("make a socketpair");
  socket_ = OwnFd(ends[0]);
  const OwnFd theirs(ends[1]);
  pid_ = Start(executable, ChildTitle(vm, "spawner"), theirs);
  answers_.emplace(port_, socket_.get(), FdObserver::OBSERVE_READ);
}

// Time tells this broker's questions from those of the one before.
SpawnerProcess::SpawnerProcess(kj::AsyncIoContext& io, OwnFd socket)
    : port_(io.unixEventPort), socket_(std::move(socket)), next_id_(static_cast<uint64_t>(MonotonicNow())) {
  answers_.emplace(port_, socket_.get(), FdObserver::OBSERVE_READ);
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
  OrThrow(SendMessage(socket_, &request, sizeof request, fds));
}

void SpawnerProcess::Seal() {
  const SpawnerRequest request{.kind = SpawnerRequest::kSeal};
  OrThrow(SendMessage(socket_, &request, sizeof request, {}));
  // From now on this process has others to see to.
  ::fcntl(socket_.get(), F_SETFL, O_NONBLOCK);
}

void SpawnerProcess::Settle() {
  const SpawnerRequest request{.kind = SpawnerRequest::kSettle};
  (void)SendMessage(socket_, &request, sizeof request, {});
}

kj::Promise<SpawnerProcess::Answer> SpawnerProcess::Ask(SpawnerRequest request, size_t fds_at_least,
                                                        std::vector<int> fds) {
  auto answered = kj::newPromiseAndFulfiller<Answer>();
  request.id = next_id_++;
  questions_.push_back({request, std::move(fds), fds_at_least, kj::mv(answered.fulfiller)});
  if (questions_.size() == 1) SendNext();
  return kj::mv(answered.promise);
}

void SpawnerProcess::SendNext() {
  if (questions_.empty()) return;
  tasks_.add(kj::evalNow([this]() -> kj::Promise<Answer> {
               const Question& question = questions_.front();
               auto sent = SendMessage(socket_, &question.request, sizeof question.request, question.fds);
               if (!sent.ok()) return Failure(sent.error().message);
               return Receive(question.request.id, question.fds_at_least);
             })
                 .then([this](Answer answer) { questions_.front().fulfiller->fulfill(std::move(answer)); },
                       [this](kj::Exception&& error) { questions_.front().fulfiller->reject(kj::mv(error)); })
                 .then([this] {
                   questions_.pop_front();
                   SendNext();
                 }));
}

kj::Promise<SpawnerProcess::Answer> SpawnerProcess::Receive(uint64_t id, size_t fds_at_least) {
  Answer answer;
  auto received = ReceiveMessage(socket_, &answer.reply, sizeof answer.reply, answer.fds);
  if (!received.ok() && received.error().code == EAGAIN) {
    return answers_->whenBecomesReadable().then([this, id, fds_at_least] { return Receive(id, fds_at_least); });
  }
  if (!received.ok()) return Failure(received.error().message);
  if (answer.reply.id != id) return Receive(id, fds_at_least);
  if (answer.reply.code != 0) return Failure(GetText(answer.reply.message));
  if (answer.fds.size() < fds_at_least) return Failure("the spawner gave fewer descriptors than it should");
  return answer;
}

kj::Promise<Newborn> SpawnerProcess::AskForProcess(const SpawnerRequest& request, size_t fds_at_least) {
  return Ask(request, fds_at_least)
      .then([this, number = request.number, adopted = request.kind == SpawnerRequest::kAdopt](Answer answer) {
        Newborn born{.process = {.pid = answer.reply.pid,
                                 .pidfd = std::move(answer.fds[0]),
                                 .control = std::move(answer.fds[1]),
                                 .log = std::move(answer.fds[2]),
                                 .spare = {}},
                     .reports_violations = false,
                     .was_ready = adopted,
                     .listener = {},
                     .take_listener =
                         [this, number](int listener) {
                           return Ask({.kind = SpawnerRequest::kListener, .number = number, .listener = listener}, 1)
                               .then([](Answer taken) { return std::move(taken.fds[0]); });
                         },
                     .reap =
                         [this, number] {
                           return Ask({.kind = SpawnerRequest::kReap, .number = number}, 0).then([](Answer reaped) {
                             return ProcessEnd{reaped.reply.end_code, reaped.reply.end_status};
                           });
                         }};
        if (answer.fds.size() > 3) {
          born.listener = std::move(answer.fds[3]);
          born.reports_violations = true;
        }
        return born;
      });
}

kj::Promise<Newborn> SpawnerProcess::Spawn(uint32_t number, bool anew) {
  return AskForProcess({.kind = anew ? SpawnerRequest::kRenew : SpawnerRequest::kSpawn, .number = number}, 3);
}

kj::Promise<Newborn> SpawnerProcess::Adopt(uint32_t number) {
  return AskForProcess({.kind = SpawnerRequest::kAdopt, .number = number}, 3);
}

void SpawnerProcess::Keep(uint32_t number) {
  tasks_.add(Ask({.kind = SpawnerRequest::kKeep, .number = number}, 0).ignoreResult());
}

kj::Promise<uint32_t> SpawnerProcess::LookForStopped() {
  return Ask({.kind = SpawnerRequest::kStopped}, 0).then([this](Answer answer) -> kj::Promise<uint32_t> {
    if (answer.reply.pid >= 0) return static_cast<uint32_t>(answer.reply.pid);
    if (DrainEventFd(changes_.get()) != 0) return LookForStopped();
    return changes_observer_->whenBecomesReadable().then([this] { return LookForStopped(); });
  });
}

kj::Promise<uint32_t> SpawnerProcess::NextStopped() {
  if (changes_.valid()) return LookForStopped();
  return Ask({.kind = SpawnerRequest::kChanges}, 1).then([this](Answer answer) {
    changes_ = std::move(answer.fds[0]);
    changes_observer_.emplace(port_, changes_.get(), FdObserver::OBSERVE_READ);
    return LookForStopped();
  });
}

namespace {

uint32_t KeyOf(Kept kind, size_t index, uint8_t port) {
  return static_cast<uint32_t>(kind) << 24 | static_cast<uint32_t>(index) << 8 | port;
}

}  // namespace

kj::Promise<void> SpawnerProcess::Store(Kept kind, size_t index, uint8_t port, std::vector<int> fds) {
  const SpawnerRequest request{.kind = SpawnerRequest::kStore, .number = KeyOf(kind, index, port)};
  return Ask(request, 0, std::move(fds)).ignoreResult();
}

kj::Promise<std::vector<OwnFd>> SpawnerProcess::Fetch(Kept kind, size_t index, uint8_t port) {
  const SpawnerRequest request{.kind = SpawnerRequest::kFetch, .number = KeyOf(kind, index, port)};
  return Ask(request, 0).then([](Answer answer) { return std::move(answer.fds); });
}

}  // namespace bulkhead::broker
