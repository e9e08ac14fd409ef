// SPDX-License-Identifier: Apache-2.0
#include "broker/vm_service.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <linux/landlock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <ctime>

#include "broker/host_kvm.h"
#include "broker/lockdown.h"

namespace bulkhead::broker {
namespace {

// More than this many at once is someone trying to exhaust the broker.
constexpr size_t kMaxConnections = 16;
constexpr int kBacklog = 8;

OwnFd ListenAt(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw FatalError("control socket: the path " + path + " is too long");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  OwnFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) ThrowErrno("create the control socket");
  // The launcher holds the lock on this name: what is left at the path is of a VM that is gone.
  ::unlink(path.c_str());
  const mode_t old_mask = ::umask(0077);
  const bool bound = ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::umask(old_mask);
  if (!bound || ::listen(socket.get(), kBacklog) != 0) ThrowErrno("create the control socket " + path);
  return socket;
}

}  // namespace

class VmService::ControlServer final : public control::VmControl::Server {
 public:
  explicit ControlServer(Revocable<VmService> service) : service_(std::move(service)) {}

  kj::Promise<void> report(ReportContext context) override {
    service_->Describe(context.getResults().initReport());
    return kj::READY_NOW;
  }
  kj::Promise<void> pressPowerButton(PressPowerButtonContext) override {
    service_->state_ = "stopping";
    Run().PressPowerButton();
    return kj::READY_NOW;
  }
  kj::Promise<void> kill(KillContext) override {
    service_->Kill();
    return kj::READY_NOW;
  }
  kj::Promise<void> waitForEnd(WaitForEndContext context) override {
    return service_->ended_.addBranch().then([context](VmEnd end) mutable {
      auto report = context.getResults().initReport();
      report.setKind(end.kind);
      report.setDetail(end.detail);
    });
  }
  kj::Promise<void> pause(PauseContext) override {
    return Run().Pause().then([this] { service_->state_ = "paused"; });
  }
  kj::Promise<void> resume(ResumeContext) override {
    return Run().Resume().then([this] { service_->state_ = "running"; });
  }
  kj::Promise<void> throttle(ThrottleContext context) override {
    const auto params = context.getParams();
    return Run().Throttle(params.getDevice(), params.getLimits());
  }
  kj::Promise<void> setLink(SetLinkContext context) override {
    const auto params = context.getParams();
    return Run().SetLink(params.getInterface(), params.getUp());
  }
  kj::Promise<void> upgrade(UpgradeContext context) override {
    return Run().Upgrade(context.getParams().getDevice()).then([context](std::vector<VmRun::Upgraded> done) mutable {
      auto out = context.getResults().initDevices(static_cast<unsigned>(done.size()));
      for (unsigned i = 0; i < done.size(); ++i) {
        out[i].setName(done[i].name);
        out[i].setPauseNs(static_cast<uint64_t>(done[i].pause_ns));
      }
    });
  }
  kj::Promise<void> reportNets(ReportNetsContext context) override {
    return Run().AskInterfaces().then([context](kj::Array<VmRun::Interface> interfaces) mutable {
      auto out = context.getResults().initInterfaces(static_cast<unsigned>(interfaces.size()));
      for (unsigned i = 0; i < interfaces.size(); ++i) {
        out[i].setName(interfaces[i].name);
        out[i].setAnswered(interfaces[i].figures.has_value());
        if (interfaces[i].figures) interfaces[i].figures->Fill(out[i].initReport());
      }
    });
  }

 private:
  VmRun& Run() {
    if (!service_->run_) throw Failure("the VM is being reset");
    return *service_->run_;
  }

  Revocable<VmService> service_;
};

struct VmService::Connection {
  Connection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, capnp::Capability::Client control)
      : rpc(io, std::move(socket), kj::mv(control), Descriptors::kRefused), closed(nullptr) {}

  RpcConnection rpc;
  kj::Promise<void> closed;
  bool dead = false;
};

VmService::VmService(kj::AsyncIoContext& io, std::string helpers, VmSettings settings)
    : io_(io),
      helpers_(std::move(helpers)),
      settings_(std::move(settings)),
      kvm_(OpenKvm()),
      uids_(settings_.uids),
      end_(kj::newPromiseAndFulfiller<VmEnd>()),
      ended_(end_.promise.fork()) {}

VmService::~VmService() { RemoveControlSocket(); }

