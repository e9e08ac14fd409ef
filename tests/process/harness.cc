// SPDX-License-Identifier: Apache-2.0
#include "tests/process/harness.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace bulkhead::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Long beyond any slowness of a loaded machine, and of one that is emulated: reached only by a hang.
const auto kHang = std::chrono::seconds(std::getenv("BULKHEAD_KVM_HOST") != nullptr ? 600 : 60);

std::pair<OwnFd, OwnFd> MakePipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) ThrowErrno("pipe");
  return {OwnFd(ends[0]), OwnFd(ends[1])};
}

bool IsNumber(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

}  // namespace

// So that they see each other and nobody else.
const std::string& RuntimeDirectory() {
  static const TempDir dir;
  return dir.path();
}

TempDir::TempDir() {
  std::string path = fs::temp_directory_path() / "bulkhead-test.XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) ThrowErrno("make a directory for a test");
  path_ = path;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string TempDir::MakeFile(const std::string& name, const std::string& contents) const {
  std::ofstream(Path(name), std::ios::binary) << contents;
  return Path(name);
}

std::string TempDir::MakeImage(const std::string& name, uint64_t size_bytes) const {
  MakeFile(name, "");
  fs::resize_file(Path(name), size_bytes);
  return Path(name);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  contents << file.rdbuf();
  return contents.str();
}

std::string BuildDir() { return fs::read_symlink("/proc/self/exe").parent_path().parent_path(); }

std::string Payload(const std::string& name) { return BuildDir() + "/payload/" + name + ".elf"; }

void CopyProduct(const std::string& directory) {
  const fs::path build = BuildDir();
  fs::create_directory(directory + "/libexec");
  fs::copy_file(build / "bulkhead", directory + "/bulkhead");
  for (const auto& helper : fs::directory_iterator(build / "libexec")) {
    fs::copy_file(helper.path(), directory + "/libexec/" + helper.path().filename().string());
  }
}

void ReplaceProgram(const std::string& directory, const std::string& name, const std::string& by) {
  const fs::path place = directory + "/libexec/" + name, next = place.string() + ".new";
  fs::copy_file(by, next);
  fs::rename(next, place);
}

Command::Command(std::vector<std::string> arguments, const Prepare& prepare) {
  auto [in_read, in_write] = MakePipe();
  auto [out_read, out_write] = MakePipe();
  auto [err_read, err_write] = MakePipe();
  Launch launch{BuildDir(), RuntimeDirectory()};
  arguments.insert(arguments.begin(), "bulkhead");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) ThrowErrno("fork");
  if (pid_ == 0) {
    ::dup2(in_read.get(), STDIN_FILENO);
    ::dup2(out_write.get(), STDOUT_FILENO);
    ::dup2(err_write.get(), STDERR_FILENO);
    if (prepare && !prepare(launch)) ::_exit(kNotPrepared);
    ::setenv("BULKHEAD_RUNTIME_DIR", launch.runtime_dir.c_str(), 1);
    ::execv((launch.build_dir + "/bulkhead").c_str(), argv.data());
    ::_exit(127);
  }
  input_ = std::move(in_write);
  output_fd_ = std::move(out_read);
  errors_fd_ = std::move(err_read);
}

