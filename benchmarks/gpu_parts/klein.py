"""A FLUX.2 [klein] pipeline with random weights: `python -m gpu_parts.klein FOLDER real|tiny DEVICE DTYPE`.

Speed and memory depend on shapes, not on the values of weights, so the real shapes give honest figures without a
download. The pictures are noise. What is left out: the real tokenizer. One token stands for each byte here; a prompt is
padded to 512 tokens either way, so the text encoder does the same work.
"""

import importlib.util
import sys
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

TINY_KLEIN = Path(__file__).parents[2] / "tests" / "worker" / "tiny_klein.py"

# Source: `get_flux2_transformer_config("klein-4b")` in scripts/convert_flux2_to_diffusers.py of huggingface/diffusers,
# commit 207bae7a: the script that made the published checkpoint. Black Forest Labs' own code has the same figures
# (Klein4BParams: hidden_size 3072, 24 heads, depth 5, 20 single blocks, context 7680).
TRANSFORMER = MappingProxyType(
    {
        "patch_size": 1,
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,  # three layers of the text encoder, 2560 each
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "axes_dims_rope": (32, 32, 32, 32),
        "rope_theta": 2000,
        "eps": 1e-6,
        "guidance_embeds": False,
    }
)

# Source: that the encoder is Qwen/Qwen3-4B: `load_qwen3_embedder` in src/flux2/text_encoder.py of
# black-forest-labs/flux2, commit 618e49fc. Its figures: config.json of Qwen3-4B as Qwen publishes it.
TEXT_ENCODER = MappingProxyType(
    {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,  # assumed: configurations of Qwen3-4B differ here; of no weight, no cost
    }
)

# Source: `AutoencoderKLFlux2()` of diffusers 0.42.1: the conversion script above takes the class as it is. Written out,
# so that another version of diffusers does not change what is measured.
VAE = MappingProxyType(
    {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 32,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "patch_size": (2, 2),
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    }
)

# Assumed: that of FLUX.1 [dev], which the conversion script takes for FLUX.2 [dev]. It sets when a step is, not what
# it costs.
SCHEDULER = MappingProxyType(
    {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096}
)


def real_parts() -> dict[str, Any]:
    """The three models in klein-4B's shapes, on torch's default device and in its default number format."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return {
        "transformer": Flux2Transformer2DModel(**TRANSFORMER),
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(**TEXT_ENCODER)),
        "vae": AutoencoderKLFlux2(**VAE),
    }


def build(folder: str, shapes: str, device: str, dtype: str) -> None:
    """Write a pipeline to a folder: `tiny`, or `real` (about 16 GB), made on `device` since a CPU takes minutes."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    tiny_klein = _tiny_klein()
    if shapes == "tiny":
        tiny_klein.build(folder, "distilled")
        return
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        parts = real_parts()
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    tokenizer = tiny_klein.byte_tokenizer()
    Flux2KleinPipeline(scheduler=scheduler, tokenizer=tokenizer, is_distilled=True, **parts).save_pretrained(folder)


def _tiny_klein() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_klein", TINY_KLEIN)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(TINY_KLEIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    build(*sys.argv[1:5])
