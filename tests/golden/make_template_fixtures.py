#!/usr/bin/env python3
"""Makes the golden chat-template cases: what jinja2, set up as `transformers` sets it up, makes of templates and conversations.

    python3 tests/golden/make_template_fixtures.py OUT_DIR      # e.g. tests/golden/templates

Needs transformers and jinja2; seconds. OUT_DIR holds the templates *.jinja, which were written for this test in the style of
published ones, and gets cases.jsonl, one case a line:

    {"template": file name or "source": text, "messages": [...], "tools": ..., "add_generation_prompt": ..., "variables": {...},
     "output": text}            or, in place of output,
     "error": message           null when only the fact of an error counts; a text when the template itself raised it

The clock stands at NOW.
"""
import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

NOW = datetime.datetime(2026, 2, 3, 14, 5, 6)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
RAISED = "\x00raised\x00"

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather of a place – today's",
           "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                          "required": ["place"]}}}
ADD = {"type": "function", "function": {"name": "add", "description": "a + b < c & \"d\"", "parameters": {"type": "object",
       "properties": {"a": {"type": "number"}, "b": {"type": ["number", "null"]}}, "empty": {}, "none": [], "big": 1e20, "small": 1.5e-7}}}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def tool(content, **more):
    return {"role": "tool", "content": content, **more}


def text_block(text):
    return {"type": "text", "text": text}