Command::~Command() {
  if (ended_) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Command::SendInput(const std::string& text) {
  [[maybe_unused]] ssize_t written = ::write(input_.get(), text.data(), text.size());
}

void Command::CloseInput() { input_.Close(); }

void Command::Signal(int number) { ::kill(pid_, number); }

bool Command::Pump(int timeout_ms) {
  std::array<pollfd, 2> fds{{{output_fd_.get(), POLLIN, 0}, {errors_fd_.get(), POLLIN, 0}}};
  if (!output_fd_.valid() && !errors_fd_.valid()) return false;
  ::poll(fds.data(), fds.size(), timeout_ms);
  std::array<char, 4096> bytes;
  const auto take = [&](OwnFd& fd, short events, std::string& into) {
    if (!fd.valid() || events == 0) return;
    const ssize_t count = ::read(fd.get(), bytes.data(), bytes.size());
    if (count > 0) {
      into.append(bytes.data(), static_cast<size_t>(count));
    } else {
      fd.Close();
    }
  };
  take(output_fd_, fds[0].revents, output_);
  take(errors_fd_, fds[1].revents, errors_);
  return true;
}

bool Command::WaitForOutput(const std::string& text) {
  return WaitUntil([&] { return output_.find(text) != std::string::npos; });
}

bool Command::WaitUntil(const std::function<bool()>& holds) {
  const auto end = Clock::now() + kHang;
  while (!holds()) {
    if (Clock::now() > end || !Pump(100)) return holds();
  }
  return true;
}

bool Command::WaitForSilence() {
  constexpr int kWhileMs = 300;
  const auto end = Clock::now() + kHang;
  size_t size = 0;
  do {
    if (Clock::now() > end) return false;
    size = output_.size();
    Pump(kWhileMs);
  } while (output_.size() != size);
  return true;
}

int Command::Wait() {
  const auto end = Clock::now() + kHang;
  while (!ended_) {
    Pump(20);
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      ended_ = true;
      status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (Clock::now() > end) {
      return -1;
    }
  }
  // What it and its children wrote last; the pipes close when the last of them is gone.
  while (Clock::now() < end && Pump(100)) {
  }
  return status_;
}

Finished RunBulkhead(std::vector<std::string> arguments, const std::string& input, const Prepare& prepare) {
  Command command(std::move(arguments), prepare);
  if (!input.empty()) command.SendInput(input);
  command.CloseInput();
  const int status = command.Wait();
  return {status, command.output(), command.errors()};
}

std::vector<pid_t> ProcessesOf(const std::string& vm) {
  std::vector<pid_t> found;
  const std::string prefix = "bulkhead:" + vm + " ";
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (IsNumber(name) && ReadFile("/proc/" + name + "/cmdline").starts_with(prefix)) found.push_back(std::stoi(name));
  }
  return found;
}

pid_t ProcessOf(const std::string& vm, const std::string& process) {
  const std::string title = "bulkhead:" + vm + " " + process;
  for (const pid_t pid : ProcessesOf(vm)) {
    if (ReadFile("/proc/" + std::to_string(pid) + "/cmdline").c_str() == title) return pid;
  }
  return -1;
}

int SignalTo(const std::string& vm, const std::string& process, int number) {
  const pid_t pid = ProcessOf(vm, process);
  return pid > 0 ? ::kill(pid, number) : -1;  // to kill(2), -1 is everybody
}

std::vector<std::string> ThreadStatuses(pid_t pid) {
  std::vector<std::string> statuses;
  for (const auto& entry : fs::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    statuses.push_back(ReadFile(entry.path() / "status"));
  }
  return statuses;
}

bool Alive(pid_t pid) { return ::kill(pid, 0) == 0; }

bool Eventually(const std::function<bool()>& holds) {
  const auto end = Clock::now() + kHang;
  while (!holds()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

OwnFd ConnectTo(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return {};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  OwnFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int connected = ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  return connected == 0 ? std::move(socket) : OwnFd();
}

std::string ReadToEnd(int fd) {
  std::string all;
  std::array<char, 4096> bytes;
  pollfd wait{fd, POLLIN, 0};
  while (::poll(&wait, 1, std::chrono::milliseconds(kHang).count()) > 0) {
    const ssize_t count = ::read(fd, bytes.data(), bytes.size());
    if (count <= 0) break;
    all.append(bytes.data(), static_cast<size_t>(count));
  }
  return all;
}

std::vector<std::string> RuntimeFiles() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(RuntimeDirectory())) names.push_back(entry.path().filename());
  return names;
}

unsigned FromEnvironment(const char* name, unsigned otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? static_cast<unsigned>(std::strtoul(value, nullptr, 10)) : otherwise;
}

std::string UniqueName() {
  static int next = 0;
  return "t" + std::to_string(::getpid()) + "-" + std::to_string(next++);
}

}  // namespace bulkhead::test
