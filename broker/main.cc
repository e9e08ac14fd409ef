// SPDX-License-Identifier: Apache-2.0
// bulkhead-broker: the privileged process of one VM. It is started by the launcher with a connection on descriptor 3,
// does what that asks once (run a VM, take over one that runs, or probe the host), and ends with that connection.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "broker/image_job.h"
#include "broker/lockdown.h"
#include "broker/probe.h"
#include "broker/vm_service.h"
#include "ipc/child.h"
#include "ipc/start_up_memory.h"

namespace bulkhead::broker {
namespace {

// Between two looks for I/O. KJ's default is not to look while there is anything to do, and a child that calls without
// end would see to that: it alone would be served, and no `kill`.
constexpr unsigned kMaxEventsInARow = 32;

// Calls only take down what is wanted: the work is done on the main flow below, which may wait.
class BrokerServer final : public control::Broker::Server {
 public:
  using CreateVmContext = control::Broker::Server::CreateVmContext;
  using ProbeContext = control::Broker::Server::ProbeContext;
  using OpenImagesContext = control::Broker::Server::OpenImagesContext;
  using TakeOverVmContext = control::Broker::Server::TakeOverVmContext;
  struct Wanted {
    kj::Maybe<CreateVmContext> create_vm;
    kj::Maybe<ProbeContext> probe;
    kj::Maybe<OpenImagesContext> open_images;
    kj::Maybe<TakeOverVmContext> take_over_vm;
    kj::Own<kj::PromiseFulfiller<void>> done;
  };
  explicit BrokerServer(kj::Own<kj::PromiseFulfiller<Wanted>> wanted) : wanted_(kj::mv(wanted)) {}

  kj::Promise<void> createVm(CreateVmContext context) override {
    return Want([&](Wanted& wanted) { wanted.create_vm = context; });
  }
  kj::Promise<void> probe(ProbeContext context) override {
    return Want([&](Wanted& wanted) { wanted.probe = context; });
  }
  kj::Promise<void> openImages(OpenImagesContext context) override {
    return Want([&](Wanted& wanted) { wanted.open_images = context; });
  }
  kj::Promise<void> takeOverVm(TakeOverVmContext context) override {
    return Want([&](Wanted& wanted) { wanted.take_over_vm = context; });
  }

 private:
  template <typename Fill>
  kj::Promise<void> Want(Fill fill) {
    if (std::exchange(used_, true)) throw Failure("this broker is in use");
    auto done = kj::newPromiseAndFulfiller<void>();
    Wanted wanted;
    fill(wanted);
    wanted.done = kj::mv(done.fulfiller);
    wanted_->fulfill(kj::mv(wanted));
    return kj::mv(done.promise);
  }

