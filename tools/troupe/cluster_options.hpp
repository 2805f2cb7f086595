#pragma once

#include "commands.hpp"

#include "cluster/operator_client.hpp"

#include <memory>
#include <string>

namespace troupe::tools {

/// Where the head is, and how an operator shows who it is.
struct HeadOptions {
  std::string head = "127.0.0.1:7077", certs, cert;
  double timeout = 5;
  bool insecure = false, json = false;

  void add_to(CLI::App& command);
  /// Throws Failure that says what to do.
  [[nodiscard]] std::unique_ptr<detail::OperatorClient> connect() const;
};

}  // namespace troupe::tools
