"""Write a training state as a Hugging Face folder (LlamaForCausalLM, bf16, model.safetensors).

Use: python3 export.py --state STATE/state.pt --tokenizer DATA/tokenizer.json --out models/NAME
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from model import Config, Llama


def hugging_face_tensors(model: Llama):
    c = model.config
    tensors = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    for i, layer in enumerate(model.layers):
        q, k, v = layer.qkv.split((c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim))
        gate, up = layer.gate_up.chunk(2)
        named = {"input_layernorm": layer.norm_1, "post_attention_layernorm": layer.norm_2, "self_attn.q_proj": q,
                 "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": layer.out, "mlp.gate_proj": gate,
                 "mlp.up_proj": up, "mlp.down_proj": layer.down}
        tensors |= {f"model.layers.{i}.{name}.weight": value for name, value in named.items()}
    return {name: value.detach().to(torch.bfloat16).contiguous().cpu() for name, value in tensors.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = Llama(Config())
    model.load_state_dict(torch.load(args.state, map_location="cpu", weights_only=False)["model"])
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face_tensors(model), args.out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    vocab = {t["content"]: t for t in json.loads(args.tokenizer.read_text())["added_tokens"]}
    bos, eos = vocab["<|begin_of_text|>"]["id"], vocab["<|end_of_text|>"]["id"]
    c = model.config

    def write(name, content):
        (args.out / name).write_text(json.dumps(content, indent=2) + "\n")

    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": bos,
        "dtype": "bfloat16", "eos_token_id": eos, "head_dim": c.head_dim, "hidden_act": "silu",
        "hidden_size": c.hidden_size, "initializer_range": 0.02, "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_positions, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": c.num_q_heads, "num_hidden_layers": c.num_layers,
        "num_key_value_heads": c.num_kv_heads, "pretraining_tp": 1, "rms_norm_eps": c.rms_norm_eps,
        "rope_parameters": {"rope_theta": c.rope_theta, "rope_type": "default"}, "rope_theta": c.rope_theta,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": c.vocab_size})
    write("generation_config.json", {"_from_model_config": True, "bos_token_id": bos, "eos_token_id": eos})
    write("tokenizer_config.json", {
        "added_tokens_decoder": {str(t["id"]): {key: t[key] for key in (
            "content", "lstrip", "normalized", "rstrip", "single_word", "special")} for t in vocab.values()},
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": False, "eos_token": "<|end_of_text|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": c.max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast"})


if __name__ == "__main__":
    main()
