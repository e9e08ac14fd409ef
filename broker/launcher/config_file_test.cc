// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/config_file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "broker/launcher/options.h"
#include "ipc/result.h"

namespace bulkhead::launcher {
namespace {

class ConfigFile : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(::mkdtemp(directory_.data()), nullptr); }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& text) {
    std::ofstream(path()) << text;
    return path();
  }
  std::string path() const { return directory_ + "/vm.toml"; }
  std::string ErrorOf(const std::string& text) {
    try {
      ReadConfigFile(Write(text));
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  }
  RunOptions RunWith(const std::string& text, std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.begin(), {"run", "--config", Write(text)});
    return ParseCommandLine(arguments).run;
  }

  std::string directory_ = "/tmp/bulkhead-config.XXXXXX";
};

bool Has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_F(ConfigFile, KeysAreTheOptions) {
  const RunOptions run = RunWith(R"(
name = "web1"
memory = "2G"
cpus = 4
kernel = "vmlinuz"
initrd = "initrd.img"
append = "-v console=ttyS0"
disk = ["a.img", "b.img,readonly"]
console = "file=out.log"
virtio-console = "pty"
debug-console = "stdio"
display = "none"
reboot = true
on-device-failure = "keep"
exit-deadline = 700
)");
  EXPECT_EQ(run.name, "web1");
  EXPECT_EQ(run.memory_bytes, uint64_t{2} << 30);
  EXPECT_EQ(run.cpus, 4u);
  EXPECT_EQ(run.kernel, "vmlinuz");
  EXPECT_EQ(run.initrd, "initrd.img");
  EXPECT_EQ(run.append, "-v console=ttyS0");
  ASSERT_EQ(run.disks.size(), 2u);
  EXPECT_TRUE(run.disks[1].read_only);
  EXPECT_EQ(run.console.path, "out.log");
  EXPECT_EQ(run.virtio_console->kind, StreamOption::Kind::kPty);
  EXPECT_EQ(run.debug_console.kind, StreamOption::Kind::kStdio);
  EXPECT_TRUE(run.reboot);
  EXPECT_TRUE(run.keep_on_device_failure);
  EXPECT_EQ(run.exit_deadline_ms, 700u);
}

TEST_F(ConfigFile, DisksMayBeTables) {
  const RunOptions run = RunWith(R"(
kernel = "k"
[[disk]]
file = "a,b.img"
readonly = true
[[disk]]
file = "c.img"
id = "DATA"
direct = false
queues = 2
)");
  ASSERT_EQ(run.disks.size(), 2u);
  EXPECT_EQ(run.disks[0].path, "a,b.img");
  EXPECT_TRUE(run.disks[0].read_only);
  EXPECT_EQ(run.disks[1].id, "DATA");
  EXPECT_FALSE(run.disks[1].direct);
  EXPECT_EQ(run.disks[1].queues, 2u);
}

TEST_F(ConfigFile, BackingFilesAreATextOrAListWithTheirFormats) {
  const RunOptions run = RunWith(R"(
kernel = "k"
[[disk]]
backing = ["a.qcow2", "b,c.img"]
backing-format = ["raw", "qcow2"]
file = "top"
format = "qcow2"
[[disk]]
file = "d.qcow2"
backing = "e.qcow2"
)");
  ASSERT_EQ(run.disks.size(), 2u);
  EXPECT_EQ(run.disks[0].format, DiskFormat::kQcow2);
  ASSERT_EQ(run.disks[0].backing.size(), 2u);
  EXPECT_EQ(run.disks[0].backing[0].path, "a.qcow2");
  EXPECT_EQ(run.disks[0].backing[0].format, DiskFormat::kRaw);
  EXPECT_EQ(run.disks[0].backing[1].path, "b,c.img");
  EXPECT_EQ(run.disks[0].backing[1].format, DiskFormat::kQcow2);
  ASSERT_EQ(run.disks[1].backing.size(), 1u);
  EXPECT_EQ(run.disks[1].backing[0].format, DiskFormat::kQcow2);
  EXPECT_TRUE(Has(ErrorOf("disk = {file = 'a', backing = ['b', 'c'], backing-format = 'raw'}\n"), "as many values"));
  EXPECT_TRUE(Has(ErrorOf("disk = {file = 'a', backing-format = 'raw'}\n"), "as many values"));
}

