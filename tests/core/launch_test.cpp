#include <troupe/errors.hpp>
#include <troupe/launch.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <class Call>
std::string text_of(Call call) {
  try {
    (void)call();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

std::optional<LaunchTask> task(const std::map<std::string, std::string>& variables) {
  return task_from_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return {};
    return found->second;
  });
}

TEST(HostList, ExpandsRangesThatKeepTheirWidth) {
  EXPECT_THAT(expand_hosts("node[01-03,7]"), ElementsAre("node01", "node02", "node03", "node7"));
  EXPECT_THAT(expand_hosts("a,b-1.example.org,10.0.0.3"), ElementsAre("a", "b-1.example.org", "10.0.0.3"));
  EXPECT_THAT(expand_hosts("gpu[8-11]-ib,login"), ElementsAre("gpu8-ib", "gpu9-ib", "gpu10-ib", "gpu11-ib", "login"));
  EXPECT_THAT(expand_hosts("r[1-2]n[1,4]"), ElementsAre("r1n1", "r1n4", "r2n1", "r2n4"));
}

TEST(HostList, SaysWhereItIsWrong) {
  EXPECT_EQ(text_of([] { return expand_hosts("node[3-1]"); }), "host list 'node[3-1]', character 9: the range goes backwards");
  EXPECT_THAT(text_of([] { return expand_hosts("node[1"); }), HasSubstr("']' is missing"));
  EXPECT_THAT(text_of([] { return expand_hosts("a,,b"); }), HasSubstr("character 3: a host's name is missing"));
  EXPECT_THAT(text_of([] { return expand_hosts(""); }), HasSubstr("a host's name is missing"));
  EXPECT_THAT(text_of([] { return expand_hosts("a b"); }), HasSubstr("' ' does not belong here"));
  EXPECT_THAT(text_of([] { return expand_hosts("n[1-999999999]"); }), HasSubstr("more than 65536"));
  EXPECT_THAT(text_of([] { return expand_hosts("n[1-999][1-999]"); }), HasSubstr("more than 65536"));
  EXPECT_THAT(text_of([] { return expand_hosts("n[99999999999999999999]"); }), HasSubstr("too long"));
}