  kj::Own<kj::PromiseFulfiller<Wanted>> wanted_;
  bool used_ = false;
};

std::string HelpersDirectory() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

void FillResults(VmService& service, control::Broker::CreateVmResults::Builder results) {
  results.setVm(service.MakeControl());
  auto missing = results.initMissingWalls(static_cast<unsigned>(service.missing_walls().size()));
  for (unsigned i = 0; i < missing.size(); ++i) missing.set(i, service.missing_walls()[i]);
  results.setSpawner(ShareFile(service.spawner_socket().get()));
}

void FillResults(VmService& service, control::Broker::TakeOverVmResults::Builder results) {
  results.setVm(service.MakeControl());
}

// Returns when the VM has ended and its end has been told, or when it could not be started or taken over, which is
// what `prepare` does.
template <typename Context, typename Prepare>
void RunVm(kj::AsyncIoContext& io, Context context, Prepare prepare, kj::PromiseFulfiller<void>& done,
           RpcConnection& launcher, bool& starting, VmService*& starting_vm) {
  std::optional<VmService> service;
  try {
    VmSettings settings = TakeSettings(context.getParams().getConfig(), io.waitScope);
    context.releaseParams();
    service.emplace(io, HelpersDirectory(), std::move(settings));
    starting_vm = &*service;
    prepare(*service);
  } catch (const FatalError& error) {
    done.reject(Failure(error.what()));
  } catch (const kj::Exception& error) {
    done.reject(Failure(ReasonOf(error)));
  }
  starting = false;
  if (!service || !service->prepared()) return;
  FillResults(*service, context.getResults());
  done.fulfill();
  auto gone = launcher.OnDisconnect().then([&] { service->Kill(); }).eagerlyEvaluate(nullptr);
  StartUpMemory start_up(io.provider->getTimer());
  start_up.ForgetSoon();
  service->RunToEnd();
  launcher.OnDisconnect().wait(io.waitScope);
}

// Returns when the launcher has hung up, or the process that it works with is gone.
void RunImageJob(kj::AsyncIoContext& io, BrokerServer::OpenImagesContext context, kj::PromiseFulfiller<void>& done,
                 RpcConnection& launcher) {
  std::optional<ImageJob> job;
  try {
    job.emplace(io, HelpersDirectory(), context.getParams().getImages());
    context.releaseParams();
    LockDown({});
  } catch (const FatalError& error) {
    done.reject(Failure(error.what()));
    return;
  } catch (const kj::Exception& error) {
    done.reject(Failure(ReasonOf(error)));
    return;
  }
  context.getResults().setWorker(job->worker());
  done.fulfill();
  auto dead = job->WhenDead().then([](const std::string& how) { std::fprintf(stderr, "bulkhead: %s\n", how.c_str()); });
  launcher.OnDisconnect().exclusiveJoin(kj::mv(dead)).wait(io.waitScope);
}

void Serve(kj::AsyncIoContext& io) {
  auto wanted = kj::newPromiseAndFulfiller<BrokerServer::Wanted>();
  RpcConnection launcher(*io.lowLevelProvider, OwnFd(kControlFd), kj::heap<BrokerServer>(kj::mv(wanted.fulfiller)),
                         Descriptors::kTaken);
  // Without its launcher a VM has no user. Until the VM runs everything ends on the spot: its processes die with the
  // spawner (PR_SET_PDEATHSIG), at the latest, and that with the last end of its socket.
  bool starting = true;
  VmService* starting_vm = nullptr;
  auto gone = launcher.OnDisconnect()
                  .then([&] {
                    if (!starting) return;
                    if (starting_vm != nullptr) starting_vm->Abandon();
                    ::_exit(0);
                  })
                  .eagerlyEvaluate(nullptr);
  auto request = wanted.promise.wait(io.waitScope);
  KJ_IF_MAYBE (context, request.create_vm) {
    const auto prepare = [](VmService& service) { service.Prepare(); };
    RunVm(io, *context, prepare, *request.done, launcher, starting, starting_vm);
  }
  KJ_IF_MAYBE (context, request.take_over_vm) {
    OwnFd spawner = TakeFile(context->getParams().getSpawner(), io.waitScope);
    const auto take_over = [&](VmService& service) { service.TakeOver(std::move(spawner)); };
    RunVm(io, *context, take_over, *request.done, launcher, starting, starting_vm);
  }
  KJ_IF_MAYBE (context, request.probe) {
    Probe(io, HelpersDirectory(), context->getResults().initReport());
    request.done->fulfill();
  }
  KJ_IF_MAYBE (context, request.open_images) {
    starting = false;
    RunImageJob(io, *context, *request.done, launcher);
  }
  starting = false;
  // The launcher reads the answer, then hangs up.
  launcher.OnDisconnect().wait(io.waitScope);
}

}  // namespace
}  // namespace bulkhead::broker

int main(int argc, char** argv) {
  using namespace bulkhead;
  try {
    if (argc > 1) return PrintPolicy(argv[1], broker::BrokerPolicy());
    // Signals are the launcher's business; the terminal's reach the whole process group.
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP}) ::signal(number, SIG_IGN);
    NameProcess(argc > 0 ? argv[0] : "bulkhead broker");
    auto io = kj::setupAsyncIo();
    io.waitScope.setBusyPollInterval(broker::kMaxEventsInARow);
    broker::Serve(io);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bulkhead broker: %s\n", error.what());
  } catch (const kj::Exception& error) {
    if (error.getType() == kj::Exception::Type::DISCONNECTED) return 0;
    std::fprintf(stderr, "bulkhead broker: %s\n", ReasonOf(error).c_str());
  }
  return 1;
}
