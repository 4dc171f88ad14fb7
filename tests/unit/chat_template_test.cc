// Chat templates: limits against templates that mean harm, errors with line and reason, and where a folder keeps its template.
#include "rarefy/model/chat_template.h"

#include <gtest/gtest.h>

#include <string>

#include "model/jinja/budget.h"
#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

using testing::TemporaryFolder;

const ChatMessage hello[] = {{.role = "user", .content = "Hello"}};

Expected<std::string> render(std::string_view source, const ChatOptions& options = {},
                             std::span<const ChatMessage> messages = hello) {
  const auto chat = ChatTemplate::parse(source, {{"bos_token", "<s>"}});
  if (!chat) return chat.status();
  return chat->render(messages, options);
}

std::string error_of(std::string_view source) {
  const auto result = render(source);
  EXPECT_FALSE(result.has_value()) << source;
  return result.status().message();
}

// Templates that would run or grow for very long. Each must end with resource_exhausted at the default limits.
constexpr const char* kHarmful[] = {
    // Loops
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% if false %}{% endif %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000000) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% set x = [0] * 100000 %}{% for a in x %}{% for b in x %}{{ x == x + [1] }}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000)|sum }}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000)|sort|list|unique|list }}{% endfor %}",
    "{{ range(100000)|map('string')|unique|list }}",
    "{% macro m(n) %}{% for i in range(100) %}{{ m(n) if n > 0 else '' }}{% endfor %}{% endmacro %}{{ m(1) }}{{ m(1000) }}",
    "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    // Repetition
    "{{ ('a' * 1000) * 1000000 }}",
    "{{ 1000000000000000000 * 'abc' }}",
    "{{ [1] * 1000000000 }}",
    "{{ ([1] * 1000) * 9223372036854775807 }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000) }}",
    "{{ ('a' * 1000000)|list }}",
    "{% for c in ('a' * 1000) * 10000 %}{% endfor %}",
    "{{ ('a' * 4000)|join('b' * 4000) }}",
    "{{ ('b' * 4000).join(('a' * 4000)|list) }}",
    "{{ ('\\n' * 1000000)|indent(100, true, true) }}",
    "{{ 'a'|indent(9000000000) }}",
    "{{ ([1] * 10000)|tojson(indent=' ' * 100000) }}",
    "{{ (('a' * 1000) * 9000) }}",
    "{% set x = 'a' * 1000000 %}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}",
    // Growth
    "{% set ns = namespace(s='a') %}{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(1000) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(1000) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
    "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] "
    "%}"
    "{% endfor %}{{ ns.s == ns.t }}",
    "{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = ns.s + [i] %}{% endfor %}",
    "{% set s = ('a' * 1000) * 20000 %}{% for i in range(1000) %}{% set t = s ~ 'b' %}{% endfor %}",
    "{% set s = ('a' * 1000) * 10000 %}{% for i in range(1000) %}{% set t = s|upper %}{% endfor %}",
    "{% set s = ('a' * 1000) * 10000 %}{% for i in range(1000) %}{{ s|length }}{% endfor %}",
    "{% set s = ('a' * 1000) * 10000 %}{% for i in range(1000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
    "{% set s = (' ' * 1000) * 10000 %}{% for i in range(1000) %}{% if s|trim %}{% endif %}{% endfor %}",
    "{% set a = ('a' * 1000) * 8000 %}{% set b = (('a' * 1000) * 4000) ~ 'b' %}{% for i in range(100) %}{% if b in a %}{% "
    "endif %}{% endfor %}",
    "{% set a = ('a' * 1000) * 8000 %}{% set b = 'b' ~ (('a' * 1000) * 4000) %}{{ a.rsplit(b, 1)|length }}",
    "{% set a = ('a' * 1000) * 4000 %}{% set b = 'b' ~ (('a' * 1000) * 2000) %}{{ a.rpartition(b)|length }}",
    "{% set a = ('a' * 1000) * 4000 %}{{ a.strip('bcdefghijk' * 100000) }}",
    "{% for i in range(100000) %}{% set x = namespace(a=1) %}{% endfor %}{% for i in range(100000) %}{% set x = "
    "namespace(a=1) "
    "%}{% endfor %}",
    "{% set ns = namespace() %}{% for i in range(100000) %}{% set ns.last = loop %}{% set ns.all = [ns.all, loop] %}{% "
    "endfor %}",
    // Depth
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{% set x %}{{ a() }}{% endset %}{% endmacro %}{{ a() }}",
    "{% macro m(x=m()) %}{% endmacro %}{{ m() }}",
};

