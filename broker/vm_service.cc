// SPDX-License-Identifier: Apache-2.0
#include "broker/vm_service.h"

#include <capnp/serialize.h>
#include <fcntl.h>
#include <fmt/ranges.h>
#include <linux/landlock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <span>

#include "broker/host_kvm.h"
#include "broker/kept_fds.h"
#include "broker/lockdown.h"

namespace bulkhead::broker {
namespace {

// More than this many at once is someone trying to exhaust the broker.
constexpr size_t kMaxConnections = 16;
constexpr int kBacklog = 8;

OwnFd BindTo(const std::string& path) {
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
  if (!bound) ThrowErrno("create the control socket " + path);
  return socket;
}

}  // namespace

// Somebody has it: the log goes on.
class VmService::WriteLogServer final : public control::WriteLog::Server {
 public:
  WriteLogServer(Revocable<VmService> service, uint64_t id) : service_(std::move(service)), id_(id) {}
  ~WriteLogServer() noexcept(false) {
    if (service_ && service_->run_) service_->run_->StopLog(id_);
  }

  kj::Promise<void> take(TakeContext context) override {
    if (!service_->run_) return Failure("the VM is not running");
    return service_->run_->TakeLog(id_).then([context](VmRun::Writes writes) mutable {
      auto report = context.getResults().initReport();
      auto writers = report.initWriters(static_cast<unsigned>(writes.writers.size()));
      for (unsigned i = 0; i < writers.size(); ++i) {
        writers[i].setName(writes.writers[i]);
        writers[i].setPages(writes.count.pages[i]);
      }
      report.setPages(writes.count.all);
      report.setDurationNs(static_cast<uint64_t>(writes.duration_ns));
    });
  }

 private:
  Revocable<VmService> service_;
  const uint64_t id_;
};

class VmService::ControlServer final : public control::VmControl::Server {
 public:
  explicit ControlServer(Revocable<VmService> service) : service_(std::move(service)) {}

