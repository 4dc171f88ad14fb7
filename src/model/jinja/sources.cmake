# Chat templates, included by src/model/CMakeLists.txt. Needs json_file.cc of model_files and utf8.cc of the tokenizer.
rarefy_add_module(chat_template
  chat_template.cc chat_template_files.cc jinja/arguments.cc jinja/budget.cc jinja/characters.cc jinja/evaluate.cc
  jinja/expression_parser.cc jinja/filters.cc jinja/interpreter.cc jinja/json_values.cc jinja/lexer.cc jinja/loop.cc
  jinja/methods.cc jinja/operators.cc jinja/parser.cc jinja/printing.cc jinja/sequence_filters.cc jinja/string_literal.cc
  jinja/tests.cc jinja/text_filters.cc jinja/value.cc)
target_link_libraries(rarefy_chat_template PUBLIC nlohmann_json::nlohmann_json PRIVATE PkgConfig::utf8proc fmt::fmt-header-only)
