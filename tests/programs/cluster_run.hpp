#pragma once

#include <troupe/cluster.hpp>
#include <troupe/torch_trainer.hpp>

namespace troupe::test {

/// `main` of a program that trains on a cluster's nodes, or on this host, and prints "update N loss L attempt A" for every update, the digest that
/// ranks report, and how it ended. `train` is given its options as configuration.
int cluster_main(int argc, char** argv, const char* program, const TrainFunction& train);

}  // namespace troupe::test
