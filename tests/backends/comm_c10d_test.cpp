// Communicators as c10d backends, c10d backends as Communicators.
#include <troupe/c10d.hpp>
#include <troupe/local_groups.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <functional>
#include <thread>

namespace troupe {
namespace {

void on_two_ranks(const std::function<void(std::shared_ptr<Communicator>)>& body) {
  auto seats = make_thread_group(2, std::chrono::seconds{20});
  std::thread other([&] { body(std::move(seats[1])); });
  body(std::move(seats[0]));
  other.join();
}

TEST(C10d, AProcessGroupRunsOnACommunicator) {
  on_two_ranks([](std::shared_ptr<Communicator> seat) {
    const int rank = seat->rank();
    const auto group = as_c10d_process_group(std::move(seat));
    std::vector<at::Tensor> sum{at::full({5, 3}, rank + 1.0)};
    group->allreduce(sum)->wait();
    EXPECT_EQ(sum[0].sum().item<double>(), 45.0);
    std::vector<at::Tensor> news{at::full({4}, rank)};
    group->broadcast(news, {.rootRank = 1})->wait();
    EXPECT_EQ(news[0].sum().item<double>(), 4.0);
    std::vector<at::Tensor> mine{at::full({2}, rank)};
    std::vector<std::vector<at::Tensor>> all{{at::empty({2}), at::empty({2})}};
    group->allgather(all, mine)->wait();
    EXPECT_EQ(all[0][1].sum().item<double>(), 2.0);
    auto flat = at::arange(8, at::kFloat), part = at::empty({4});
    group->_reduce_scatter_base(part, flat)->wait();
    EXPECT_EQ(part[0].item<float>(), rank == 0 ? 0.0F : 8.0F);
    group->barrier()->wait();
  });
}

TEST(C10d, ACommunicatorRunsOnAC10dBackend) {
  on_two_ranks([](std::shared_ptr<Communicator> seat) {
    const int rank = seat->rank();
    const auto group = as_communicator(as_c10d_backend(std::move(seat)), "roundabout", std::chrono::seconds{20});
    std::vector<float> values(1000, static_cast<float>(rank + 1));
    ASSERT_TRUE(group->all_reduce({values.data(), 4000, DType::F32}, ReduceOp::Mean).wait().ok());
    EXPECT_EQ(values, std::vector<float>(1000, 1.5F));
    std::vector<float> whole(2000);
    ASSERT_TRUE(group->all_gather(Buffer{values.data(), 4000, DType::F32}, {whole.data(), 8000, DType::F32}).wait().ok());
    EXPECT_EQ(whole, std::vector<float>(2000, 1.5F));
    ASSERT_TRUE(group->barrier().wait().ok());
  });
}

TEST(C10d, TorchsOwnReducerRunsOnACommunicator) {
  on_two_ranks([](std::shared_ptr<Communicator> seat) {
    const int rank = seat->rank();
    const auto group = as_c10d_process_group(std::move(seat));
    std::vector<at::Tensor> parameters{at::ones({3}).requires_grad_(), at::ones({3}).requires_grad_()};
    c10d::verify_params_across_processes(group, parameters, std::nullopt);
    c10d::Reducer reducer(parameters, {{1}, {0}}, group, {false, false}, 1 << 20, false, true, {{0, "a"}, {1, "b"}}, 1 << 20, false,
                          false, {});
    for (int step = 0; step < 3; ++step) {
      reducer.prepare_for_forward();
      (void)reducer.rebuild_buckets();
      const auto loss = (parameters[0] * parameters[1] * (rank + 1.0)).sum();
      reducer.prepare_for_backward({});
      loss.backward();
      EXPECT_TRUE(at::equal(parameters[0].grad(), at::full({3}, 1.5))) << "the mean of 1 and 2";
      for (auto& parameter : parameters) parameter.mutable_grad().zero_();
    }
  });
}

}  // namespace
}  // namespace troupe
