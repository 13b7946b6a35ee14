"""All that scale `showo` reads, at tiny size and in the published layout: folders as `$COTLIB_WEIGHTS` holds them."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from cotlib.magvit import Magvit, MagvitConfig
from cotlib.prompts import CLASSES
from cotlib.showo import PHI_ROPE, Showo, ShowoConfig
from cotlib.words import END

BITS = 6
TOKENIZER = MagvitConfig(
    channels=32,
    encoder_widths=(1, 1, 1, 1, 1),
    encoder_blocks=(1, 1, 1, 1, 1),
    decoder_widths=(1, 1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1, 1),
    bits=BITS,
)


def write_everything(folder: Path) -> Path:
    """generator/ text-tokenizer/ tokenizer/ detector/ clip/."""
    torch.manual_seed(0)
    write_text_tokenizer(folder / "text-tokenizer")
    write_generator(folder / "generator", folder / "text-tokenizer")
    write_tokenizer(folder / "tokenizer")
    loud(Mask2FormerForUniversalSegmentation(detector_config())).save_pretrained(folder / "detector")
    write_clip(folder / "clip")
    return folder


def write_text_tokenizer(folder: Path) -> None:
    """Byte pairs without pairs, in the class that Phi-1.5's configuration names: every text is made of bytes."""
    folder.mkdir(parents=True)
    vocabulary = {piece: i for i, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), END])}
    bpe = Tokenizer(models.BPE(vocabulary, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens([END])
    bpe.save(str(folder / "tokenizer.json"))
    ends = {f"{name}_token": END for name in ("bos", "eos", "unk")}
    config = {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False, "model_max_length": 2048, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_generator(folder: Path, text_tokenizer: Path, n_tokens: int = 256, bits: int = BITS) -> None:
    """Show-o's weights under its own name, and a config.json without Phi's sizes; no text tokenizer beside them."""
    from cotlib.words import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = load_tokenizer(text_tokenizer)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = ShowoConfig(len(words), 2**bits, n_tokens, 129, **sizes, **PHI_ROPE)
    weights = {name: tensor.contiguous() for name, tensor in Showo(config, words).state_dict().items()}
    save_file(weights, folder / "pytorch_model.safetensors")
    published = {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "codebook_size": config.codebook_size,
        "llm_model_path": "microsoft/phi-1_5",
        "llm_vocab_size": config.llm_vocab_size,
        "mask_token_id": config.mask_id,
        "num_vq_tokens": n_tokens,
        "vocab_size": config.vocab_size,
        "w_clip_vit": False,
    }
    (folder / "config.json").write_text(json.dumps(published))


def write_tokenizer(folder: Path, config: MagvitConfig = TOKENIZER) -> None:
    """MAGVIT-v2's weights, and a config.json that holds no sizes."""
    Magvit(config).save_pretrained(folder)
    (folder / "config.json").write_text('{"_class_name": "MAGVITv2", "_diffusers_version": "0.30.1"}')


def detector_config() -> Mask2FormerConfig:
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = dict(feature_size=32, mask_feature_size=32, hidden_dim=32, num_attention_heads=2, num_queries=6)
    depths = dict(encoder_layers=1, encoder_feedforward_dim=24, decoder_layers=3, dim_feedforward=40)
    return Mask2FormerConfig(backbone_config=swin, id2label=dict(enumerate(CLASSES)), **sizes, **depths)


def loud(model: Mask2FormerForUniversalSegmentation) -> Mask2FormerForUniversalSegmentation:
    """A copy that is sure of what it says, so that it finds objects: a random network is sure of nothing."""
    model = copy.deepcopy(model)
    model.class_predictor.weight.data.mul_(60)
    return model


def write_clip(folder: Path, side: int = 32) -> None:
    """A random CLIP for pictures of `side` px, whose tokenizer knows single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz-"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ends = dict(bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1)
    text = dict(small, vocab_size=len(vocabulary), max_position_embeddings=77, **ends)
    vision = dict(small, image_size=side, patch_size=16)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side).save_pretrained(folder)