void VmService::Prepare() {
  started_at_unix_ = std::time(nullptr);
  cgroup_.emplace(PlanCgroup(settings_), FindCgroupPlace(ReadCgroupTree()));
  spawner_.emplace(io_, helpers_ + "/bulkhead-spawner", settings_.name);
  const auto place_for = [this](const std::string& process) {
    return Birthplace{.cgroup = cgroup_->OpenLeaf(process), .uid = uids_.Take()};
  };
  run_ = std::make_unique<VmRun>(io_, helpers_, settings_, kvm_, place_for, *spawner_);
  spawner_->Seal();
  run_->Prepare();
  missing_walls_ = run_->MissingWalls();
  for (const std::string& missing : {cgroup_->missing(), uids_.missing()}) {
    if (!missing.empty()) missing_walls_.push_back(missing);
  }
  if (settings_.require_full_sandbox && !missing_walls_.empty()) {
    throw FatalError(
        fmt::format("--require-sandbox full: this host cannot give all walls: {}", fmt::join(missing_walls_, "; ")));
  }
  prepared_ = true;
  OpenControlSocket();
  // They outlive a boot, as what they lead to does.
  for (size_t i = 0; i < settings_.devices.size(); ++i) {
    for (PlannedListener& listener : settings_.devices[i]->listeners) {
      listeners_.emplace_back(io_.unixEventPort, std::move(listener.socket),
                              [this, i, port = listener.port](OwnFd connection) {
                                if (run_) run_->Attach(i, port, std::move(connection));
                              });
    }
  }
  // What only starting needed. The kernel is loaded.
  kvm_.Close();
  settings_.kernel.Close();
  settings_.initrd.Close();
  std::vector<PathRight> rights;
  if (runtime_dir_.valid()) rights.push_back({runtime_dir_.get(), LANDLOCK_ACCESS_FS_REMOVE_FILE});
  if (cgroup_->parent() >= 0) rights.push_back({cgroup_->parent(), LANDLOCK_ACCESS_FS_REMOVE_DIR});
  LockDown(rights);
}

VmEnd VmService::RunToEnd() {
  auto killed = ended_.addBranch();
  VmEnd end = run_->WhenEnded().exclusiveJoin(kj::mv(killed)).wait(io_.waitScope);
  state_ = "stopping";
  run_->Finish(end);
  run_.reset();
  cgroup_->Remove();
  RemoveControlSocket();
  End(end);
  return end;
}

void VmService::Abandon() {
  if (cgroup_) cgroup_->Remove();
  RemoveControlSocket();
}

void VmService::End(VmEnd end) {
  if (end_.fulfiller->isWaiting()) end_.fulfiller->fulfill(kj::mv(end));
}

control::VmControl::Client VmService::MakeControl() { return kj::heap<ControlServer>(self_.Get()); }

void VmService::OpenControlSocket() {
  if (settings_.runtime_dir.empty()) return;
  runtime_dir_ = OwnFd(::open(settings_.runtime_dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!runtime_dir_.valid()) ThrowErrno("open the runtime directory " + settings_.runtime_dir);
  OwnFd socket = ListenAt(settings_.runtime_dir + "/" + SocketName());
  control_listener_.emplace(io_.unixEventPort, std::move(socket),
                            [this](OwnFd connection) { AddConnection(std::move(connection)); });
}

void VmService::RemoveControlSocket() {
  if (!runtime_dir_.valid()) return;
  ::unlinkat(runtime_dir_.get(), SocketName().c_str(), 0);
  runtime_dir_.Close();
}

void VmService::AddConnection(OwnFd socket) {
  connections_.remove_if([](const auto& connection) { return connection->dead; });
  if (connections_.size() >= kMaxConnections) return;
  connections_.push_back(std::make_unique<Connection>(*io_.lowLevelProvider, std::move(socket), MakeControl()));
  const auto self = std::prev(connections_.end());
  // Not torn down from inside its own event: the next one that is accepted sweeps it out.
  (*self)->closed = (*self)
                        ->rpc.OnDisconnect()
                        .then([connection = self->get()] { connection->dead = true; })
                        .eagerlyEvaluate([](kj::Exception&&) {});
}

void VmService::Describe(control::VmReport::Builder out) const {
  out.setName(settings_.name);
  out.setState(state_);
  out.setBrokerPid(::getpid());
  out.setMemoryBytes(settings_.memory_bytes);
  out.setVcpuCount(settings_.vcpu_count);
  out.setStartedAtUnix(started_at_unix_);
  if (!run_) return;
  auto processes = out.initProcesses(run_->process_count() + 1);
  run_->Describe(processes);
  auto spawner = processes[processes.size() - 1];
  spawner.setName("spawner");
  spawner.setPid(spawner_->pid());
}

}  // namespace bulkhead::broker
