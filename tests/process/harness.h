// SPDX-License-Identifier: Apache-2.0
// Starts the real `bulkhead` command with payload guests and looks at what becomes of it. Every wait has a limit that
// only a hang reaches; no test passes or fails by how long something took.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead::test {

// A directory of the test's own, removed with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  // A file with these contents, or of this size without any.
  std::string MakeFile(const std::string& name, const std::string& contents) const;
  std::string MakeImage(const std::string& name, uint64_t size_bytes) const;

 private:
  std::string path_;
};

std::string ReadFile(const std::string& path);
// Where the build put things: the directory above this test program's.
std::string BuildDir();
std::string Payload(const std::string& name);

// Copies the product to a directory, where a Launch can name it, and puts a program in the place of one of its own,
// which runs on as it is where it runs.
void CopyProduct(const std::string& directory);
void ReplaceProgram(const std::string& directory, const std::string& name, const std::string& by);

// What a command is started with; may be changed in the new process before it becomes the command.
struct Launch {
  std::string build_dir;
  std::string runtime_dir;
};
// False ends the new process with kNotPrepared.
using Prepare = std::function<bool(Launch&)>;
constexpr int kNotPrepared = 126;

// One run of `bulkhead`.
class Command {
 public:
  explicit Command(std::vector<std::string> arguments, const Prepare& prepare = nullptr);
  ~Command();  // kills what still runs

  void SendInput(const std::string& text);
  void CloseInput();
  void Signal(int number);
  // Reads output until `text` appears; false if the command ends or hangs before.
  bool WaitForOutput(const std::string& text);
  // The same until `holds`, which looks at the output.
  bool WaitUntil(const std::function<bool()>& holds);
  // Reads output until none comes for a while; false if it never stops.
  bool WaitForSilence();
  // The exit status, or 128 + signal; -1 for a hang.
  int Wait();

  pid_t pid() const { return pid_; }
  const std::string& output() const { return output_; }  // stdout
  const std::string& errors() const { return errors_; }  // stderr

 private:
  // Takes what output there is, or comes within the time; false at its end.
  bool Pump(int timeout_ms);

  pid_t pid_ = -1;
  int status_ = -1;
  bool ended_ = false;
  OwnFd input_;
  OwnFd output_fd_;
  OwnFd errors_fd_;
  std::string output_;
  std::string errors_;
};

struct Finished {
  int status = -1;
  std::string output;
  std::string errors;
};
Finished RunBulkhead(std::vector<std::string> arguments, const std::string& input = "",
                     const Prepare& prepare = nullptr);

// Processes of a VM by their titles ("bulkhead:NAME disk0"), and one of them.
std::vector<pid_t> ProcessesOf(const std::string& vm);
pid_t ProcessOf(const std::string& vm, const std::string& process);
// Sends a signal to that process alone; 0 if it could be sent.
int SignalTo(const std::string& vm, const std::string& process, int number);
// /proc/PID/task/*/status of each of its threads.
std::vector<std::string> ThreadStatuses(pid_t pid);
bool Alive(pid_t pid);
// Polls until `holds` does; false after a limit that only a hang reaches.
bool Eventually(const std::function<bool()>& holds);
// A connection to a UNIX socket; invalid if nobody answers there. And all that comes from one.
OwnFd ConnectTo(const std::string& path);
std::string ReadToEnd(int fd);
// The runtime directory of all commands of this program, and what is in it.
const std::string& RuntimeDirectory();
std::vector<std::string> RuntimeFiles();
// A number from an environment variable, for who wants more of something than each run of the tests has.
unsigned FromEnvironment(const char* name, unsigned otherwise);
// A VM name that no other test uses.
std::string UniqueName();

}  // namespace bulkhead::test