  kj::Promise<void> report(ReportContext context) override {
    service_->Describe(context.getResults().initReport());
    return kj::READY_NOW;
  }
  kj::Promise<void> pressPowerButton(PressPowerButtonContext) override {
    Run().PressPowerButton();
    service_->SetState("stopping");
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
    return Run().Pause().then([this] { service_->SetState("paused"); });
  }
  kj::Promise<void> resume(ResumeContext) override {
    return Run().Resume().then([this] {
      service_->SetState("running");
      service_->spawner_->Settle();
    });
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
    if (context.getParams().getDevice() == "broker") return service_->HandOver();
    return Run().Upgrade(context.getParams().getDevice()).then([context](std::vector<VmRun::Upgraded> done) mutable {
      auto out = context.getResults().initDevices(static_cast<unsigned>(done.size()));
      for (unsigned i = 0; i < done.size(); ++i) {
        out[i].setName(done[i].name);
        out[i].setPauseNs(static_cast<uint64_t>(done[i].pause_ns));
      }
    });
  }
  kj::Promise<void> logWrites(LogWritesContext context) override {
    const uint64_t id = context.getParams().getId();
    // Who asks may have asked another broker before, and waits until this one serves.
    return service_->serves_.addBranch()
        .then([this, id] { return Run().BeginLog(id); })
        .then([this, context, id]() mutable { context.getResults().setLog(kj::heap<WriteLogServer>(service_, id)); });
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
    if (!service_->prepared_) throw Failure("a broker is just taking over; try again");
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
      end_(kj::newPromiseAndFulfiller<VmEnd>()),
      ended_(end_.promise.fork()),
      serve_(kj::newPromiseAndFulfiller<void>()),
      serves_(serve_.promise.fork()) {}

VmService::~VmService() { RemoveControlSocket(); }

void VmService::MakeRun(OwnFd memory) {
  memory_ = std::move(memory);
  run_ = std::make_unique<VmRun>(io_, settings_, memory_, *spawner_, [this] { WriteDown(); });
}

void VmService::Prepare() {
  started_at_unix_ = std::time(nullptr);
  kvm_ = OpenKvm();
  uids_.emplace(settings_.uids);
  cgroup_.emplace(PlanCgroup(settings_), FindCgroupPlace(ReadCgroupTree()));
  spawner_.emplace(io_, helpers_ + "/bulkhead-spawner", settings_.name);
  spawner_pid_ = spawner_->pid();
  MakeRun(OrThrow(MakeSealedMemory("guest-" + settings_.name, settings_.memory_bytes)));
  run_->Start(helpers_, kvm_, [this](const std::string& process) {
    return Birthplace{.cgroup = cgroup_->OpenLeaf(process), .uid = uids_->Take()};
  });
  run_->Prepare();
  missing_walls_ = run_->MissingWalls();
  for (const std::string& missing : {cgroup_->missing(), uids_->missing()}) {
    if (!missing.empty()) missing_walls_.push_back(missing);
  }
  if (settings_.require_full_sandbox && !missing_walls_.empty()) {
    throw FatalError(
        fmt::format("--require-sandbox full: this host cannot give all walls: {}", fmt::join(missing_walls_, "; ")));
  }
  prepared_ = true;
  serve_.fulfiller->fulfill();
  OpenControlSocket();
  MakeConsoleListeners();
  ServeConsoles();
  journal_file_ = OrThrow(Journal::Make("journal-broker", 0));
  journal_.emplace(OrThrow(Journal::Map(journal_file_.get(), 0)));
  WriteDown();
  std::vector<int> vm{memory_.get(), journal_file_.get()};
  if (control_listener_) vm.push_back(control_listener_->socket());
  kj::Vector<kj::Promise<void>> kept;
  kept.add(spawner_->Store(Kept::kVm, 0, 0, vm));
  kept.add(spawner_->Store(Kept::kCgroup, 0, 0, cgroup_->Share()));
  if (uids_->file().valid()) kept.add(spawner_->Store(Kept::kUids, 0, 0, {uids_->file().get()}));
  kj::joinPromises(kept.releaseAsArray()).wait(io_.waitScope);
  LockDownAndForget(cgroup_->parent());
}

// Up to lock-down nobody is heard but the spawner and the launcher: what the VM's processes say, and what a broker that
// may have been owned wrote down, may be hostile.
void VmService::TakeOver(OwnFd spawner) {
  spawner_.emplace(io_, std::move(spawner));
  KeptFds vm(spawner_->Fetch(Kept::kVm, 0, 0).wait(io_.waitScope));
  MakeRun(vm.Take());
  journal_file_ = vm.Take();
  journal_.emplace(OrThrow(Journal::Map(journal_file_.get(), 0)));
  auto cgroup = spawner_->Fetch(Kept::kCgroup, 0, 0).wait(io_.waitScope);
  if (!settings_.runtime_dir.empty()) ServeControlSocket(vm.Take());
  MakeConsoleListeners();
  run_->Fetch();
  LockDownAndForget(cgroup.empty() ? -1 : cgroup[0].get());

  const Journal::Legacy legacy = OrThrow(journal_->Read());
  // Journals keep bytes; messages are made of words.
  std::vector<capnp::word> words(legacy.state.size() / sizeof(capnp::word));
  std::memcpy(words.data(), legacy.state.data(), words.size() * sizeof(capnp::word));
  capnp::FlatArrayMessageReader message(kj::arrayPtr(words.data(), words.size()));
  const auto record = message.getRoot<record::VmRecord>();
  started_at_unix_ = record.getStartedAtUnix();
  state_ = record.getState().cStr();
  spawner_pid_ = record.getSpawnerPid();
  cgroup_.emplace(PlanCgroup(settings_), record.getCgroup(), std::move(cgroup));
  run_->Adopt(record, ended_.addBranch().ignoreResult());
  prepared_ = true;
  run_->GoOn(record);
  serve_.fulfiller->fulfill();
  WriteDown();
  ServeConsoles();
}

// For a broker that takes over.
void VmService::WriteDown() {
  // One that has not taken over yet leaves what it found.
  if (!journal_ || !run_ || !prepared_) return;
  capnp::MallocMessageBuilder message;
  auto record = message.initRoot<record::VmRecord>();
  record.setStartedAtUnix(started_at_unix_);
  record.setState(state_);
  record.setSpawnerPid(spawner_pid_);
  record.setCgroup(cgroup_->name());
  if (told_end_) {
    auto end = record.initEnd();
    end.setKind(told_end_->kind);
    end.setDetail(told_end_->detail);
  }
  run_->WriteDown(record);
  const auto words = capnp::messageToFlatArray(message);
  journal_->Commit({}, {}, std::as_bytes(std::span(words.asBytes().begin(), words.asBytes().size())));
}

// They outlive a boot, as what they lead to does.
void VmService::MakeConsoleListeners() {
  for (size_t i = 0; i < settings_.devices.size(); ++i) {
    for (PlannedListener& listener : settings_.devices[i]->listeners) {
      listeners_.emplace_back(io_.unixEventPort, std::move(listener.socket),
                              [this, i, port = listener.port](OwnFd connection) {
                                if (run_) run_->Attach(i, port, std::move(connection));
                              });
    }
  }
}

void VmService::ServeConsoles() {
  for (Listener& listener : listeners_) listener.Serve();
}

void VmService::LockDownAndForget(int cgroup_parent) {
  // What only starting needed. The kernel is loaded.
  kvm_.Close();
  settings_.kernel.Close();
  settings_.initrd.Close();
  for (auto& plan : settings_.devices) plan->given_away.clear();
  std::vector<PathRight> rights;
  if (runtime_dir_.valid()) rights.push_back({runtime_dir_.get(), LANDLOCK_ACCESS_FS_REMOVE_FILE});
  if (cgroup_parent >= 0) rights.push_back({cgroup_parent, LANDLOCK_ACCESS_FS_REMOVE_DIR});
  LockDown(rights);
}

VmEnd VmService::RunToEnd() {
  auto killed = ended_.addBranch();
  VmEnd end = run_->WhenEnded().exclusiveJoin(kj::mv(killed)).wait(io_.waitScope);
  SetState("stopping");
  told_end_ = end;
  WriteDown();
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

void VmService::SetState(const std::string& state) {
  state_ = state;
  WriteDown();
}

void VmService::End(VmEnd end) {
  if (end_.fulfiller->isWaiting()) end_.fulfiller->fulfill(kj::mv(end));
}

// Whoever asked learns by the end of the connection that this process is gone; the launcher has its exit status.
kj::Promise<void> VmService::HandOver() {
  if (!prepared_ || !run_ || told_end_) return Failure("the VM is not running");
  WriteDown();
  ::_exit(control::HAND_OVER_STATUS);
}

control::VmControl::Client VmService::MakeControl() { return kj::heap<ControlServer>(self_.Get()); }

void VmService::OpenControlSocket() {
  if (settings_.runtime_dir.empty()) return;
  ServeControlSocket(BindTo(settings_.runtime_dir + "/" + SocketName()));
}

void VmService::ServeControlSocket(OwnFd socket) {
  runtime_dir_ = OwnFd(::open(settings_.runtime_dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!runtime_dir_.valid()) ThrowErrno("open the runtime directory " + settings_.runtime_dir);
  // Also where another broker did: then who connects is told of this process.
  if (::listen(socket.get(), kBacklog) != 0) ThrowErrno("serve the control socket");
  control_listener_.emplace(io_.unixEventPort, std::move(socket),
                            [this](OwnFd connection) { AddConnection(std::move(connection)); });
  control_listener_->Serve();
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
  if (!run_ || !prepared_) return;
  auto processes = out.initProcesses(run_->process_count() + 1);
  run_->Describe(processes);
  auto spawner = processes[processes.size() - 1];
  spawner.setName("spawner");
  spawner.setPid(spawner_pid_);
}

}  // namespace bulkhead::broker
