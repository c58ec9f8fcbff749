"""Fields that would change the result and that are not implemented, each with the values that ask for nothing.

The names are those that OpenAI, vLLM, SGLang, llama.cpp's server, text-generation-webui and Ollama define. What matters
only beside one of these (``dry_base`` beside ``dry_multiplier``) is not listed, nor is what cannot change a text.
"""

from collections.abc import Mapping

Unsupported = Mapping[str, tuple[object, ...]]

_LLAMA_CPP_ORDER = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]

_CHOICES: Unsupported = {
    "use_beam_search": (False,),
    "num_beams": (1,),
    "length_penalty": (1,),
    "suffix": ("",),
}

_SAMPLING: Unsupported = {
    "preset": ("",),
    "typical_p": (1,),
    "typical": (1,),
    "typ_p": (1,),
    "tfs": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "min_keep": (0, 1),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "dynamic_temperature": (False,),
    "smoothing_factor": (0,),
    "adaptive_target": (-1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "do_sample": (True,),
    "temperature_last": (True,),
    "samplers": ([], _LLAMA_CPP_ORDER),
    "sampler_priority": ([],),
    "sampler_order": ([],),
    "penalty_prompt": ("",),
    "logits_processors": ([],),
    "custom_logit_processor": ("",),
    "watermark": (False,),
    "repetition_penalty_range": (),
    "penalize_newline": (True,),
}

_GRAMMAR: Unsupported = {
    "structural_tag": (),
    "format": ("",),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "banned_tokens": ([], ""),
    "banned_strings": ([],),
    "custom_token_bans": ("",),
    "stop_regex": ([], ""),
    "min_new_tokens": (0,),
    "ban_eos_token": (False,),
    "auto_max_new_tokens": (False,),
    "guided_whitespace_pattern": (),
    "grammar_lazy": (False,),
}

_PROMPT: Unsupported = {
    "truncate_prompt_tokens": (-1,),
    "truncate": (),
    "truncation_length": (),
    "prompt_embeds": (),
    "image_data": ([],),
    "images": ([],),
    "input_prefix": ("",),
    "input_suffix": ("",),
    "input_extra": ([],),
    "mm_processor_kwargs": ({},),
    "chat_template": (),
    "template": ("",),
    "system": ("",),
    "context": ([],),
    "raw": (False,),
    "num_ctx": (),
    "lora": ([],),
    "lora_path": (),
    "adapter_id": (),
    "add_bos_token": (True,),
    "character": ("",),
    "mode": ("instruct",),
    "instruction_template": ("",),
    "instruction_template_str": ("",),
    "chat_template_str": ("",),
    "impersonate": (False,),
    "options": ({},),
}

_REASONING: Unsupported = {
    "think": (),
    "thinking": (),
    "reasoning": ({},),
    "verbosity": ("medium",),
}

_RESULT: Unsupported = {
    "prompt_logprobs": (),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "return_tokens": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "response_fields": ([],),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "skip_special_tokens": (True,),
    "t_max_predict_ms": (0, -1),
    "n_indent": (0,),
    "num_predict": (),
    "vllm_xargs": ({},),
    "kv_transfer_params": ({},),
}

_TOOLS: Unsupported = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
    "modalities": (["text"],),
    "audio": (),
}

_BOTH: Unsupported = {**_CHOICES, **_SAMPLING, **_GRAMMAR, **_PROMPT, **_REASONING, **_RESULT, **_TOOLS}

CHAT: Unsupported = {**_BOTH, "best_of": (1,), "echo": (False,), "prompt": ("",), "add_special_tokens": (False,)}

COMPLETION: Unsupported = {
    **_BOTH,
    "messages": ([],),
    "enable_thinking": (),
    "reasoning_format": ("none", "auto"),
    "include_reasoning": (True,),
    "thinking_budget_tokens": (-1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "add_special_tokens": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "top_logprobs": (0,),
}
