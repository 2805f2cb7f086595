#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "added_tokens.hpp"
#include "post_processor.hpp"
#include "pretrained_config.hpp"

namespace troupe::detail {

/// What tokenizers out of files have in common: roles, added tokens, what is put round a text,
/// truncation.
class PretrainedTokenizer : public Tokenizer {
 public:
  [[nodiscard]] std::optional<std::int64_t> token_to_id(std::string_view token) const final;
  [[nodiscard]] std::string id_to_token(std::int64_t id) const final;
  [[nodiscard]] std::size_t vocab_size() const noexcept final;
  [[nodiscard]] const SpecialTokens& special_tokens() const noexcept final {
    return config_.tokens;
  }
  [[nodiscard]] bool is_special(std::int64_t id) const noexcept final;
  std::size_t add_special_tokens(const SpecialTokens& tokens) final;
  [[nodiscard]] const std::string& chat_template() const noexcept final {
    return config_.chat_template;
  }
  [[nodiscard]] std::optional<std::size_t> model_max_length() const noexcept final {
    return config_.model_max_length;
  }

 protected:
  explicit PretrainedTokenizer(PretrainedConfig config) : config_(std::move(config)) {}

  void append(std::string_view first, const std::string_view* second, const EncodeOptions& options,
              TokenBatch& out) const final;

  /// Ids of one text without what is put round it.
  virtual void append_ids(std::string_view text, std::vector<std::int64_t>& out) const = 0;
  /// Of the model alone, without added tokens.
  [[nodiscard]] virtual std::optional<std::int64_t> model_id(std::string_view token) const = 0;
  [[nodiscard]] virtual std::optional<std::string> model_token(std::int64_t id) const = 0;
  [[nodiscard]] virtual std::size_t model_size() const noexcept = 0;   ///< largest id + 1
  [[nodiscard]] virtual std::size_t model_count() const noexcept = 0;  ///< tokens
  /// Added tokens changed.
  virtual void prepare_added() = 0;

  /// The id a token has, or will have once added.
  [[nodiscard]] std::int32_t id_for(std::string_view content) const;
  /// Added tokens of tokenizer_config.json and added_tokens.json, then those that have a role; as
  /// transformers does.
  void add_configured_tokens();
  /// add_bos_token and add_eos_token, where they are said or nothing else says what is put round a
  /// text.
  void apply_bos_eos(bool has_post_processor);

  PretrainedConfig config_;
  AddedTokens added_;
  Template template_ = Template::plain();

 private:
  bool make_special(const std::string& content);  // true when it is new
};

/// Things that one thread at a time uses and that are costly to make.
///
/// Threads: any number; each lease is one thread's.
template <class T>
class Pool {
 public:
  class Lease {
   public:
    Lease(Pool& pool, std::unique_ptr<T> thing) : pool_(pool), thing_(std::move(thing)) {}
    ~Lease() {
      const std::lock_guard lock{pool_.mutex_};
      pool_.idle_.push_back(std::move(thing_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    T& operator*() { return *thing_; }
    T* operator->() { return thing_.get(); }

   private:
    Pool& pool_;
    std::unique_ptr<T> thing_;
  };

  [[nodiscard]] Lease take() {
    std::unique_ptr<T> thing;
    {
      const std::lock_guard lock{mutex_};
      if (!idle_.empty()) {
        thing = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    return {*this, thing ? std::move(thing) : std::make_unique<T>()};
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace troupe::detail