CONVERSATIONS = [
    [user("Hello")],
    [user("  Hello,\n world \n\n"), assistant("  Hi! \n"), user("Bye\t")],
    [system("Be brief."), user("What is 2 + 2?")],
    [system(" Be brief.\n"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    [user("Grüße, 世界! 👩‍👩‍👧 e\u0301 \u2028 \u00a0"), assistant("\u3000Antwort\u3000"), user("naïve ‘quotes’ \"double\" 'single' \\ /")],
    [user("<|im_end|> {{ not a tag }} {% nor this %} {# nor that #}")],
    [user("")],
    [user("a"), assistant(""), user("b")],
    [system(""), user("x")],
    [user("one"), user("two")],
    [assistant("I begin")],
    [user("a"), system("late system"), user("b")],
    [system("only system")],
    [],
    [user([text_block(" first "), text_block("second")])],
    [user([{"type": "image"}, text_block("What is this?")])],
    [user([text_block("What is this?"), {"type": "image", "image": "x.png"}])],
    [system([text_block("System in blocks. ")]), user([text_block("hi")])],
    [system([{"type": "image"}]), user("hi")],
    [user([{"type": "audio", "data": "..."}])],
    [user([])],
    [user("weather?"), assistant("", tool_calls=[call("weather", {"place": "Zürich", "days": 2})]), tool("sunny"), assistant("Sunny."), user("thanks")],
    [user("weather?"), assistant(None, tool_calls=[call("weather", {"place": "Oslo"}, id="c1"), call("add", {"a": 1, "b": [1, 2.0, None, True]})]),
     tool("rain", name="weather"), tool("[1, 2]"), user("and?")],
    [user("call"), assistant("Let me see.", tool_calls=[call("add", {"a": 1.5, "b": {"deep": {"er": "ü\n"}}, "s": "text"})]), tool("2.5")],
    [user("call"), assistant("x", tool_calls=[call("add", '{"a": 1}')]), tool("done"), assistant("ok")],
    [user("call"), assistant("x", tool_calls=[call("add", "")]), tool({"result": 3, "list": ["a"]}), assistant("ok")],
    [user("call"), assistant("x", tool_calls=[{"name": "add", "arguments": {"a": -0.0, "b": 1e16, "c": 123456789012345678}}]), tool("r")],
    [user("q"), assistant("<think>\nfirst I\nthink\n</think>\n\nthen I say"), user("q2"), assistant("<think>more</think>done")],
    [user("q"), assistant("said", reasoning_content="  because \n"), user("again"), assistant("said", reasoning_content="since")],
    [user("<tool_response>x</tool_response>")],
    [user("q"), {"role": "critic", "content": "hm"}],
    [user("a\r\nb\rc"), assistant("tab\tnewline\n\n\nend"), user("x" * 300)],
    [user("a"), assistant("b", tool_calls=[]), user("c")],
    [user("a"), {"role": "assistant", "tool_calls": [call("weather", {})]}, tool("t")],
    [{"role": "hidden", "content": "secret"}, user("seen"), user("STOP"), user("unseen")],
]
VARIABLES = {
    "llama_style": [{}, {"date_string": "5 May 2025", "tools_in_user_message": False}],
    "qwen35_style": [{}, {"enable_thinking": False, "number_media": True}],
}
# With tools only where calls or plain questions are.
WITH_TOOLS = [0, 3, 21, 22, 23, 24]

# One feature each, with their error paths; what is not offered here must not stand here.
SNIPPETS = r"""
{{ 1 }}|{{ 1.0 }}|{{ 1e3 }}|{{ 1.5e-9 }}|{{ 1_000 }}|{{ 12345678901234567890.0 }}|{{ 0.1 + 0.2 }}|{{ 1e16 }}|{{ 123456789.0 }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ -7.5 // 2 }} {{ 7 / 2 }} {{ 6 / 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }}
{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ 10 - 4 - 3 }} {{ +5 }} {{ --5 }} {{ 1 + true }} {{ true + true }}
{{ 'a' + 'b' }} {{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] }} {{ [1] + [2] }} {{ [0] * 3 }} {{ (1, 2) + (3,) }}
{{ 'a' 'b' "c" }} {{ '\n\t\\\'\x41\u00e9\U0001F600\q' }} {{ "it's" }} {{ 'say "hi"' }} {{ '\101\0' | tojson }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' == 'a' }} {{ 'a' != 'b' }} {{ none == none }} {{ [1, 2] == [1, 2] }} {{ (1, 2) == [1, 2] }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }}
{{ 1 < 2 <= 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 'Z' < 'a' }} {{ [1, 2] < [1, 3] }} {{ 2 > 1 >= 1 }} {{ 'é' > 'z' }}
{{ 1 in [1, 2] }} {{ 'b' in 'abc' }} {{ '' in 'abc' }} {{ 'x' not in 'abc' }} {{ 'a' in {'a': 1} }} {{ 1 not in (1, 2) }} {{ 3 in range(5) }}
{{ not true }} {{ not not 1 }} {{ true and false }} {{ 1 and 2 }} {{ 0 or 'x' }} {{ '' or none }} {{ 1 and 0 or 3 }} {{ not 1 == 2 }}
{{ 'yes' if true else 'no' }} {{ 'yes' if false }}| {{ 'a' if false else 'b' if false else 'c' }} {{ (1 if true else 2) + 1 }}
{{ [1, 'two', 3.0, none, true, [4], {'k': 'v'}, (5,), ()] }} {{ {'a': 1, 2: 'b', none: true, 1.5: []} }} {{ (1) }} {{ (1, 2) }} {{ 1, 2 }}
{{ ["it's", 'say "hi"', 'both \' and "', 'new\nline', '\t', '\x00', '\x7f', 'é', '\u200b', '\u00ad', '😀', '\U000e0001', '\\'] }}
{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'äöü'[1] }} {{ 'abc'[9] }}| {{ [1, 2][5] }}| {{ [1, 2, 3][-2] }} {{ [[1, 2], [3]][0][1] }} {{ {'a': {'b': 'c'}}.a.b }} {{ {'a': 1}['a'] }} {{ {'a': 1}.x }}|
{{ 'abcdef'[1:3] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[::2] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[:-2] }} {{ 'abc'[5:] }}| {{ 'äöüß'[1:3] }} {{ 'abcdef'[4:1:-1] }} {{ 'abcdef'[-100:100] }}
{{ [1, 2, 3, 4][1:] }} {{ [1, 2, 3, 4][::-1] }} {{ [1, 2, 3, 4][-3:-1] }} {{ [1, 2, 3][:] }} {{ (1, 2, 3)[1:] }} {{ [1, 2, 3, 4][3:0:-2] }} {{ range(10)[2:5]|list }}
{{ [1, 2, 3].1 }} {{ 'abc'.0 }} {{ {'items': 5}['items'] }} {{ {'items': 5}.items is callable }} {{ {'x': 1}['get']('x') }}
{{ x }}|{{ x is defined }}|{{ x is undefined }}|{{ x|default('d') }}|{{ x or 'o' }}|{{ x|length }}|{{ x|list }}|{{ x == y }}|{{ x == none }}|{{ x ~ 'a' }}|{{ x|upper }}
{{ x is iterable }} {{ x is sequence }} {{ x is mapping }} {{ x is string }} {{ x is none }} {{ x is number }} {% for i in x %}never{% else %}empty{% endfor %} {{ 1 in x }}
{{ x.y }}
{{ x['y'] }}
{{ x + 1 }}
{{ x() }}
{{ x < 1 }}
{{ -x }}
{{ x|tojson }}
{{ x|int }}
{{ none.y }}| {{ (1).y }}| {{ true.x is defined }}
{{ none.y.z }}
{{ none() }}
{{ 'a'.nope() }}
{{ 1 + 'a' }}
{{ 'a' + 1 }}
{{ [] + () }}
{{ 'a' - 'b' }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ {} < {} }}
{{ 1 in 5 }}
{{ 1 in 'abc' }}
{{ none in 'abc' }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1.0 // 0 }}
{{ -'a' }}
{{ {[]: 1} }}
{% for i in 5 %}{% endfor %}
{% for i in none %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{% endfor %}
{% set a.b = 1 %}
{% set d = {} %}{% set d.b = 1 %}
{{ raise_exception('no: ' ~ 5) }}
{{ raise_exception() }}
{% if true %}{{ raise_exception("inner\nmessage 'quoted'") }}{% endif %}
{% if %}{% endif %}
{% if true %}
{% endif %}
{% for %}{% endfor %}
{% for x in [1] %}
{{ 
{{ }}
{{ 1 + }}
{{ (1 }}
{{ [1, 2 }}
{{ 'open }}
{{ 1 ! 2 }}
{{ a b }}
{{ a.1b }}
{{ {'a' 1} }}
{{ f(a=1, 2) }}
{{ x is }}
{{ x| }}
{% set %}
{% set 1 = 2 %}
{% set true = 2 %}
{% unknown %}
{% endif %}
{% break %}
{% continue %}
{% macro m(a=1, b) %}{% endmacro %}
{% macro m %}{% endmacro %}
{% raw %}never ends
{# never ends
{{ x is string is number }}
{% set x = 1 %}{{ x }} {% set x = x + 1 %}{{ x }} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% set (c, d) = [3, 4] %}{{ c }}{{ d }} {% set a, b = b, a %}{{ a }}{{ b }}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% for i in [1] %}{% set y = 5 %}{% endfor %}{{ y is defined }}
{% set ns = namespace(a=1, b='x') %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}{% set ns.c = 3 %}{{ ns.c }} {{ ns['a'] }}
{% set ns = namespace({'k': 1}, z=2) %}{{ ns.k }}{{ ns.z }}{% set ns.k, q = 5, 6 %}{{ ns.k }}{{ q }}
{% set ns = namespace(list=[]) %}{% for i in range(3) %}{% set ns.list = ns.list + [i * i] %}{% endfor %}{{ ns.list }}
{% set t %}  text {{ 1 + 1 }} {% endset %}[{{ t }}] {% set t | trim | upper %}  text {% endset %}[{{ t }}]
{% set x = 'out' %}{% set t %}{% set x = 'in' %}{{ x }}{% endset %}{{ t }}{{ x }}
{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }} {% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %} {% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}
{% for i in [1, 2, 3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}
{% for i in [1, 2, 3] %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}{% for i in [1] %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}
{% for i in [1, 2, 3, 4, 5] if i % 2 %}{{ i }}:{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}
{% for i in [] %}x{% else %}empty{% endfor %} {% for i in [1, 2] if i > 5 %}x{% else %}none{% endfor %} {% for i in [1] %}x{% else %}no{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %} {% for i in [1] %}{% break %}{% else %}else{% endfor %}
{% for i in [1, 2] %}{% for j in [1, 2] %}{{ loop.index }}{{ i }}{{ j }}{% if j == i %}{% break %}{% endif %}{% endfor %}-{{ loop.index }} {% endfor %}
{% for i in [1, 2, 3] %}{% set outer = loop %}{% for j in [4, 5] %}{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}
{% for c in 'añb' %}{{ c }}.{% endfor %} {% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %} {% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %} {% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for i in [1, 1, 2, 2, 1] %}{{ loop.changed(i) }}{{ loop.cycle('a', 'b', 'c') }} {% endfor %}
{% set ns = namespace(go=true) %}{% for i in range(6) if ns.go %}{{ i }}{% if i == 2 %}{% set ns.go = false %}{% endif %}{% endfor %}
{% set ns = namespace(go=true) %}{% for i in range(6) if ns.go %}{{ i }}{{ loop.last }}{% if i == 2 %}{% set ns.go = false %}{% endif %}{% endfor %}
{% macro m(a, b=2, c=a) %}[{{ a }},{{ b }},{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=5) }}{{ m(b=1, a=9) }}{{ m() }}
{% macro m(a) %}{% if a > 0 %}{{ a }}{{ m(a - 1) }}{% endif %}{% endmacro %}{{ m(5) }} {{ m(2)|length }} {{ m is callable }} {{ m(1) is string }}
{% set g = 'global' %}{% macro m() %}{{ g }}{% set g = 'local' %}{{ g }}{% endmacro %}{{ m() }}{{ g }}{% set g = 'changed' %}{{ m() }}
{% macro m(x) %}{{ x is defined }}{% endmacro %}{{ m() }}{{ m(none) }}{{ m(undefined_name) }}
{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1, 2) }}
{% macro m(x) %}{{ x }}{% endmacro %}{{ m(y=2) }}
{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1, x=2) }}
{% macro m() %}{% for i in [1, 2] %}{{ loop.index }}{% endfor %}{% endmacro %}{% for x in [1, 2] %}{{ m() }}{{ loop.index }} {% endfor %}
{% generation %}a{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}
{{ '  x '|trim }}|{{ 'xxaxx'|trim('x') }}|{{ ' \u3000\x1f a \u00a0'|trim }}|{{ 5|trim }}|{{ none|trim }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a-b-c'.split('-', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a b c'.split(None, 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'a--b'.split('--') }} {{ 'a-b-c'.rsplit('-', 1) }}
{{ '  x '.strip() }}|{{ '  x '.lstrip() }}|{{ '  x '.rstrip() }}|{{ 'xyax'.strip('xy') }}|{{ 'éaé'.strip('é') }}|{{ '\n\na\n'.rstrip('\n')|tojson }}
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'ab')) }} {{ 'abc'.endswith('bc') }} {{ 'abc'.endswith(()) }} {{ 'abc'.startswith('') }}
{{ 'Abc'.upper() }} {{ 'ABC'.lower() }} {{ 'hello wORLD'.title() }} {{ 'hELLO'.capitalize() }} {{ 'straße éà'.upper() }} {{ 'ÀÉ ДОМ'.lower() }} {{ "they're ok-go".title() }}
{{ 'aXbX'.replace('X', '--') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'abc'.replace('', '.') }} {{ 'banana'.find('na') }} {{ 'x'.find('y') }} {{ 'äbc'.index('c') }} {{ 'banana'.count('an') }} {{ 'abc'.count('') }}
{{ ', '.join(['a', 'b']) }} {{ ''.join([]) }}| {{ 'a\nb\r\nc\x0bd\u2028e'.splitlines() }} {{ 'ab'.isalpha() }} {{ '12'.isdigit() }} {{ ' '.isspace() }} {{ ''.isdigit() }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}
{{ ','.join([1]) }}
{{ 'a'.index('b') }}
{{ 'a'.split('') }}
{{ 'a'.upper(1) }}
{{ {'a': 1, 'b': 2}.keys()|list }} {{ {'a': 1}.values()|list }} {{ {'a': 1}.items()|list }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 5) }} {{ {'a': 1}|items|list }} {{ {'a': 1}|length }} {{ {}.items()|length }}
{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ [3].copy() }} {{ {'a': 1}.copy() }}
{{ [1].append }}|{{ [1].append is defined }}|{{ {}.update is defined }}
{{ [1].append(2) }}
{{ {'a': 1}.pop('a') }}
{{ {'a': 1}.update({'b': 2}) }}
{{ [3, 1].sort() }}
{{ [1, 2].index(5) }}
{{ 'abc'|length }} {{ 'äö😀'|length }} {{ [1, 2]|count }} {{ ''|length }} {{ range(5)|length }}
{{ 5|length }}
{{ none|length }}
{{ [1]|items|list }}
{{ 'a'|upper }} {{ 'A'|lower }} {{ 'hello wORLD-foo (bar)'|title }} {{ 'hELLO'|capitalize }} {{ 5|upper }} {{ none|upper }}
{{ none|default('d') }} {{ ''|default('d') }}| {{ ''|default('d', true) }} {{ x|d }}| {{ x|default(default_value=3) }} {{ false|default(1, boolean=true) }}
{{ [1, 2, 3]|first }} {{ [1, 2, 3]|last }} {{ 'abc'|first }} {{ 'abc'|last }} {{ []|first is defined }} {{ []|last }}| {{ {'a': 1}|first }}
{{ ['a', 1, none, true]|join }} {{ ['a', 'b']|join(', ') }} {{ 'abc'|join('-') }} {{ [{'n': 'x'}, {'n': 'y'}]|join('|', attribute='n') }} {{ [1, 2]|join(d=3) }}
{{ 'aXb'|replace('X', 'Y') }} {{ 'aaa'|replace('a', 'b', 1) }} {{ 123|replace(2, 5) }} {{ 'a'|replace('', '-') }}
{{ 'abc'|list }} {{ (1, 2)|list }} {{ {'a': 1}|list }} {{ range(2, 8, 3)|list }} {{ range(3, 0, -1)|list }} {{ range(0)|list }} {{ range(3) }} {{ range(1, 4) }}
{{ 'abc'|reverse }} {{ [1, 2, 3]|reverse|list }} {{ 'äö'|reverse }} {% for i in [1, 2]|reverse %}{{ i }}{% endfor %}
{{ [3, 1, 2]|sort }} {{ ['b', 'A', 'c']|sort }} {{ ['b', 'A', 'c']|sort(case_sensitive=true) }} {{ [3, 1, 2]|sort(reverse=true) }} {{ [{'a': 2}, {'a': 1}]|sort(attribute='a') }} {{ [{'a': {'b': 2}}, {'a': {'b': 1}}]|sort(attribute='a.b') }}
{{ [1, 'a']|sort }}
{{ ['a', 'A', 'b', 'a']|unique|list }} {{ [1, 2, 1]|unique|list }} {{ ['a', 'A']|unique(case_sensitive=true)|list }} {{ [{'k': 1, 'z': 1}, {'k': 1, 'z': 2}]|unique(attribute='k')|list }}
{{ [3, 1, 2]|min }} {{ [3, 1, 2]|max }} {{ ['b', 'A']|min }} {{ []|max is defined }} {{ [1, 2, 3]|sum }} {{ [{'n': 1}, {'n': 2}]|sum(attribute='n') }} {{ []|sum }} {{ [1.5, 2]|sum(start=10) }}
{{ {'b': 1, 'A': 2, 'c': 0}|dictsort }} {{ {'b': 1, 'A': 2}|dictsort(true) }} {{ {'b': 1, 'A': 2, 'c': 0}|dictsort(false, 'value') }} {{ {'a': 1, 'b': 2}|dictsort(reverse=true) }}
{{ '42'|int }} {{ '4.9'|int }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ 3.9|int }} {{ -3.9|int }} {{ 'ff'|int(0, 16) }} {{ ' 5 '|int }} {{ none|int }} {{ true|int }} {{ '-7'|int }} {{ '+7'|int }} {{ ''|int }}
{{ '4.5'|float }} {{ 'x'|float }} {{ 'x'|float(1.5) }} {{ 3|float }} {{ '1e3'|float }} {{ none|float }} {{ ' 2.5 '|float }}
{{ -5|abs }} {{ -5.5|abs }} {{ 2.5|round }} {{ 3.5|round }} {{ 2.675|round(2) }} {{ 42.55|round(1, 'floor') }} {{ 42.51|round(1, 'ceil') }} {{ 5|round }} {{ 2.5|round|int }} {{ (-2.5)|round }}
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2) }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 'a\nb'|indent('> ') }}|{{ 'a\n'|indent(2) }}|{{ ''|indent(3, true) }}|
{{ ['a', 'b']|map('upper')|list }} {{ [{'n': 1}, {'n': 2}]|map(attribute='n')|list }} {{ [{'n': 1}, {}]|map(attribute='n', default=0)|list }} {{ ['a,b']|map('replace', ',', ';')|list }} {{ [[1, 2]]|map('first')|list }} {{ [{'a': {'b': 3}}]|map(attribute='a.b')|join }} {{ [[1, 2], [3, 4]]|map(attribute=1)|list }}
{{ [0, 1, 2]|select|list }} {{ [0, 1, 2]|reject|list }} {{ [1, 2, 3]|select('odd')|list }} {{ [1, 2, 3]|reject('odd')|list }} {{ [1, 2, 3]|select('gt', 1)|list }} {{ ['a', 1]|select('string')|list }}
{{ [{'a': 1}, {'a': 0}, {}]|selectattr('a')|list }} {{ [{'a': 1}, {}]|rejectattr('a')|list }} {{ [{'a': 1}, {'a': 2}]|selectattr('a', 'equalto', 2)|list }} {{ [{'a': 1}, {}]|selectattr('a', 'defined')|list }} {{ [{'a': 1}, {'a': 2}]|rejectattr('a', 'eq', 1)|map(attribute='a')|list }} {{ [{'r': 'x'}]|selectattr('r', 'in', ['x', 'y'])|list }}
{% if [1]|select('gt', 5) %}true{% endif %} {% set g = [1, 2]|map('string') %}{{ g|join(',') }}-{{ g|join(',') }} {{ ([1, 2]|map('string'))[0] is defined }}
{{ ([1]|map('string'))|length }}
{{ [1]|map('string')|tojson }}
{{ {}.items()|tojson }}
{{ [1]|map('nope')|list }}
{{ {'a': 1, 'b': [1, 2.5, none, true, 'é"\\\n\x01\x7f/<>&\u2028'], 'c': {}, 'd': [], 'e': {'f': -0.0}}|tojson }}
{{ {'a': 1, 'b': [1, {'c': []}], 'd': {}}|tojson(indent=2) }}
{{ [1, [2, [3]]]|tojson(indent=4) }} {{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }} {{ {'b': 1, 'a': [1]}|tojson(separators=(',', ':')) }} {{ 'é😀'|tojson(ensure_ascii=true) }} {{ [1]|tojson(indent=0) }} {{ [1, 2]|tojson(indent='\t') }} {{ {'a': [1]}|tojson(indent=1, separators=(',', ': ')) }}
{{ 'a'|tojson }} {{ none|tojson }} {{ true|tojson }} {{ 1.0|tojson }} {{ 1e100|tojson }} {{ (1, 2)|tojson }} {{ {1: 'a', none: 'b', true: 'c', 1.5: 'd'}|tojson }} {{ 0.00001|tojson }} {{ 1e22|tojson }} {{ 5e-324|tojson }} {{ 1.7976931348623157e308|tojson }} {{ 100000.0|tojson }}
{{ range(3)|tojson }}
{{ {(1, 2): 3}|tojson }}
{{ namespace|tojson }}
{{ 'x'|safe }} {{ 5|string }} {{ [1]|string }} {{ none|string }} {{ ('<' ~ '>')|safe }} {{ 'a'|string|length }}
{{ 1 is number }} {{ 1.5 is float }} {{ 1 is integer }} {{ true is integer }} {{ true is boolean }} {{ true is number }} {{ 'a' is string }} {{ [] is sequence }} {{ {} is mapping }} {{ {} is sequence }} {{ 'a' is iterable }} {{ 5 is iterable }} {{ none is none }} {{ 0 is none }} {{ false is false }} {{ 0 is false }} {{ true is true }}
{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is eq 1 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 2 is ge 2 }} {{ 1 is in [1, 2] }} {{ 'a' is not string }} {{ 1 is not none }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'A1' is upper }} {{ '1' is upper }} {{ 5 is sameas 5 }} {{ raise_exception is callable }} {{ 'a' is callable }} {{ range is defined }} {{ nope is defined }}
{{ 'a' is string and 1 is number or false }} {{ x is defined and x.y }} {{ not x is defined }} {{ 1 is number if true else 2 }} {{ [1, 2] is sequence and [1, 2] is not string }} {{ 2 is in [1, 2] and true }}
{{ 'a' is odd }}
{{ 1 is nope }}
{{ 1|nope }}
{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j %%') }} {{ strftime_now('') }}|
{{ dict(a=1, b='x') }} {{ dict({'a': 1}, b=2) }} {{ dict() }}
{{ range(0, 10, 0) }}
{{ range('a') }}
{{ range() }}
{{ range(1000000) }}
a
  {% if true %}
    b
  {% endif %}
c
a {%- if true -%} b {%- endif -%} c
a {%+ if true +%} b {%+ endif +%} c
  {%+ if true %}
x{% endif +%}
y
  {{ 1 }}  
  {{- 2 -}}  
3
  {# comment #}
a {#- comment -#} b
x  {#+ c +#}
y
{% if true %}

two newlines
{% endif %}

end
{% raw %}{{ x }} {% if %} {# #}{% endraw %}|  {%- raw -%}  {{ y }}  {%- endraw -%}  |
line {% raw %}
  kept
  {% endraw %}
after
	{% set tab = 1 %}
	{{ tab }}
text with { and } and {single} and %} and }} and #}
{{ '}}' }} {{ "{{" }} {{ {'a': {'b': 1}}['a']['b'] }} {{ {'a':{}}}}
{{ '%}' }}{% if '%}' == '%}' %}ok{% endif %}
trailing newline is dropped

{{ messages|length }} {{ messages[0].role }} {{ bos_token }}{{ eos_token }} {{ add_generation_prompt }} {{ tools is none }} {{ tools }}
{{- '\n' }}{{ 'x' -}}


y
{% for m in messages -%}
  {{ m.role }}: {{ m['content'] }}
{% endfor -%}
done
{% set x = [1,
   2,
   3] %}{{ x
   | length }}
{{ "multi
line" }}
{% if 1 == 2 %}a{% elif 2 == 2 %}b{% elif true %}c{% else %}d{% endif %}{% if false %}a{% elif false %}b{% else %}c{% endif %}
{% if [] %}a{% endif %}{% if [0] %}b{% endif %}{% if '' %}c{% endif %}{% if ' ' %}d{% endif %}{% if 0.0 %}e{% endif %}{% if {} %}f{% endif %}{% if none %}g{% endif %}
{{ 'abc'|upper|lower|title|length }} {{ ('a' ~ 'b')|upper ~ 'c' }} {{ 'a'|upper + 'b'|upper }} {{ -1|abs }} {{ 1 + 2|abs }} {{ not 1|abs }}
{{ ''.__class__.__mro__ }}
{{ (1).__class__.__base__.__subclasses__() }}
{{ messages.__init__.__globals__ }}
{{ ''['__class__']['__mro__'] }}
{{ range.__globals__['x'] }}
{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}
""".strip("\n").split("\n")

# Snippets of several lines: joined here by the number of lines each takes, in the order of the text above.
def joined(lines):
    """Lines that belong together begin with a line that is in STARTS and take as many lines as it says."""
    starts = {"a": 4, "  {%+ if true %}": 3, "  {{ 1 }}  ": 3, "  {# comment #}": 1, "x  {#+ c +#}": 2, "{% if true %}": None,
              "line {% raw %}": 4, "\t{% set tab = 1 %}": 2, "{{- '\\n' }}{{ 'x' -}}": 4, "{% for m in messages -%}": 4,
              "{% set x = [1,": 4, "{{ \"multi": 2, "trailing newline is dropped": 2}
    out, i, seen_if = [], 0, 0
    while i < len(lines):
        count = starts.get(lines[i], 1)
        if lines[i] == "{% if true %}":
            seen_if += 1
            count = 2 if seen_if == 1 else 5
        if lines[i] == "a":
            count = 5
        out.append("\n".join(lines[i:i + count]) + ("\n" if lines[i].startswith("trailing") else ""))
        i += count
    return out


def render(source, messages, tools, add_generation_prompt, variables):
    """{"output": ...} or {"error": ...}."""
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(RAISED + str(message))

    try:
        template = _compile_jinja_template(source)
        output = template.render(messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
                                 raise_exception=raise_exception, strftime_now=NOW.strftime, **TOKENS, **variables)
        output.encode("utf-8")
        return {"output": output}
    except Exception as error:  # whatever Python raises inside a template is an error of the template
        message = str(error)
        return {"error": message[len(RAISED):] if message.startswith(RAISED) else None}


def main():
    folder = pathlib.Path(sys.argv[1])
    cases = []

    def add(where, source, messages, tools=None, add_generation_prompt=True, variables=None):
        case = {**where, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt,
                "variables": variables or {}}
        cases.append({**case, **render(source, messages, tools, add_generation_prompt, variables or {})})

    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for number, conversation in enumerate(CONVERSATIONS):
            for variables in VARIABLES.get(path.stem, [{}]):
                add({"template": path.name}, source, conversation, None, number % 3 != 1, variables)
                if number in WITH_TOOLS:
                    add({"template": path.name}, source, conversation, [WEATHER, ADD][:1 + number % 2], True, variables)
    plain = [user("Hi"), assistant("Yo")]
    for source in joined(SNIPPETS):
        add({"source": source}, source, plain)
    with open(folder / "cases.jsonl", "w", encoding="utf-8") as file:
        for case in cases:
            file.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")
    errors = sum("error" in case for case in cases)
    from_templates = sum("template" in case for case in cases)
    print(f"{len(cases)} cases ({from_templates} conversations through templates), {errors} of them errors")


if __name__ == "__main__":
    main()
