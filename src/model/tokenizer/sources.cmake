# The tokenizer, included by src/model/CMakeLists.txt. Needs json_file.cc of model_files.
rarefy_add_module(tokenizer
  tokenizer/added_tokens.cc tokenizer/bpe.cc tokenizer/bpe_json.cc tokenizer/byte_level.cc
  tokenizer/character_class.cc tokenizer/character_pairs.cc tokenizer/decoder.cc tokenizer/fields.cc
  tokenizer/known_patterns.cc tokenizer/nfc.cc tokenizer/normalizer.cc tokenizer/pattern.cc
  tokenizer/piece_encoder.cc tokenizer/post_processor.cc tokenizer/pre_tokenizer.cc tokenizer/regex.cc
  tokenizer/regex_syntax.cc tokenizer/split.cc tokenizer/tokenizer.cc tokenizer/utf8.cc)
target_link_libraries(rarefy_tokenizer PUBLIC nlohmann_json::nlohmann_json PRIVATE PkgConfig::pcre2 PkgConfig::utf8proc)