TEST(HostList, AnyBytesEndInHostsOrAFailure) {
  std::mt19937 random{1};
  const std::string alphabet = "ab01,[]-. \xff";
  for (int round = 0; round < 50'000; ++round) {
    std::string list;
    for (auto length = random() % 16; length > 0; --length) list += alphabet[random() % alphabet.size()];
    try {
      EXPECT_LE(expand_hosts(list).size(), 65'536U);
    } catch (const Failure&) {
    }
  }
}

TEST(LaunchTask, OfSrun) {
  std::map<std::string, std::string> slurm{{"SLURM_JOB_ID", "4711"},  {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"},          {"SLURM_LOCALID", "0"},
                                           {"SLURM_NODEID", "0"},     {"SLURM_NNODES", "3"},  {"SLURM_NTASKS", "6"}, {"SLURM_JOB_NODELIST", "node[01-03]"}};
  const auto first = task(slurm);
  EXPECT_EQ(role_of(*first), LaunchRole::Head);
  EXPECT_EQ(first->head_host, "node01");
  EXPECT_EQ(first->head_port, 24'711);
  EXPECT_EQ(first->num_nodes, 3);
  slurm["SLURM_PROCID"] = "2";
  slurm["SLURM_NODEID"] = "1";
  EXPECT_EQ(role_of(*task(slurm)), LaunchRole::Agent);
  slurm["SLURM_PROCID"] = "3";
  slurm["SLURM_LOCALID"] = "1";
  EXPECT_EQ(role_of(*task(slurm)), LaunchRole::Idle);
  slurm["SLURM_PROCID"] = "9";
  EXPECT_THAT(text_of([&] { return task(slurm); }), HasSubstr("task 9 of 6"));
  slurm.erase("SLURM_STEP_ID");
  EXPECT_THAT(text_of([&] { return task(slurm); }), HasSubstr("write 'srun --ntasks-per-node=1 troupe launch …'"));
}

TEST(LaunchTask, OfMpirun) {
  const auto open_mpi = task({{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                              {"SLURM_JOB_ID", "1"}});
  EXPECT_EQ(role_of(*open_mpi), LaunchRole::Agent);
  EXPECT_EQ(open_mpi->num_nodes, 2);
  EXPECT_EQ(open_mpi->node, 1);
  EXPECT_EQ(open_mpi->head_host, "");
  const auto mpich = task({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "1"}});
  EXPECT_EQ(mpich->node, 1);
  EXPECT_EQ(mpich->num_nodes, 2);
  EXPECT_THAT(text_of([] { return task({{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "3"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}); }),
              HasSubstr("every node needs the same number"));
}

TEST(LaunchTask, OfTorchrunAndAccelerate) {
  std::map<std::string, std::string> torch{{"RANK", "4"},        {"WORLD_SIZE", "8"},   {"LOCAL_RANK", "0"},    {"LOCAL_WORLD_SIZE", "4"},
                                           {"GROUP_RANK", "1"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}};
  const auto by_hand = task(torch);
  EXPECT_EQ(by_hand->launcher, "torchrun");
  EXPECT_EQ(role_of(*by_hand), LaunchRole::Agent);
  EXPECT_EQ(by_hand->num_nodes, 2);
  EXPECT_EQ(by_hand->head_port, 29'500);
  torch["TORCHELASTIC_RUN_ID"] = "none";
  torch["ACCELERATE_MIXED_PRECISION"] = "no";
  torch["SLURM_JOB_ID"] = "1";
  EXPECT_EQ(task(torch)->head_port, 29'501) << "its own store listens at 29500";
  EXPECT_EQ(task(torch)->launcher, "accelerate launch");
  torch["RANK"] = "one";
  EXPECT_THAT(text_of([&] { return task(torch); }), HasSubstr("RANK is 'one'"));
  EXPECT_FALSE(task({{"RANK", "1"}}).has_value());
}

TEST(LaunchTask, OfAHostList) {
  const std::vector<std::string> hosts{"a.example.org", "b", "10.0.0.3"};
  EXPECT_EQ(task_of_host(hosts, {"b.example.org", "b"}).node, 1);
  EXPECT_EQ(task_of_host(hosts, {"a"}).node, 0);
  EXPECT_EQ(task_of_host(hosts, {"c", "10.0.0.3"}).node, 2);
  EXPECT_THAT(text_of([&] { return task_of_host(hosts, {"d"}); }), HasSubstr("this host is none of a.example.org, b, 10.0.0.3; it goes by d"));
  EXPECT_THAT(text_of([&] { return task_of_host(hosts, {"a.other.org"}); }), HasSubstr("none of"));
}

TEST(LaunchText, AddressesAndAmounts) {
  EXPECT_EQ(parse_host_port("node-1:7077").port, 7077);
  EXPECT_EQ(parse_host_port("[::1]:0").host, "::1");
  for (const auto* wrong : {"", "host", ":1", "h:", "h:65536", "h:-1", "h:1x"}) EXPECT_THAT(text_of([&] { return parse_host_port(wrong); }), HasSubstr("write HOST:PORT")) << wrong;
  EXPECT_EQ(parse_bytes("512"), 512U);
  EXPECT_EQ(parse_bytes("1.5GiB"), 3ULL << 29);
  EXPECT_EQ(parse_bytes("64g"), 64ULL << 30);
  for (const auto* wrong : {"", "G", "-1", "1X", "1GG", "nan", "1e30"}) EXPECT_THAT(text_of([&] { return parse_bytes(wrong); }), HasSubstr("memory")) << wrong;
}

}  // namespace
}  // namespace troupe