TEST(ChatTemplateLimits, HarmfulTemplatesEnd) {
  for (const char* source : kHarmful) {
    const auto result = render(source);
    if (result.has_value()) {
      ADD_FAILURE() << source << "\nrendered " << result->size() << " bytes";
      continue;
    }
    EXPECT_EQ(result.status().code(), StatusCode::resource_exhausted) << source << "\n" << result.status().to_string();
    EXPECT_NE(result.status().message().find("chat template, line 1: "), std::string::npos) << result.status().message();
  }
}

TEST(ChatTemplateLimits, DeepSourcesAreRefused) {
  const auto repeat = [](std::string_view piece, int32_t count) {
    std::string text;
    for (int32_t i = 0; i < count; ++i) text += piece;
    return text;
  };
  for (const std::string& source :
       {"{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}",
        "{{ " + repeat("[", 100000) + repeat("]", 100000) + " }}", "{{ " + repeat("not ", 100000) + "1 }}",
        "{{ " + repeat("-", 100000) + "1 }}", "{{ 1" + repeat(" + 1", 100000) + " }}",
        "{{ x" + repeat(".a", 100000) + " }}", "{{ x" + repeat("[0]", 100000) + " }}",
        "{{ x" + repeat("()", 100000) + " }}", "{{ x" + repeat("|string", 100000) + " }}",
        "{{ " + repeat("1 if 1 else ", 50000) + "1 }}", "{{ " + repeat("{1:", 100000) + "1" + repeat("}", 100000) + " }}",
        "{{ 1" + repeat(" ** 1", 100000) + " }}", repeat("{% if 1 %}", 50000), repeat("{% for i in [1] %}", 50000),
        "{% set " + repeat("(", 100000) + "x" + repeat(")", 100000) + " = 1 %}",
        "{{ 'a'" + repeat(" is eq(1", 50000) + repeat(")", 50000) + " }}"}) {
    const auto chat = ChatTemplate::parse(source);
    ASSERT_FALSE(chat.has_value()) << source.substr(0, 60);
    EXPECT_EQ(chat.status().code(), StatusCode::resource_exhausted) << source.substr(0, 60) << chat.status().message();
  }
  // Wide is not deep.
  EXPECT_TRUE(render("{{ 1" + repeat(" and 1", 20000) + " }}{{ [" + repeat("1,", 20000) + "]|length }}").has_value());
  EXPECT_FALSE(ChatTemplate::parse(std::string((1 << 20) + 1, 'a')).has_value());
}

TEST(ChatTemplateLimits, AreThoseOfTheOptions) {
  const auto outcome = [](std::string_view source, const ChatTemplateLimits& limits) {
    ChatOptions options;
    options.limits = limits;
    const auto result = render(source, options);
    return result.has_value() ? StatusCode::ok : result.status().code();
  };
  const char* loop = "{% for i in range(100) %}{% if i == 1 %}{% endif %}{% endfor %}";  // some 600 steps
  EXPECT_EQ(outcome(loop, {.max_steps = 1500}), StatusCode::ok);
  EXPECT_EQ(outcome(loop, {.max_steps = 400}), StatusCode::resource_exhausted);
  EXPECT_EQ(outcome("{{ 'a' * 1000 }}", {.max_output_bytes = 1000}), StatusCode::ok);
  EXPECT_EQ(outcome("{{ 'a' * 1001 }}", {.max_output_bytes = 1000}), StatusCode::resource_exhausted);
  EXPECT_EQ(outcome("{% set x = 'a' * 10000 %}", {.max_value_bytes = 12000}), StatusCode::ok);
  EXPECT_EQ(outcome("{% set x = 'a' * 12000 %}", {.max_value_bytes = 12000}), StatusCode::resource_exhausted);
  // Bytes that are no longer held do not count.
  EXPECT_EQ(outcome("{% for i in range(20) %}{% set x = 'a' * 10000 %}{% endfor %}", {.max_value_bytes = 14000}),
            StatusCode::ok);
}

