#include <algorithm>
#include <array>
#include <troupe/chat_format.hpp>
#include <troupe/errors.hpp>
#include <troupe/sequence_batching.hpp>
#include <troupe/tokenizer.hpp>

namespace troupe {
namespace {

constexpr std::string_view kSmolLm2System =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

std::string chatml(std::span<const ChatMessage> messages, bool smollm2, bool prompt) {
  std::string out;
  const auto add = [&](std::string_view role, std::string_view content) {
    out.append("<|im_start|>").append(role).append("\n").append(content).append("<|im_end|>\n");
  };
  if (smollm2 && (messages.empty() || messages.front().role != "system"))
    add("system", kSmolLm2System);
  for (const auto& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      refuse("a message has the role '" + message.role + "'; there are: system user assistant");
    add(message.role, message.content);
  }
  if (prompt) out += "<|im_start|>assistant\n";
  return out;
}

std::string_view stripped(std::string_view text) {
  constexpr std::string_view space = " \t\n\r\v\f";
  const auto begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(space) + 1 - begin);
}

std::string llama2(std::span<const ChatMessage> messages) {
  std::string out, system;
  if (!messages.empty() && messages.front().role == "system") {
    system = "<<SYS>>\n" + messages.front().content + "\n<</SYS>>\n\n";
    messages = messages.subspan(1);
  }
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string_view wanted = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != wanted)
      refuse("Llama-2's format takes turns, user first: message " + std::to_string(i) +
             " should be of the role '" + std::string(wanted) + "', not '" + messages[i].role +
             "'");
    const auto content = (i == 0 ? system : std::string()) + messages[i].content;
    if (i % 2 == 0) {
      out.append("<s>[INST] ").append(stripped(content)).append(" [/INST]");
    } else {
      out.append(" ").append(stripped(content)).append(" </s>");
    }
  }
  return out;
}

std::size_t common_prefix(const std::vector<std::int64_t>& a, const std::vector<std::int64_t>& b) {
  return static_cast<std::size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

ChatFormat recognize_chat_format(std::string_view jinja, std::string_view where) {
  const auto has = [&](std::string_view text) {
    return jinja.find(text) != std::string_view::npos;
  };
  const auto unknown = [&](const std::string& why) {
    throw Failure{
        Errc::Unsupported,
        std::string(where) + ": " + why +
            ". Jinja is not executed; the formats of ChatML, SmolLM2 and Llama-2 are known. "
            "Write the conversation as the model expects it and encode that text with "
            "add_special_tokens = false"};
  };
  if (stripped(jinja).empty()) unknown("there is no chat template");
  if (has("<|im_start|>") && has("<|im_end|>")) {
    for (const std::string_view more :
         {"tool", "think", "strip", "trim", "bos_token", "eos_token", "raise_exception"}) {
      if (has(more))
        unknown("the chat template is like ChatML, but does something with '" + std::string(more) +
                "'");
    }
    if (has(kSmolLm2System)) return ChatFormat::SmolLm2;
    if (has("You are") || has("assistant."))
      unknown("the chat template is like ChatML, but adds a system message of its own");
    return ChatFormat::ChatMl;
  }
  if (has("[INST]") && has("<<SYS>>") && has("bos_token") && has("strip()"))
    return ChatFormat::Llama2;
  unknown("the chat template is not a known one");
  return ChatFormat::ChatMl;
}

std::string format_chat(ChatFormat format, std::span<const ChatMessage> messages,
                        bool add_generation_prompt) {
  if (format != ChatFormat::Llama2)
    return chatml(messages, format == ChatFormat::SmolLm2, add_generation_prompt);
  if (add_generation_prompt && (messages.empty() || messages.back().role != "user"))
    refuse("Llama-2's format answers a user: the last message should be the user's");
  return llama2(messages);
}

LabeledTokens encode_chat(const Tokenizer& tokenizer, ChatFormat format,
                          std::span<const ChatMessage> messages) {
  const EncodeOptions options{.add_special_tokens = false};
  LabeledTokens out;
  out.ids = tokenizer.encode(format_chat(format, messages), options);
  out.labels.assign(out.ids.size(), kIgnoredLabel);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    auto answered = format_chat(format, messages.first(i + 1));
    if (answered.ends_with('\n'))
      answered.pop_back();  // ChatML's line break comes after the token that ends the answer
    const auto begin = common_prefix(
        out.ids, tokenizer.encode(format_chat(format, messages.first(i), true), options));
    const auto end = common_prefix(out.ids, tokenizer.encode(answered, options));
    for (auto at = begin; at < end; ++at) out.labels[at] = out.ids[at];
  }
  return out;
}

std::string format_completion_prompt(std::string_view question, const CompletionTags& tags) {
  return tags.question_begin + std::string(question) + tags.question_end + tags.answer_begin;
}

std::string format_completion(std::string_view question, std::string_view answer,
                              const CompletionTags& tags) {
  return format_completion_prompt(question, tags) + std::string(answer) + tags.answer_end;
}

LabeledTokens encode_completion(const Tokenizer& tokenizer, std::string_view prompt,
                                std::string_view answer, std::size_t max_length) {
  LabeledTokens out;
  const auto whole = std::string(prompt) + std::string(answer);
  out.ids = tokenizer.encode(whole, {.max_length = max_length});
  out.labels = mask_prompt(out.ids, common_prefix(out.ids, tokenizer.encode(prompt)));
  return out;
}

}  // namespace troupe
