"""Chat templates that do what those of well-known families do, written anew and shorter.

Each keeps what matters to rendering: white space, what is stripped, what is refused, what is put in
or left out. Tools are left out.
"""

from __future__ import annotations

TURNS = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
LOOP = "{% for m in messages %}"
REST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
    " + m.content | trim + '<|eot_id|>' %}{{ bos_token + text if loop.first else text }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Ends a conversation with eos_token, and leaves an empty system message out.
PHI_3 = (
    LOOP + "{% if m.role == 'system' and m.content %}{{ '<|system|>\n' + m.content + '<|end|>\n' }}"
    "{% elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}"
    "{% endif %}"
)
# The first Phi-3: knows no system message, and always ends the user's turn with the assistant's.
PHI_3_FIRST = (
    "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n"
    "<|assistant|>\n' }}{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}"
    "{% endfor %}"
)
# The line breaks after the expressions are part of what it renders.
ZEPHYR = """{% for m in messages %}
{% if m.role == 'user' %}
{{ '<|user|>\n' + m.content + eos_token }}
{% elif m.role == 'system' %}
{{ '<|system|>\n' + m.content + eos_token }}
{% elif m.role == 'assistant' %}
{{ '<|assistant|>\n' + m.content + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + LOOP + TURNS + "{% set role ="
    " 'model' if m.role == 'assistant' else m.role %}{{ '<start_of_turn>' + role + '\n' + m.content"
    " | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system message opens the first user's, each trimmed by itself or not at all.
GEMMA_3 = (
    "{{ bos_token }}" + REST + "{% for m in rest %}" + TURNS + "{{ '<start_of_turn>' + ('model' if "
    "m.role == 'assistant' else m.role) + '\n' + (system + '\n\n' if loop.first and system is "
    "defined else '') }}{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system message and the user's are stripped as one.
LLAMA_2 = (
    REST + "{% for m in rest %}" + TURNS + "{% if loop.first and system is defined %}{% set text ="
    " '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}{% else %}{% set text = m.content %}"
    "{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
# Mistral 7B v0.3: the system message is put into the last message, if that is the user's.
MISTRAL_3 = (
    REST + "{{ bos_token }}{% for m in rest %}" + TURNS + "{% if m.role == 'user' %}{% if loop.last"
    " and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m.content | trim + "
    "eos_token }}{% endif %}{% endfor %}"
)
QWEN_2_5 = (
    "{%- if messages[0].role == 'system' %}\n{{- '<|im_start|>system\n' + messages[0].content + "
    "'<|im_end|>\n' }}\n{%- else %}\n{{- '<|im_start|>system\nYou are Qwen, created by Alibaba "
    "Cloud. You are a helpful assistant.<|im_end|>\n' }}\n{%- endif %}\n" + LOOP + "{%- if m.role "
    "== 'user' or m.role == 'system' and not loop.first or m.role == 'assistant' %}\n"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}\n{%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\n' }}\n"
    "{%- endif %}\n"
)
# Thinking is taken out of every answer but the last, by what the content says.
QWEN_3 = (
    LOOP + "{% if m.role == 'assistant' %}{% set text = m.content %}{% if '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{% if loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + text.lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>assistant\n' + text + '<|im_end|>\n' }}{% endif %}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The last answer ends without the line break of the others.
TULU = (
    LOOP + "{% if m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}"
    "{{ '' if loop.last else '\n' }}{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}"
    "{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)
# Knows a system message only as the first, has one of its own, and skips any later one.
VICUNA = (
    REST + "{{ system if system is defined else 'A chat between a curious user and an assistant.' "
    "}}{{ '\n\n' }}{% for m in rest %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Roles in turn after a system message of its own turn.
COMMAND_R = (
    REST + "{{ bos_token }}{% if system is defined %}{{ '<|SYSTEM|>' + system + '<|END|>' }}"
    "{% endif %}{% for m in rest %}" + TURNS + "{{ ('<|USER|>' if m.role == 'user' else "
    "'<|CHATBOT|>') + m.content.strip() + '<|END|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|CHATBOT|>' }}{% endif %}"
)
LLAMA_3_2 = LLAMA_3.replace(
    LOOP, "{{ 'Today is ' + strftime_now('%d %b %Y') + '\n' }}" + LOOP
)  # and so another text every day

FAMILIES = {
    "Llama 3": LLAMA_3,
    "Phi-3": PHI_3,
    "Phi-3, the first": PHI_3_FIRST,
    "Zephyr": ZEPHYR,
    "Gemma": GEMMA,
    "Gemma 3": GEMMA_3,
    "Llama 2": LLAMA_2,
    "Mistral v0.3": MISTRAL_3,
    "Qwen2.5": QWEN_2_5,
    "Tulu": TULU,
    "Vicuna": VICUNA,
    "Command R": COMMAND_R,
}
NOT_PLAIN = {"Qwen3": QWEN_3, "Llama 3.2": LLAMA_3_2}
