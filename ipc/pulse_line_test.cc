// SPDX-License-Identifier: Apache-2.0
#include "ipc/pulse_line.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace bulkhead {
namespace {

TEST(PulseLineTest, OneAnswerToAllQuestions) {
  const PulseLine line = PulseLine::Make();
  EXPECT_FALSE(line.TakeAnswer());
  line.Ask();
  line.Ask();
  pollfd question{line.answering.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&question, 1, 0), 1);
  AnswerPulse(line.answering, 3);
  EXPECT_EQ(::poll(&question, 1, 0), 0);
  EXPECT_EQ(line.TakeAnswer(), 3u);
  EXPECT_FALSE(line.TakeAnswer());
}

TEST(PulseLineTest, ThePeerCannotMakeTheBrokerWait) {
  const PulseLine line = PulseLine::Make();
  // Flags are those of the socket, which both holders have where the broker keeps the end for a successor.
  for (const OwnFd* end : {&line.asking, &line.answering}) ASSERT_EQ(::fcntl(end->get(), F_SETFL, 0), 0);
  EXPECT_FALSE(line.TakeAnswer());
  for (int i = 0; i < 10'000; ++i) EXPECT_TRUE(line.Ask());
}

TEST(PulseLineTest, AFloodIsTakenAway) {
  const PulseLine line = PulseLine::Make();
  const uint32_t answer = 7;
  int sent = 0;
  while (::write(line.answering.get(), &answer, sizeof answer) > 0) ++sent;
  ASSERT_GT(sent, 100);
  EXPECT_EQ(line.TakeAnswer(), 7u);
  EXPECT_FALSE(line.TakeAnswer());
}

TEST(PulseLineTest, ALineThatWasShutDownTellsOfNoHang) {
  for (const int how : {SHUT_RD, SHUT_WR, SHUT_RDWR}) {
    const PulseLine line = PulseLine::Make();
    ASSERT_EQ(::shutdown(line.answering.get(), how), 0);
    EXPECT_TRUE(!line.Ask() || line.TakeAnswer() == 0u) << how;
  }
}

TEST(PulseLineTest, EmptyMessagesHideNoAnswer) {
  const PulseLine line = PulseLine::Make();
  int sent = 0;
  while (::send(line.answering.get(), "", 0, MSG_DONTWAIT) == 0) ++sent;
  ASSERT_GT(sent, 100);
  EXPECT_EQ(line.TakeAnswer(), 0u);
  EXPECT_FALSE(line.TakeAnswer());
  ASSERT_EQ(::send(line.answering.get(), "", 0, MSG_DONTWAIT), 0);
  AnswerPulse(line.answering, 2);
  ASSERT_EQ(::send(line.answering.get(), "", 0, MSG_DONTWAIT), 0);
  EXPECT_EQ(line.TakeAnswer(), 2u);
}

TEST(PulseLineTest, WhatIsNoAnswerIsNone) {
  const PulseLine line = PulseLine::Make();
  ASSERT_EQ(::write(line.answering.get(), "a", 1), 1);
  EXPECT_FALSE(line.TakeAnswer());
  const char longer[100] = {};
  ASSERT_EQ(::write(line.answering.get(), longer, sizeof longer), 100);
  EXPECT_EQ(line.TakeAnswer(), 0u);
}

}  // namespace
}  // namespace bulkhead
