// SPDX-License-Identifier: Apache-2.0
// A whole VM with one liar among its device processes: the guest and the other devices go on, and who broke the
// protocol is named and given up.
#include <gtest/gtest.h>

#include "tests/process/harness.h"

namespace bulkhead::jail {
namespace {

using test::Command;

// The product with tests/liar in the place of bulkhead-rng.
class LiarTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new test::TempDir;
    test::CopyProduct(dir_->path());
    test::ReplaceProgram(dir_->path(), "bulkhead-rng", test::BuildDir() + "/tests/liar");
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }

  // Starts a VM that is lied to, and waits until its guest ticks.
  std::unique_ptr<Command> Start(const std::string& lie) {
    name_ = test::UniqueName() + "-" + lie;
    auto command = std::make_unique<Command>(
        std::vector<std::string>{"run", "--name", name_, "--kernel", test::Payload("ticking"), "--console", "none",
                                 "--debug-console", "stdio", "--exit-deadline", "1000", "-c", "2", "--device-restarts",
                                 "0"},
        [](test::Launch& launch) {
          launch.build_dir = dir_->path();
          return true;
        });
    EXPECT_TRUE(command->WaitForOutput("tick")) << command->errors();
    return command;
  }
  // The guest goes on, and the VM ends as it should.
  void ExpectAlive(Command& command) {
    for (int i = 0; i < 20; ++i) {
      const size_t then = command.output().size();
      ASSERT_TRUE(command.WaitUntil([&] { return command.output().size() > then; })) << command.errors();
    }
    EXPECT_EQ(test::RunBulkhead({"kill", name_}).status, 0);
    EXPECT_EQ(command.Wait(), 0) << command.errors();
    EXPECT_TRUE(test::Eventually([&] { return test::ProcessesOf(name_).empty(); }));
  }

  static test::TempDir* dir_;
  std::string name_;
};

test::TempDir* LiarTest::dir_ = nullptr;

TEST_F(LiarTest, BrokenProtocolIsNamedAndCostsOnlyTheLiar) {
  for (const char* lie : {"length", "odd_length", "empty", "pointers", "far_pointers", "sequence", "backward",
                          "forward", "unasked", "silent", "garbage"}) {
    SCOPED_TRACE(lie);
    const auto command = Start(lie);
    EXPECT_TRUE(command->WaitUntil([&] { return command->errors().find("rng") != std::string::npos; }));
    EXPECT_NE(command->errors().find("given up"), std::string::npos) << command->errors();
    ExpectAlive(*command);
  }
}

TEST_F(LiarTest, ForbiddenCallIsNamed) {
  const auto command = Start("forbidden_call");
  EXPECT_TRUE(command->WaitUntil([&] { return command->errors().find("socket(0x1, 0x1, 0x0") != std::string::npos; }));
  EXPECT_NE(command->errors().find("rng"), std::string::npos) << command->errors();
  ExpectAlive(*command);
}

TEST_F(LiarTest, ForbiddenEffectsAreNotCarriedOut) {
  for (const char* lie : {"decode_for_a_read", "bar_over_memory", "bar_over_apic", "bar_beyond", "route_of_others"}) {
    SCOPED_TRACE(lie);
    ExpectAlive(*Start(lie));
  }
}

TEST_F(LiarTest, FloodsAndStormsAreContained) {
  for (const char* lie : {"storm", "flood", "endless_flood"}) {
    SCOPED_TRACE(lie);
    ExpectAlive(*Start(lie));
  }
}

}  // namespace
}  // namespace bulkhead::jail
