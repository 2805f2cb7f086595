// Ids and texts of a tokenizer for the strings on standard input, for
// tests/examples/compare_tokenizers.py.
//   tokenize_lines DIRECTORY < strings (a JSON string or pair a line) > {"ids", "type_ids", "text",
//   "text_with_special"} a line
#include <iostream>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/tokenizer.hpp>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const auto tokenizer = troupe::load_tokenizer(argv[1]);
    for (std::string line; std::getline(std::cin, line);) {
      const auto input = nlohmann::json::parse(line);
      const std::string first = input.is_array() ? input[0] : input;
      const std::string second = input.is_array() ? input[1] : "";
      const std::string_view firsts[] = {first}, seconds[] = {second};
      const troupe::EncodeOptions options{.type_ids = true};
      const auto batch = input.is_array() ? tokenizer->encode_batch(firsts, seconds, options)
                                          : tokenizer->encode_batch(firsts, options);
      const nlohmann::json out{{"ids", batch.ids},
                               {"type_ids", batch.type_ids},
                               {"text", tokenizer->decode(batch.ids)},
                               {"text_with_special", tokenizer->decode(batch.ids, false)}};
      std::cout << out.dump() << '\n';
    }
  } catch (const troupe::Failure& failure) {
    std::cerr << failure.what() << '\n';
    return 1;
  }
}