TEST(ChatTemplateLimits, ALongConversationFits) {
  std::vector<ChatMessage> messages;
  for (int32_t i = 0; i < 2000; ++i)
    messages.push_back({.role = i % 2 == 0 ? "user" : "assistant", .content = std::string(1000, 'x')});
  const auto result = render(
      "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif "
      "%}"
      "{{ '<|' + m['role'] + '|>' + m['content']|trim + '<|end|>' }}{% endfor %}",
      {}, messages);
  ASSERT_TRUE(result.has_value()) << result.status().to_string();
  EXPECT_GT(result->size(), 2'000'000u);
}

TEST(ChatTemplateSandbox, AttributeTricksAreErrors) {
  for (const char* source :
       {"{{ ''.__class__ }}", "{{ ''['__class__'] }}", "{{ messages.__class__.__mro__ }}", "{{ (1).__class__ }}",
        "{{ none.__class__ }}", "{{ raise_exception.__globals__ }}", "{{ ''.join.__self__ }}", "{% set x = ''.__doc__ %}",
        "{{ ['']|map(attribute='__class__')|list }}", "{{ [1]|map(attribute='__class__')|list }}",
        "{{ [1]|selectattr('__class__.__name__')|list }}", "{{ loop.__init__ if loop is defined else range.__init__ }}",
        "{{ namespace.__init__ }}", "{{ {}.__class__ }}", "{{ {'a': 1}|sort(attribute='__class__') }}"}) {
    const auto result = render(source);
    ASSERT_FALSE(result.has_value()) << source << " gave '" << *result << "'";
    EXPECT_NE(result.status().message().find("is not allowed"), std::string::npos) << result.status().message();
  }
  // A member of a dict may have any name.
  EXPECT_EQ(*render("{{ {'__class__': 5}.__class__ }}"), "5");
  for (const char* source :
       {"{{ [1].append(2) }}", "{{ messages.clear() }}", "{{ messages[0].update({}) }}", "{{ {}.pop(1) }}"}) {
    EXPECT_NE(error_of(source).find("unsafe"), std::string::npos) << source;
  }
}

TEST(ChatTemplateSandbox, LoopsThatAreOverAreHarmless) {
  const char* source =
      "{% set ns = namespace() %}{% for i in [1, 2, 3] if i != 2 %}{% set ns.l = loop %}{% endfor %}{{ ns.l.index }}{{ "
      "ns.l.last }}"
      "{{ ns.l.nextitem is defined }}{{ ns.l.changed(ns.l) }}{% macro m(x) %}{{ x.length }}{% endmacro %}{{ m(ns.l) }}"
      "{% for i in [1] %}{{ loop.changed([loop]) }}{% endfor %}{% set ns.self = ns %}{{ ns.self.self.l.index }}";
  const auto result = render(source);
  ASSERT_TRUE(result.has_value()) << result.status().to_string();
  EXPECT_EQ(*result, "2TrueFalseTrue2True2");
}

TEST(ChatTemplateErrors, NameLineAndReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\nb\n{% if x %}", "line 3: expected {% elif %} or {% else %} or {% endif %}, got the end of the template"},
      {"\n{{ 1 +\n }}", "line 3: expected an expression, got '}}'"},
      {"\n\n{{ x|frobnicate }}", "line 3: expected a filter that is offered, got 'frobnicate'"},
      {"\n{% include 'x' %}", "line 2: {% include %} is not offered in chat templates"},
      {"{# x #}\n{{ x.y }}", "line 2: 'x' is undefined"},
      {"{% macro m(a) %}\n{{ a + 1 }}{% endmacro %}\n\n{{ m('x') }}",
       "line 2: expected operands that + takes, got a str and a int"},
      {"{% for m in messages %}\n\n{{ raise_exception('bad ' ~ m.role) }}{% endfor %}",
       "line 3: the template refuses the conversation: bad user"},
      {"{{ messages[0].nope.x }}", "line 1: 'dict object' has no attribute 'nope'"},
      {"{{ 99999999999 * 99999999999 }}", "line 1: expected an integer of at most 64 bits as a result, got a larger one"},
      {"{{ '%d' % 5 }}", "line 1: formatting with % is not offered; use ~"},
      {"{% for x in y recursive %}{% endfor %}",
       "line 1: expected a plain loop, got a recursive one, which is not offered"},
      {"{% for x in [1] %}{% macro m() %}{% endmacro %}{% endfor %}",
       "line 1: expected macros outside of loops and of other macros, got one inside; that is not offered"},
  };
  for (const auto& [source, expected] : cases)
    EXPECT_EQ(error_of(source), std::string("chat template, ") + expected) << source;
}

