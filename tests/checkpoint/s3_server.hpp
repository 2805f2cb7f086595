#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <troupe/s3.hpp>
#include <vector>

namespace troupe {

/// A real S3-speaking server (rclone serve s3) on loopback: buckets are folders of `root`, and outlive it.
class S3Server {
 public:
  /// Why there is none here; empty when there is.
  static std::string missing() {
    std::error_code error;
    if (!std::filesystem::exists(program(), error)) return "no S3 server here: tools/bootstrap storage fetches one";
    return "";
  }

  explicit S3Server(std::filesystem::path root) : root_(std::move(root)), port_(free_port()) {
    use_key("key", "open sesame");
    ::setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
    ::setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required", 1);  // rclone takes no checksum trailers
    start();
  }
  ~S3Server() { kill(); }
  S3Server(const S3Server&) = delete;
  S3Server& operator=(const S3Server&) = delete;

  /// What this process says it is, from the next store that it opens on.
  static void use_key(const std::string& key, const std::string& secret) {
    ::setenv("AWS_ACCESS_KEY_ID", key.c_str(), 1);
    ::setenv("AWS_SECRET_ACCESS_KEY", secret.c_str(), 1);
  }
  void make_bucket(const std::string& name) const { std::filesystem::create_directories(root_ / name); }
  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::string url(const std::string& bucket_and_prefix) const { return "s3://" + bucket_and_prefix + "?endpoint_override=" + endpoint(); }
  const std::filesystem::path& root() const { return root_; }

  void start() {
    const auto address = "127.0.0.1:" + std::to_string(port_);
    // The shell kills the server when this process closes its end of the pipe, also by dying.
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error{"no pipe"};
    alive_ = ends[1];
    std::vector<std::string> words{"sh", "-c", "\"$0\" \"$@\" </dev/null & read -r line; kill -9 $!; wait", program(), "serve", "s3", "--config", "", "--addr", address, "--auth-key", "key,open sesame", root_.string()};
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const auto log = root_.string() + ".log";
    posix_spawn_file_actions_adddup2(&actions, ends[0], 0);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    const int failed = ::posix_spawnp(&pid_, "sh", &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[0]);
    if (failed != 0) throw std::runtime_error{"cannot start the S3 server"};
    for (int i = 0; i < 1000 && !answers(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds{10});
    if (!answers()) throw std::runtime_error{"the S3 server does not come up; see " + log};
  }
  void kill() {
    if (pid_ <= 0) return;
    ::close(alive_);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  static std::string program() {
    const char* path = std::getenv("TROUPE_RCLONE");
    return path ? path : TROUPE_TEST_RCLONE;
  }
  static sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    return address;
  }
  static int free_port() {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    auto address = loopback(0);
    socklen_t length = sizeof address;
    ::bind(fd, reinterpret_cast<sockaddr*>(&address), length);
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
    ::close(fd);
    return ntohs(address.sin_port);
  }
  bool answers() const {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const auto address = loopback(port_);
    const bool connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    ::close(fd);
    return connected;
  }

  std::filesystem::path root_;
  int port_;
  pid_t pid_ = 0;
  int alive_ = -1;  // our end of the pipe
};

}  // namespace troupe
