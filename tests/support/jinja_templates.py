"""Chat templates that show what Jinja can do, SmolLM2's own, and some that never end."""

from __future__ import annotations

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "sep_token": "<sep>",
    "cls_token": "<cls>",
    "mask_token": "<mask>",
}
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "chatml": LOOP + "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content "
    "= '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}",
    "mistral": "{{ bos_token }}" + LOOP + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token}}{% endif %}"
    "{% endfor %}",
    "tools": "{%- if tools %}\n{{- '# Tools' }}\n{%- for tool in tools %}\n{{- tool | tojson }}\n"
    "{%- endfor %}\n{%- endif %}\n" + LOOP + "{%- if m.tool_calls %}\n{%- for call in m.tool_calls "
    "%}\n{{- '<tool_call>' ~ call.function.name ~ (call.function.arguments | tojson) }}\n"
    "{%- endfor %}\n{%- elif m.role == 'tool' %}\n<tool_response>{{ m.content }}\n{%- else %}\n"
    "{{- m.content is defined and m.content is string }}{{ m.content }}{%- endif %}\n{%- endfor %}",
    "tools is none": "{% if tools is none and documents is none %}none{% endif %}{{ tools }}",
    "generation": LOOP + "  {% if m.role == 'assistant' %}\n{% generation %}{{ m.content }}{{ "
    "eos_token }}{% endgeneration %}\n  {% else %}{{ m.content }}{% endif %}{% endfor %}",
    "every token": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}"
    "{{ cls_token }}{{ mask_token }}{{ other_token }}",
    "namespace": "{% set ns = namespace(n=0, seen=false) %}" + LOOP + "{% if m.role == 'system' %}"
    "{% set ns.seen = true %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% if ns.n > 4 %}"
    "{% break %}{% endif %}{{ ns.n ~ ':' ~ m.role }}{% endfor %}{{ ns.seen }}",
    "macro": "{% macro show(m, n=2) -%}\n{{ m.role | upper }}{{ caller() if caller }}{{ ' ' * n }}"
    "{%- endmacro %}" + LOOP + "{{ show(m) }}{% call show(m, 3) %}<{{ m.content }}>{% endcall %}"
    "{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}"
    "{% else %}nobody{% endfor %}",
    "dict": "{{ dict(a=1, **{'b': 2}) | tojson }}{{ dict.fromkeys(['x']) | tojson(indent=2) }}"
    "{{ messages | map(attribute='role') | join(',') }}{{ strftime_now('%Y') }}",
    "reasoning": LOOP + "{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}",
    "parts": LOOP + "{% if m.content is string %}{{ m.content }}{% elif m.content %}{% for part in "
    "m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}{% endif %}"
    "{% endfor %}",
    "formats": LOOP + "{{ '%s: %5d' % (m.role, loop.index) }}{{ '{} {:>4}'.format(m.role, 1) }}"
    "{{ m.role.ljust(12) }}{{ m.role|center(11) }}{{ 'a\nb'|indent(2) }}{{ [1] * 2 + [3] }}"
    "{% endfor %}",
}
# BIG is a text of 4 million characters: ten of it are more than a template may make.
RUNAWAY = {
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "text": "{{ 'a' * 10**10 }}",
    "list": "{{ [1] * 10**10 }}",
    "number": "{{ 10 ** 10000000000 }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "doubled": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{{ n.s }}",
    "added": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}{{ n.s }}",
    "padded": "{{ 'a'|center(10**10) }}",
    "method": "{{ 'a'.ljust(10**10) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "replace": "{{ ('a'*100000)|replace('a', 'b'*100000) }}",
    "lorem ipsum": "{{ lipsum(n=100000000) }}",
    "joined": "{{ ([BIG] * 10) | join }}",
    "joined with": "{{ ([1] * 10) | join(BIG) }}",
    "joined numbers": "{{ range(9999) | map('string') | join('a' * 9999) }}",
    "summed": "{{ ([[BIG]] * 10) | sum(start=[]) | join }}",
    "summed lists": "{% set x = [1] * 400000 %}{{ ([x] * 9) | sum(start=[]) | length }}",
    "batched": "{{ [1] | batch(40000000, 0) | list | length }}",
    "sliced": "{{ [1] | slice(40000000) | list | length }}",
    "wrapped": "{{ ('a ' * 9999) | wordwrap(1, wrapstring='b' * 9999) }}",
    "indented by a text": "{{ ('a\n' * 9999) | indent('b' * 9999) }}",
    "as json": "{{ ([BIG] * 10) | tojson }}",
    "as json, far apart": "{{ ([1] * 9999) | tojson(separators=('b' * 9999, ':')) }}",
    "as json, indented": "{{ ([1] * 9999) | tojson(indent='b' * 9999) }}",
    "named format": "{{ ('%(a)s' * 9) % {'a': BIG} }}",
    "format of fields": "{{ ('{0}' * 9).format(BIG) }}",
    "format of named fields": "{{ ('{a}' * 9).format(a=BIG) }}",
    "format by a map": "{{ ('{a}' * 9).format_map({'a': BIG}) }}",
    "filter of fields": "{{ ('%s' * 9) | format(BIG, BIG, BIG, BIG, BIG, BIG, BIG, BIG, BIG) }}",
    "translated": "{{ ('a' * 9999).translate({97: 'b' * 9999}) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(9999) }}",
    "bytes": "{{ 'a'.encode() * 40000000 }}",
    "bytes of a number": "{{ (1).to_bytes(40000000, 'big') | length }}",
    "rounded": "{{ 5 | round(-40000000) }}",
    "shown": "{{ [BIG] * 10 }}",
    "as text": "{{ ([BIG] * 10) | string | length }}",
    "in capitals": "{{ ([BIG] * 10) | upper | length }}",
    "beside": "{{ ([BIG] * 10) ~ 'a' }}",
    "output": "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
}