TEST(ChatTemplateErrors, InputsAreChecked) {
  const auto message_error = [](const ChatMessage& message, const ChatOptions& options = {}) {
    const auto result = render("{{ messages|length }}{{ tools }}{{ x }}", options, {&message, 1});
    return result.has_value() ? std::string() : result.status().message();
  };
  EXPECT_NE(message_error({.role = "user", .content = "\xff"}).find("UTF-8"), std::string::npos);
  EXPECT_NE(message_error({.role = "user", .extra_json = "{"}).find("message 0: expected JSON"), std::string::npos);
  EXPECT_NE(message_error({.role = "user", .extra_json = "[1]"}).find("message 0: expected a JSON object"),
            std::string::npos);
  EXPECT_NE(message_error({.role = "user", .extra_json = R"({"n": 18446744073709551615})"}).find("64 bits"),
            std::string::npos);
  EXPECT_NE(message_error({.role = "user", .extra_json = R"({"n": 99999999999999999999999})"}).find("64 bits"),
            std::string::npos);
  EXPECT_NE(message_error({.role = "user", .extra_json = std::string(70, '[')}).find("64 levels"), std::string::npos);
  EXPECT_NE(message_error({.role = "u"}, {.tools_json = "{}"}).find("tools: expected a JSON array"), std::string::npos);
  EXPECT_NE(message_error({.role = "u"}, {.variables_json = "[]"}).find("variables: expected a JSON object"),
            std::string::npos);
  EXPECT_EQ(message_error({.role = "u"}, {.tools_json = "[]", .variables_json = R"({"x": 1})"}), "");
  EXPECT_FALSE(ChatTemplate::parse("a\xff").has_value());
}

TEST(ChatTemplateVariables, MessagesKeepTheirOrder) {
  const ChatMessage messages[] = {
      {.role = "user", .content = "c", .extra_json = R"({"name": "n", "content": null, "b": [1.0]})"},
      {.extra_json = R"({"z": 1, "role": "r", "a": {"y": 2, "x": 3}, "z": 4})"}};
  EXPECT_EQ(
      *render("{{ messages|tojson }}", {}, messages),
      R"([{"role": "user", "content": null, "name": "n", "b": [1.0]}, {"z": 4, "role": "r", "a": {"y": 2, "x": 3}}])");
}

TEST(ChatTemplateFiles, FoundWhereFoldersKeepThem) {
  const TemporaryFolder folder;
  const auto load = [&](std::string_view name = "default") -> std::string {
    const auto chat = ChatTemplate::load(folder.path(), name);
    if (!chat) return std::string(to_string(chat.status().code())) + ": " + chat.status().message();
    return chat->render(hello).value();
  };
  EXPECT_NE(load().find("not found"), std::string::npos);
  EXPECT_NE(load().find("no chat model"), std::string::npos) << load();
  folder.write("chat_template.json", R"({"chat_template": "json {{ messages[0].content }}"})");
  EXPECT_EQ(load(), "json Hello");
  folder.write("tokenizer_config.json",
               R"({"bos_token": {"content": "<b>", "special": true}, "eos_token": "</b>", "pad_token": null,
      "add_bos_token": true, "chat_template": "{{ bos_token }}text{{ eos_token }}{{ pad_token is defined }}{{ add_bos_token is defined }}"})");
  EXPECT_EQ(load(), "<b>text</b>FalseFalse");
  EXPECT_NE(load("tool_use").find("found one without a name"), std::string::npos);
  folder.write("tokenizer_config.json",
               R"({"chat_template": [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]})");
  EXPECT_EQ(load(), "one");
  EXPECT_EQ(load("tool_use"), "two");
  EXPECT_NE(load("rag").find("found 'default', 'tool_use'"), std::string::npos) << load("rag");
  folder.write("chat_template.jinja", "file\n{{ bos_token is defined }}\n");
  EXPECT_EQ(load(), "file\nFalse");
  folder.write("chat_template.jinja", "x\n{% if %}");
  EXPECT_NE(load().find("chat template, line 2"), std::string::npos) << load();
  folder.write("tokenizer_config.json", R"({"chat_template": [1]})");
  EXPECT_NE(load("x").find("expected objects with the strings name and template"), std::string::npos) << load("x");
  EXPECT_NE(load("../x").find("expected the name"), std::string::npos);
}

}  // namespace
}  // namespace rarefy
