#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/post_mortem.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>

namespace troupe {
namespace {

using testing::HasSubstr;
using testing::Not;

PostMortem killed() {
  PostMortem page;
  page.run_name = "mine";
  page.attempt = 2;
  page.node = "node-a";
  page.world_size = 4;
  page.placement = "processes";
  page.time_s = 12.34;
  page.date = "2026-03-01 12:00:00 UTC";
  page.error.code = Errc::RankKilled;
  page.error.rank = 1;
  page.error.pid = 4711;
  page.error.signal = 9;
  page.error.step = 12;
  page.error.message = "the process of rank 1 was killed by signal 9 (SIGKILL)";
  page.error.last_lines = {"loss 0.5", "loss 0.4"};
  page.error.details = "  #0 forward+0x1 in train+0x2\n";
  page.goes_on = true;
  page.decision = "failure 1 of 3";
  page.resumes_from = "checkpoint_000003";
  page.lost_steps = 2;
  return page;
}

TEST(PostMortem, SaysWhoWhereWhatIsLostAndWhatToDo) {
  const auto text = to_markdown(killed());
  EXPECT_THAT(text, HasSubstr("# mine, attempt 2: RankKilled\n"));
  EXPECT_THAT(text, HasSubstr("rank 1 (process 4711 on node-a), after step 12: the process of rank 1 was killed by signal 9 (SIGKILL)."));
  EXPECT_THAT(text, HasSubstr("4 ranks as processes on node-a, 12.3 s after the run began"));
  EXPECT_THAT(text, HasSubstr("Training goes on from checkpoint_000003. 2 steps are done again."));
  EXPECT_THAT(text, HasSubstr("Another attempt: failure 1 of 3."));
  EXPECT_THAT(text, HasSubstr("look at the machine's log"));
  EXPECT_THAT(text, HasSubstr("loss 0.5\nloss 0.4\n```"));
  EXPECT_THAT(text, HasSubstr("#0 forward+0x1 in train+0x2"));
  const auto head = text.substr(0, text.find("\n## "));
  EXPECT_LE(std::count(head.begin(), head.end(), '\n'), 12);
}

TEST(PostMortem, SaysWhatItDoesNotKnow) {
  auto page = killed();
  page.goes_on = false;
  page.resumes_from.reset();
  page.lost_steps.reset();
  page.error.rank.reset();
  page.error.details.clear();
  const auto text = to_markdown(page);
  EXPECT_THAT(text, HasSubstr("The next start goes on from the beginning: nothing had been kept. Steps after it are done again."));
  EXPECT_THAT(text, HasSubstr("The run ends: failure 1 of 3."));
  EXPECT_THAT(text, HasSubstr("**What happened.** the process of rank 1"));
  EXPECT_THAT(text, Not(HasSubstr("What it was at")));
}

TEST(PostMortem, KeepsWhatRanksPrintInsideItsBlock) {
  auto page = killed();
  page.error.last_lines = {"```", "# no heading"};
  EXPECT_THAT(to_markdown(page), HasSubstr("````text\n```\n# no heading\n````\n"));
}

TEST(PostMortem, CutsLongDetailsOnThePageOnly) {
  auto page = killed();
  page.error.details = "first\n" + std::string(100'000, 'x') + "\nlast\n";
  const auto text = to_markdown(page);
  EXPECT_LT(text.size(), 30'000u);
  EXPECT_THAT(text, HasSubstr("first"));
  EXPECT_THAT(text, HasSubstr("last"));
  EXPECT_EQ(to_json(page)["error"]["details"].get<std::string>().size(), page.error.details.size());
}

TEST(PostMortem, IsTheSameAsJson) {
  const auto json = to_json(killed());
  EXPECT_EQ(json["attempt"], 2);
  EXPECT_EQ(json["error"]["rank"], 1);
  EXPECT_EQ(json["error"]["pid"], 4711);
  EXPECT_EQ(json["error"]["name"], "RankKilled");
  EXPECT_EQ(json["lost_steps"], 2);
  EXPECT_EQ(json["resumes_from"], "checkpoint_000003");
  EXPECT_FALSE(json["advice"].get<std::string>().empty());
  EXPECT_EQ(post_mortem_name(2), "postmortem_2");
}

}  // namespace
}  // namespace troupe