TEST_F(ConfigFile, WordsOfANetworkThatAreRepeatedAreLists) {
  const RunOptions run = RunWith(R"(
kernel = "k"
[[net]]
user = true
hostfwd = ["tcp::2222-:22", "udp::53-:53"]
allow = ["127.0.0.1:8000", "192.0.2.0/24"]
deny = "192.0.2.1"
restrict = true
ipv6 = false
link = false
mtu = 9000
)");
  const NetOption& net = run.nets.at(0);
  EXPECT_EQ(net.kind, NetOption::Kind::kUser);
  EXPECT_EQ(net.user.host_forwards.size(), 2u);
  EXPECT_EQ(net.user.rules.size(), 3u);
  EXPECT_TRUE(net.user.restricted);
  EXPECT_FALSE(net.user.ip6);
  EXPECT_FALSE(net.link_on);
  EXPECT_EQ(net.mtu, 9000);
}

TEST_F(ConfigFile, VhostIsASwitch) {
  const RunOptions run = RunWith("kernel = \"k\"\nnet = { tap = \"t\", vhost = true, mac-spoofing = \"allow\" }\n");
  EXPECT_TRUE(run.nets.at(0).vhost);
}

TEST_F(ConfigFile, LimitsMayBeATable) {
  const std::string table = "kernel = \"k\"\nlimit = { memory = \"4G\", cpu = 1.5, pids = 500 }\n";
  const LimitOptions limits = RunWith(table).limits;
  EXPECT_EQ(limits.memory_bytes, uint64_t{4} << 30);
  EXPECT_EQ(limits.cpu_thousandths, 1500U);
  EXPECT_EQ(limits.tasks, 500U);
  EXPECT_EQ(RunWith("kernel = \"k\"\nlimit = \"cpu=150%\"\n").limits.cpu_thousandths, 1500U);
  EXPECT_EQ(RunWith(table, {"--limit", "pids=600"}).limits.tasks, 600U);
  EXPECT_TRUE(Has(ErrorOf("\nlimit = { cpus = 2 }\n"), "line 2, limit: --limit: unknown word 'cpus'"));
  EXPECT_TRUE(Has(ErrorOf("limit = {}\n"), "line 1, limit: a limit is needed"));
}

TEST_F(ConfigFile, TheCommandLineWinsAndAddsDisks) {
  const RunOptions run = RunWith("kernel = 'k'\nmemory = 512\ndisk = 'a.img'\n", {"-m", "1G", "--disk", "b.img"});
  EXPECT_EQ(run.memory_bytes, uint64_t{1} << 30);
  EXPECT_EQ(run.kernel, "k");
  ASSERT_EQ(run.disks.size(), 2u);
  EXPECT_EQ(run.disks[0].path, "a.img");
}

TEST_F(ConfigFile, AnEmptyStringIsAsGoodAsNoKey) {
  const RunOptions run = RunWith("kernel = 'k'\nappend = ''\ninitrd = ''\n", {"--name", "n"});
  EXPECT_EQ(run.append + run.initrd, "");
  EXPECT_EQ(run.name, "n");
}

TEST_F(ConfigFile, UnknownKeyNamesFileLineAndTheNearestKey) {
  const std::string error = ErrorOf("kernel = 'k'\n\nmemroy = '2G'\n");
  EXPECT_TRUE(Has(error, path() + ", line 3, memroy")) << error;
  EXPECT_TRUE(Has(error, "did you mean memory?")) << error;
  EXPECT_TRUE(Has(ErrorOf("[vm]\nmemory = '2G'\n"), "no such option"));
}

TEST_F(ConfigFile, WrongValuesNameFileAndLine) {
  for (const char* line :
       {"memory = 'lots'", "memory = 1.5", "cpus = 65", "cpus = true", "kernel = true", "reboot = 'yes'",
        "disk = 'd,colour=red'", "disk = [{readonly = true}]", "console = 'tty'", "name = '../x'"}) {
    const std::string error = ErrorOf(std::string("append = 'x'\n") + line + "\n");
    EXPECT_TRUE(Has(error, path() + ", line 2")) << line << ": " << error;
    EXPECT_FALSE(Has(error, "\n")) << error;
  }
}

TEST_F(ConfigFile, BadTomlIsOneLineWithItsNumber) {
  const std::string error = ErrorOf("kernel = 'k'\nmemory = = 3\n");
  EXPECT_TRUE(Has(error, path() + ", line 2")) << error;
  EXPECT_FALSE(Has(error, "\n")) << error;
}

TEST_F(ConfigFile, AnUnreadableFileIsAFailureNotAWrongCommandLine) {
  EXPECT_THROW(ReadConfigFile(directory_ + "/none.toml"), FatalError);
  EXPECT_THROW(ReadConfigFile(directory_), FatalError);
}

}  // namespace
}  // namespace bulkhead::launcher
