#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/upload_queue.hpp>

namespace troupe {
namespace {

using Kind = UploadJob::Kind;
using testing::ElementsAre;
using testing::IsEmpty;

class UploadQueueTest : public testing::Test {
 protected:
  UploadQueue queue_;

  /// Carries out all jobs; says what they were.
  std::vector<std::string> run(bool uploads_work = true) {
    std::vector<std::string> done;
    while (const auto job = queue_.next()) {
      const char* verbs[] = {"upload ", "remove ", "put ", "take away "};
      done.push_back(verbs[static_cast<int>(job->kind)] + (job->file.empty() ? std::to_string(job->index) : job->file));
      (void)queue_.ended(job->kind != Kind::Upload || uploads_work);
    }
    return done;
  }
  /// Until the upload of a checkpoint is under way.
  void begin_upload() {
    for (;;) {
      const auto job = queue_.next();
      ASSERT_TRUE(job);
      if (job->kind == Kind::Upload) return;
      (void)queue_.ended(true);
    }
  }
};

TEST_F(UploadQueueTest, UploadsReportsBeforeTheCheckpointTheyTellOf) {
  queue_.add(1);
  EXPECT_THAT(run(), ElementsAre("put reports.jsonl", "upload 1"));
  EXPECT_TRUE(queue_.idle());
}

TEST_F(UploadQueueTest, PutsAFileThatWaitsOnceOnly) {
  queue_.add(1);
  queue_.add(2);
  EXPECT_THAT(run(), ElementsAre("upload 1", "put reports.jsonl", "upload 2"));
}

TEST_F(UploadQueueTest, DoesOneJobAtATime) {
  queue_.add(1);
  EXPECT_TRUE(queue_.next());
  EXPECT_FALSE(queue_.next());
  EXPECT_FALSE(queue_.idle());
}

TEST_F(UploadQueueTest, RemovesAnOldCheckpointAfterTheNewOneIsUploaded) {
  queue_.add(1);
  (void)run();
  queue_.add(2);
  EXPECT_TRUE(queue_.doom(1));
  EXPECT_THAT(run(), ElementsAre("put reports.jsonl", "upload 2", "remove 1"));
}

TEST_F(UploadQueueTest, KeepsTheOldCheckpointWhileTheNewOneCannotBeUploaded) {
  queue_.add(1);
  (void)run();
  queue_.add(2);
  (void)queue_.doom(1);
  EXPECT_THAT(run(false), ElementsAre("put reports.jsonl", "upload 2"));
  EXPECT_THAT(queue_.failed(), ElementsAre(2));
  queue_.add(3);
  EXPECT_TRUE(queue_.doom(2));  // never was in the store
  EXPECT_THAT(run(), ElementsAre("put reports.jsonl", "upload 3", "remove 1"));
  EXPECT_THAT(queue_.failed(), IsEmpty());
}

TEST_F(UploadQueueTest, DoesNotUploadWhatRetentionHasDoneWith) {
  queue_.add(1);
  queue_.add(2);
  EXPECT_TRUE(queue_.doom(1));
  EXPECT_THAT(run(), ElementsAre("put reports.jsonl", "upload 2"));
}

TEST_F(UploadQueueTest, HoldsTheDirectoryThatIsBeingUploaded) {
  queue_.add(1);
  begin_upload();
  queue_.add(2);
  EXPECT_FALSE(queue_.doom(1));
  EXPECT_THAT(queue_.ended(true), ElementsAre(1));
  EXPECT_THAT(run(), ElementsAre("put reports.jsonl", "upload 2", "remove 1"));
}

TEST_F(UploadQueueTest, RemovesACheckpointThatAnEarlierRunUploaded) {
  queue_.know(1);
  queue_.add(2);
  EXPECT_TRUE(queue_.doom(1));
  EXPECT_THAT(run(), ElementsAre("put reports.jsonl", "upload 2", "remove 1"));
}

TEST_F(UploadQueueTest, GivesUpWhatHasNotBegun) {
  queue_.add(1);
  queue_.add(2);
  begin_upload();
  EXPECT_EQ(queue_.give_up(), 1);
  EXPECT_FALSE(queue_.idle());
  (void)queue_.ended(false);
  EXPECT_TRUE(queue_.idle());
}

}  // namespace
}  // namespace troupe
